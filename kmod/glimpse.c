// SPDX-License-Identifier: GPL-2.0-only
/* Glimpses: the contract is in glimpse.h. */
#include <linux/completion.h>
#include <linux/slab.h>

#include "connection.h"
#include "glimpse.h"
#include "lock.h"
#include "session.h"

#define DFS_GLIMPSE_FIRST_SEQ (1ull << 48)
#define DFS_GLIMPSE_LUCK 4u

struct dfs_glimpse_request {
	struct list_head sent; /* session->glimpses.sent; empty: answered, or cut */
	u64 key;
	u64 seq;
	bool left;
	int result;
	struct df_value value;
	struct completion ended;
};

void dfs_glimpses_open(struct dfs_session *session)
{
	INIT_LIST_HEAD(&session->glimpses.sent);
	session->glimpses.next_seq = DFS_GLIMPSE_FIRST_SEQ;
	session->glimpses.luck = DFS_GLIMPSE_LUCK;
}

/* Under session->spin. */
static void dfs_glimpse_ended(struct dfs_session *session, struct dfs_glimpse_request *request,
			      int result)
{
	list_del_init(&request->sent);
	session->glimpses.count--;
	if (request->left) {
		kfree(request);
		return;
	}
	request->result = result;
	complete(&request->ended);
}

void dfs_glimpses_cut(struct dfs_session *session)
{
	struct dfs_glimpse_request *request, *next;

	spin_lock_bh(&session->spin);
	list_for_each_entry_safe(request, next, &session->glimpses.sent, sent)
		dfs_glimpse_ended(session, request, -EAGAIN);
	spin_unlock_bh(&session->spin);
}

static int dfs_glimpse_result(struct dfs_glimpse_request *request,
			      const struct df_msg_glimpse_reply *reply)
{
	if (reply->status != DF_GLIMPSE_OK)
		return -EAGAIN;
	request->value = reply->value;
	return reply->fresh && (reply->value.flags & DF_VALUE_PUBLISHED);
}

int dfs_glimpse_reply(struct dfs_session *session, u32 epoch, const union df_msg *message)
{
	struct dfs_glimpse_request *request;
	int error = 0;

	spin_lock_bh(&session->spin);
	if (session->epoch != epoch)
		goto out;
	error = -EPROTO;
	list_for_each_entry(request, &session->glimpses.sent, sent)
	{
		if (request->seq != message->head.seq || request->key != message->head.key)
			continue;
		error = 0;
		dfs_glimpse_ended(session, request,
				  dfs_glimpse_result(request, &message->glimpse_reply));
		break;
	}
out:
	spin_unlock_bh(&session->spin);
	return error;
}

static int dfs_glimpse_send(struct dfs_lock *lock, struct dfs_glimpse_request *request)
{
	struct dfs_session *session = lock->session;
	union df_msg message;
	u32 slot, epoch;
	int error = -EAGAIN;

	spin_lock_bh(&lock->spin);
	slot = lock->core.slot;
	epoch = lock->epoch;
	spin_unlock_bh(&lock->spin);
	if (slot == DF_NO_SLOT)
		return -EAGAIN;
	spin_lock_bh(&session->spin);
	if (session->epoch == epoch && session->live && session->link &&
	    session->glimpses.count < max(session->files.asks / 4, 1u)) {
		request->seq = session->glimpses.next_seq++;
		session->glimpses.count++;
		list_add_tail(&request->sent, &session->glimpses.sent);
		df_msg_init(&message, DF_MSG_GLIMPSE, slot, request->key, request->seq);
		dfs_count(session->connection, messages_sent);
		dfs_link_send(session->link, &message);
		error = 0;
	}
	spin_unlock_bh(&session->spin);
	return error;
}

/* The thread was killed. True: the request is not ours any more. */
static bool dfs_glimpse_leave(struct dfs_session *session, struct dfs_glimpse_request *request)
{
	bool left;

	spin_lock_bh(&session->spin);
	left = !list_empty(&request->sent);
	request->left = left;
	spin_unlock_bh(&session->spin);
	return left;
}

/*
 * A glimpse that finds nobody writing was a round trip for nothing, as S has to be asked for then. A guess: where the last ones were for nothing, one in 16 is tried.
 */
static bool dfs_glimpse_worth(struct dfs_glimpses *glimpses)
{
	return READ_ONCE(glimpses->luck) || ++glimpses->tried % 16 == 0;
}

static void dfs_glimpse_learn(struct dfs_glimpses *glimpses, bool writing)
{
	u32 luck = READ_ONCE(glimpses->luck);

	if (writing)
		WRITE_ONCE(glimpses->luck, DFS_GLIMPSE_LUCK);
	else if (luck)
		WRITE_ONCE(glimpses->luck, luck - 1);
}

int dfs_glimpse(struct dfs_lock *lock, struct df_value *value)
{
	struct dfs_glimpses *glimpses = &lock->session->glimpses;
	struct dfs_glimpse_request *request;
	int result;

	if (!dfs_glimpse_worth(glimpses))
		return -EAGAIN;
	request = kzalloc(sizeof(*request), GFP_KERNEL);
	if (!request)
		return -EAGAIN;
	INIT_LIST_HEAD(&request->sent);
	init_completion(&request->ended);
	request->key = lock->key;
	result = dfs_glimpse_send(lock, request);
	if (!result && wait_for_completion_killable(&request->ended)) {
		if (dfs_glimpse_leave(lock->session, request))
			return -EINTR;
		result = -EINTR;
	} else if (!result) {
		dfs_count(lock->session->connection, glimpses);
		result = request->result;
		*value = request->value;
		if (result >= 0)
			dfs_glimpse_learn(glimpses, result && (value->flags & DF_VALUE_WRITING));
	}
	kfree(request);
	return result;
}
