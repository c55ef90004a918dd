// SPDX-License-Identifier: GPL-2.0-only
/* Cluster locks: the core's output performed, messages and completions in, waiting. The contract is in lock.h; the locks' life is in lock_table.c. */
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "connection.h"
#include "inode.h"
#include "lock.h"
#include "race.h"
#include "session.h"
#include "trace.h"

#define DFS_PAUSE_LEAST_MS 1u
#define DFS_PAUSE_MOST_MS 100u
#define DFS_TRUST_LOOK_MS 10u

static void dfs_chain_done(struct dfs_post *post, int error, u64 old, const void *image);

/* --- performing; under lock->spin --------------------------------------------------------------- */

static void dfs_publish_cover(struct dfs_lock *lock)
{
	bool open = lock->core.gate == DF_GATE_OPEN && !lock->core.lost && !lock->shedding;

	WRITE_ONCE(lock->cover, open ? lock->core.held : DF_NL);
}

static void dfs_wake_waiter(struct dfs_lock *lock, struct dfs_waiter *waiter, u32 bits)
{
	if (bits & DF_WAKE_LOST)
		waiter->lost = true;
	else if ((bits & DF_WAKE_GRANTED) &&
		 df_lock_pin_granted(&lock->core, waiter->mode) == DF_PIN_OK)
		waiter->pinned = true;
	else if (waiter->try_only && (bits & DF_WAKE_WOULD_BLOCK))
		waiter->refused = true;
	else if (bits & DF_WAKE_BUSY)
		waiter->again = true;
	if (waiter->lost || waiter->pinned || waiter->refused)
		list_del_init(&waiter->link);
}

static void dfs_perform_wake(struct dfs_lock *lock, u32 bits)
{
	struct dfs_waiter *waiter, *next;

	if (bits & DF_WAKE_FORFEITED)
		lock->forfeited = true;
	if ((bits & DF_WAKE_BUSY) && lock->core.asserting) {
		lock->pause_ms = clamp(2 * lock->pause_ms, DFS_PAUSE_LEAST_MS, DFS_PAUSE_MOST_MS);
		refcount_inc(&lock->refs);
		if (!queue_delayed_work(lock->session->shed_queue, &lock->again,
					msecs_to_jiffies(lock->pause_ms)))
			refcount_dec(&lock->refs);
		bits &= ~DF_WAKE_BUSY;
	}
	if (bits & DF_WAKE_GRANTED)
		df_hold_granted(&lock->hold, dfs_now_us());
	list_for_each_entry_safe(waiter, next, &lock->waiters, link)
		dfs_wake_waiter(lock, waiter, bits);
	if (bits & (DF_WAKE_REASSERTED | DF_WAKE_FORFEITED))
		dfs_session_reassert_done(lock->session, lock->epoch);
	wake_up_all(&lock->wait);
}

/* The work has a reference while it is queued or runs. The caller has one. */
void dfs_queue_shed(struct dfs_lock *lock)
{
	refcount_inc(&lock->refs);
	if (!queue_work(lock->session->shed_queue, &lock->shed))
		refcount_dec(&lock->refs);
}

static void dfs_perform_shed(struct dfs_lock *lock)
{
	WARN_ON_ONCE(lock->shedding);
	lock->shedding = true;
	dfs_count(lock->session->connection, sheds);
	if (lock->core.revoke_seq)
		df_hold_shed(&lock->hold, dfs_now_us());
	dfs_queue_shed(lock);
}

/* The chain goes, or the lock will be detached. True: it goes. */
static bool dfs_perform_post(struct dfs_lock *lock, const struct df_chain *chain)
{
	lock->post.chain = *chain;
	lock->post.done = dfs_chain_done;
	refcount_inc(&lock->refs);
	if (dfs_session_post(lock->session, lock->epoch, &lock->post))
		return true;
	refcount_dec(&lock->refs); /* not the last: the caller has one */
	return false;
}

void dfs_perform_lock(struct dfs_lock *lock, const struct df_out *out)
{
	u32 i;

	if (out->wake)
		dfs_perform_wake(lock, out->wake);
	if (out->shed)
		dfs_perform_shed(lock);
	for (i = 0; i < out->messages; i++) {
		if (out->message[i].head.type == DF_MSG_ASK)
			dfs_count(lock->session->connection, asks);
		dfs_session_send(lock->session, lock->epoch, &out->message[i]);
	}
	if (out->post)
		dfs_perform_post(lock, &out->chain);
	dfs_publish_cover(lock);
	trace_distfuse_lock(lock, out);
}

static bool dfs_stays_inside(u32 kind, const struct df_out *out)
{
	return out->post && out->chain.kind == DF_CHAIN_UNDO && kind == DF_CHAIN_TAKE;
}

/* For the fault point: what a chain has found, told later. */
struct dfs_late_chain {
	struct delayed_work work;
	struct dfs_post *post;
	u32 epoch;
	u64 old;
	u8 image[DF_BUCKET_SIZE];
};

static void dfs_chain_ended(struct dfs_post *post, int error, u64 old, const void *image);

static void dfs_chain_comes_late(struct work_struct *work)
{
	struct dfs_late_chain *late =
		container_of(to_delayed_work(work), struct dfs_late_chain, work);

	struct dfs_lock *lock = container_of(late->post, struct dfs_lock, post);

	dfs_chain_ended(late->post, READ_ONCE(lock->epoch) == late->epoch ? 0 : -ECANCELED,
			late->old, late->image);
	kfree(late);
}

/* The post is as if it were still in flight, but its link may be stopped meanwhile. */
static bool dfs_chain_late(struct dfs_post *post, u64 old, const void *image, u32 ms)
{
	struct dfs_lock *lock = container_of(post, struct dfs_lock, post);
	struct dfs_late_chain *late = kmalloc(sizeof(*late), GFP_ATOMIC);

	if (!late)
		return false;
	late->post = post;
	late->epoch = lock->epoch;
	late->old = old;
	memcpy(late->image, image, sizeof(late->image));
	INIT_DELAYED_WORK(&late->work, dfs_chain_comes_late);
	queue_delayed_work(lock->session->shed_queue, &late->work, msecs_to_jiffies(ms));
	return true;
}

static void dfs_chain_done(struct dfs_post *post, int error, u64 old, const void *image)
{
	struct dfs_lock *lock = container_of(post, struct dfs_lock, post);
	const struct dfs_connection *connection = lock->session->connection;
	u32 ms;

	if (!error && dfs_fails(DFS_RACE_chain_error, connection)) {
		/* What it did is not known: the next link re-asserts. */
		dfs_session_break(lock->session, lock->epoch, "a completion is an error: injected");
		error = -ECANCELED;
	}
	ms = !error && post->chain.kind == DF_CHAIN_TAKE ? dfs_late(DFS_RACE_chain_late, connection)
							 : 0;
	if (!ms || !dfs_chain_late(post, old, image, ms))
		dfs_chain_ended(post, error, old, image);
}

static void dfs_chain_ended(struct dfs_post *post, int error, u64 old, const void *image)
{
	struct dfs_lock *lock = container_of(post, struct dfs_lock, post);
	u32 kind = post->chain.kind, slot = post->chain.slot;
	bool gated = kind == DF_CHAIN_TAKE || kind == DF_CHAIN_UNDO || kind == DF_CHAIN_RELEASE ||
		     kind == DF_CHAIN_PUBLISH;
	struct df_out out;

	if (error) {
		dfs_lock_put(lock);
		return;
	}
	spin_lock_bh(&lock->spin);
	df_lock_chain_done(&lock->core, old, image, &out);
	if (kind == DF_CHAIN_TAKE && (out.wake & DF_WAKE_GRANTED))
		dfs_count(lock->session->connection, takes);
	dfs_perform_lock(lock, &out);
	if (gated && !dfs_stays_inside(kind, &out))
		dfs_session_leave(lock->session, slot);
	spin_unlock_bh(&lock->spin);
	dfs_lock_put(lock);
}

/* --- messages ----------------------------------------------------------------------------------- */

/* Under spin. */
static int dfs_feed(struct dfs_lock *lock, const union df_msg *message)
{
	struct df_value value = {}, *publish = NULL;
	struct df_out out;

	if (message->head.type == DF_MSG_GLIMPSE && lock->inode &&
	    dfs_inode_publish(lock->inode, false, &value))
		publish = &value;
	if (df_lock_message(&lock->core, message, publish, &out))
		return -EPROTO;
	dfs_perform_lock(lock, &out);
	return 0;
}

/* Under spin: what was held back goes to the core now. */
static int dfs_hand_over(struct dfs_lock *lock)
{
	if (!lock->revoke_held)
		return 0;
	lock->revoke_held = false;
	return dfs_feed(lock, &lock->revoke);
}

/* Under spin. True: the Revoke waits. */
static bool dfs_hold_back(struct dfs_lock *lock, const union df_msg *message)
{
	u64 now = dfs_now_us(), at = df_hold_revoked(&lock->hold, lock->core.held, now);

	if (at <= now)
		return false;
	lock->revoke = *message;
	lock->revoke_held = true;
	refcount_inc(&lock->refs);
	if (mod_timer(&lock->hold_timer, jiffies + usecs_to_jiffies(at - now)))
		refcount_dec(&lock->refs); /* it was pending, with its own */
	return true;
}

void dfs_hold_ended(struct timer_list *timer)
{
	struct dfs_lock *lock = from_timer(lock, timer, hold_timer);
	union df_msg message;

	spin_lock_bh(&lock->spin);
	if (lock->revoke_held) {
		message = lock->revoke;
		lock->revoke_held = false;
		if (!dfs_hold_back(lock, &message))
			(void)dfs_feed(lock, &message); /* it was checked when it came */
	}
	spin_unlock_bh(&lock->spin);
	dfs_lock_put(lock);
}

/* Who waits for this session's answer waits for ever without it: what the former session cached does not keep it back. */
static int dfs_lost_message(struct dfs_lock *lock, u32 epoch, const union df_msg *message)
{
	union df_msg reply;
	int error;

	if (!lock->succeeded)
		return 0;
	error = df_client_unknown(message, &reply);
	if (error == 1)
		dfs_session_send(lock->session, epoch, &reply);
	return error < 0 ? -EPROTO : 0;
}

int dfs_lock_message(struct dfs_lock *lock, u32 epoch, const union df_msg *message)
{
	int error = 0;

	spin_lock_bh(&lock->spin);
	if (lock->lost) {
		error = dfs_lost_message(lock, epoch, message);
	} else if (lock->epoch == epoch) {
		if (message->head.type == DF_MSG_REVOKE) {
			dfs_count(lock->session->connection, revokes);
			error = dfs_hand_over(lock);
			if (!error && !dfs_hold_back(lock, message))
				error = dfs_feed(lock, message);
		} else {
			error = dfs_feed(lock, message);
		}
	}
	spin_unlock_bh(&lock->spin);
	return error;
}

/* --- shed: its own thread ------------------------------------------------------------------------- */

/* Not under spin: i_lock is taken with bottom halves on. RCU keeps the memory of an inode that is just unbound. */
struct inode *dfs_lock_grab(struct dfs_lock *lock)
{
	struct inode *inode;

	rcu_read_lock();
	inode = READ_ONCE(lock->inode);
	if (inode) {
		inode = igrab(inode);
		if (!inode)
			inode = ERR_PTR(-EAGAIN);
	}
	rcu_read_unlock();
	return inode;
}

/* Under spin. False: not now, somebody will queue the work again. */
static bool dfs_shed_begin(struct dfs_lock *lock)
{
	if ((!lock->shedding && !lock->lost) || (lock->lost && lock->swept))
		return false; /* nothing is due */
	if (lock->core.pins)
		return false; /* the last unpin */
	if (!lock->lost && lock->core.gate != DF_GATE_CLOSED && df_lock_close_gate(&lock->core)) {
		WARN_ONCE(1, "distfuse: the gate of %#llx does not close\n", lock->key);
		return false;
	}
	return true;
}

/* Under spin: a lost session's lock is clean; it begins anew as soon as there is a session. */
static void dfs_shed_lost(struct dfs_lock *lock)
{
	lock->shedding = false;
	lock->swept = true;
	lock->forfeited = false;
	dfs_lock_renew(lock);
}

/* Under spin. Forfeited behind the closed gate: again, for what was kept must go as well. */
static void dfs_shed_end(struct dfs_lock *lock, u32 keep, bool changed,
			 const struct df_value *value)
{
	struct df_out out;

	if (lock->core.gate != DF_GATE_CLOSED) {
		dfs_queue_shed(lock);
		return;
	}
	lock->shedding = false;
	lock->forfeited = false;
	df_hold_given(&lock->hold, dfs_now_us());
	if (df_lock_shed_done(&lock->core, keep, changed ? value : NULL, &out)) {
		WARN_ONCE(1, "distfuse: shed of %#llx to %u was not asked for\n", lock->key, keep);
		return;
	}
	dfs_perform_lock(lock, &out);
}

static void dfs_shed(struct dfs_lock *lock)
{
	struct df_value value = {};
	bool changed = false, begun, lost, forfeited, exclusive;
	struct inode *inode;
	u32 keep;

	inode = dfs_lock_grab(lock);
	if (IS_ERR(inode))
		return; /* it is being evicted: dfs_lock_unbind queues the work again */
	spin_lock_bh(&lock->spin);
	begun = lock->inode == inode && dfs_shed_begin(lock);
	if (lock->inode != inode)
		dfs_queue_shed(lock); /* bound or unbound meanwhile */
	lost = lock->lost;
	forfeited = lost || lock->forfeited;
	exclusive = lock->core.held == DF_X;
	/* Intention modes are of no use here: nothing is done uncached. */
	keep = !forfeited && lock->core.keep == DF_S ? DF_S : DF_NL;
	spin_unlock_bh(&lock->spin);
	if (!begun) {
		iput(inode);
		return;
	}
	dfs_race(DFS_RACE_shed_begun, lock->session->connection);
	if (inode) {
		dfs_inode_shed(inode, keep, forfeited);
		changed = exclusive && !forfeited && dfs_inode_publish(inode, true, &value);
	}
	spin_lock_bh(&lock->spin);
	if (lock->lost && lost)
		dfs_shed_lost(lock);
	else if (!lock->lost)
		dfs_shed_end(lock, keep, changed, &value);
	else
		dfs_queue_shed(lock); /* lost meanwhile: again, as such */
	spin_unlock_bh(&lock->spin);
	iput(inode);
}

void dfs_shed_work(struct work_struct *work)
{
	struct dfs_lock *lock = container_of(work, struct dfs_lock, shed);

	dfs_shed(lock);
	dfs_lock_put(lock);
}

/* --- pins ------------------------------------------------------------------------------------------ */

bool dfs_lock_covers(const struct dfs_lock *lock, u32 mode)
{
	return df_covers(READ_ONCE(lock->cover), mode) && dfs_session_trusted(lock->session);
}

bool dfs_lock_pin_now(struct dfs_lock *lock, u32 mode)
{
	bool pinned;

	if (!dfs_session_trusted(lock->session))
		return false;
	spin_lock_bh(&lock->spin);
	pinned = df_lock_pin(&lock->core, mode) == DF_PIN_OK;
	if (pinned) {
		df_hold_used(&lock->hold);
		dfs_count(lock->session->connection, pins);
	}
	spin_unlock_bh(&lock->spin);
	return pinned;
}

void dfs_lock_unpin(struct dfs_lock *lock)
{
	bool due;

	spin_lock_bh(&lock->spin);
	df_lock_unpin(&lock->core);
	due = !lock->core.pins && (lock->shedding || (lock->lost && !lock->swept));
	if (due)
		dfs_queue_shed(lock);
	spin_unlock_bh(&lock->spin);
}

/* Under spin; the waiter is not in the list. Nobody waits any more: tells the core. */
static void dfs_stop_waiting(struct dfs_lock *lock, struct dfs_waiter *waiter)
{
	struct df_out out;

	list_del_init(&waiter->link);
	if (!list_empty(&lock->waiters) || lock->core.lost)
		return;
	df_lock_cancel(&lock->core, &out);
	dfs_perform_lock(lock, &out);
}

/* Under spin. Pinned, or in the list and the core knows; a look later. */
static void dfs_ask_for(struct dfs_lock *lock, struct dfs_waiter *waiter)
{
	struct df_out out;
	int result;

	waiter->again = false;
	if (df_lock_pin(&lock->core, waiter->mode) == DF_PIN_OK) {
		df_hold_used(&lock->hold);
		list_del_init(&waiter->link);
		waiter->pinned = true;
		return;
	}
	if (list_empty(&waiter->link))
		list_add_tail(&waiter->link, &lock->waiters);
	result = df_lock_want(&lock->core, waiter->mode, waiter->try_only, &out);
	switch (result) {
	case DF_WANT_HELD:
		waiter->again = true;
		break;
	case DF_WANT_BUSY:
		list_del_init(&waiter->link);
		waiter->refused = true;
		break;
	case DF_WANT_LOST:
		list_del_init(&waiter->link);
		waiter->lost = true;
		break;
	default:
		df_hold_wanted(&lock->hold, dfs_now_us());
		dfs_perform_lock(lock, &out);
		break;
	}
}

static bool dfs_aborted(const struct dfs_lock *lock)
{
	return READ_ONCE(lock->session->connection->aborted);
}

void dfs_lock_aborted(struct dfs_lock *lock, void *unused)
{
	wake_up_all(&lock->wait);
}

static bool dfs_waiter_woken(const struct dfs_waiter *waiter)
{
	return READ_ONCE(waiter->pinned) || READ_ONCE(waiter->refused) ||
	       READ_ONCE(waiter->again) || READ_ONCE(waiter->lost);
}

/* The session is not trusted, or there is none: a while. */
static int dfs_wait_for_trust(struct dfs_lock *lock, u64 since_ms)
{
	struct dfs_session *session = lock->session;

	if (dfs_now_ms() - since_ms > session->give_up_ms)
		return -EIO;
	if (fatal_signal_pending(current))
		return -EINTR;
	schedule_timeout_killable(msecs_to_jiffies(DFS_TRUST_LOOK_MS));
	return 0;
}

/* One stay in the queue: 0: pinned; -EAGAIN: look again; else the end. */
static int dfs_wait_once(struct dfs_lock *lock, struct dfs_waiter *waiter, u32 *pause_ms)
{
	bool pinned, busy = false;
	int error = 0;

	spin_lock_bh(&lock->spin);
	waiter->lost = false;
	dfs_ask_for(lock, waiter);
	spin_unlock_bh(&lock->spin);
	if (!dfs_waiter_woken(waiter))
		error = wait_event_killable(lock->wait,
					    dfs_waiter_woken(waiter) || dfs_aborted(lock));
	spin_lock_bh(&lock->spin);
	pinned = waiter->pinned;
	if (!pinned && error)
		dfs_stop_waiting(lock, waiter);
	busy = !pinned && !error && waiter->again;
	spin_unlock_bh(&lock->spin);
	if (pinned) {
		if (!error)
			return 0;
		dfs_lock_unpin(lock);
	}
	if (error)
		return -EINTR;
	if (waiter->refused)
		return waiter->try_only ? -EWOULDBLOCK : -EAGAIN;
	if (busy) {
		schedule_timeout_killable(msecs_to_jiffies(*pause_ms));
		*pause_ms = min(2 * *pause_ms, DFS_PAUSE_MOST_MS);
	}
	return -EINPROGRESS;
}

/*
 * A grant counts only if the session is trusted when it is used: what was pinned by a grant in a session that lost its trust meanwhile is given back.
 */
int dfs_lock_wait(struct dfs_lock *lock, u32 mode, bool try_only)
{
	struct dfs_waiter waiter = {.mode = mode, .try_only = try_only};
	u64 since_ms = dfs_now_ms();
	u32 pause_ms = DFS_PAUSE_LEAST_MS;
	int error;

	INIT_LIST_HEAD(&waiter.link);
	dfs_count(lock->session->connection, pins_waited);
	for (;;) {
		if (dfs_aborted(lock)) {
			error = -ENOTCONN;
			break;
		}
		if (READ_ONCE(lock->lost) || !dfs_session_trusted(lock->session)) {
			error = try_only ? -EWOULDBLOCK : dfs_wait_for_trust(lock, since_ms);
			if (error)
				break;
			continue;
		}
		error = dfs_wait_once(lock, &waiter, &pause_ms);
		if (!error && dfs_session_trusted(lock->session))
			return 0;
		if (!error) {
			waiter.pinned = false;
			dfs_lock_unpin(lock);
		} else if (error != -EINPROGRESS) {
			break;
		}
	}
	spin_lock_bh(&lock->spin);
	if (!list_empty(&waiter.link))
		dfs_stop_waiting(lock, &waiter);
	spin_unlock_bh(&lock->spin);
	return error;
}
