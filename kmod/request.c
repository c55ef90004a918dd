// SPDX-License-Identifier: GPL-2.0-only
/* Requests to the daemon: made, sent, waited for, ended. The contract is in connection.h. */
#include <linux/cred.h>
#include <linux/mempool.h>
#include <linux/mm.h>
#include <linux/pid_namespace.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "connection.h"
#include "inode.h"
#include "race.h"
#include "session.h"
#include "trace.h"

/*
 * For requests that must be had when there is no memory: writeback of one batch, one set of attributes and one readahead a CPU
 * would do; 32 keep several devices' writeback going.
 */
#define DFS_RESERVED_REQUESTS 32

static struct kmem_cache *dfs_request_cache;
static mempool_t *dfs_request_pool;

int dfs_request_cache_init(void)
{
	dfs_request_cache = kmem_cache_create_usercopy(
		"dfs_request", sizeof(struct dfs_request), 0, 0, offsetof(struct dfs_request, head),
		sizeof(struct dfs_request) - offsetof(struct dfs_request, head), NULL);
	if (!dfs_request_cache)
		return -ENOMEM;
	dfs_request_pool = mempool_create_slab_pool(DFS_RESERVED_REQUESTS, dfs_request_cache);
	if (!dfs_request_pool) {
		kmem_cache_destroy(dfs_request_cache);
		return -ENOMEM;
	}
	return 0;
}

void dfs_request_cache_exit(void)
{
	mempool_destroy(dfs_request_pool);
	kmem_cache_destroy(dfs_request_cache);
}

static void dfs_request_free(struct dfs_request *request)
{
	u32 i;

	if (request->pages_owned)
		for (i = 0; i < request->page_count; i++)
			put_page(request->pages[i]);
	if (request->in != request->inline_in)
		kvfree(request->in);
	if (request->out != request->inline_out)
		kvfree(request->out);
	kvfree(request->pages);
	dfs_connection_put(request->connection);
	mempool_free(request, dfs_request_pool);
}

void dfs_request_put(struct dfs_request *request)
{
	if (refcount_dec_and_test(&request->refs))
		dfs_request_free(request);
}

static void dfs_request_forgotten(struct work_struct *work);

struct dfs_request *dfs_request_new(struct dfs_connection *connection, u32 opcode, u64 inode,
				    u32 in_size, u32 out_size, bool fallible)
{
	gfp_t gfp = fallible ? GFP_KERNEL : GFP_NOFS;
	struct dfs_request *request;

	if (fallible && dfs_fails(DFS_RACE_request_alloc, connection))
		return NULL;
	request = mempool_alloc(dfs_request_pool, gfp);
	if (!request)
		return NULL;
	memset(request, 0, offsetof(struct dfs_request, inline_in));
	INIT_LIST_HEAD(&request->link);
	INIT_LIST_HEAD(&request->age);
	init_waitqueue_head(&request->wait);
	INIT_WORK(&request->work, dfs_request_forgotten);
	refcount_set(&request->refs, 1);
	request->connection = dfs_connection_get(connection);
	/* Under the pins of its caller: what is sent much later must not change anything under the next session. */
	request->session = dfs_session_number(connection);
	request->in = request->inline_in;
	request->out = request->inline_out;
	if (in_size > DFS_INLINE_IN)
		request->in = kvzalloc(in_size, gfp);
	else
		memset(request->inline_in, 0, DFS_INLINE_IN);
	if (out_size > DFS_INLINE_OUT)
		request->out = kvmalloc(out_size, gfp);
	if (!request->in || !request->out) {
		dfs_request_put(request);
		return NULL;
	}
	request->in_size = in_size;
	request->out_size = out_size;
	request->head.opcode = opcode;
	request->head.nodeid = inode;
	request->head.uid = from_kuid_munged(&init_user_ns, current_fsuid());
	request->head.gid = from_kgid_munged(&init_user_ns, current_fsgid());
	request->head.pid = pid_nr_ns(task_pid(current), &init_pid_ns);
	return request;
}

bool dfs_request_refused(const struct dfs_request *request)
{
	return request->error && (request->fenced || !request->session ||
				  request->session != dfs_session_number(request->connection));
}

/* Of what is asked under a lock that its session lost, this may still be: it changes nothing. */
static bool dfs_request_only_asks(const struct dfs_request *request)
{
	switch (request->head.opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_READLINK:
	case FUSE_READDIRPLUS:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_LSEEK:
	case FUSE_STATFS:
	case FUSE_FSYNC:
		return true;
	default:
		return false;
	}
}

void dfs_request_pages(struct dfs_request *request)
{
	request->pages =
		kmalloc_array(DFS_MAX_PAGES, sizeof(*request->pages), GFP_NOFS | __GFP_NOFAIL);
}

/* Under connection->spin. */
static void dfs_request_queue(struct dfs_request *request)
{
	struct dfs_connection *connection = request->connection;

	/* Steps of 16: the daemon numbers what one request makes it send to the storageds. */
	connection->next_unique += 16;
	request->head.unique = connection->next_unique;
	request->head.len = sizeof(request->head) + request->in_size +
			    (request->pages_in ? request->page_bytes : 0);
	request->state = DFS_REQUEST_PENDING;
	refcount_inc(&request->refs);
	list_add_tail(&request->link, &connection->pending);
	list_add_tail(&request->age, &connection->unanswered);
	trace_distfuse_request_queued(request);
	wake_up(&connection->readers);
}

void dfs_connection_finish(struct dfs_request *request, int error)
{
	struct dfs_connection *connection = request->connection;
	bool left;

	spin_lock(&connection->spin);
	request->copying = false;
	request->error = error;
	if (request->state == DFS_REQUEST_SENT && !--connection->sent_count)
		wake_up(&connection->drained);
	request->state = DFS_REQUEST_DONE;
	list_del_init(&request->age);
	trace_distfuse_request_ended(request);
	list_del_init(&request->link);
	left = request->caller_left;
	if (request->background) {
		connection->background--;
		connection->background_pages -= request->page_count;
		wake_up(&connection->room);
	}
	spin_unlock(&connection->spin);
	if (left) {
		queue_work(system_unbound_wq, &request->work);
		return;
	}
	wake_up(&request->wait);
	if (request->end)
		request->end(request);
	dfs_request_put(request);
}

/* What a killed caller left behind: what it changed is not known here, so nothing that was cached of it is true. */
static void dfs_request_forgotten(struct work_struct *work)
{
	struct dfs_request *request = container_of(work, struct dfs_request, work);
	u32 i;

	for (i = 0; i < request->pins.count; i++)
		dfs_inode_distrust(request->pins.inode[i]);
	dfs_unpin(&request->pins);
	dfs_request_put(request);
}

/* The task is being killed. True: the request goes on without it. */
static bool dfs_request_leave(struct dfs_request *request, struct dfs_pins *pins)
{
	struct dfs_connection *connection = request->connection;
	struct dfs_pins moved = {};
	bool left = false, dropped = false;

	if (pins)
		dfs_pins_move(&moved, pins);
	spin_lock(&connection->spin);
	if (request->state == DFS_REQUEST_SENT ||
	    (request->state == DFS_REQUEST_PENDING && request->seen)) {
		request->pins = moved;
		request->caller_left = true;
		left = true;
	} else if (request->state == DFS_REQUEST_PENDING) {
		list_del_init(&request->link);
		list_del_init(&request->age);
		request->state = DFS_REQUEST_DONE;
		dropped = true;
	}
	spin_unlock(&connection->spin);
	if (!left)
		dfs_unpin(&moved);
	if (dropped)
		dfs_request_put(request);
	return left || dropped;
}

int dfs_request_call(struct dfs_request *request, struct dfs_pins *pins)
{
	struct dfs_connection *connection = request->connection;

	/* The request names the session that there was when it was made, which may be the next one already. */
	if (pins && !dfs_request_only_asks(request) && dfs_pins_lost(pins))
		return -EIO;
	spin_lock(&connection->spin);
	if (connection->aborted) {
		spin_unlock(&connection->spin);
		return -ENOTCONN;
	}
	dfs_request_queue(request);
	spin_unlock(&connection->spin);
	if (wait_event_killable(request->wait, READ_ONCE(request->state) == DFS_REQUEST_DONE) &&
	    dfs_request_leave(request, pins))
		return -EINTR;
	/* Pairs with the unlock of dfs_connection_finish: what the daemon's thread copied is seen. */
	spin_lock(&connection->spin);
	spin_unlock(&connection->spin);
	return request->error;
}

static bool dfs_has_room(const struct dfs_connection *connection)
{
	return (READ_ONCE(connection->background) < DFS_BACKGROUND &&
		READ_ONCE(connection->background_pages) < DFS_BACKGROUND_PAGES) ||
	       READ_ONCE(connection->aborted);
}

void dfs_request_start(struct dfs_request *request)
{
	struct dfs_connection *connection = request->connection;

	/* What the others wait for waits for no room. */
	request->background = request->head.opcode != FUSE_INIT;
	spin_lock(&connection->spin);
	while (request->background && !dfs_has_room(connection)) {
		spin_unlock(&connection->spin);
		wait_event(connection->room, dfs_has_room(connection));
		spin_lock(&connection->spin);
	}
	if (connection->aborted) {
		spin_unlock(&connection->spin);
		request->error = -ENOTCONN;
		if (request->end)
			request->end(request);
	} else {
		if (request->background) {
			connection->background++;
			connection->background_pages += request->page_count;
		}
		dfs_request_queue(request);
		spin_unlock(&connection->spin);
	}
	dfs_request_put(request);
}
