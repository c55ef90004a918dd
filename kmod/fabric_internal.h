/* SPDX-License-Identifier: GPL-2.0-only */
/* What fabric.c and fabric_connect.c share. */
#ifndef DISTFUSE_KMOD_FABRIC_INTERNAL_H
#define DISTFUSE_KMOD_FABRIC_INTERNAL_H

#include <linux/completion.h>
#include <linux/workqueue.h>
#include <rdma/ib_verbs.h>
#include <rdma/rdma_cm.h>

#include "fabric.h"

#define DFS_RENEWALS (1u + DFS_LANES)
#define DFS_ENDPOINTS (2u + DFS_LANES)

/* A chain's memory: the atomic's old value, a bucket's image, the sources of WRITEs. */
#define DFS_CHAIN_OLD 0u
#define DFS_CHAIN_IMAGE 64u
#define DFS_CHAIN_SOURCE (DFS_CHAIN_IMAGE + DF_BUCKET_SIZE)
#define DFS_CHAIN_STRIDE (DFS_CHAIN_SOURCE + DF_SLOT_SIZE)

#define DFS_MESSAGE_ROOM 128u /* lockd's longest has 80 bytes; a longer one ends the queue pair */
#define DFS_SENDS (DFS_CREDITS + DFS_CREDIT_SENDS)
#define DFS_RECEIVES (DFS_CREDITS + DFS_CREDIT_SENDS)
#define DFS_EARLY DFS_CREDITS
#define DFS_LOOK (HZ / 2) /* the watchdog's */

/* Immediate data of a send: is it a message, and the credits that it returns. */
#define DFS_IMM_MESSAGE (1u << 31)
#define DFS_IMM_CREDITS 0xffffu

enum dfs_link_flag { DFS_LINK_STARTED = 0, DFS_LINK_ENDED, DFS_LINK_STOPPED };

struct dfs_chain_buffer {
	struct ib_cqe cqe;
	struct dfs_post *post;
	u32 slot;   /* that the chain in flight works on; DF_NO_SLOT: none, or of no matter */
	u32 offset; /* in the endpoint's memory */
};

struct dfs_message_buffer {
	struct ib_cqe cqe;
	u32 offset;
};

struct dfs_endpoint {
	struct dfs_link *link;
	struct rdma_cm_id *id;
	struct ib_device *device;
	struct ib_pd *pd;
	struct ib_cq *cq;
	struct ib_qp *qp;
	struct completion event; /* of the connection manager, while connecting */
	int event_error;
	bool established;
	u8 *memory; /* chains, then sends, then receives; one DMA mapping */
	u64 dma;
	u32 memory_size;
	u64 remote_address;
	u64 remote_length;
	u32 rkey;
	u8 accept[256]; /* the private data that came with ESTABLISHED */
	u32 accept_length;

	spinlock_t spin; /* all below */
	struct list_head waiting;
	struct dfs_chain_buffer *chains;
	u16 free_chains[DFS_CHAINS];
	u32 free_count;
	struct dfs_message_buffer sends[DFS_SENDS];
	struct dfs_message_buffer receives[DFS_RECEIVES];
	u16 send_stack[DFS_CREDITS];
	u32 free_sends;
	u32 free_credit_sends;
	u32 credits;
	u32 owed;
	union df_msg *ring;
	u32 ring_head;
	u32 ring_tail;
	u64 posted;
	u64 completed;
	/* jiffies: when the first chain in flight was posted, or one was completed since */
	unsigned long moved;
	u32 stalled_looks;
	struct ib_cqe step_cqe;
};

struct dfs_link {
	unsigned long flags; /* bits of enum dfs_link_flag */
	u32 epoch;
	const struct dfs_link_owner *owner;
	void *owner_data;
	const char *early_reason;
	struct delayed_work watchdog;
	spinlock_t early_spin;
	u32 early_count;
	u32 early_length[DFS_EARLY];
	union df_msg early[DFS_EARLY];
	struct dfs_endpoint endpoint[DFS_ENDPOINTS];
};

void dfs_link_fail(struct dfs_link *link, bool peer, const char *reason);
bool dfs_link_deliver(struct dfs_link *link, const void *bytes, u32 length);
int dfs_receive_post(struct dfs_endpoint *endpoint, struct dfs_message_buffer *buffer);
void dfs_chains_cancel(struct dfs_endpoint *endpoint);
void dfs_link_watch(struct work_struct *work);

void dfs_chain_completed(struct ib_cq *cq, struct ib_wc *wc);
void dfs_step_completed(struct ib_cq *cq, struct ib_wc *wc);
void dfs_send_completed(struct ib_cq *cq, struct ib_wc *wc);
void dfs_receive_completed(struct ib_cq *cq, struct ib_wc *wc);

#endif
