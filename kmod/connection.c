// SPDX-License-Identifier: GPL-2.0-only
/* Connections: their life, their daemon, their queues. The contract is in connection.h. */
#include <linux/list_sort.h>
#include <linux/mutex.h>
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

/* Ends everything that is queued or sent; what a thread of the daemon copies at the moment is ended by that thread. */
void dfs_connection_abort(struct dfs_connection *connection)
{
	struct dfs_request *request, *next;
	LIST_HEAD(ended);
	u32 i;

	spin_lock(&connection->spin);
	connection->aborted = true;
	list_splice_init(&connection->pending, &ended);
	for (i = 0; i < DFS_SENT_BUCKETS; i++) {
		list_for_each_entry_safe(request, next, &connection->sent[i],
					 link) if (!request->copying)
			list_move_tail(&request->link, &ended);
	}
	wake_up_all(&connection->readers);
	wake_up_all(&connection->room);
	spin_unlock(&connection->spin);
	dfs_session_aborted(connection);
	/* The list is ours: whoever looks for these requests finds SENT or PENDING ones that answer to nobody. */
	for (;;) {
		spin_lock(&connection->spin);
		request = list_first_entry_or_null(&ended, struct dfs_request, link);
		if (request) {
			list_del_init(&request->link);
			request->copying = true;
		}
		spin_unlock(&connection->spin);
		if (!request)
			return;
		dfs_connection_finish(request, -ENOTCONN);
	}
}

static void dfs_connection_given_up(struct work_struct *work)
{
	struct dfs_connection *connection =
		container_of(to_delayed_work(work), struct dfs_connection, give_up);
	bool alone;

	spin_lock(&connection->spin);
	alone = !connection->attached;
	spin_unlock(&connection->spin);
	if (!alone)
		return;
	pr_err("distfuse: no client daemon for mount 0:%u within %u ms: its requests fail with "
	       "ENOTCONN; unmount it, and mount again\n",
	       MINOR(connection->device), connection->give_up_ms);
	dfs_connection_abort(connection);
}

static void dfs_init_answered(struct dfs_request *request)
{
	struct dfs_connection *connection = request->connection;
	const struct fuse_init_out *answer = request->out;
	bool good = !request->error &&
		    request->out_length >= offsetof(struct fuse_init_out, flags2) &&
		    answer->major == FUSE_KERNEL_VERSION && answer->max_write >= DFS_MAX_IO;

	if (!good) {
		if (request->error != -ENOTCONN)
			pr_err("distfuse: the client daemon's answer to INIT is refused (error %d, "
			       "%u bytes): it must speak FUSE 7 and write %lu bytes at once\n",
			       request->error, request->out_length, DFS_MAX_IO);
		return;
	}
	spin_lock(&connection->spin);
	connection->ready = true;
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

int dfs_connection_attach(struct dfs_connection *connection)
{
	struct dfs_request *init = dfs_init_request(connection);
	int error = 0;

	if (!init)
		return -ENOMEM;
	spin_lock(&connection->spin);
	if (connection->aborted)
		error = -ENOTCONN;
	else if (connection->attached)
		error = -EBUSY;
	else
		connection->attached = true;
	spin_unlock(&connection->spin);
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
void dfs_connection_detach(struct dfs_connection *connection)
{
	struct dfs_request *request, *init = NULL;
	bool mounted;
	u32 i;

	spin_lock(&connection->spin);
	connection->attached = false;
	connection->ready = false;
	for (i = 0; i < DFS_SENT_BUCKETS; i++) {
		list_for_each_entry(request, &connection->sent[i], link) request->state =
			DFS_REQUEST_PENDING;
		list_splice_tail_init(&connection->sent[i], &connection->pending);
	}
	list_for_each_entry(request, &connection->pending, link)
	{
		if (request->head.opcode == FUSE_INIT) {
			list_del_init(&request->link);
			init = request;
			break;
		}
	}
	spin_unlock(&connection->spin);
	if (init)
		dfs_connection_finish(init, -ENOTCONN);
	spin_lock(&connection->spin);
	list_sort(NULL, &connection->pending, dfs_by_unique);
	mounted = connection->mounted;
	/* Unmounting aborts, then cancels this work, then lets the connection go: nothing is armed after that. */
	if (mounted && !connection->aborted)
		mod_delayed_work(system_unbound_wq, &connection->give_up,
				 msecs_to_jiffies(connection->give_up_ms));
	spin_unlock(&connection->spin);
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

bool dfs_connection_readable(struct dfs_connection *connection)
{
	bool readable;

	spin_lock(&connection->spin);
	readable = connection->aborted || dfs_first_pending(connection);
	spin_unlock(&connection->spin);
	return readable;
}

struct dfs_request *dfs_connection_next(struct dfs_connection *connection, size_t room,
					bool nonblock)
{
	struct dfs_request *request;

	for (;;) {
		spin_lock(&connection->spin);
		if (connection->aborted) {
			spin_unlock(&connection->spin);
			return ERR_PTR(-ENODEV);
		}
		request = dfs_first_pending(connection);
		if (request)
			break;
		spin_unlock(&connection->spin);
		if (nonblock)
			return ERR_PTR(-EAGAIN);
		if (wait_event_interruptible_exclusive(connection->readers,
						       dfs_connection_readable(connection)))
			return ERR_PTR(-EINTR);
	}
	if (request->head.len > room) {
		spin_unlock(&connection->spin);
		return ERR_PTR(-EINVAL);
	}
	request->state = DFS_REQUEST_SENT;
	if (request->seen)
		dfs_count(connection, requests_resent);
	request->seen = true;
	request->copying = true;
	list_move_tail(&request->link, dfs_sent_bucket(connection, request->head.unique));
	dfs_count(connection, requests);
	trace_distfuse_request_sent(request);
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

struct dfs_request *dfs_connection_answered(struct dfs_connection *connection, u64 unique)
{
	struct dfs_request *request, *found = NULL;

	spin_lock(&connection->spin);
	list_for_each_entry(request, dfs_sent_bucket(connection, unique), link)
	{
		if (request->head.unique == unique && !request->copying) {
			request->copying = true;
			found = request;
			break;
		}
	}
	spin_unlock(&connection->spin);
	return found;
}
