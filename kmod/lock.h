/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The shell of a cluster lock in the kernel: one struct df_lock (rdma/lock/client.h) with its spinlock, its waiters and the work that sheds it.
 *
 * Parties: threads that pin (pin.c); completions of chains and lockd's messages, in softirq (fabric.c, session.c); the shed work, one run at
 * a time for each lock; eviction.
 *
 * Serialised by: `spin`, bottom halves off, around every call of the core and around performing its output: wakes, then messages, then the chain, all of
 * which only start things. So the order of messages is the machine's.
 *
 * Life: found or made by key, counted. The inode has a reference from iget to evict, a chain in flight has one, so have timers. A lock that nobody refers to
 * and that holds nothing is freed; one that still holds is kept in the session's list of idle locks, at most max_locks, and given up from its old end.
 *
 * The inode: `inode` is set by the inode that has the reference and cleared by its eviction, after its pages are gone. The shed work takes
 * a reference with igrab; if the inode is being evicted already, it waits for `inode` to be cleared, which queues the work again.
 *
 * Recovery: see session.h. `epoch` is the link's that the core's chains and messages belong to; what comes from another is dropped.
 */
#ifndef DISTFUSE_KMOD_LOCK_H
#define DISTFUSE_KMOD_LOCK_H

#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/rhashtable.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "fabric.h"
#include "rdma/lock/client.h"
#include "rdma/lock/hold.h"

struct dfs_session;

struct dfs_waiter {
	struct list_head link; /* of lock->waiters; empty: not in it */
	u8 mode;
	bool try_only;
	bool pinned;  /* the grant pinned for it */
	bool refused; /* try_only: it would block */
	bool again;   /* lockd has no room: call df_lock_want again, after a pause */
	bool lost;    /* the session ended */
};

struct dfs_lock {
	struct rhash_head hashed; /* session->spin */
	struct list_head all;	  /* session->spin */
	struct list_head idle;	  /* session->spin; of session->idle, while refs are 0 */
	struct rcu_head rcu;
	refcount_t refs;
	u64 key;
	struct dfs_session *session;
	spinlock_t spin; /* all below */
	u8 cover; /* what may be used without a pin: the mode held, if the gate is open; READ_ONCE outside of spin */
	bool shedding;	/* SHED was given out and not answered */
	bool forfeited; /* what is dirty below must not be written */
	bool lost;	/* the session ended, and the core was not made anew since */
	bool swept;	/* lost: what was cached is forgotten */
	bool succeeded; /* lost: whoever lockd speaks to now is the next session, which holds nothing */
	bool revoke_held;
	bool again_due;
	u32 epoch; /* of the link that the core talks to */
	u32 pause_ms;
	struct df_lock core;
	struct df_hold hold;
	union df_msg revoke; /* held back by hold.h */
	struct inode *inode;
	wait_queue_head_t wait;
	struct list_head waiters;
	struct timer_list hold_timer; /* holds a reference while pending */
	struct work_struct shed;
	struct delayed_work again; /* BUSY while re-asserting; holds a reference while pending */
	struct dfs_post post;	   /* holds a reference while in flight */
};

struct dfs_lock *dfs_lock_get(struct dfs_session *session, u64 key, gfp_t gfp);
/* Only if it is here. */
struct dfs_lock *dfs_lock_find(struct dfs_session *session, u64 key);
void dfs_lock_put(struct dfs_lock *lock);
/* Begins and ends the inode's hold on its lock. */
void dfs_lock_bind(struct dfs_lock *lock, struct inode *inode);
void dfs_lock_unbind(struct dfs_lock *lock);

/* Whether `mode` may be used now without a pin; a moment later it may be gone. */
bool dfs_lock_covers(const struct dfs_lock *lock, u32 mode);

/* One message of lockd for this key. -EPROTO: end the connection. Softirq. */
int dfs_lock_message(struct dfs_lock *lock, u32 epoch, const union df_msg *message);

/* For pin.c. */
bool dfs_lock_pin_now(struct dfs_lock *lock, u32 mode);
void dfs_lock_unpin(struct dfs_lock *lock);
/* 0; -EAGAIN: try_only, and it would block; -EINTR; -EIO; -ENOTCONN: the connection is aborted. */
int dfs_lock_wait(struct dfs_lock *lock, u32 mode, bool try_only);

/* For the session: every lock, once, in no order; `act` may sleep. */
void dfs_locks_each(struct dfs_session *session, void (*act)(struct dfs_lock *lock, void *argument),
		    void *argument);
void dfs_lock_detach(struct dfs_lock *lock, u32 epoch);
/* The connection was aborted: who waits for the lock looks again. */
void dfs_lock_aborted(struct dfs_lock *lock, void *unused);
/* 1: begun, the session hears of its end; 0: nothing to take. */
int dfs_lock_reassert(struct dfs_lock *lock);
void dfs_lock_resume(struct dfs_lock *lock);
/* `succeeded`: struct dfs_lock. */
void dfs_lock_lost(struct dfs_lock *lock, bool succeeded);
/* Trust ran out: nothing may be used through mappings. */
void dfs_lock_suspect(struct dfs_lock *lock);

/* Its inode, referenced; NULL: it has none; ERR_PTR: the inode is being evicted. Not under lock->spin: i_lock is taken with bottom halves on. */
struct inode *dfs_lock_grab(struct dfs_lock *lock);

/* Shared by lock.c and lock_table.c; under lock->spin where not said. */
void dfs_perform_lock(struct dfs_lock *lock, const struct df_out *out);
void dfs_lock_renew(struct dfs_lock *lock);
void dfs_hold_ended(struct timer_list *timer);
void dfs_shed_work(struct work_struct *work);
void dfs_queue_shed(struct dfs_lock *lock);

int dfs_lock_cache_init(void);
void dfs_lock_cache_exit(void);
int dfs_locks_open(struct dfs_session *session);
/* Gives up everything that is idle, waits for it, and frees: for unmount. The number that could not be given up. */
u32 dfs_locks_close(struct dfs_session *session);

#endif
