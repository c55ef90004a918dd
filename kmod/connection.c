// SPDX-License-Identifier: GPL-2.0-only
/* Connections: their life, their daemon, their queues. The contract is in connection.h. */
#include <linux/list_sort.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "connection.h"
#include "session.h"
#include "trace.h"

static LIST_HEAD(dfs_connections);
static DEFINE_MUTEX(dfs_connections_mutex);
static u64 dfs_last_connection;

static void dfs_connection_given_up(struct work_struct *work);

static struct list_head *dfs_sent_bucket(struct dfs_connection *connection, u64 unique)
{
	return &connection->sent[(unique >> 4) % DFS_SENT_BUCKETS];
}

struct dfs_connection *dfs_connection_new(void)
{
	struct dfs_connection *connection = kzalloc(sizeof(*connection), GFP_KERNEL);
	u32 i;

	if (!connection)
		return NULL;
	connection->counters = alloc_percpu(struct dfs_counters);
	if (!connection->counters) {
		kfree(connection);
		return NULL;
	}
	refcount_set(&connection->refs, 1);
	spin_lock_init(&connection->spin);
	INIT_LIST_HEAD(&connection->pending);
	for (i = 0; i < DFS_SENT_BUCKETS; i++)
		INIT_LIST_HEAD(&connection->sent[i]);
	INIT_LIST_HEAD(&connection->unanswered);
	init_waitqueue_head(&connection->drained);
	init_waitqueue_head(&connection->readers);
	init_waitqueue_head(&connection->room);
	INIT_DELAYED_WORK(&connection->give_up, dfs_connection_given_up);
	mutex_lock(&dfs_connections_mutex);
	connection->id = ++dfs_last_connection;
	list_add_tail(&connection->link, &dfs_connections);
	mutex_unlock(&dfs_connections_mutex);
	return connection;
}

struct dfs_connection *dfs_connection_get(struct dfs_connection *connection)
{
	refcount_inc(&connection->refs);
	return connection;
}

void dfs_connection_put(struct dfs_connection *connection)
{
	if (!refcount_dec_and_mutex_lock(&connection->refs, &dfs_connections_mutex))
		return;
	list_del(&connection->link);
	mutex_unlock(&dfs_connections_mutex);
	put_pid(connection->daemon_process);
	free_percpu(connection->counters);
	kfree(connection);
}

struct dfs_connection *dfs_connection_claim(u64 id)
{
	struct dfs_connection *connection, *found = NULL;

	mutex_lock(&dfs_connections_mutex);
	list_for_each_entry(connection, &dfs_connections, link)
	{
		if (connection->id == id && !connection->mounted) {
			connection->mounted = true;
			found = dfs_connection_get(connection);
			break;
		}
	}
	mutex_unlock(&dfs_connections_mutex);
	return found;
}

struct dfs_connection *dfs_connection_of_device(u32 minor)
{
	struct dfs_connection *connection, *found = NULL;

	mutex_lock(&dfs_connections_mutex);
	list_for_each_entry(connection, &dfs_connections, link)
	{
		if (connection->device && MINOR(connection->device) == minor) {
			found = dfs_connection_get(connection);
			break;
		}
	}
	mutex_unlock(&dfs_connections_mutex);
	return found;
}

/* Under spin: takes out everything that is queued or sent, but for what a thread of the daemon copies at the moment, which that thread ends. */
static void dfs_take_all(struct dfs_connection *connection, struct list_head *ended)
{
	struct dfs_request *request, *next;
	u32 i;

	list_splice_init(&connection->pending, ended);
	for (i = 0; i < DFS_SENT_BUCKETS; i++) {
		list_for_each_entry_safe(request, next, &connection->sent[i], link)
		{
			if (request->copying)
				continue;
			request->state = DFS_REQUEST_PENDING;
			connection->sent_count--;
			list_move_tail(&request->link, ended);
		}
	}
}

/* False: `alone` was asked for, and there is a daemon, or one is about to be. */
static bool dfs_abort(struct dfs_connection *connection, bool alone)
{
	struct dfs_request *request;
	LIST_HEAD(ended);

	spin_lock(&connection->spin);
	if (alone && (connection->daemon || connection->attaching || connection->aborted)) {
		spin_unlock(&connection->spin);
		return false;
	}
	connection->aborted = true;
	dfs_take_all(connection, &ended);
	wake_up_all(&connection->readers);
	wake_up_all(&connection->room);
	wake_up_all(&connection->drained);
	spin_unlock(&connection->spin);
	dfs_session_aborted(connection);
	/* The list is ours: whoever looks for these requests finds PENDING ones that answer to nobody. */
	for (;;) {
		spin_lock(&connection->spin);
		request = list_first_entry_or_null(&ended, struct dfs_request, link);
		if (request) {
			list_del_init(&request->link);
			request->copying = true;
		}
		spin_unlock(&connection->spin);
		if (!request)
			return true;
		dfs_connection_finish(request, -ENOTCONN);
	}
}

void dfs_connection_abort(struct dfs_connection *connection)
{
	dfs_abort(connection, false);
}

static void dfs_connection_given_up(struct work_struct *work)
{
	struct dfs_connection *connection =
		container_of(to_delayed_work(work), struct dfs_connection, give_up);

	if (dfs_abort(connection, true))
		pr_err("distfuse: no client daemon for mount 0:%u within %u ms: its requests fail "
		       "with ENOTCONN; unmount it, and mount again\n",
		       MINOR(connection->device), connection->give_up_ms);
}

static void dfs_init_answered(struct dfs_request *request)
{
	struct dfs_connection *connection = request->connection;
	const struct fuse_init_out *answer = request->out;
	bool good = !request->error &&
		    request->out_length >= offsetof(struct fuse_init_out, flags2) &&
		    answer->major == FUSE_KERNEL_VERSION && answer->max_write >= DFS_MAX_IO;

	if (!good && request->error != -ENOTCONN)
		pr_err("distfuse: the client daemon's answer to INIT is refused (error %d, %u "
		       "bytes): it must speak FUSE 7 and write %lu bytes at once\n",
		       request->error, request->out_length, DFS_MAX_IO);
	spin_lock(&connection->spin);
	if (good)
		connection->ready = true;
	else if (request->error != -ENOTCONN)
		connection->refused = true;
	spin_unlock(&connection->spin);
	wake_up_all(&connection->readers);
}

static struct dfs_request *dfs_init_request(struct dfs_connection *connection)
{
	struct dfs_request *request;
	struct fuse_init_in *in;

	request = dfs_request_new(connection, FUSE_INIT, 0, offsetof(struct fuse_init_in, flags2),
				  sizeof(struct fuse_init_out), true);
	if (!request)
		return NULL;
	in = request->in;
	in->major = FUSE_KERNEL_VERSION;
	in->minor = 31;
	in->max_readahead = DFS_MAX_IO;
	in->flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_DO_READDIRPLUS |
		    FUSE_PARALLEL_DIROPS | FUSE_ASYNC_DIO | FUSE_POSIX_ACL | FUSE_WRITEBACK_CACHE |
		    FUSE_NO_OPENDIR_SUPPORT;
	request->out_variable = true;
	request->end = dfs_init_answered;
	return request;
}

/* Under spin. The INIT of a daemon that will not answer it; NULL: there is none. */
static struct dfs_request *dfs_take_init(struct dfs_connection *connection)
{
	struct dfs_request *request;

	list_for_each_entry(request, &connection->pending, link)
	{
		if (request->head.opcode == FUSE_INIT) {
			list_del_init(&request->link);
			return request;
		}
	}
	return NULL;
}

static bool dfs_is_drained(struct dfs_connection *connection)
{
	bool drained;

	spin_lock(&connection->spin);
	drained = !connection->daemon || !connection->sent_count || connection->aborted;
	spin_unlock(&connection->spin);
	return drained;
}

/* The daemon there is answers what it has, or is killed. */
static int dfs_drain(struct dfs_connection *connection, u32 drain_ms)
{
	long patience = msecs_to_jiffies(drain_ms), left;

	left = wait_event_interruptible_timeout(connection->drained, dfs_is_drained(connection),
						patience);
	if (left)
		return left < 0 ? -EINTR : 0;
	pr_warn("distfuse: the client daemon of mount 0:%u does not leave within %u ms: killed\n",
		MINOR(connection->device), drain_ms);
	kill_pid(connection->daemon_process, SIGKILL, 1);
	left = wait_event_interruptible_timeout(connection->drained, dfs_is_drained(connection),
						patience);
	if (left)
		return left < 0 ? -EINTR : 0;
	return -EBUSY;
}

/* `leaves`: there is a daemon. */
static int dfs_begin_attach(struct dfs_connection *connection, bool *leaves)
{
	int error = 0;

	spin_lock(&connection->spin);
	if (connection->aborted)
		error = -ENOTCONN;
	else if (connection->attaching)
		error = -EBUSY;
	if (!error) {
		connection->attaching = true;
		*leaves = connection->leaving = connection->daemon;
		wake_up_all(&connection->readers);
	}
	spin_unlock(&connection->spin);
	return error;
}

/* Whom an attach left behind that came to nothing may be gone already. */
static void dfs_arm_give_up(struct dfs_connection *connection)
{
	/* Unmounting aborts, then cancels this work, then lets the connection go: nothing is armed after that. */
	if (connection->mounted && !connection->aborted && !connection->daemon &&
	    !connection->attaching)
		mod_delayed_work(system_unbound_wq, &connection->give_up,
				 msecs_to_jiffies(connection->give_up_ms));
}

static int dfs_end_attach(struct dfs_daemon *daemon, int error)
{
	struct dfs_connection *connection = daemon->connection;
	struct dfs_request *init = NULL;
	struct pid *former = NULL;

	spin_lock(&connection->spin);
	connection->attaching = false;
	if (!error && connection->aborted)
		error = -ENOTCONN;
	if (!error) {
		init = dfs_take_init(connection);
		former = connection->daemon_process;
		connection->daemon_process = get_pid(task_tgid(current));
		connection->daemon = daemon->number = ++connection->daemons;
		connection->leaving = connection->ready = connection->refused = false;
	}
	dfs_arm_give_up(connection);
	spin_unlock(&connection->spin);
	put_pid(former);
	if (init)
		dfs_connection_finish(init, -ENOTCONN);
	if (!error)
		dfs_session_daemon_changed(connection);
	return error;
}

int dfs_connection_attach(struct dfs_daemon *daemon, u32 drain_ms)
{
	struct dfs_connection *connection = daemon->connection;
	struct dfs_request *init = dfs_init_request(connection);
	bool leaves = false;
	int error;

	if (!init)
		return -ENOMEM;
	error = dfs_begin_attach(connection, &leaves);
	if (!error) {
		error = leaves ? dfs_drain(connection, drain_ms) : 0;
		error = dfs_end_attach(daemon, error);
	}
	if (error) {
		dfs_request_put(init);
		return error;
	}
	cancel_delayed_work(&connection->give_up);
	dfs_request_start(init);
	return 0;
}

static int dfs_by_unique(void *unused, const struct list_head *a, const struct list_head *b)
{
	const struct dfs_request *left = list_entry(a, struct dfs_request, link);
	const struct dfs_request *right = list_entry(b, struct dfs_request, link);

	return left->head.unique > right->head.unique;
}

/* The daemon's descriptor is closed: no thread of it copies any more. */
void dfs_connection_detach(struct dfs_daemon *daemon)
{
	struct dfs_connection *connection = daemon->connection;
	struct dfs_request *request, *init;
	bool mounted;
	u32 i;

	spin_lock(&connection->spin);
	if (connection->daemon != daemon->number) {
		spin_unlock(&connection->spin); /* it has left */
		return;
	}
	connection->daemon = 0;
	connection->ready = connection->leaving = false;
	for (i = 0; i < DFS_SENT_BUCKETS; i++) {
		list_for_each_entry(request, &connection->sent[i], link) request->state =
			DFS_REQUEST_PENDING;
		list_splice_tail_init(&connection->sent[i], &connection->pending);
	}
	connection->sent_count = 0;
	init = dfs_take_init(connection);
	list_sort(NULL, &connection->pending, dfs_by_unique);
	mounted = connection->mounted;
	wake_up_all(&connection->drained);
	dfs_arm_give_up(connection);
	spin_unlock(&connection->spin);
	if (init)
		dfs_connection_finish(init, -ENOTCONN);
	if (!mounted)
		dfs_connection_abort(connection);
}

/* Under connection->spin. */
static struct dfs_request *dfs_first_pending(struct dfs_connection *connection)
{
	struct dfs_request *request;

	if (connection->ready)
		return list_first_entry_or_null(&connection->pending, struct dfs_request, link);
	list_for_each_entry_reverse(request, &connection->pending,
				    link) if (request->head.opcode == FUSE_INIT) return request;
	return NULL;
}

/* Under connection->spin: whether a read of this daemon's returns at once; what it would take, or its error. */
static bool dfs_due(const struct dfs_daemon *daemon, struct dfs_request **request)
{
	struct dfs_connection *connection = daemon->connection;

	if (connection->aborted)
		*request = ERR_PTR(-ENODEV);
	else if (connection->daemon != daemon->number || connection->leaving)
		*request = ERR_PTR(-ESHUTDOWN);
	else if (connection->refused)
		*request = ERR_PTR(-EPROTO);
	else
		*request = dfs_first_pending(connection);
	return *request;
}

bool dfs_connection_readable(const struct dfs_daemon *daemon)
{
	struct dfs_request *request;
	bool readable;

	spin_lock(&daemon->connection->spin);
	readable = dfs_due(daemon, &request);
	spin_unlock(&daemon->connection->spin);
	return readable;
}

/* Under connection->spin. */
static void dfs_mark_sent(struct dfs_request *request)
{
	struct dfs_connection *connection = request->connection;
	const struct dfs_request *oldest =
		list_first_entry(&connection->unanswered, struct dfs_request, age);

	request->state = DFS_REQUEST_SENT;
	connection->sent_count++;
	request->lowest = oldest->head.unique;
	request->again = request->seen;
	if (request->seen)
		dfs_count(connection, requests_resent);
	request->seen = true;
	request->copying = true;
	list_move_tail(&request->link, dfs_sent_bucket(connection, request->head.unique));
	dfs_count(connection, requests);
	trace_distfuse_request_sent(request);
}

struct dfs_request *dfs_connection_next(const struct dfs_daemon *daemon, size_t room, bool nonblock)
{
	struct dfs_connection *connection = daemon->connection;
	struct dfs_request *request;

	for (;;) {
		spin_lock(&connection->spin);
		if (dfs_due(daemon, &request))
			break;
		spin_unlock(&connection->spin);
		if (nonblock)
			return ERR_PTR(-EAGAIN);
		if (wait_event_interruptible_exclusive(connection->readers,
						       dfs_connection_readable(daemon)))
			return ERR_PTR(-EINTR);
	}
	if (!IS_ERR(request)) {
		if (request->head.len > room)
			request = ERR_PTR(-EINVAL);
		else
			dfs_mark_sent(request);
	}
	spin_unlock(&connection->spin);
	return request;
}

void dfs_connection_copied(struct dfs_request *request, int error)
{
	struct dfs_connection *connection = request->connection;
	bool aborted;

	spin_lock(&connection->spin);
	aborted = connection->aborted;
	if (!error && !aborted)
		request->copying = false;
	spin_unlock(&connection->spin);
	if (error || aborted)
		dfs_connection_finish(request, error ? -EIO : -ENOTCONN);
}

struct dfs_request *dfs_connection_answered(const struct dfs_daemon *daemon, u64 unique)
{
	struct dfs_connection *connection = daemon->connection;
	struct dfs_request *request, *found = NULL;

	spin_lock(&connection->spin);
	if (connection->daemon != daemon->number)
		goto out;
	list_for_each_entry(request, dfs_sent_bucket(connection, unique), link)
	{
		if (request->head.unique == unique && !request->copying) {
			request->copying = true;
			found = request;
			break;
		}
	}
out:
	spin_unlock(&connection->spin);
	return found;
}
