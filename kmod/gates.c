// SPDX-License-Identifier: GPL-2.0-only
/* Frozen slots: chains that are parked, and answers to Freeze. Protocol: rdma/lock/client.h, "Freeze"; the shell's part: session.h. */
#include "lock.h"
#include "session.h"

static struct dfs_gate *dfs_gate_of(struct dfs_session *session, u32 slot)
{
	return &session->gates[slot % DFS_GATES];
}

static void dfs_freezes_answer(struct work_struct *work);

void dfs_gates_init(struct dfs_session *session)
{
	u32 i;

	for (i = 0; i < DFS_GATES; i++)
		INIT_LIST_HEAD(&session->gates[i].parked);
	INIT_WORK(&session->freeze_work, dfs_freezes_answer);
}

/* Under session->spin. False: parked. */
bool dfs_gate_enter(struct dfs_session *session, struct dfs_post *post)
{
	struct dfs_gate *gate = dfs_gate_of(session, post->chain.slot);

	if (gate->frozen) {
		list_add_tail(&post->link, &gate->parked);
		return false;
	}
	gate->inside++;
	return true;
}

void dfs_session_leave(struct dfs_session *session, u32 slot)
{
	struct dfs_gate *gate = dfs_gate_of(session, slot);
	bool answer;

	spin_lock_bh(&session->spin);
	answer = gate->inside && --gate->inside == 0 && gate->frozen;
	spin_unlock_bh(&session->spin);
	if (answer)
		queue_work(session->machine_queue, &session->freeze_work);
}

/* Under session->spin. The entry of this slot; with `make` a new one, NULL if there is no room. */
static struct dfs_frozen *dfs_frozen_of(struct dfs_session *session, u32 slot, bool make)
{
	struct dfs_frozen *free = NULL;
	u32 i;

	for (i = 0; i < DFS_FROZEN; i++) {
		struct dfs_frozen *frozen = &session->frozen[i];

		if (frozen->used && frozen->freeze.head.slot == slot)
			return frozen;
		if (!frozen->used && !free)
			free = frozen;
	}
	return make ? free : NULL;
}

static int dfs_freeze(struct dfs_session *session, const union df_msg *message)
{
	struct dfs_frozen *frozen = dfs_frozen_of(session, message->head.slot, true);

	if (!frozen)
		return -EPROTO;
	if (!frozen->used)
		dfs_gate_of(session, message->head.slot)->frozen++;
	frozen->used = true;
	frozen->answered = false;
	frozen->freeze = *message;
	queue_work(session->machine_queue, &session->freeze_work);
	return 0;
}

/* What was parked goes on, in its order. Under session->spin. */
static void dfs_thaw(struct dfs_session *session, const union df_msg *message)
{
	struct dfs_frozen *frozen = dfs_frozen_of(session, message->head.slot, false);
	struct dfs_gate *gate = dfs_gate_of(session, message->head.slot);
	struct dfs_post *post, *next;

	if (!frozen)
		return;
	frozen->used = false;
	if (--gate->frozen || !session->link)
		return;
	list_for_each_entry_safe(post, next, &gate->parked, link)
	{
		list_del_init(&post->link);
		gate->inside++;
		dfs_link_post(session->link, post);
	}
}

/* Freeze and Thaw; softirq. */
int dfs_gates_message(struct dfs_session *session, const union df_msg *message)
{
	int error = 0;

	spin_lock_bh(&session->spin);
	if (message->head.type == DF_MSG_FREEZE)
		error = dfs_freeze(session, message);
	else
		dfs_thaw(session, message);
	spin_unlock_bh(&session->spin);
	return error;
}

/* The next Freeze whose gate is empty, marked answered. */
static bool dfs_freeze_due(struct dfs_session *session, union df_msg *freeze, u32 *epoch)
{
	bool due = false;
	u32 i;

	spin_lock_bh(&session->spin);
	for (i = 0; i < DFS_FROZEN && !due; i++) {
		struct dfs_frozen *frozen = &session->frozen[i];

		if (!frozen->used || frozen->answered ||
		    dfs_gate_of(session, frozen->freeze.head.slot)->inside)
			continue;
		frozen->answered = true;
		*freeze = frozen->freeze;
		*epoch = session->epoch;
		due = true;
	}
	spin_unlock_bh(&session->spin);
	return due;
}

static void dfs_freezes_answer(struct work_struct *work)
{
	struct dfs_session *session = container_of(work, struct dfs_session, freeze_work);
	union df_msg freeze, reply;
	struct dfs_lock *lock;
	u32 epoch;

	while (dfs_freeze_due(session, &freeze, &epoch)) {
		lock = dfs_lock_find(session, freeze.head.key);
		if (lock) {
			dfs_lock_message(lock, epoch, &freeze);
			dfs_lock_put(lock);
		} else if (df_client_unknown(&freeze, &reply) == 1) {
			dfs_session_send(session, epoch, &reply);
		}
	}
}

/* The link is stopped: parked chains end, nothing is frozen any more. */
void dfs_gates_forget(struct dfs_session *session)
{
	struct dfs_post *post;
	LIST_HEAD(parked);
	u32 i;

	spin_lock_bh(&session->spin);
	for (i = 0; i < DFS_GATES; i++) {
		list_splice_tail_init(&session->gates[i].parked, &parked);
		session->gates[i].inside = 0;
		session->gates[i].frozen = 0;
	}
	memset(session->frozen, 0, sizeof(session->frozen));
	spin_unlock_bh(&session->spin);
	while (!list_empty(&parked)) {
		post = list_first_entry(&parked, struct dfs_post, link);
		list_del_init(&post->link);
		post->done(post, -ECANCELED, 0, NULL);
	}
}
