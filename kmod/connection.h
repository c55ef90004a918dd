/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A connection: one mount's requests to its client daemon, over /dev/distfuse, in the FUSE wire protocol. uapi.h is the contract with the
 * daemon: states of a connection, hand-over, what is sent again.
 *
 * Parties: callers (operations, writeback, readahead) make requests; the daemon's threads read and answer them; the device's
 * release says that the daemon is gone; ATTACH brings the next one.
 *
 * States of a request: NEW → PENDING (queued) → SENT (read by the daemon) → DONE (answered, failed). SENT → PENDING when the
 * daemon is lost: the next daemon is sent it again, in the order of `unique`, with the same `unique`. A request whose caller was
 * killed goes on by itself: the pins that cover it go with its end (dfs_request_call).
 *
 * Serialised by: `spin`, for queues and states. Copying to and from the daemon's memory happens outside of it: COPYING keeps the
 * request from being ended or sent again meanwhile. At each time one daemon alone reads (`daemon`, and not `leaving`), and only who was sent a
 * request, the present daemon, may answer it: the next one takes the number when nothing is SENT, or the descriptor is closed.
 *
 * Recovery: no daemon: requests wait for `give_up`, then the connection is aborted. Aborted: every request ends with -ENOTCONN, now and
 * ever after.
 *
 * Limits: requests of tasks: one a task, or as many as a killed task left. Background ones: DFS_BACKGROUND, and none while those under way hold
 * DFS_BACKGROUND_PAGES: the maker waits. So 9 MiB at most in all. More than 8 of 1 MiB each do not go faster, and cost the daemon cold buffers: with 64
 * its processor time for a stream was 1.7 times that of 8.
 */
#ifndef DISTFUSE_KMOD_CONNECTION_H
#define DISTFUSE_KMOD_CONNECTION_H

#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "counters.h"
#include "pin.h"

#define DFS_MAX_PAGES 256u
#define DFS_MAX_IO (DFS_MAX_PAGES * PAGE_SIZE)
#define DFS_BACKGROUND 64u
#define DFS_BACKGROUND_PAGES (8 * DFS_MAX_PAGES)
#define DFS_INLINE_IN 160u
#define DFS_INLINE_OUT 160u
#define DFS_SENT_BUCKETS 64u

struct dfs_connection;
struct dfs_session;

enum dfs_request_state {
	DFS_REQUEST_NEW = 0,
	DFS_REQUEST_PENDING,
	DFS_REQUEST_SENT,
	DFS_REQUEST_DONE,
};

struct dfs_request {
	struct list_head link; /* pending, or a bucket of sent */
	struct list_head age;  /* connection->unanswered */
	refcount_t refs;
	u8 state;     /* enum dfs_request_state; under connection->spin */
	bool copying; /* a thread of the daemon copies; under connection->spin */
	bool background;
	bool seen;	   /* by a daemon: it may have taken effect */
	bool caller_left;  /* killed; under connection->spin */
	bool out_variable; /* the answer may be shorter than out_size */
	bool pages_owned;  /* page references go with the request */
	bool pages_in;	   /* pages are the request's payload (WRITE), else the answer's */
	int error;	   /* of the answer: 0 or -errno */
	u64 session;	   /* under which it was made; 0: there was none */
	u64 lowest;	   /* the oldest that was unanswered when it was sent */
	bool again;	   /* sent to an earlier daemon */
	bool fenced;	   /* a storaged refuses its session */
	bool lost;	   /* uapi.h, DFS_LOST */
	struct dfs_connection *connection;
	u32 in_size;
	u32 out_size;
	u32 out_length; /* what came */
	void *in;
	void *out;
	struct page **
		pages; /* DFS_MAX_PAGES of room, in file order; referenced by who made the request, or owned */
	u32 page_count;
	u32 page_bytes;
	wait_queue_head_t wait;
	/* Of dfs_request_start: called once when DONE, by the daemon's thread or the aborter; must not wait for the daemon. */
	void (*end)(struct dfs_request *request);
	struct work_struct work; /* caller_left: gives up what was the caller's */
	void *private;
	struct dfs_pins pins; /* taken over from a caller that was killed */
	/* From here on the daemon's reads and writes copy. */
	struct fuse_in_header head;
	u8 inline_in[DFS_INLINE_IN];
	u8 inline_out[DFS_INLINE_OUT];
};

/* An open descriptor that is or was a connection's daemon. */
struct dfs_daemon {
	struct dfs_connection *connection;
	u32 number;
};

struct dfs_connection {
	struct list_head link; /* of all, under dfs_connections_mutex */
	refcount_t refs;
	u64 id;
	dev_t device; /* of the mount; 0 before it */
	spinlock_t spin;
	struct list_head pending;
	struct list_head sent[DFS_SENT_BUCKETS];
	struct list_head unanswered; /* pending and sent, the oldest first */
	u32 sent_count;
	wait_queue_head_t drained; /* nothing is sent, or the daemon is gone */
	wait_queue_head_t readers;
	wait_queue_head_t room; /* for background requests */
	u32 background;
	u32 background_pages; /* of these */
	u64 next_unique;
	u32 daemons; /* so far */
	u32 daemon;  /* the present one's number; 0: none */
	struct pid *daemon_process;
	bool leaving;	/* it gets no request any more */
	bool attaching; /* a next one waits for that */
	bool ready;	/* it has answered INIT */
	bool refused;	/* its answer to INIT was no good */
	bool aborted;
	bool mounted;
	u32 give_up_ms;
	struct delayed_work give_up;
	struct dfs_session *session;
	struct dfs_counters __percpu *counters;
	struct dentry *debug; /* the mount's folder in debugfs */
};

/*
 * A request with zeroed `in_size` bytes to fill and room for `out_size` bytes of answer; NULL: no memory. `fallible` false: waits for
 * memory set aside for writeback, never NULL (sizes must be inline then).
 */
struct dfs_request *dfs_request_new(struct dfs_connection *connection, u32 opcode, u64 inode,
				    u32 in_size, u32 out_size, bool fallible);
/* Room for pages: always had, may sleep. */
/* Done, with an error that says that its session was over: what it should have changed is lost with it. */
bool dfs_request_refused(const struct dfs_request *request);
void dfs_request_pages(struct dfs_request *request);
/*
 * Sends and waits. 0; the server's -errno; -EINTR: the task is being killed, and `pins` (may be NULL) went to the request; -ENOTCONN.
 * The request stays the caller's to put.
 */
int dfs_request_call(struct dfs_request *request, struct dfs_pins *pins);
/* Sends; the request is the connection's from here. request->end is called in every case, with -ENOTCONN too. Waits for room. */
void dfs_request_start(struct dfs_request *request);
void dfs_request_put(struct dfs_request *request);

struct dfs_connection *dfs_connection_new(void);
struct dfs_connection *dfs_connection_get(struct dfs_connection *connection);
void dfs_connection_put(struct dfs_connection *connection);
/* For mount(2): the connection with this number, if it is not mounted; it is then. */
struct dfs_connection *dfs_connection_claim(u64 id);
struct dfs_connection *dfs_connection_of_device(u32 minor);
void dfs_connection_abort(struct dfs_connection *connection);
/*
 * Makes this the connection's daemon, and sends INIT, then what the former one left. One that is there has drain_ms to leave. -EBUSY: another attach is
 * under way, or it cannot be made to leave; -ENOTCONN; -EINTR.
 */
int dfs_connection_attach(struct dfs_daemon *daemon, u32 drain_ms);
void dfs_connection_detach(struct dfs_daemon *daemon);

/* For device.c: the next request for the daemon, marked COPYING and SENT, or an error (-EAGAIN with `nonblock`). */
struct dfs_request *dfs_connection_next(const struct dfs_daemon *daemon, size_t room,
					bool nonblock);
void dfs_connection_copied(struct dfs_request *request, int error);
struct dfs_request *dfs_connection_answered(const struct dfs_daemon *daemon, u64 unique);
void dfs_connection_finish(struct dfs_request *request, int error);
bool dfs_connection_readable(const struct dfs_daemon *daemon);

int dfs_request_cache_init(void);
void dfs_request_cache_exit(void);
int dfs_device_init(void);
void dfs_device_exit(void);

#endif
