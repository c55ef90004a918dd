/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A link: the RDMA connections of one mount to one incarnation of lockd, by rdma_cm and kernel verbs. The wire is rdma/fabric/verbs_*: the accept's
 * private data, the credits of messages, the meaning of immediate data.
 *
 * Parties: whoever posts chains and sends messages (locks, the session); completions, in softirq; rdma_cm's events, in its workqueue; the owner (session.c),
 * which opens and closes.
 *
 * An endpoint is one RC queue pair. Endpoint 0 is the control connection (messages; lockd exposes nothing to it), the next DFS_LANES are lanes (chains), the
 * last is the lane of renewals, which must not queue behind locks.
 *
 * Serialised by: an endpoint's spin: credits, buffers, queues and every post. LOCKING.md: innermost but one.
 *
 * ORDER: a WRITE after a READ or an atomic of the same chain, or of a chain of the same slot that is in flight, carries IB_SEND_FENCE: RC lets it
 * overtake their answers else. No other: soft-RoCE, when it sends a fenced WRITE again, waits for the atomic that it had sent behind it, whose answer it
 * does not take before the WRITE's. Chains of different slots have nothing to do with each other.
 *
 * A chain that the device neither completes nor fails for 5 s (soft-RoCE now and then, after it sent something again) ends the link: rdma/fabric/verbs_worker.cc does the same.
 *
 * Recovery: none. The first error of any endpoint, and any end of it, is told to the owner once (`ended`), from then on no message is reported. stop() ends all
 * chains and leaves the connection as it is, for lockd takes its end by us as the end of our trust; close() disconnects and frees.
 *
 * Limits, term by term, an endpoint:
 *   send queue     a lane: DFS_CHAINS × DF_CHAIN_OPS; control: DFS_CREDITS (messages) + DFS_CREDIT_SENDS; and 1 to drain
 *   receive queue  control: DFS_CREDITS + DFS_CREDIT_SENDS; a lane: none, lockd sends nothing there; and 1 to drain
 *   completions    both: after an error all are flushed
 * Chains beyond DFS_CHAINS wait in a list, at most one a lock. Messages beyond the credits wait in a ring of DFS_QUEUED: `asks` of ours that are unanswered,
 * and an answer to each of lockd's messages, of which it has at most DFS_CREDITS under way; a ring that is full ends the link.
 */
#ifndef DISTFUSE_KMOD_FABRIC_H
#define DISTFUSE_KMOD_FABRIC_H

#include <linux/list.h>
#include <linux/socket.h>
#include <linux/spinlock.h>

#include "rdma/lock/slot.h"
#include "rdma/lock/wire.h"

#define DFS_CHAINS 64u
#define DFS_CREDITS 64u
#define DFS_CREDIT_SENDS 4u
#define DFS_LANES 2u
#define DFS_QUEUED 4096u

/* A chain to run: lives in its issuer until done or the link's end. */
struct dfs_post {
	struct list_head link; /* waiting for a buffer, or parked by a frozen slot */
	struct df_chain chain;
	/*
	 * Exactly once, in softirq or process context. `image`: until return. -ECANCELED: by stop or close; what it did is not
	 * known.
	 */
	void (*done)(struct dfs_post *post, int error, u64 old, const void *image);
};

struct dfs_link;

struct dfs_link_owner {
	/* A message of lockd; softirq. -EPROTO ends the link. */
	int (*message)(struct dfs_link *link, const void *bytes, u32 length);
	/* Once; `peer`: the other side ended it, in order. Any context but NMI; must not sleep. */
	void (*ended)(struct dfs_link *link, bool peer, const char *reason);
};

/*
 * Connects the control endpoint and the lanes; sleeps, at most timeout_ms each step. `hello` is the control's; `welcome` what lockd answered, also if it
 * refuses (-EPROTO then, with welcome->refusal set). -ETIMEDOUT, -ECONNREFUSED, -EHOSTUNREACH, -ENODEV (no RDMA device reaches the address), -ENOMEM.
 */
int dfs_link_open(const struct sockaddr_storage *address, const struct df_hello *hello,
		  u32 timeout_ms, const struct dfs_link_owner *owner, void *owner_data, u32 epoch,
		  struct df_welcome *welcome, struct dfs_link **result);
/* From here on the owner's functions are called; what came earlier is delivered first. */
void dfs_link_start(struct dfs_link *link);
/* Every chain is done when it returns, and nothing more is done or told. Sleeps. */
void dfs_link_stop(struct dfs_link *link);
/* Stops, disconnects, frees. Sleeps. */
void dfs_link_close(struct dfs_link *link);

void *dfs_link_data(const struct dfs_link *link);
u32 dfs_link_epoch(const struct dfs_link *link);
/* Any context but hard interrupts; bottom halves may be off. After the end: waits for stop. */
void dfs_link_post(struct dfs_link *link, struct dfs_post *post);
/* The same on the lane of renewals. */
void dfs_link_renew(struct dfs_link *link, struct dfs_post *post);
void dfs_link_send(struct dfs_link *link, const union df_msg *message);
/* Ends it as an error of the device would. `reason` stays. */
void dfs_link_break(struct dfs_link *link, const char *reason);
/* Work requests posted and completions seen, for tests of what an operation costs. */
void dfs_link_counts(const struct dfs_link *link, u64 *posted, u64 *completed);

#endif
