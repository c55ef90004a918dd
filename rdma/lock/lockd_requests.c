/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What sessions say about a slot's queue, and their end. Protocol: lockd.h. */
#include "rdma/lock/lockd_internal.h"

void df_queue_ask(struct df_lockd *lockd, df_u32 node, const struct df_msg_ask *ask)
{
	struct df_object *object = df_object_find(lockd, ask->head.slot);
	struct df_waiter *waiter;
	union df_msg grant;

	for (waiter = object ? object->head : NULL; waiter; waiter = waiter->next) {
		/* By key: an Ask for the key that the slot had before may still stand in the queue. */
		if (waiter->kind == DF_WAITER_ASK && waiter->node == node && !waiter->state &&
		    waiter->key == ask->head.key) {
			df_lockd_drop(lockd, node, DF_DROP_DUPLICATE);
			return;
		}
	}
	lockd->count.asks++;
	waiter = lockd->grace ? NULL : df_waiter_new(lockd, DF_WAITER_ASK, node, &ask->head);
	if (waiter) {
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

/* The waiter of this session, if it waits for a mode beside one that it holds. */
static void note_kept(struct df_object *object, df_u32 node, df_u32 kept)
{
	struct df_waiter *waiter;

	for (waiter = object->head; waiter; waiter = waiter->next)
		if (waiter->kind == DF_WAITER_ASK && waiter->node == node && !waiter->state &&
		    df_covers(waiter->held, kept))
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
		note_kept(object, node, released->kept);
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
	struct df_waiter *waiter, *before = NULL;

	for (waiter = object ? object->head : NULL; waiter; before = waiter, waiter = waiter->next)
		if (waiter->kind == DF_WAITER_ASK && waiter->node == node && !waiter->state &&
		    waiter->seq == head->seq && waiter->key == head->key)
			break;
	/* Answered meanwhile, or about to be granted: that is the answer. */
	if (!waiter || in_batch(object, waiter))
		return;
	df_queue_unlink(object, before, waiter);
	df_queue_answer(lockd, object, waiter, DF_GRANT_CANCELLED);
	df_queue_touch(lockd, object);
}

void df_queue_session_gone(struct df_lockd *lockd, struct df_object *object, df_u32 node)
{
	struct df_waiter *waiter, *before = NULL, *next;

	for (waiter = object->head; waiter; waiter = next) {
		next = waiter->next;
		if (waiter->kind == DF_WAITER_ASK && waiter->node == node && !waiter->state) {
			if (!in_batch(object, waiter)) {
				df_queue_unlink(object, before, waiter);
				df_waiter_free(lockd, waiter);
				continue;
			}
			waiter->state =
				1; /* the CAS in flight must end first; `node` says what it grants */
		}
		before = waiter;
	}
	df_owes_clear(object, node);
	if (df_repair_in_progress(object))
		df_repair_session_gone(lockd, object);
	else
		df_queue_touch(lockd, object);
}
