// SPDX-License-Identifier: GPL-2.0-only
/* fcntl and flock locks: what is recorded in the VFS's lists, and how the next lockd is told. The contract is in file_lock.h. */
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "connection.h"
#include "file_request.h"
#include "inode.h"
#include "session.h"

#define DFS_RECORD_TRIES 100u
#define DFS_REASSERT_WINDOW 32u /* requests under way; Welcome.asks bounds only what waits */

/* --- names ------------------------------------------------------------------------------------------ */

/* A permutation (XTEA): unique on this mount, and says nothing of an address. */
static u64 dfs_file_owner(const struct dfs_session *session, fl_owner_t owner)
{
	const u32 *key = session->files.scramble;
	u64 value = (unsigned long)owner;
	u32 low = value, high = value >> 32, sum = 0;
	u32 i;

	for (i = 0; i < 32; i++) {
		low += ((high << 4 ^ high >> 5) + high) ^ (sum + key[sum & 3]);
		sum += 0x9e3779b9;
		high += ((low << 4 ^ low >> 5) + low) ^ (sum + key[sum >> 11 & 3]);
	}
	return (u64)high << 32 | low;
}

static u8 dfs_file_type(const struct file_lock *lock)
{
	return lock->fl_type == F_RDLCK	  ? DF_FILE_READ
	       : lock->fl_type == F_WRLCK ? DF_FILE_WRITE
					  : DF_FILE_NONE;
}

void dfs_file_describe(struct dfs_session *session, struct inode *inode,
		       const struct file_lock *lock, u32 type, union df_msg *message)
{
	bool flock = lock->fl_flags & FL_FLOCK;

	df_msg_init(message, type, 0, df_key_inode(inode->i_ino), 0);
	message->file.owner = dfs_file_owner(session, lock->fl_owner);
	message->file.start = flock ? 0 : lock->fl_start;
	message->file.end = flock ? U64_MAX : lock->fl_end;
	message->file.pid = lock->fl_flags & FL_OFDLCK ? -1 : lock->fl_pid;
	message->file.type = dfs_file_type(lock);
	message->file.flags = flock ? DF_FILE_FLOCK : 0;
}

/* --- looking ------------------------------------------------------------------------------------------ */

static struct file_lock_context *dfs_lists_of(struct inode *inode)
{
	return smp_load_acquire(&inode->i_flctx);
}

static bool dfs_same_owner(const struct file_lock *a, const struct file_lock *b)
{
	if (a->fl_flags & FL_FLOCK)
		return a->fl_file == b->fl_file;
	return a->fl_owner == b->fl_owner && a->fl_start <= b->fl_end && b->fl_start <= a->fl_end;
}

bool dfs_recorded(struct inode *inode, const struct file_lock *lock)
{
	struct file_lock_context *lists = dfs_lists_of(inode);
	const struct file_lock *held;
	bool found = false;

	if (!lists)
		return false;
	spin_lock(&lists->flc_lock);
	list_for_each_entry(held, lock->fl_flags & FL_FLOCK ? &lists->flc_flock : &lists->flc_posix,
			    fl_list)
	{
		found = dfs_same_owner(lock, held);
		if (found)
			break;
	}
	spin_unlock(&lists->flc_lock);
	return found;
}

int dfs_recorded_flock(struct inode *inode, const struct file *file)
{
	struct file_lock_context *lists = dfs_lists_of(inode);
	const struct file_lock *held;
	int type = F_UNLCK;

	if (!lists)
		return type;
	spin_lock(&lists->flc_lock);
	list_for_each_entry(held, &lists->flc_flock, fl_list)
	{
		if (held->fl_file == file) {
			type = held->fl_type;
			break;
		}
	}
	spin_unlock(&lists->flc_lock);
	return type;
}

/* --- changing; under files->record, NOFS ----------------------------------------------------------------- */

static void dfs_note_inode(struct dfs_session *session, struct inode *inode)
{
	struct file_lock_context *lists = dfs_lists_of(inode);
	struct dfs_inode *dfs = dfs_i(inode);
	bool some = lists && (!list_empty_careful(&lists->flc_posix) ||
			      !list_empty_careful(&lists->flc_flock));

	if (some && list_empty(&dfs->file_locks))
		list_add_tail(&dfs->file_locks, &session->files.inodes);
	else if (!some)
		list_del_init(&dfs->file_locks);
}

/* Nobody is in the way: lockd has said so, in this order. So only memory can lack, for a moment. */
static int dfs_record(struct dfs_session *session, struct inode *inode, struct file_lock *lock)
{
	unsigned int flags = lock->fl_flags;
	u32 tries = DFS_RECORD_TRIES;
	int error;

	lock->fl_flags &= ~(FL_SLEEP | FL_EXISTS);
	while ((error = locks_lock_inode_wait(inode, lock)) != 0 && error != -EAGAIN && --tries)
		schedule_timeout_uninterruptible(HZ / 100 + 1);
	lock->fl_flags = flags;
	WARN_ONCE(error,
		  "distfuse: a lock of inode %lu that lockd has granted is not recorded: %d\n",
		  inode->i_ino, error);
	dfs_note_inode(session, inode);
	return error;
}

static void dfs_record_all(struct dfs_session *session)
{
	struct dfs_file_request *request;

	for (;;) {
		spin_lock_bh(&session->spin);
		request = list_first_entry_or_null(&session->files.answered,
						   struct dfs_file_request, link);
		if (request)
			list_del_init(&request->link);
		spin_unlock_bh(&session->spin);
		if (!request)
			return;
		if (!request->reply.error)
			dfs_record(session, request->inode, request->lock);
	}
}

/* What is in a list, as an unlock of just that. `only`: the lock that this message is of. */
static bool dfs_pick(struct dfs_session *session, struct inode *inode,
		     const struct df_msg_file *only, struct file_lock *unlock)
{
	struct file_lock_context *lists = dfs_lists_of(inode);
	struct file_lock *held;
	union df_msg message;
	bool flock, found = false;

	if (!lists)
		return false;
	spin_lock(&lists->flc_lock);
	for (flock = false;; flock = true) {
		list_for_each_entry(held, flock ? &lists->flc_flock : &lists->flc_posix, fl_list)
		{
			dfs_file_describe(session, inode, held, DF_MSG_FILE_LOCK, &message);
			found = !only || (message.file.owner == only->owner &&
					  message.file.start == only->start &&
					  message.file.end == only->end &&
					  flock == !!(only->flags & DF_FILE_FLOCK));
			if (found)
				break;
		}
		if (found || flock)
			break;
	}
	if (found) {
		locks_init_lock(unlock);
		unlock->fl_type = F_UNLCK;
		unlock->fl_flags = held->fl_flags & (FL_POSIX | FL_FLOCK | FL_OFDLCK);
		unlock->fl_owner = held->fl_owner;
		unlock->fl_file = held->fl_file;
		unlock->fl_pid = held->fl_pid;
		unlock->fl_start = held->fl_start;
		unlock->fl_end = held->fl_end;
	}
	spin_unlock(&lists->flc_lock);
	return found;
}

/* --- for file_lock.c --------------------------------------------------------------------------------------- */

static unsigned int dfs_record_begin(struct dfs_session *session)
{
	unsigned int nofs = memalloc_nofs_save();

	mutex_lock(&session->files.record);
	dfs_record_all(session);
	return nofs;
}

static void dfs_record_end(struct dfs_session *session, unsigned int nofs)
{
	mutex_unlock(&session->files.record);
	memalloc_nofs_restore(nofs);
}

void dfs_record_answers(struct dfs_session *session)
{
	dfs_record_end(session, dfs_record_begin(session));
}

void dfs_record_now(struct dfs_session *session, struct inode *inode, struct file_lock *lock)
{
	unsigned int nofs = dfs_record_begin(session);

	dfs_record(session, inode, lock);
	dfs_record_end(session, nofs);
}

u32 dfs_record_lost(struct dfs_session *session)
{
	unsigned int nofs = dfs_record_begin(session);
	struct dfs_inode *dfs, *next;
	struct file_lock unlock;
	u32 count = 0;

	list_for_each_entry_safe(dfs, next, &session->files.inodes, file_locks)
	{
		while (dfs_pick(session, &dfs->vfs, NULL, &unlock) &&
		       !dfs_record(session, &dfs->vfs, &unlock))
			count++;
	}
	dfs_record_end(session, nofs);
	return count;
}

/* Sweeps hold `record` while they look at an inode that is in the list, and take it out before they let go. */
void dfs_files_evict(struct inode *inode)
{
	struct dfs_session *session = dfs_m(inode->i_sb)->session;

	if (!dfs_lists_of(inode))
		return;
	mutex_lock(&session->files.record);
	WARN_ON_ONCE(!list_empty(&dfs_i(inode)->file_locks));
	list_del_init(&dfs_i(inode)->file_locks);
	mutex_unlock(&session->files.record);
}

/* --- re-assertion -------------------------------------------------------------------------------------------- */

/* Under files->record: one message for each lock, at most `room`; how many there are. */
static u32 dfs_collect(struct dfs_session *session, union df_msg *messages, u32 room)
{
	struct file_lock_context *lists;
	struct file_lock *held;
	struct dfs_inode *dfs;
	bool flock;
	u32 count = 0;

	list_for_each_entry(dfs, &session->files.inodes, file_locks)
	{
		lists = dfs_lists_of(&dfs->vfs);
		spin_lock(&lists->flc_lock);
		for (flock = false;; flock = true) {
			list_for_each_entry(held, flock ? &lists->flc_flock : &lists->flc_posix,
					    fl_list)
			{
				if (count < room) {
					dfs_file_describe(session, &dfs->vfs, held,
							  DF_MSG_FILE_LOCK, &messages[count]);
					messages[count].file.flags |= DF_FILE_RECLAIM;
				}
				count++;
			}
			if (flock)
				break;
		}
		spin_unlock(&lists->flc_lock);
	}
	return count;
}

static union df_msg *dfs_collect_all(struct dfs_session *session, u32 *count)
{
	union df_msg *messages = NULL;
	u32 room = 0;

	for (;;) {
		unsigned int nofs = dfs_record_begin(session);

		*count = dfs_collect(session, messages, room);
		dfs_record_end(session, nofs);
		if (*count <= room)
			return messages;
		kvfree(messages);
		room = *count;
		while (!(messages = kvmalloc_array(room, sizeof(*messages), GFP_KERNEL)))
			schedule_timeout_uninterruptible(HZ / 10);
	}
}

/* A lock that lockd does not give again. */
static void dfs_refused(struct dfs_session *session, const struct df_msg_file *message)
{
	unsigned int nofs = dfs_record_begin(session);
	struct file_lock unlock;
	struct dfs_inode *dfs;

	list_for_each_entry(dfs, &session->files.inodes, file_locks)
	{
		if (df_key_inode(dfs->vfs.i_ino) != message->head.key)
			continue;
		if (dfs_pick(session, &dfs->vfs, message, &unlock))
			dfs_record(session, &dfs->vfs, &unlock);
		break;
	}
	dfs_record_end(session, nofs);
}

/* Up to a window of them. -1: the link has ended, or the session; else how many were refused. */
static int dfs_reassert_some(struct dfs_session *session, u32 epoch, const union df_msg *messages,
			     u32 count, struct dfs_file_request *requests)
{
	u32 i, refused = 0;
	bool over = false;

	spin_lock_bh(&session->spin);
	for (i = 0; i < count; i++) {
		memset(&requests[i], 0, sizeof(requests[i]));
		init_waitqueue_head(&requests[i].wait);
		INIT_LIST_HEAD(&requests[i].link);
		requests[i].message = messages[i];
		if (session->epoch == epoch && session->link)
			dfs_file_post(session, &requests[i]);
	}
	spin_unlock_bh(&session->spin);
	for (i = 0; i < count; i++) {
		wait_event_idle(requests[i].wait,
				smp_load_acquire(&requests[i].state) != DFS_FILE_SENT ||
					READ_ONCE(session->stopping));
		over |= requests[i].state != DFS_FILE_ANSWERED;
	}
	spin_lock_bh(&session->spin);
	for (i = 0; i < count; i++)
		hlist_del_init(&requests[i].sent);
	spin_unlock_bh(&session->spin);
	for (i = 0; !over && i < count; i++) {
		if (requests[i].reply.error) {
			dfs_refused(session, &messages[i].file);
			refused++;
		}
	}
	return over ? -1 : refused;
}

static void dfs_reassert_all(struct dfs_session *session, u32 epoch)
{
	struct dfs_file_request *requests;
	union df_msg *messages;
	u32 count, at, refused = 0;
	int more = 0;

	messages = dfs_collect_all(session, &count);
	requests = kcalloc(DFS_REASSERT_WINDOW, sizeof(*requests), GFP_KERNEL | __GFP_NOFAIL);
	for (at = 0; at < count && more >= 0; at += DFS_REASSERT_WINDOW) {
		more = dfs_reassert_some(session, epoch, messages + at,
					 min(count - at, DFS_REASSERT_WINDOW), requests);
		refused += max(more, 0);
	}
	kfree(requests);
	kvfree(messages);
	if (refused)
		pr_err("distfuse: %u of %u fcntl and flock locks could not be had again\n", refused,
		       count);
	if (more >= 0)
		dfs_session_reassert_done(session, epoch);
}

/* NOFS: locks of the cluster wait for the end of this, and with them what reclaim wants to write. */
void dfs_files_reassert_work(struct work_struct *work)
{
	struct dfs_session *session = container_of(work, struct dfs_session, files.reassert_work);
	unsigned int nofs = memalloc_nofs_save();
	u32 epoch;

	spin_lock_bh(&session->spin);
	epoch = session->files.reassert;
	session->files.reassert = 0;
	spin_unlock_bh(&session->spin);
	if (epoch)
		dfs_reassert_all(session, epoch);
	memalloc_nofs_restore(nofs);
}
