/* SPDX-License-Identifier: GPL-2.0-only */
/* What file_lock.c and file_record.c share. The contract is in file_lock.h. */
#ifndef DISTFUSE_KMOD_FILE_REQUEST_H
#define DISTFUSE_KMOD_FILE_REQUEST_H

#include "file_lock.h"

enum dfs_file_state { DFS_FILE_UNSENT = 0, DFS_FILE_SENT, DFS_FILE_ANSWERED };

struct dfs_file_request {
	struct hlist_node sent;
	struct list_head link; /* of `answered` or `owed` */
	wait_queue_head_t wait;
	struct inode *inode;
	struct file_lock *lock; /* to be recorded; the thread's own */
	union df_msg message;
	struct df_msg_file_reply reply;
	int state; /* enum dfs_file_state; released by who changes it */
	bool waits;
	bool left;
};

/* --- file_lock.c --- */

/* Under session->spin, with a link. */
void dfs_file_post(struct dfs_session *session, struct dfs_file_request *request);

/* --- file_record.c --- */

/* The message for this lock. */
void dfs_file_describe(struct dfs_session *session, struct inode *inode,
		       const struct file_lock *lock, u32 type, union df_msg *message);
/* Whether the lock's owner has something here in its range, of whichever type. */
bool dfs_recorded(struct inode *inode, const struct file_lock *lock);
/* F_RDLCK, F_WRLCK, F_UNLCK */
int dfs_recorded_flock(struct inode *inode, const struct file *file);
/* What was answered until now is in the lists when it returns. */
void dfs_record_answers(struct dfs_session *session);
/* An unlock that lockd has not answered. */
void dfs_record_now(struct dfs_session *session, struct inode *inode, struct file_lock *lock);
/* Empties all lists; how many locks were there. */
u32 dfs_record_lost(struct dfs_session *session);
void dfs_files_reassert_work(struct work_struct *work);

#endif
