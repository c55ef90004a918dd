// SPDX-License-Identifier: GPL-2.0-only
/* fcntl and flock locks: requests to lockd and their threads. The contract is in file_lock.h; what is recorded is file_record.c's. */
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "connection.h"
#include "file_request.h"
#include "inode.h"
#include "session.h"

#define DFS_FILE_FIRST_SEQ (1ull << 32)

/* --- requests; under session->spin where not said ---------------------------------------------------- */

static struct hlist_head *dfs_file_bucket(struct dfs_file_locks *files, u64 seq)
{
	return &files->sent[seq % DFS_FILE_BUCKETS];
}

void dfs_file_post(struct dfs_session *session, struct dfs_file_request *request)
{
	request->message.head.seq = session->files.next_seq++;
	request->state = DFS_FILE_SENT;
	hlist_add_head(&request->sent, dfs_file_bucket(&session->files, request->message.head.seq));
	dfs_count(session->connection, messages_sent);
	dfs_link_send(session->link, &request->message);
}

static bool dfs_file_is_unlock(const struct dfs_file_request *request)
{
	return request->message.head.type == DF_MSG_FILE_UNLOCK;
}

static void dfs_file_give_credit(struct dfs_session *session, struct dfs_file_request *request)
{
	if (request->waits) {
		session->files.waiting--;
	} else {
		session->files.calling--;
		wake_up(&session->files.room);
	}
}

static void dfs_file_free(struct dfs_session *session, struct dfs_file_request *request)
{
	dfs_file_give_credit(session, request);
	kfree(request);
}

/* An answer to nobody: what it granted goes back. */
static void dfs_file_left_answered(struct dfs_session *session, struct dfs_file_request *request)
{
	if (request->message.head.type != DF_MSG_FILE_LOCK || request->reply.error) {
		dfs_file_free(session, request);
		return;
	}
	request->message.head.type = DF_MSG_FILE_UNLOCK;
	request->message.file.type = DF_FILE_NONE;
	request->message.file.flags &= DF_FILE_FLOCK;
	dfs_file_post(session, request);
}

int dfs_files_message(struct dfs_session *session, u32 epoch, const union df_msg *message)
{
	struct dfs_file_locks *files = &session->files;
	struct dfs_file_request *request;
	int error = 0;

	spin_lock_bh(&session->spin);
	if (session->epoch != epoch)
		goto out;
	error = -EPROTO;
	hlist_for_each_entry(request, dfs_file_bucket(files, message->head.seq), sent)
	{
		if (request->message.head.seq != message->head.seq ||
		    request->message.head.key != message->head.key)
			continue;
		error = 0;
		hlist_del_init(&request->sent);
		request->reply = message->file_reply;
		if (request->left) {
			dfs_file_left_answered(session, request);
			break;
		}
		if (request->lock)
			list_add_tail(&request->link, &files->answered);
		smp_store_release(&request->state, DFS_FILE_ANSWERED);
		wake_up(&request->wait);
		break;
	}
out:
	spin_unlock_bh(&session->spin);
	return error;
}

/* --- the session's doings ------------------------------------------------------------------------------ */

void dfs_files_open(struct dfs_session *session)
{
	struct dfs_file_locks *files = &session->files;
	u32 i;

	get_random_bytes(files->scramble, sizeof(files->scramble));
	mutex_init(&files->record);
	INIT_LIST_HEAD(&files->inodes);
	INIT_WORK(&files->reassert_work, dfs_files_reassert_work);
	init_waitqueue_head(&files->room);
	files->next_seq = DFS_FILE_FIRST_SEQ;
	for (i = 0; i < DFS_FILE_BUCKETS; i++)
		INIT_HLIST_HEAD(&files->sent[i]);
	INIT_LIST_HEAD(&files->answered);
	INIT_LIST_HEAD(&files->owed);
}

static void dfs_files_forgive(struct dfs_session *session)
{
	struct dfs_file_request *request, *next;

	list_for_each_entry_safe(request, next, &session->files.owed, link)
	{
		list_del(&request->link);
		dfs_file_free(session, request);
	}
}

void dfs_files_close(struct dfs_session *session)
{
	cancel_work_sync(&session->files.reassert_work);
	WARN_ON_ONCE(!list_empty(&session->files.inodes));
	dfs_files_detach(session);
	spin_lock_bh(&session->spin);
	dfs_files_forgive(session);
	spin_unlock_bh(&session->spin);
}

void dfs_files_detach(struct dfs_session *session)
{
	struct dfs_file_request *request;
	struct hlist_node *next;
	u32 i;

	spin_lock_bh(&session->spin);
	for (i = 0; i < DFS_FILE_BUCKETS; i++) {
		hlist_for_each_entry_safe(request, next, &session->files.sent[i], sent)
		{
			hlist_del_init(&request->sent);
			if (!request->left) {
				smp_store_release(&request->state, DFS_FILE_UNSENT);
				wake_up(&request->wait);
			} else if (dfs_file_is_unlock(request)) {
				/* It may be re-asserted, or not: the next lockd is told as well. */
				request->state = DFS_FILE_UNSENT;
				list_add_tail(&request->link, &session->files.owed);
			} else {
				dfs_file_free(session, request);
			}
		}
	}
	spin_unlock_bh(&session->spin);
}

void dfs_files_resume(struct dfs_session *session)
{
	struct dfs_file_request *request, *next;

	list_for_each_entry_safe(request, next, &session->files.owed, link)
	{
		if (!session->link)
			break;
		list_del_init(&request->link);
		dfs_file_post(session, request);
	}
}

void dfs_files_reassert(struct dfs_session *session)
{
	spin_lock_bh(&session->spin);
	session->files.reassert = session->epoch;
	spin_unlock_bh(&session->spin);
	queue_work(session->shed_queue, &session->files.reassert_work);
}

void dfs_files_lost(struct dfs_session *session)
{
	u32 lost;

	spin_lock_bh(&session->spin);
	dfs_files_forgive(session);
	spin_unlock_bh(&session->spin);
	lost = dfs_record_lost(session);
	if (lost)
		pr_err("distfuse: %u fcntl and flock locks are lost with the session\n", lost);
}

void dfs_files_wake(struct dfs_session *session)
{
	struct dfs_file_request *request;
	u32 i;

	spin_lock_bh(&session->spin);
	for (i = 0; i < DFS_FILE_BUCKETS; i++)
		hlist_for_each_entry(request, &session->files.sent[i], sent) if (!request->left)
			wake_up(&request->wait);
	spin_unlock_bh(&session->spin);
	wake_up_all(&session->files.room);
	wake_up_all(&session->changed);
}

/* --- one request of a thread ----------------------------------------------------------------------------- */

enum dfs_patience {
	DFS_INTERRUPTIBLE, /* any signal */
	DFS_KILLABLE,
	DFS_TO_THE_END, /* no signal; give_up_ms */
};

static bool dfs_files_over(const struct dfs_session *session)
{
	return READ_ONCE(session->connection->aborted) || READ_ONCE(session->stopping);
}

/* > 0: `condition`; 0: the time is over; -ERESTARTSYS. */
#define dfs_wait_patiently(queue, condition, patience, timeout)                                    \
	((patience) == DFS_INTERRUPTIBLE                                                           \
		 ? wait_event_interruptible_timeout(queue, condition, timeout)                     \
	 : (patience) == DFS_KILLABLE ? wait_event_killable_timeout(queue, condition, timeout)     \
				      : wait_event_idle_timeout(queue, condition, timeout))

static long dfs_files_patience(const struct dfs_session *session)
{
	return msecs_to_jiffies(session->give_up_ms) + 1;
}

static bool dfs_file_try_credit(struct dfs_session *session, bool waits)
{
	struct dfs_file_locks *files = &session->files;
	u32 *used = waits ? &files->waiting : &files->calling;
	bool had;

	spin_lock_bh(&session->spin);
	had = *used < max(files->asks / 4, 1u);
	if (had)
		++*used;
	spin_unlock_bh(&session->spin);
	return had;
}

static int dfs_file_credit(struct dfs_session *session, bool waits, enum dfs_patience patience)
{
	bool had = false;
	long left;

	if (waits)
		return dfs_file_try_credit(session, true) ? 0 : -ENOLCK;
	left = dfs_wait_patiently(session->files.room,
				  (had = dfs_file_try_credit(session, false)) ||
					  dfs_files_over(session),
				  patience, dfs_files_patience(session));
	if (!had && patience == DFS_TO_THE_END) {
		spin_lock_bh(&session->spin);
		session->files.calling++;
		spin_unlock_bh(&session->spin);
		had = true;
	}
	return had ? 0 : left < 0 ? -ERESTARTSYS : left ? -ENOTCONN : -ENOLCK;
}

/* ERR_PTR: -ENOLCK, -ENOTCONN, -ERESTARTSYS. `lock` is recorded when lockd says so; NULL: nothing is. */
static struct dfs_file_request *dfs_file_request_new(struct dfs_session *session,
						     struct inode *inode, struct file_lock *lock,
						     u32 type, enum dfs_patience patience)
{
	bool waits = type == DF_MSG_FILE_LOCK && lock->fl_flags & FL_SLEEP;
	struct dfs_file_request *request;
	int error = dfs_file_credit(session, waits, patience);

	if (error)
		return ERR_PTR(error);
	request = kzalloc(sizeof(*request), GFP_KERNEL | __GFP_NOFAIL);
	init_waitqueue_head(&request->wait);
	INIT_LIST_HEAD(&request->link);
	request->waits = waits;
	request->inode = inode;
	request->lock = type == DF_MSG_FILE_TEST ? NULL : lock;
	dfs_file_describe(session, inode, lock, type, &request->message);
	if (waits)
		request->message.file.flags |= DF_FILE_WAIT;
	return request;
}

static void dfs_file_request_end(struct dfs_session *session, struct dfs_file_request *request)
{
	spin_lock_bh(&session->spin);
	dfs_file_free(session, request);
	spin_unlock_bh(&session->spin);
}

/* The thread goes without an answer. False: there is one. */
static bool dfs_file_leave(struct dfs_session *session, struct dfs_file_request *request)
{
	bool answered;

	spin_lock_bh(&session->spin);
	answered = request->state == DFS_FILE_ANSWERED;
	if (!answered) {
		request->left = true;
		request->lock = NULL;
		if (request->state == DFS_FILE_UNSENT && dfs_file_is_unlock(request))
			list_add_tail(&request->link, &session->files.owed);
		else if (request->state == DFS_FILE_UNSENT)
			dfs_file_free(session, request);
	}
	spin_unlock_bh(&session->spin);
	return !answered;
}

static void dfs_file_cancel(struct dfs_session *session, struct dfs_file_request *request)
{
	union df_msg cancel;

	spin_lock_bh(&session->spin);
	if (request->state == DFS_FILE_SENT) {
		df_msg_init(&cancel, DF_MSG_FILE_CANCEL, 0, request->message.head.key,
			    request->message.head.seq);
		dfs_count(session->connection, messages_sent);
		dfs_link_send(session->link, &cancel);
	}
	spin_unlock_bh(&session->spin);
}

static bool dfs_file_settled(const struct dfs_session *session,
			     const struct dfs_file_request *request)
{
	return smp_load_acquire(&request->state) != DFS_FILE_SENT || dfs_files_over(session);
}

/* Of a request that is SENT: until it is not. -ERESTARTSYS: a signal came; it is settled, or the time is over. */
static int dfs_file_await_answer(struct dfs_session *session, struct dfs_file_request *request,
				 enum dfs_patience patience)
{
	long limit =
		patience == DFS_TO_THE_END ? dfs_files_patience(session) : MAX_SCHEDULE_TIMEOUT;

	if (dfs_wait_patiently(request->wait, dfs_file_settled(session, request), patience,
			       limit) >= 0)
		return 0;
	if (request->waits)
		dfs_file_cancel(session, request);
	else if (!request->lock)
		return -ERESTARTSYS; /* a test: nothing depends on it */
	if (wait_event_killable(request->wait, dfs_file_settled(session, request)))
		wait_event_idle_timeout(request->wait, dfs_file_settled(session, request),
					dfs_files_patience(session));
	return -ERESTARTSYS;
}

/* Until lockd takes requests, and sent. -ERESTARTSYS, -ENOTCONN, -EIO; -ENOENT: an unlock of what is not there any more. */
static int dfs_file_send(struct dfs_session *session, struct dfs_file_request *request,
			 enum dfs_patience patience)
{
	long left;
	bool sent = false;

	while (!sent) {
		left = dfs_wait_patiently(session->changed,
					  READ_ONCE(session->live) || dfs_files_over(session),
					  patience, dfs_files_patience(session));
		if (dfs_files_over(session))
			return -ENOTCONN;
		if (left <= 0)
			return left ? -ERESTARTSYS : -EIO;
		if (dfs_file_is_unlock(request) && !dfs_recorded(request->inode, request->lock))
			return -ENOENT;
		spin_lock_bh(&session->spin);
		sent = session->live && session->link;
		if (sent)
			dfs_file_post(session, request);
		spin_unlock_bh(&session->spin);
	}
	return 0;
}

/*
 * 0: answered, and recorded what it says; the request is the caller's to end. Else it is gone: -ERESTARTSYS, -ENOTCONN, -EIO, -ENOENT.
 */
static int dfs_file_call(struct dfs_session *session, struct dfs_file_request *request,
			 enum dfs_patience patience)
{
	int error;

	do {
		error = dfs_file_send(session, request, patience);
		if (!error)
			error = dfs_file_await_answer(session, request, patience);
	} while (!error && smp_load_acquire(&request->state) == DFS_FILE_UNSENT);
	if (error == -ENOENT) {
		dfs_file_request_end(session, request);
		return error;
	}
	if (smp_load_acquire(&request->state) != DFS_FILE_ANSWERED &&
	    dfs_file_leave(session, request))
		return error ? error : dfs_files_over(session) ? -ENOTCONN : -EIO;
	dfs_record_answers(session);
	return 0;
}

/* --- the VFS's calls ----------------------------------------------------------------------------------------- */

static int dfs_file_error(u32 error)
{
	switch (error) {
	case 0:
	case EAGAIN:
	case EDEADLK:
	case ENOLCK:
		return -(int)error;
	case EINTR:
		return -ERESTARTSYS;
	default:
		return -EIO;
	}
}

static int dfs_file_test(struct dfs_session *session, struct inode *inode, struct file_lock *lock)
{
	struct dfs_file_request *request =
		dfs_file_request_new(session, inode, lock, DF_MSG_FILE_TEST, DFS_KILLABLE);
	const struct df_msg_file_reply *reply;
	int error;

	if (IS_ERR(request))
		return PTR_ERR(request);
	error = dfs_file_call(session, request, DFS_KILLABLE);
	if (error)
		return error;
	reply = &request->reply;
	error = dfs_file_error(reply->error);
	if (!error && reply->type == DF_FILE_NONE) {
		lock->fl_type = F_UNLCK;
	} else if (!error && (reply->start > reply->end || reply->start > OFFSET_MAX)) {
		error = -EIO;
	} else if (!error) {
		lock->fl_type = reply->type == DF_FILE_READ ? F_RDLCK : F_WRLCK;
		lock->fl_start = reply->start;
		lock->fl_end = min_t(u64, reply->end, OFFSET_MAX);
		lock->fl_pid = reply->pid;
		/* That is what makes the VFS say -1. */
		lock->fl_flags &= ~FL_OFDLCK;
		if (reply->pid == -1)
			lock->fl_flags |= FL_OFDLCK;
	}
	dfs_file_request_end(session, request);
	return error;
}

static int dfs_file_take(struct dfs_session *session, struct inode *inode, struct file_lock *lock)
{
	enum dfs_patience patience = lock->fl_flags & FL_SLEEP ? DFS_INTERRUPTIBLE : DFS_KILLABLE;
	struct dfs_file_request *request =
		dfs_file_request_new(session, inode, lock, DF_MSG_FILE_LOCK, patience);
	int error;

	if (IS_ERR(request))
		return PTR_ERR(request);
	error = dfs_file_call(session, request, patience);
	if (error)
		return error;
	error = dfs_file_error(request->reply.error);
	dfs_file_request_end(session, request);
	return error;
}

/* Without an answer, and at a close, it is gone here all the same. Else ENOLCK: what is left would be more ranges than lockd takes. */
static int dfs_file_drop(struct dfs_session *session, struct inode *inode, struct file_lock *lock)
{
	struct dfs_file_request *request;
	int error;

	if (!dfs_recorded(inode, lock))
		return lock->fl_flags & FL_EXISTS ? -ENOENT : 0;
	request = dfs_file_request_new(session, inode, lock, DF_MSG_FILE_UNLOCK, DFS_TO_THE_END);
	if (IS_ERR(request))
		return PTR_ERR(request); /* never: of TO_THE_END */
	error = dfs_file_call(session, request, DFS_TO_THE_END);
	if (error == -ENOENT)
		return 0;
	if (!error) {
		error = dfs_file_error(request->reply.error);
		dfs_file_request_end(session, request);
		if (!error || !(lock->fl_flags & FL_CLOSE))
			return error;
	}
	dfs_record_now(session, inode, lock);
	return 0;
}

static int dfs_file_change(struct dfs_session *session, struct inode *inode, struct file_lock *lock)
{
	return lock->fl_type == F_UNLCK ? dfs_file_drop(session, inode, lock)
					: dfs_file_take(session, inode, lock);
}

int dfs_file_lock(struct file *file, int command, struct file_lock *lock)
{
	struct inode *inode = file_inode(file);
	struct dfs_session *session = dfs_m(inode->i_sb)->session;

	if (command == F_CANCELLK)
		return 0;
	if (IS_GETLK(command))
		return dfs_file_test(session, inode, lock);
	return dfs_file_change(session, inode, lock);
}

int dfs_file_flock(struct file *file, int command, struct file_lock *lock)
{
	struct inode *inode = file_inode(file);
	struct dfs_session *session = dfs_m(inode->i_sb)->session;
	struct file_lock other;
	int held = dfs_recorded_flock(inode, file), error = 0;

	if (held == lock->fl_type)
		return 0;
	if (held != F_UNLCK && lock->fl_type != F_UNLCK) {
		locks_init_lock(&other);
		other.fl_flags = FL_FLOCK;
		other.fl_owner = lock->fl_owner;
		other.fl_file = file;
		other.fl_pid = lock->fl_pid;
		other.fl_end = OFFSET_MAX;
		other.fl_type = F_UNLCK;
		error = dfs_file_drop(session, inode, &other);
	}
	return error ? error : dfs_file_change(session, inode, lock);
}
