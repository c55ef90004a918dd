/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The session of a connection with lockd, in the kernel: the shell of rdma/lock/session.h, whose head is the protocol.
 *
 * Parties: the session's own ordered workqueue, on which alone the machine runs; completions and messages (softirq), which only leave events;
 * a worker that connects, because that takes time while leases are due; locks, which post and send over the present link.
 *
 * Events: bits in `events`, with what belongs to them; the machine's work takes them all at each run, in the order of enum dfs_session_event.
 *
 * Epochs: each link has one, counted up from 1 in the connection's life; each lock has the epoch of the link that its core talks to. A
 * detach raises the session's epoch first and then each lock's, under its spin: from then on nothing of the old link is believed. A lock that
 * is made meanwhile is born in the new epoch, detached, for `epoch` and the list of locks are under one spin.
 *
 * A link is stopped before its locks are detached, and closed when trust has ended or a later link was accepted.
 *
 * Loss: every lock is told; what it held is forgotten (dirty data fails, once); then a new session is asked for, after 50 ms doubling to 1 s. Until
 * there is one, pins wait, at most give_up_ms.
 *
 * Freeze and Thaw: `gates`. Slots share DFS_GATES gates by number; a gate counts the chains inside of it (from the post of a TAKE to the end of its
 * UNDO is one stay) and how many of its slots are frozen; while one is, chains that want in are parked. An answer to Freeze goes when the
 * count is 0.
 *
 * Limits: DFS_FROZEN slots frozen at once; more end the link. Requests of ours that lockd has not answered: Welcome.asks, of which half are for locks.
 */
#ifndef DISTFUSE_KMOD_SESSION_H
#define DISTFUSE_KMOD_SESSION_H

#include <linux/rhashtable.h>
#include <linux/socket.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "fabric.h"
#include "file_lock.h"
#include "glimpse.h"
#include "rdma/lock/session.h"
#include "uapi.h"

#define DFS_GATES 256u
#define DFS_FROZEN 64u

struct dfs_connection;
struct dfs_daemon;
struct dfs_lock;

enum dfs_session_event {
	DFS_EVENT_CUT = 0,
	DFS_EVENT_FENCED,
	DFS_EVENT_RENEWED,
	DFS_EVENT_REASSERTED,
	DFS_EVENT_RESUMED,
	DFS_EVENT_WELCOME,
	DFS_EVENT_UNREACHABLE,
	DFS_EVENT_STOP,
};

struct dfs_gate {
	u32 inside;
	u32 frozen;
	struct list_head parked; /* dfs_post */
};

struct dfs_frozen {
	union df_msg freeze;
	bool used;
	bool answered;
};

struct dfs_session {
	struct dfs_connection *connection;
	struct sockaddr_storage address;
	struct df_hello hello;
	u32 give_up_ms;
	u32 max_locks;

	struct workqueue_struct *machine_queue;
	struct delayed_work machine_work;
	struct work_struct connect_work;
	struct workqueue_struct *shed_queue;
	struct df_session machine; /* machine_work alone */
	bool connecting;	   /* machine_work alone: a fresh session, no machine yet */
	u32 fresh_pause_ms;
	u64 fresh_at_ms;      /* not before */
	u64 begun_ms;	      /* when the last session was lost */
	u64 trusted_until_ms; /* READ_ONCE anywhere */

	unsigned long events; /* bits of enum dfs_session_event */
	u64 fenced;	      /* the session of DFS_EVENT_FENCED */
	/* Written by the link that ends, at any time. */
	u32 cut_epoch;
	const char *cut_reason; /* stays */
	struct dfs_post renewal;
	bool renewal_in_flight;

	/* Attempts, one at a time: machine_work begins one and takes its end in; between, connect_work has what is below but next_hello. */
	bool attempting;
	bool connect_again; /* with next_hello, in place of what the attempt under way will find */
	struct df_hello next_hello;
	struct df_hello connect_hello;
	/* What connect_work found. */
	struct dfs_link *next_link;
	struct df_welcome next_welcome;
	u64 next_posted_ms;
	int connect_error;

	spinlock_t spin; /* all below */
	u32 epoch;
	bool live; /* attached: lockd takes requests */
	bool lost; /* and there is no next one yet */
	bool stopping;
	u64 id; /* 0 while lost */
	u64 incarnation;
	u32 lease_ms;
	struct dfs_link *link;	  /* of `epoch`, or NULL */
	struct dfs_link *retired; /* stopped, not closed */
	struct df_table *table;	  /* of `epoch`; old ones are in `tables` */
	struct list_head tables;
	struct list_head locks; /* all */
	struct list_head idle;	/* nobody refers to them */
	u32 lock_count;
	u32 idle_count;
	u32 to_reassert; /* begun, not had yet, and one for the round itself */
	struct dfs_gate gates[DFS_GATES];
	struct dfs_frozen frozen[DFS_FROZEN];
	struct work_struct freeze_work;
	u32 awaiting;		   /* threads in dfs_session_await; connection->spin */
	wait_queue_head_t changed; /* id, live, lost, awaiting */

	struct rhashtable lock_map;
	struct dfs_file_locks files;
	struct dfs_glimpses glimpses;
};

int dfs_session_open(struct dfs_connection *connection, struct dfs_ioc_new *new);
/* Gives everything up, says Bye, frees. Nobody uses the connection's session any more. */
void dfs_session_close(struct dfs_connection *connection);
/* -ENOTCONN: it has ended. */
int dfs_session_describe(struct dfs_connection *connection, u64 *session, u64 *incarnation,
			 u32 *lease_ms);
/* 0: there is none at the moment. */
u64 dfs_session_number(struct dfs_connection *connection);
bool dfs_session_of_cluster(struct dfs_connection *connection, const u8 *cluster);
/* -ENOTCONN: the session has ended, or the daemon's work is over. */
int dfs_session_await(const struct dfs_daemon *daemon, struct dfs_ioc_session *session);
/* A storaged refuses this session. */
void dfs_session_fenced(struct dfs_connection *connection, u64 id);
void dfs_session_daemon_changed(struct dfs_connection *connection);

/* Whether what is held may be used now. */
bool dfs_session_trusted(const struct dfs_session *session);
u64 dfs_now_ms(void);
u64 dfs_now_us(void);
void dfs_session_reassert_done(struct dfs_session *session, u32 epoch);

/*
 * For locks, under their spin. A chain that is gated may be parked; UNDO never is. False: the epoch is over, and the lock will be detached; not posted.
 */
bool dfs_session_post(struct dfs_session *session, u32 epoch, struct dfs_post *post);
/* The stay of a chain of this slot is over. */
void dfs_session_leave(struct dfs_session *session, u32 slot);
/* Ends the link of `epoch` as an error of the device would: for fault points. */
void dfs_session_break(struct dfs_session *session, u32 epoch, const char *reason);
void dfs_session_send(struct dfs_session *session, u32 epoch, const union df_msg *message);

/* The connection was aborted: who waits here for lockd ends. */
void dfs_session_aborted(struct dfs_connection *connection);

int dfs_sessions_init(void);
void dfs_sessions_exit(void);

/* gates.c */
bool dfs_gate_enter(struct dfs_session *session, struct dfs_post *post);
void dfs_gates_init(struct dfs_session *session);
int dfs_gates_message(struct dfs_session *session, const union df_msg *message);
void dfs_gates_forget(struct dfs_session *session);

#endif
