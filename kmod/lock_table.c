// SPDX-License-Identifier: GPL-2.0-only
/* Cluster locks: found, made, kept while idle, freed; and what the session does to all of them. The contract is in lock.h. */
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "inode.h"
#include "lock.h"
#include "race.h"
#include "session.h"

static struct kmem_cache *dfs_lock_cache;

static const struct rhashtable_params dfs_lock_params = {
	.key_len = sizeof(u64),
	.key_offset = offsetof(struct dfs_lock, key),
	.head_offset = offsetof(struct dfs_lock, hashed),
	.automatic_shrinking = true,
};

int dfs_lock_cache_init(void)
{
	dfs_lock_cache = KMEM_CACHE(dfs_lock, SLAB_RECLAIM_ACCOUNT);
	return dfs_lock_cache ? 0 : -ENOMEM;
}

void dfs_lock_cache_exit(void)
{
	rcu_barrier();
	kmem_cache_destroy(dfs_lock_cache);
}

int dfs_locks_open(struct dfs_session *session)
{
	return rhashtable_init(&session->lock_map, &dfs_lock_params);
}

static void dfs_lock_free_rcu(struct rcu_head *rcu)
{
	kmem_cache_free(dfs_lock_cache, container_of(rcu, struct dfs_lock, rcu));
}

static void dfs_again_work(struct work_struct *work);

/* Under lock->spin, or before anybody knows the lock: the core begins anew, in the session's present epoch. */
static void dfs_core_begin(struct dfs_lock *lock, bool live)
{
	df_lock_init(&lock->core, lock->session->table, lock->key);
	memset(&lock->hold, 0, sizeof(lock->hold));
	lock->revoke_held = false;
	lock->cover = DF_NL;
	if (!live)
		df_lock_detach(&lock->core);
}

static struct dfs_lock *dfs_lock_alloc(struct dfs_session *session, u64 key, gfp_t gfp)
{
	struct dfs_lock *lock;

	if (dfs_fails(DFS_RACE_lock_alloc, session->connection))
		return NULL;
	lock = kmem_cache_zalloc(dfs_lock_cache, gfp);
	if (!lock)
		return NULL;
	refcount_set(&lock->refs, 1);
	lock->key = key;
	lock->session = session;
	spin_lock_init(&lock->spin);
	INIT_LIST_HEAD(&lock->all);
	INIT_LIST_HEAD(&lock->idle);
	INIT_LIST_HEAD(&lock->waiters);
	INIT_LIST_HEAD(&lock->post.link);
	init_waitqueue_head(&lock->wait);
	timer_setup(&lock->hold_timer, dfs_hold_ended, 0);
	INIT_WORK(&lock->shed, dfs_shed_work);
	INIT_DELAYED_WORK(&lock->again, dfs_again_work);
	return lock;
}

/* Under session->spin: one more user, also of an idle one. */
static struct dfs_lock *dfs_lock_look_up(struct dfs_session *session, u64 key)
{
	struct dfs_lock *lock = rhashtable_lookup_fast(&session->lock_map, &key, dfs_lock_params);

	if (!lock)
		return NULL;
	if (!refcount_inc_not_zero(&lock->refs)) {
		list_del_init(&lock->idle);
		session->idle_count--;
		refcount_set(&lock->refs, 1);
	}
	return lock;
}

struct dfs_lock *dfs_lock_find(struct dfs_session *session, u64 key)
{
	struct dfs_lock *lock;

	spin_lock_bh(&session->spin);
	lock = dfs_lock_look_up(session, key);
	spin_unlock_bh(&session->spin);
	return lock;
}

struct dfs_lock *dfs_lock_get(struct dfs_session *session, u64 key, gfp_t gfp)
{
	struct dfs_lock *lock = dfs_lock_find(session, key), *fresh;
	int error;

	if (lock)
		return lock;
	fresh = dfs_lock_alloc(session, key, gfp);
	if (!fresh)
		return NULL;
	spin_lock_bh(&session->spin);
	lock = dfs_lock_look_up(session, key);
	if (!lock) {
		error = rhashtable_insert_fast(&session->lock_map, &fresh->hashed, dfs_lock_params);
		if (!error) {
			/* Epoch and list under one spin: no detach misses it. */
			fresh->epoch = session->epoch;
			dfs_core_begin(fresh, session->live);
			list_add_tail(&fresh->all, &session->locks);
			session->lock_count++;
			lock = fresh;
			fresh = NULL;
		}
	}
	spin_unlock_bh(&session->spin);
	if (fresh)
		kmem_cache_free(dfs_lock_cache, fresh);
	return lock;
}

static void dfs_trim(struct dfs_session *session);

/* Nobody refers to it any more, so nothing of it changes: its spin is not needed to look. */
void dfs_lock_put(struct dfs_lock *lock)
{
	struct dfs_session *session = lock->session;
	bool trim = false;

	if (refcount_dec_not_one(&lock->refs))
		return;
	spin_lock_bh(&session->spin);
	if (!refcount_dec_and_test(&lock->refs)) {
		spin_unlock_bh(&session->spin);
		return;
	}
	if (df_lock_quiet(&lock->core) && !lock->shedding) {
		rhashtable_remove_fast(&session->lock_map, &lock->hashed, dfs_lock_params);
		list_del(&lock->all);
		session->lock_count--;
		call_rcu(&lock->rcu, dfs_lock_free_rcu);
	} else {
		list_add_tail(&lock->idle, &session->idle);
		trim = ++session->idle_count > session->max_locks;
	}
	spin_unlock_bh(&session->spin);
	if (trim)
		dfs_trim(session);
}

void dfs_lock_bind(struct dfs_lock *lock, struct inode *inode)
{
	spin_lock_bh(&lock->spin);
	lock->inode = inode;
	spin_unlock_bh(&lock->spin);
}

void dfs_lock_unbind(struct dfs_lock *lock)
{
	spin_lock_bh(&lock->spin);
	lock->inode = NULL;
	if (lock->shedding || (lock->lost && !lock->swept))
		dfs_queue_shed(lock);
	spin_unlock_bh(&lock->spin);
	dfs_lock_put(lock);
}

/* --- giving idle locks up -------------------------------------------------------------------------- */

/* True: something was begun or is under way. */
static bool dfs_lock_give_up(struct dfs_lock *lock)
{
	struct df_out out;
	bool begun = false;

	spin_lock_bh(&lock->spin);
	if (!lock->lost && !lock->core.pins) {
		begun = df_lock_drop(&lock->core, &out) == 0;
		if (begun)
			dfs_perform_lock(lock, &out);
	}
	spin_unlock_bh(&lock->spin);
	return begun;
}

/* The oldest idle lock, if there are more than `keep`. */
static struct dfs_lock *dfs_oldest_idle(struct dfs_session *session, u32 keep)
{
	struct dfs_lock *lock = NULL;

	spin_lock_bh(&session->spin);
	if (session->idle_count > keep) {
		lock = list_first_entry(&session->idle, struct dfs_lock, idle);
		list_del_init(&lock->idle);
		session->idle_count--;
		refcount_set(&lock->refs, 1);
	}
	spin_unlock_bh(&session->spin);
	return lock;
}

/* A sixteenth at a time, so that each new lock does not give one up. What is given up comes back here idle, or is freed when its release is complete. */
static void dfs_trim(struct dfs_session *session)
{
	u32 keep = session->max_locks - session->max_locks / 16, left = 64;
	struct dfs_lock *lock;

	while (left-- && (lock = dfs_oldest_idle(session, keep)) != NULL) {
		dfs_lock_give_up(lock);
		dfs_lock_put(lock);
	}
}

/* --- the session's doings ---------------------------------------------------------------------------- */

void dfs_locks_each(struct dfs_session *session, void (*act)(struct dfs_lock *lock, void *argument),
		    void *argument)
{
	struct dfs_lock *lock = NULL, *next;

	for (;;) {
		spin_lock_bh(&session->spin);
		next = lock ? list_next_entry(lock, all)
			    : list_first_entry(&session->locks, struct dfs_lock, all);
		if (&next->all == &session->locks)
			next = NULL;
		else
			next = dfs_lock_look_up(session, next->key);
		spin_unlock_bh(&session->spin);
		if (lock)
			dfs_lock_put(lock);
		if (!next)
			return;
		act(next, argument);
		lock = next;
	}
}

/* Under lock->spin: a lock of a lost session is one of the next session, if there is one. */
void dfs_lock_renew(struct dfs_lock *lock)
{
	struct dfs_session *session = lock->session;

	spin_lock_bh(&session->spin);
	if (!session->lost && lock->lost && lock->swept && !lock->core.pins) {
		lock->lost = false;
		lock->succeeded = false;
		lock->epoch = session->epoch;
		dfs_core_begin(lock, session->live);
	}
	spin_unlock_bh(&session->spin);
	wake_up_all(&lock->wait);
}

void dfs_lock_detach(struct dfs_lock *lock, u32 epoch)
{
	spin_lock_bh(&lock->spin);
	if (lock->epoch != epoch && !lock->lost) {
		lock->epoch = epoch;
		lock->revoke_held = false;
		df_lock_detach(&lock->core);
	}
	spin_unlock_bh(&lock->spin);
}

/* Under lock->spin. */
static int dfs_reassert_now(struct dfs_lock *lock)
{
	struct df_out out;
	int begun;

	if (lock->lost)
		return 0;
	if (!lock->core.detached)
		return 0;
	lock->core.table = lock->session->table;
	begun = df_lock_reassert(&lock->core, &out);
	if (begun)
		dfs_perform_lock(lock, &out);
	return begun;
}

int dfs_lock_reassert(struct dfs_lock *lock)
{
	int begun;

	spin_lock_bh(&lock->spin);
	begun = dfs_reassert_now(lock);
	spin_unlock_bh(&lock->spin);
	return begun;
}

static void dfs_again_work(struct work_struct *work)
{
	struct dfs_lock *lock = container_of(to_delayed_work(work), struct dfs_lock, again);

	spin_lock_bh(&lock->spin);
	if (lock->core.asserting)
		(void)dfs_reassert_now(lock);
	spin_unlock_bh(&lock->spin);
	dfs_lock_put(lock);
}

void dfs_lock_resume(struct dfs_lock *lock)
{
	struct df_out out;

	spin_lock_bh(&lock->spin);
	lock->pause_ms = 0;
	if (lock->lost) {
		dfs_lock_renew(lock);
	} else if (lock->core.detached) {
		lock->core.table = lock->session->table;
		df_lock_resume(&lock->core, &out);
		dfs_perform_lock(lock, &out);
	}
	spin_unlock_bh(&lock->spin);
}

void dfs_lock_lost(struct dfs_lock *lock, bool succeeded)
{
	struct df_out out;

	spin_lock_bh(&lock->spin);
	if (!lock->lost) {
		lock->lost = true;
		lock->swept = false;
		df_lock_session_lost(&lock->core, &out);
		dfs_perform_lock(lock, &out);
		dfs_queue_shed(lock);
	}
	lock->succeeded |= succeeded;
	spin_unlock_bh(&lock->spin);
}

/* Mappings are the only use that nobody checks: they are taken away, and the next fault waits for trust. */
void dfs_lock_suspect(struct dfs_lock *lock)
{
	struct inode *inode = dfs_lock_grab(lock);

	if (IS_ERR_OR_NULL(inode))
		return;
	if (S_ISREG(inode->i_mode))
		unmap_mapping_range(inode->i_mapping, 0, 0, 0);
	iput(inode);
}

static void dfs_one_ended(struct dfs_lock *lock, void *argument)
{
	dfs_lock_lost(lock, false);
}

#define DFS_CLOSE_MS 30000u

u32 dfs_locks_close(struct dfs_session *session)
{
	u64 since = dfs_now_ms();
	struct dfs_lock *lock;
	u32 left;

	for (;;) {
		u32 pass = READ_ONCE(session->idle_count);

		while (pass-- && (lock = dfs_oldest_idle(session, 0)) != NULL) {
			dfs_lock_give_up(lock);
			dfs_lock_put(lock);
		}
		left = READ_ONCE(session->lock_count);
		if (!left || READ_ONCE(session->lost) || dfs_now_ms() - since > DFS_CLOSE_MS)
			break;
		usleep_range(500, 1000);
	}
	/* What is left: its session ends without it. */
	dfs_locks_each(session, dfs_one_ended, NULL);
	flush_workqueue(session->shed_queue);
	while ((lock = dfs_oldest_idle(session, 0)) != NULL)
		dfs_lock_put(lock);
	return READ_ONCE(session->lost) ? 0 : left;
}
