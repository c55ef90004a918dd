/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What sessions say about a slot's queue, and their end. Protocol: lockd.h. */
#include "rdma/lock/lockd_internal.h"

/* --- Asks by slot and node ---------------------------------------------------------------- */

static struct df_waiter **ask_chain(struct df_lockd *lockd, df_u32 node, df_u32 slot)
{
	df_u64 both = ((df_u64)slot << 16 | node) * 0x9e3779b97f4a7c15ull;

	return &lockd->ask[(df_u32)(both >> 32) & lockd->ask_mask];
}

/* By key: an Ask for the key that the slot had before may still stand in the queue. */
struct df_waiter *df_ask_find(struct df_lockd *lockd, df_u32 node, df_u32 slot, df_u64 key)
{
	struct df_waiter *ask = *ask_chain(lockd, node, slot);

	while (ask && (ask->node != node || ask->slot != slot || ask->key != key))
		ask = ask->list_next;
	return ask;
}

void df_ask_insert(struct df_lockd *lockd, struct df_waiter *ask)
{
	struct df_waiter **chain = ask_chain(lockd, ask->node, ask->slot);

	ask->list_next = *chain;
	*chain = ask;
}

void df_ask_remove(struct df_lockd *lockd, struct df_waiter *ask)
{
	struct df_waiter **link = ask_chain(lockd, ask->node, ask->slot);

	while (*link != ask)
		link = &(*link)->list_next;
	*link = ask->list_next;
}

/* --- messages ----------------------------------------------------------------------------- */

void df_queue_ask(struct df_lockd *lockd, df_u32 node, const struct df_msg_ask *ask)
{
	struct df_waiter *waiter;
	union df_msg grant;

	if (df_ask_find(lockd, node, ask->head.slot, ask->head.key)) {
		df_lockd_drop(lockd, node, DF_DROP_DUPLICATE);
		return;
	}
	lockd->count.asks++;
	waiter = lockd->grace ? NULL : df_waiter_new(lockd, DF_WAITER_ASK, node, &ask->head);
	if (waiter) {
		df_ask_insert(lockd, waiter);
		waiter->want = ask->want;
		waiter->held = ask->held;
		if (!df_queue_add(lockd, ask->head.slot, waiter))
			return;
		df_waiter_free(lockd, waiter);
	}
	df_msg_init(&grant, DF_MSG_GRANT, ask->head.slot, ask->head.key, ask->head.seq);
	grant.grant.status = DF_GRANT_BUSY;
	df_lockd_send(lockd, node, &grant);
}

/* The session's waiter for the slot's key, if it waits for a mode beside one that it holds. */
static void note_kept(struct df_lockd *lockd, struct df_object *object, df_u32 node, df_u32 kept)
{
	struct df_waiter *waiter = df_ask_find(lockd, node, object->slot, object->image.key);

	if (waiter && df_covers(waiter->held, kept))
		waiter->held = (df_u8)kept;
}

void df_queue_released(struct df_lockd *lockd, df_u32 node, const struct df_msg_released *released)
{
	struct df_object *object = df_object_find(lockd, released->head.slot);
	df_u64 seq = released->head.seq;

	if (seq > lockd->seq) {
		df_lockd_drop(lockd, node, DF_DROP_ANSWER);
		return;
	}
	if (!object)
		return;
	if (seq && seq == object->revoke_seq && !df_repair_in_progress(object) &&
	    df_owes(object, node)) {
		if (!df_compatible(released->kept, object->wanted)) {
			df_lockd_drop(lockd, node, DF_DROP_ANSWER); /* owes it until it is gone */
			return;
		}
		df_owes_clear(object, node);
	}
	if (released->head.key == object->image.key && object->state != DF_OBJECT_ARMING)
		note_kept(lockd, object, node, released->kept);
	df_queue_touch(lockd, object);
}

/* Whether the CAS in flight grants to it. */
static int in_batch(const struct df_object *object, const struct df_waiter *waiter)
{
	const struct df_waiter *other = object->head;
	df_u32 i;

	for (i = 0; object->state == DF_OBJECT_GRANTING && i < object->batch; i++) {
		if (other == waiter)
			return 1;
		other = other->next;
	}
	return 0;
}

void df_queue_cancel(struct df_lockd *lockd, df_u32 node, const struct df_msg_head *head)
{
	struct df_object *object = df_object_find(lockd, head->slot);
	struct df_waiter *waiter = df_ask_find(lockd, node, head->slot, head->key);

	/* Answered meanwhile, or about to be granted: that is the answer. */
	if (!waiter || waiter->seq != head->seq || in_batch(object, waiter))
		return;
	df_queue_unlink(object, waiter);
	df_queue_answer(lockd, object, waiter, DF_GRANT_CANCELLED);
	df_queue_touch(lockd, object);
}

void df_queue_session_gone(struct df_lockd *lockd, struct df_object *object, df_u32 node)
{
	struct df_waiter *waiter, *next;

	for (waiter = object->head; waiter; waiter = next) {
		next = waiter->next;
		if (waiter->kind != DF_WAITER_ASK || waiter->node != node || waiter->state)
			continue;
		if (in_batch(object, waiter)) {
			/* The CAS in flight must end first; `node` says what it grants. */
			df_ask_remove(lockd, waiter);
			waiter->state = 1;
		} else {
			df_queue_unlink(object, waiter);
			df_waiter_free(lockd, waiter);
		}
	}
	df_owes_clear(object, node);
	if (df_repair_in_progress(object))
		df_repair_session_gone(lockd, object);
	else
		df_queue_touch(lockd, object);
}
