/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The queue of a contended slot: order, grants, revokes. Protocol: lockd.h. */
#include "rdma/lock/lockd_internal.h"

#define BATCH 32 /* Grants by one CAS */

int df_owes(const struct df_object *object, df_u32 node)
{
	return object->owes[node / 64] >> (node % 64) & 1u;
}

void df_owes_set(struct df_object *object, df_u32 node)
{
	object->owing += !df_owes(object, node);
	object->owes[node / 64] |= 1ull << (node % 64);
}

int df_owes_clear(struct df_object *object, df_u32 node)
{
	int owed = df_owes(object, node);

	object->owing -= (df_u32)owed;
	object->owes[node / 64] &= ~(1ull << (node % 64));
	return owed;
}

/* --- objects ------------------------------------------------------------------------------ */

static df_u32 hash_of(const struct df_lockd *lockd, df_u32 slot)
{
	return (slot * 0x9e3779b1u >> 8) & lockd->hash_mask;
}

struct df_object *df_object_find(struct df_lockd *lockd, df_u32 slot)
{
	struct df_object *object = lockd->hash[hash_of(lockd, slot)];

	while (object && object->slot != slot)
		object = object->hash_next;
	return object;
}

/* ORDER: the bit before the READ; whoever is counted then took the lock without seeing it. */
static void arm(struct df_lockd *lockd, struct df_object *object)
{
	struct df_chain chain;

	df_chain_init(&chain, DF_OBJECT_ARMING, object->slot);
	df_chain_faa(&chain, df_slot_offset(object->slot), DF_CONTENDED);
	df_chain_read(&chain, df_slot_offset(object->slot), DF_SLOT_SIZE);
	df_object_post(lockd, object, DF_OBJECT_ARMING, &chain);
}

static void disarm(struct df_lockd *lockd, struct df_object *object)
{
	struct df_chain chain;

	df_chain_init(&chain, DF_OBJECT_DISARMING, object->slot);
	df_chain_faa(&chain, df_slot_offset(object->slot), DF_CONTENDED); /* -2^63 is 2^63 */
	df_object_post(lockd, object, DF_OBJECT_DISARMING, &chain);
}

static struct df_object *object_new(struct df_lockd *lockd, df_u32 slot)
{
	struct df_object *object = lockd->free_objects;
	df_u64 *owes;

	if (!object)
		return NULL;
	lockd->free_objects = object->hash_next;
	owes = object->owes;
	memset(object, 0, sizeof(*object));
	object->owes = owes;
	object->slot = slot;
	object->hash_next = lockd->hash[hash_of(lockd, slot)];
	lockd->hash[hash_of(lockd, slot)] = object;
	object->list_next = lockd->objects;
	if (lockd->objects)
		lockd->objects->list_prev = object;
	lockd->objects = object;
	lockd->count.objects++;
	return object;
}

static void object_free(struct df_lockd *lockd, struct df_object *object)
{
	struct df_object **link = &lockd->hash[hash_of(lockd, object->slot)];

	while (*link != object)
		link = &(*link)->hash_next;
	*link = object->hash_next;
	if (object->list_prev)
		object->list_prev->list_next = object->list_next;
	else
		lockd->objects = object->list_next;
	if (object->list_next)
		object->list_next->list_prev = object->list_prev;
	object->hash_next = lockd->free_objects;
	lockd->free_objects = object;
	lockd->count.objects--;
}

/* --- the queue ---------------------------------------------------------------------------- */

int df_queue_add(struct df_lockd *lockd, df_u32 slot, struct df_waiter *waiter)
{
	struct df_object *object = df_object_find(lockd, slot);
	int fresh = !object;

	if (fresh)
		object = object_new(lockd, slot);
	if (!object)
		return -1;
	waiter->next = NULL;
	waiter->prev = object->tail;
	object->stale |= waiter->kind == DF_WAITER_ASK && waiter->key != object->looked;
	if (object->tail)
		object->tail->next = waiter;
	else
		object->head = waiter;
	object->tail = waiter;
	if (fresh)
		arm(lockd, object);
	else
		df_queue_touch(lockd, object);
	return 0;
}

struct df_waiter *df_queue_pop(struct df_object *object)
{
	struct df_waiter *waiter = object->head;

	object->head = waiter->next;
	if (object->head)
		object->head->prev = NULL;
	else
		object->tail = NULL;
	object->stage = DF_STAGE_NOBODY;
	return waiter;
}

void df_queue_unlink(struct df_object *object, struct df_waiter *waiter)
{
	if (object->head == waiter) {
		df_queue_pop(object);
		return;
	}
	waiter->prev->next = waiter->next;
	if (waiter->next)
		waiter->next->prev = waiter->prev;
	else
		object->tail = waiter->prev;
}

void df_queue_answer(struct df_lockd *lockd, struct df_object *object, struct df_waiter *waiter,
		     df_u32 status)
{
	union df_msg grant;

	df_msg_init(&grant, DF_MSG_GRANT, object->slot, waiter->key, waiter->seq);
	grant.grant.status = (df_u8)status;
	if (status == DF_GRANTED) {
		grant.grant.mode = waiter->want;
		grant.grant.version = object->image.version;
		grant.grant.value = object->image.value;
	}
	df_lockd_send(lockd, waiter->node, &grant);
	df_waiter_free(lockd, waiter);
}

/*
 * Those who asked for the key that the slot had before. Not before a Revoke is answered: what they held is given up in the word, but its
 * completion may still be on its way to them, and they take STALE only when nothing is held or in flight. The queue is looked through when the
 * slot has another key than at the last look, or somebody with another one was left or came since.
 */
static void answer_stale(struct df_lockd *lockd, struct df_object *object)
{
	struct df_waiter *waiter = object->head, *next;

	if (!object->stale && object->looked == object->image.key)
		return;
	object->looked = object->image.key;
	object->stale = 0;
	for (; waiter; waiter = next) {
		next = waiter->next;
		if (waiter->kind != DF_WAITER_ASK || waiter->key == object->image.key)
			continue;
		if (df_owes(object, waiter->node)) {
			object->stale = 1;
		} else {
			df_queue_unlink(object, waiter);
			df_queue_answer(lockd, object, waiter, DF_GRANT_STALE);
		}
	}
}

df_u32 df_lockd_slot_waiters(const struct df_lockd *lockd, df_u32 slot, df_u32 *nodes, df_u32 most)
{
	const struct df_object *object = lockd->hash[hash_of(lockd, slot)];
	const struct df_waiter *waiter;
	df_u32 count = 0;

	while (object && object->slot != slot)
		object = object->hash_next;
	for (waiter = object ? object->head : NULL; waiter; waiter = waiter->next, count++)
		if (count < most)
			nodes[count] =
				waiter->kind == DF_WAITER_FIND ? DF_NODE_LOCKD : waiter->node;
	return count;
}

/* --- granting ----------------------------------------------------------------------------- */

static df_u32 field_count(df_u64 word, df_u32 mode)
{
	switch (mode) {
	case DF_IS:
		return df_word_is(word);
	case DF_IX:
		return df_word_ix(word);
	case DF_S:
		return df_word_s(word);
	default:
		return 1;
	}
}

static df_u32 word_node(const struct df_waiter *waiter)
{
	return waiter->kind == DF_WAITER_FIND ? DF_NODE_LOCKD : waiter->node;
}

/* The word with this waiter granted, if it can be beside the others. */
static int admit(const struct df_object *object, const struct df_waiter *waiter, df_u64 *word)
{
	df_u64 others;

	if (waiter->kind == DF_WAITER_ASK && df_owes(object, waiter->node))
		return 0; /* what it holds is about to change */
	if (!field_count(*word, waiter->held))
		return 0;
	others = *word - df_unit(waiter->held, waiter->node);
	if (!df_word_admits(others, waiter->want))
		return 0;
	*word = others + df_unit(waiter->want, word_node(waiter));
	return 1;
}

void df_chain_hints(struct df_chain *chain, struct df_object *object)
{
	df_chain_write(chain, df_slot_offset(object->slot) + offsetof(struct df_slot, hints), 64,
		       object->image.hints, DF_HINTS);
}

/* ORDER: hints before the word, as clients do it. X: whoever was hinted holds nothing any more. */
static int grant_batch(struct df_lockd *lockd, struct df_object *object)
{
	df_u64 word = object->image.word & ~DF_CONTENDED;
	struct df_waiter *waiter;
	struct df_chain chain;

	object->batch = 0;
	for (waiter = object->head; waiter && object->batch < BATCH; waiter = waiter->next) {
		if (!admit(object, waiter, &word))
			break;
		object->batch++;
		if (waiter->want == DF_X)
			memset(object->image.hints, 0, DF_HINTS);
		else
			object->image.hints[waiter->node % DF_HINTS] = 1;
	}
	if (!object->batch)
		return 0;
	object->expected = object->image.word;
	object->desired = word | DF_CONTENDED;
	df_chain_init(&chain, DF_OBJECT_GRANTING, object->slot);
	df_chain_hints(&chain, object);
	df_chain_cas(&chain, df_slot_offset(object->slot), object->expected, object->desired);
	df_chain_read(&chain, df_slot_offset(object->slot), DF_SLOT_SIZE);
	df_object_post(lockd, object, DF_OBJECT_GRANTING, &chain);
	return 1;
}

static void post_read(struct df_lockd *lockd, struct df_object *object, df_u64 addend)
{
	struct df_chain chain;

	df_chain_init(&chain, DF_OBJECT_READING, object->slot);
	if (addend)
		df_chain_faa(&chain, df_slot_offset(object->slot), addend);
	df_chain_read(&chain, df_slot_offset(object->slot), DF_SLOT_SIZE);
	object->recheck = 0;
	df_object_post(lockd, object, DF_OBJECT_READING, &chain);
}

static void granted(struct df_lockd *lockd, struct df_object *object)
{
	df_u64 dead = 0; /* granted to sessions that went meanwhile: taken off again */

	if (object->head->kind == DF_WAITER_FIND) {
		df_find_rekey(lockd, object, object->head);
		return;
	}
	for (; object->batch; object->batch--) {
		struct df_waiter *waiter = df_queue_pop(object);

		if (waiter->state) { /* see df_queue_session_gone */
			dead += df_unit(waiter->want, waiter->node);
			waiter->node = 0;
			df_waiter_free(lockd, waiter);
			continue;
		}
		lockd->count.grants++;
		df_queue_answer(lockd, object, waiter, DF_GRANTED);
	}
	if (dead)
		post_read(lockd, object, 0 - dead);
	else
		df_queue_pump(lockd, object);
}

static void grant_done(struct df_lockd *lockd, struct df_object *object, df_u64 old)
{
	struct df_waiter *waiter, *next;
	df_u32 left;

	object->state = DF_OBJECT_READY;
	if (old == object->expected) {
		granted(lockd, object);
		return;
	}
	left = object->batch;
	object->batch = 0;
	for (waiter = object->head; left--; waiter = next) {
		next = waiter->next;
		if (waiter->kind == DF_WAITER_ASK && waiter->state) {
			df_queue_unlink(object, waiter);
			waiter->node = 0;
			df_waiter_free(lockd, waiter);
		}
	}
	df_queue_pump(lockd, object);
}

/* --- revoking ----------------------------------------------------------------------------- */

static void revoke(struct df_lockd *lockd, struct df_object *object, df_u32 node)
{
	union df_msg message;

	df_msg_init(&message, DF_MSG_REVOKE, object->slot, object->image.key, object->revoke_seq);
	message.revoke.wanted = object->wanted;
	df_owes_set(object, node);
	lockd->count.revokes++;
	df_lockd_send(lockd, node, &message);
}

static void revoke_unless_spared(struct df_lockd *lockd, struct df_object *object, df_u32 node)
{
	if (node != object->spared && df_lockd_is_live(lockd, node))
		revoke(lockd, object, node);
}

static void revoke_all(struct df_lockd *lockd, struct df_object *object)
{
	const struct df_lockd_session *session;

	for (session = lockd->live; session; session = session->next)
		revoke_unless_spared(lockd, object, session->node);
}

/* The nodes that one hint stands for are 64 apart; where few of many node ids are live, the live ones are fewer still. */
static void revoke_hinted(struct df_lockd *lockd, struct df_object *object)
{
	const struct df_lockd_session *session;
	df_u32 hint, node, set = 0;

	for (hint = 0; hint < DF_HINTS; hint++)
		set += object->image.hints[hint] != 0;
	if (set * (lockd->config.sessions / DF_HINTS + 1) > lockd->count.sessions) {
		for (session = lockd->live; session; session = session->next)
			if (object->image.hints[session->node % DF_HINTS])
				revoke_unless_spared(lockd, object, session->node);
		return;
	}
	for (hint = 0; hint < DF_HINTS; hint++)
		for (node = hint; object->image.hints[hint] && node <= lockd->config.sessions;
		     node += DF_HINTS)
			revoke_unless_spared(lockd, object, node);
}

/* Asks the next stage of holders. The head itself, if it holds, keeps what it has. */
static void revoke_stage(struct df_lockd *lockd, struct df_object *object)
{
	const struct df_waiter *head = object->head;
	df_u32 owner = df_word_owner(object->image.word);

	object->stage++;
	object->revoke_seq = df_lockd_next_seq(lockd);
	object->wanted = head->want;
	object->spared = head->kind == DF_WAITER_ASK && head->held != DF_NL ? head->node : 0;
	if (object->stage == DF_STAGE_ALL)
		revoke_all(lockd, object);
	else if (owner)
		revoke_unless_spared(lockd, object, owner);
	else
		revoke_hinted(lockd, object);
}

/* The head cannot be granted. In grace nobody is asked to give up anything: it may come again. */
static void blocked(struct df_lockd *lockd, struct df_object *object)
{
	df_u32 owner = df_word_owner(object->image.word);

	if (object->recheck) {
		post_read(lockd, object, 0);
		return;
	}
	if (object->owing)
		return;
	if (lockd->grace) {
		struct df_waiter *head = df_queue_pop(object);

		if (head->kind == DF_WAITER_FIND)
			df_find_busy(lockd, head);
		else
			df_queue_answer(lockd, object, head, DF_GRANT_BUSY);
		df_queue_pump(lockd, object);
		return;
	}
	if (owner && !df_lockd_is_live(lockd, owner)) {
		df_repair_clear_owner(lockd, object);
		return;
	}
	while (object->stage < DF_STAGE_ALL) {
		revoke_stage(lockd, object);
		if (object->owing)
			return;
	}
	df_repair_freeze(lockd, object);
}

void df_queue_pump(struct df_lockd *lockd, struct df_object *object)
{
	answer_stale(lockd, object);
	if (object->head) {
		if (!grant_batch(lockd, object))
			blocked(lockd, object);
		return;
	}
	/* An answer that is still owed must find this object: its session may ask again before it. */
	if (!object->owing)
		disarm(lockd, object);
}

void df_queue_touch(struct df_lockd *lockd, struct df_object *object)
{
	object->recheck = 1;
	if (object->state == DF_OBJECT_READY)
		post_read(lockd, object, 0);
}

void df_queue_chain_done(struct df_lockd *lockd, struct df_object *object, df_u64 old,
			 const struct df_slot *image)
{
	df_u32 state = object->state;

	if (image)
		object->image = *image;
	switch (state) {
	case DF_OBJECT_ARMING:
		if (df_word_contended(old)) { /* nobody but us sets it: put it right and go on */
			arm(lockd, object);
			return;
		}
		object->state = DF_OBJECT_READY;
		df_queue_pump(lockd, object);
		break;
	case DF_OBJECT_READING:
		object->state = DF_OBJECT_READY;
		df_queue_pump(lockd, object);
		break;
	case DF_OBJECT_GRANTING:
		grant_done(lockd, object, old);
		break;
	case DF_OBJECT_REKEYING:
		df_find_rekeyed(lockd, object, old);
		break;
	case DF_OBJECT_DISARMING:
		if (!df_word_contended(old))
			disarm(lockd, object);
		else if (object->head)
			arm(lockd, object);
		else
			object_free(lockd, object);
		break;
	default:
		df_repair_chain_done(lockd, object, old, image);
		break;
	}
}
