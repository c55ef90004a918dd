/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Glimpse: what an X holder has changed, without taking its lock. READ, ask the holder, READ again, answer. */
#include "rdma/lock/lockd_internal.h"

static void reply(struct df_lockd *lockd, struct df_waiter *glimpse, df_u32 status,
		  const struct df_slot *image)
{
	union df_msg message;

	if (glimpse->node) {
		df_msg_init(&message, DF_MSG_GLIMPSE_REPLY, glimpse->slot, glimpse->key,
			    glimpse->seq);
		message.glimpse_reply.status = (df_u8)status;
		if (status == DF_GLIMPSE_OK) {
			message.glimpse_reply.fresh = glimpse->fresh;
			message.glimpse_reply.word = image->word;
			message.glimpse_reply.version = image->version;
			message.glimpse_reply.value = image->value;
		}
		df_lockd_send(lockd, glimpse->node, &message);
	}
	df_waiter_free(lockd, glimpse);
}

static void look(struct df_lockd *lockd, struct df_waiter *glimpse, df_u32 state)
{
	struct df_chain chain;

	df_chain_init(&chain, state, glimpse->slot);
	df_chain_read(&chain, df_slot_offset(glimpse->slot), DF_SLOT_SIZE);
	df_waiter_post(lockd, glimpse, state, &chain);
}

void df_glimpse(struct df_lockd *lockd, df_u32 node, const struct df_msg_head *head)
{
	struct df_waiter *glimpse =
		lockd->grace ? NULL : df_waiter_new(lockd, DF_WAITER_GLIMPSE, node, head);
	union df_msg message;

	lockd->count.glimpses++;
	if (glimpse) {
		look(lockd, glimpse, DF_GLIMPSE_FIRST);
		return;
	}
	df_msg_init(&message, DF_MSG_GLIMPSE_REPLY, head->slot, head->key, head->seq);
	message.glimpse_reply.status = DF_GLIMPSE_BUSY;
	df_lockd_send(lockd, node, &message);
}

static void ask_holder(struct df_lockd *lockd, struct df_waiter *glimpse, df_u32 owner)
{
	struct df_lockd_session *session = &lockd->session[owner];
	union df_msg message;

	glimpse->asked = df_lockd_next_seq(lockd);
	glimpse->state = DF_GLIMPSE_AWAIT;
	glimpse->list_next = session->glimpses;
	session->glimpses = glimpse;
	df_msg_init(&message, DF_MSG_GLIMPSE, glimpse->slot, glimpse->key, glimpse->asked);
	df_lockd_send(lockd, owner, &message);
}

void df_glimpse_chain_done(struct df_lockd *lockd, struct df_waiter *glimpse,
			   const struct df_slot *image)
{
	df_u32 owner = df_word_owner(image->word);

	if (image->key != glimpse->key)
		reply(lockd, glimpse, DF_GLIMPSE_STALE, image);
	else if (glimpse->state == DF_GLIMPSE_FIRST && owner != glimpse->node && owner &&
		 df_lockd_is_live(lockd, owner))
		ask_holder(lockd, glimpse, owner);
	else
		reply(lockd, glimpse, DF_GLIMPSE_OK, image);
}

void df_glimpse_done(struct df_lockd *lockd, df_u32 node, const struct df_msg_glimpsed *glimpsed)
{
	struct df_waiter **link = &lockd->session[node].glimpses, *glimpse;

	if (glimpsed->head.seq > lockd->seq) {
		df_lockd_drop(lockd, node, DF_DROP_ANSWER);
		return;
	}
	while ((glimpse = *link)) {
		if (glimpse->slot != glimpsed->head.slot || glimpse->key != glimpsed->head.key ||
		    glimpse->asked > glimpsed->head.seq) {
			link = &glimpse->list_next;
			continue;
		}
		*link = glimpse->list_next;
		glimpse->fresh = glimpsed->published;
		look(lockd, glimpse, DF_GLIMPSE_LAST);
	}
}

static void forget_asker(struct df_lockd *lockd, struct df_lockd_session *holder, df_u32 node)
{
	struct df_waiter **link = &holder->glimpses, *glimpse;

	while ((glimpse = *link)) {
		if (glimpse->node == node) {
			*link = glimpse->list_next;
			df_waiter_free(lockd, glimpse);
		} else {
			link = &glimpse->list_next;
		}
	}
}

void df_glimpse_session_gone(struct df_lockd *lockd, df_u32 node)
{
	struct df_lockd_session *session;
	struct df_waiter *glimpse;

	for (session = lockd->live; session; session = session->next)
		forget_asker(lockd, session, node);
	while ((glimpse = lockd->session[node].glimpses)) {
		lockd->session[node].glimpses = glimpse->list_next;
		look(lockd, glimpse, DF_GLIMPSE_LAST);
	}
}
