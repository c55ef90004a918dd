/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fcntl locks (those of a process, and F_OFD_* ones of an open file) and flock, cluster-wide: lockd decides, by messages.
 *
 * Parties: threads in fcntl, flock, close; FileReply, in softirq; the session's machine (link lost, link there again, session lost); the reassert
 * work; the VFS's lists (inode->i_flctx), which record what lockd has granted to this mount, for /proc/locks, for close and for re-assertion.
 *
 * Messages: wire.h. An answer names its request by seq, counted up from 2^32 (below are the cluster locks' Asks). One thread, one request.
 *
 * States of a request
 *   UNSENT    nothing of it is at the present lockd: not sent yet, or the link that it was sent over has ended. Sent as soon as lockd takes requests.
 *   SENT      in `sent`, of the present link.
 *   ANSWERED  what changes a list is in `answered` until it is recorded.
 * `left`: nobody waits for the answer any more. A lock that is granted then is unlocked again; an unlock that no lockd has had yet is `owed`.
 *
 * Order: lists change in the order of lockd's answers, for they are recorded from `answered`, under `record`, by whoever comes first. So
 * a list never conflicts with what lockd grants next (an answer to an unlock comes before the grant that it made possible), two threads of one
 * owner leave here what they leave at lockd, and what is recorded when a link has ended is what the old lockd had last said.
 *
 * Interruption: F_SETLKW and flock wait interruptibly. A signal sends FileCancel; the answer is waited for and stands: granted is granted, EINTR
 * is -ERESTARTSYS. Others only a fatal signal interrupts; who is killed waits for the answer at most give_up_ms. Unlocks are not interrupted; one without an
 * answer for give_up_ms is recorded and owed.
 *
 * flock: a lock of the other type is given up first, then the new one is asked for, as Linux does: a wait can lose it.
 *
 * Recovery: lockd's restart: the work sends every lock that is recorded with DF_FILE_RECLAIM, before Reclaimed; one that is refused is taken out of
 * the list; how many is logged. Requests that were SENT are UNSENT, and sent again after Resume. Loss of the session: every list is emptied, and logged
 * how many locks that were; a lock that is waited for is asked for in the next session. I/O of their holders does not fail for it.
 *
 * Serialised by: `record` (mutex): every change of a list, `inodes`. Under it memory is had without reclaim of our own pages (NOFS), for the machine takes
 * it too. session->spin: all else.
 *
 * Limits: waiting requests: a quarter of Welcome.asks, then ENOLCK; others: as many, then they wait for one another; an unlock at most give_up_ms. Locks: lockd's (ENOLCK).
 *
 * Known weakness: lockd looks for cycles among the waits of open files (OFD) too, where Linux does not: EDEADLK.
 */
#ifndef DISTFUSE_KMOD_FILE_LOCK_H
#define DISTFUSE_KMOD_FILE_LOCK_H

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "rdma/lock/wire.h"

#define DFS_FILE_BUCKETS 64u

struct dfs_connection;
struct dfs_session;

struct dfs_file_locks {
	u32 scramble[4];	 /* what owners' numbers are made with; random, of the mount */
	struct mutex record;	 /* changes of the VFS's lists, and `inodes` */
	struct list_head inodes; /* dfs_inode.file_locks: something is recorded */
	struct work_struct reassert_work;
	wait_queue_head_t room; /* calling */
	/* session->spin: */
	u32 reassert; /* the epoch of the link to re-assert over; 0: none */
	u32 asks;     /* Welcome.asks */
	u32 waiting;
	u32 calling;
	u64 next_seq;
	struct hlist_head sent[DFS_FILE_BUCKETS];
	struct list_head answered; /* in lockd's order */
	struct list_head owed;	   /* unlocks that were left UNSENT */
};

/* file_operations.lock and .flock */
int dfs_file_lock(struct file *file, int command, struct file_lock *lock);
int dfs_file_flock(struct file *file, int command, struct file_lock *lock);

/* For the session. */
void dfs_files_open(struct dfs_session *session);
/* No link, no machine and no inode is left. */
void dfs_files_close(struct dfs_session *session);
/* A FileReply. -EPROTO: end the link. Softirq. */
int dfs_files_message(struct dfs_session *session, u32 epoch, const union df_msg *message);
/* The link has ended; the session's epoch is raised already. */
void dfs_files_detach(struct dfs_session *session);
/* Begins; ends with dfs_session_reassert_done. */
void dfs_files_reassert(struct dfs_session *session);
/* lockd takes requests. Under session->spin. */
void dfs_files_resume(struct dfs_session *session);
/* After detach. Sleeps. */
void dfs_files_lost(struct dfs_session *session);
/* Before an inode is freed: nobody looks at its lists any more. */
void dfs_files_evict(struct inode *inode);
/* The connection was aborted, or the session ends: who waits looks again. */
void dfs_files_wake(struct dfs_session *session);

#endif
