/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What dead sessions left in a word that somebody needs.
 *
 * A dead X owner is plain to see: one CAS. Counts have no names: every live session is frozen on the slot, says what it has
 * there, and the word is set to the sum. While all are frozen the word can change only by sessions that join meanwhile;
 * they are asked too, and the CAS expects a word that was read after the last State.
 */
#include "rdma/lock/lockd_internal.h"

/* The dead owner may have written the file without a word to us: nobody may trust the value block or old pages. */
static void chain_distrust(struct df_chain *chain, struct df_object *object)
{
	struct df_slot *image = &object->image;

	image->version = df_version_next(image->version);
	memset(&image->value, 0, sizeof(image->value));
	df_chain_write(chain, df_slot_offset(object->slot) + offsetof(struct df_slot, version), 0,
		       &image->version, sizeof(image->version) + sizeof(image->value));
}

void df_repair_clear_owner(struct df_lockd *lockd, struct df_object *object)
{
	df_u64 word = object->image.word;
	struct df_chain chain;

	lockd->count.repairs++;
	df_chain_init(&chain, DF_OBJECT_CLEARING, object->slot);
	chain_distrust(&chain, object);
	df_chain_cas(&chain, df_slot_offset(object->slot), word, word & ~DF_WORD_OWNER_MASK);
	df_chain_read(&chain, df_slot_offset(object->slot), DF_SLOT_SIZE);
	df_object_post(lockd, object, DF_OBJECT_CLEARING, &chain);
}

static void send_all(struct df_lockd *lockd, struct df_object *object, df_u32 type)
{
	const struct df_lockd_session *session;
	union df_msg message;

	df_msg_init(&message, type, object->slot, object->image.key, object->freeze_seq);
	for (session = lockd->live; session; session = session->next)
		df_lockd_send(lockd, session->node, &message);
}

static void thaw(struct df_lockd *lockd, struct df_object *object)
{
	send_all(lockd, object, DF_MSG_THAW);
	object->state = DF_OBJECT_READY;
	object->stage = DF_STAGE_NOBODY;
	df_queue_pump(lockd, object);
}

/* ORDER: the word is read after the last State, and the CAS expects what was read. */
static void post_sum(struct df_lockd *lockd, struct df_object *object)
{
	struct df_chain chain;

	df_chain_init(&chain, DF_OBJECT_SUMMING, object->slot);
	df_chain_read(&chain, df_slot_offset(object->slot), DF_SLOT_SIZE);
	df_object_post(lockd, object, DF_OBJECT_SUMMING, &chain);
}

static void post_repair(struct df_lockd *lockd, struct df_object *object)
{
	df_u32 owner = df_word_owner(object->image.word), i;
	struct df_chain chain;

	lockd->count.repairs++;
	for (i = 0; i < DF_HINTS; i++)
		object->image.hints[i] = object->sharers >> i & 1u;
	object->expected = object->image.word;
	object->desired = object->sum | DF_CONTENDED;
	df_chain_init(&chain, DF_OBJECT_REPAIRING, object->slot);
	df_chain_hints(&chain, object);
	/* A dead holder of IX may have changed at the servers what the block speaks of. Beside X there was none. */
	if (owner != df_word_owner(object->sum) ||
	    (!owner && df_word_ix(object->image.word) > df_word_ix(object->sum)))
		chain_distrust(&chain, object);
	df_chain_cas(&chain, df_slot_offset(object->slot), object->expected, object->desired);
	df_chain_read(&chain, df_slot_offset(object->slot), DF_SLOT_SIZE);
	df_object_post(lockd, object, DF_OBJECT_REPAIRING, &chain);
}

void df_repair_freeze(struct df_lockd *lockd, struct df_object *object)
{
	const struct df_lockd_session *session;

	lockd->count.freezes++;
	object->state = DF_OBJECT_FREEZING;
	object->refreeze = 0;
	object->freeze_seq = df_lockd_next_seq(lockd);
	object->sum = 0;
	object->sharers = 0;
	for (session = lockd->live; session; session = session->next)
		df_owes_set(object, session->node);
	send_all(lockd, object, DF_MSG_FREEZE);
	if (!object->owing)
		post_sum(lockd, object);
}

static void note_state(struct df_lockd *lockd, struct df_object *object, df_u32 node, df_u32 held)
{
	struct df_waiter *waiter = df_ask_find(lockd, node, object->slot, object->image.key);

	object->sum += df_unit(held, node);
	if (held != DF_NL && held != DF_X)
		object->sharers |= 1ull << (node % DF_HINTS);
	if (waiter)
		waiter->held = (df_u8)held;
}

/* All but the spared one have just answered a Revoke, and nothing was granted since. */
static int believable(const struct df_object *object, df_u32 node, df_u32 held)
{
	if (held == DF_X && df_word_owner(object->image.word) != node)
		return 0;
	return node == object->spared || df_compatible(held, object->wanted);
}

void df_repair_state(struct df_lockd *lockd, df_u32 node, const struct df_msg_state *state)
{
	struct df_object *object = df_object_find(lockd, state->head.slot);

	if (state->head.seq > lockd->seq) {
		df_lockd_drop(lockd, node, DF_DROP_ANSWER);
		return;
	}
	if (!object || !df_repair_in_progress(object) || state->head.seq != object->freeze_seq ||
	    !df_owes(object, node))
		return; /* of a Freeze that was begun anew, or of one that ended without it */
	if (!believable(object, node, state->held)) {
		df_lockd_drop(lockd, node, DF_DROP_STATE);
		return;
	}
	df_owes_clear(object, node);
	note_state(lockd, object, node, state->held);
	if (!object->owing && object->state == DF_OBJECT_FREEZING)
		post_sum(lockd, object);
}

/* It holds nothing yet, but its first attempts may come any time. */
void df_repair_session_joined(struct df_lockd *lockd, struct df_object *object, df_u32 node)
{
	union df_msg message;

	if (!df_repair_in_progress(object))
		return;
	df_owes_set(object, node);
	df_msg_init(&message, DF_MSG_FREEZE, object->slot, object->image.key, object->freeze_seq);
	df_lockd_send(lockd, node, &message);
}

/* What it said is part of the sum perhaps: begin anew. Who is frozen already answers again. */
void df_repair_session_gone(struct df_lockd *lockd, struct df_object *object)
{
	if (object->state == DF_OBJECT_FREEZING)
		df_repair_freeze(lockd, object);
	else
		object->refreeze = 1;
}

static void summing_done(struct df_lockd *lockd, struct df_object *object)
{
	if (object->owing)
		object->state = DF_OBJECT_FREEZING; /* somebody joined */
	else if (object->image.word == (object->sum | DF_CONTENDED))
		thaw(lockd, object);
	else
		post_repair(lockd, object);
}

static void repairing_done(struct df_lockd *lockd, struct df_object *object, df_u64 old)
{
	df_u32 node;

	if (old == object->expected) {
		for (node = 1; object->owing;
		     node++) /* who joined just now is thawed with the others */
			df_owes_clear(object, node);
		thaw(lockd, object);
	} else if (object->owing) {
		object->state = DF_OBJECT_FREEZING;
	} else {
		post_sum(lockd, object);
	}
}

void df_repair_chain_done(struct df_lockd *lockd, struct df_object *object, df_u64 old,
			  const struct df_slot *image)
{
	(void)image;
	if (object->state == DF_OBJECT_CLEARING) {
		object->state = DF_OBJECT_READY;
		df_queue_pump(lockd, object);
	} else if (object->refreeze) {
		df_repair_freeze(lockd, object);
	} else if (object->state == DF_OBJECT_SUMMING) {
		summing_done(lockd, object);
	} else {
		repairing_done(lockd, object, old);
	}
}
