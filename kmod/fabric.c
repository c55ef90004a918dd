// SPDX-License-Identifier: GPL-2.0-only
/* Links: chains and messages over a link's endpoints. The contract is in fabric.h; connecting is in fabric_connect.c. */
#include <linux/slab.h>

#include "fabric_internal.h"

/* Longer than a queue pair takes to give up a peer by its own retries, shorter than a session is trusted by default (7 s). */
#define DFS_STALL_MS 5000u

void dfs_link_fail(struct dfs_link *link, bool peer, const char *reason)
{
	if (test_and_set_bit(DFS_LINK_ENDED, &link->flags))
		return;
	if (test_bit(DFS_LINK_STARTED, &link->flags))
		link->owner->ended(link, peer, reason);
	else
		link->early_reason = reason;
}

/* --- chains --------------------------------------------------------------------------------- */

static void dfs_chain_wr(struct dfs_endpoint *endpoint, struct dfs_chain_buffer *buffer,
			 const struct df_op *op, bool *behind_reads, struct ib_rdma_wr *rdma,
			 struct ib_atomic_wr *atomic, struct ib_sge *sge, struct ib_send_wr **wr)
{
	u64 base = endpoint->dma + buffer->offset;
	u64 there = endpoint->remote_address + op->offset;

	sge->lkey = endpoint->pd->local_dma_lkey;
	switch (op->kind) {
	case DF_OP_CAS:
	case DF_OP_FAA:
		*wr = &atomic->wr;
		sge->addr = base + DFS_CHAIN_OLD;
		sge->length = 8;
		atomic->wr.opcode = op->kind == DF_OP_CAS ? IB_WR_ATOMIC_CMP_AND_SWP
							  : IB_WR_ATOMIC_FETCH_AND_ADD;
		atomic->remote_addr = there;
		atomic->rkey = endpoint->rkey;
		atomic->compare_add = op->kind == DF_OP_CAS ? op->expected : op->operand;
		atomic->swap = op->kind == DF_OP_CAS ? op->operand : 0;
		break;
	case DF_OP_READ:
	case DF_OP_WRITE:
		*wr = &rdma->wr;
		sge->addr = base + (op->kind == DF_OP_READ ? DFS_CHAIN_IMAGE
							   : DFS_CHAIN_SOURCE + op->data);
		sge->length = op->length;
		rdma->wr.opcode = op->kind == DF_OP_READ ? IB_WR_RDMA_READ : IB_WR_RDMA_WRITE;
		rdma->remote_addr = there;
		rdma->rkey = endpoint->rkey;
		/* ORDER: fabric.h. */
		if (op->kind == DF_OP_WRITE && *behind_reads)
			rdma->wr.send_flags = IB_SEND_FENCE;
		break;
	}
	*behind_reads |= op->kind != DF_OP_WRITE;
	(*wr)->sg_list = sge;
	(*wr)->num_sge = 1;
	(*wr)->wr_cqe = &endpoint->step_cqe;
}

/* Under the endpoint's spin. */
static bool dfs_slot_in_flight(const struct dfs_endpoint *endpoint, u32 slot)
{
	u32 i;

	for (i = 0; slot != DF_NO_SLOT && i < DFS_CHAINS; i++)
		if (READ_ONCE(endpoint->chains[i].slot) == slot)
			return true;
	return false;
}

/* Under the endpoint's spin, with a free buffer. */
static int dfs_chain_post(struct dfs_endpoint *endpoint, struct dfs_post *post)
{
	struct dfs_chain_buffer *buffer =
		&endpoint->chains[endpoint->free_chains[--endpoint->free_count]];
	struct ib_atomic_wr atomic[1] = {};
	struct ib_rdma_wr rdma[DF_CHAIN_OPS] = {};
	struct ib_sge sge[DF_CHAIN_OPS];
	struct ib_send_wr *wr[DF_CHAIN_OPS];
	const struct df_chain *chain = &post->chain;
	bool behind_reads = dfs_slot_in_flight(endpoint, chain->slot);
	u32 i;

	memcpy(endpoint->memory + buffer->offset + DFS_CHAIN_SOURCE, chain->bytes,
	       sizeof(chain->bytes));
	ib_dma_sync_single_for_device(endpoint->device, endpoint->dma + buffer->offset,
				      DFS_CHAIN_STRIDE, DMA_BIDIRECTIONAL);
	for (i = 0; i < chain->count; i++) {
		dfs_chain_wr(endpoint, buffer, &chain->op[i], &behind_reads, &rdma[i], atomic,
			     &sge[i], &wr[i]);
		if (i)
			wr[i - 1]->next = wr[i];
	}
	wr[i - 1]->send_flags |= IB_SEND_SIGNALED;
	wr[i - 1]->wr_cqe = &buffer->cqe;
	buffer->post = post;
	WRITE_ONCE(buffer->slot, chain->slot);
	if (endpoint->free_count == DFS_CHAINS - 1)
		endpoint->moved = jiffies;
	endpoint->posted += chain->count;
	return ib_post_send(endpoint->qp, wr[0], NULL);
}

/* Under the endpoint's spin. */
static int dfs_chains_go_on(struct dfs_endpoint *endpoint)
{
	struct dfs_post *post;
	int error = 0;

	while (!error && endpoint->free_count &&
	       !test_bit(DFS_LINK_ENDED, &endpoint->link->flags)) {
		post = list_first_entry_or_null(&endpoint->waiting, struct dfs_post, link);
		if (!post)
			break;
		list_del_init(&post->link);
		error = dfs_chain_post(endpoint, post);
	}
	return error;
}

static void dfs_endpoint_post(struct dfs_endpoint *endpoint, struct dfs_post *post)
{
	int error;

	spin_lock_bh(&endpoint->spin);
	list_add_tail(&post->link, &endpoint->waiting);
	error = dfs_chains_go_on(endpoint);
	spin_unlock_bh(&endpoint->spin);
	if (error)
		dfs_link_fail(endpoint->link, false, "a chain could not be posted");
}

void dfs_link_break(struct dfs_link *link, const char *reason)
{
	dfs_link_fail(link, false, reason);
}

void dfs_link_post(struct dfs_link *link, struct dfs_post *post)
{
	/* By slot, so that chains of one slot stay in order among themselves. */
	dfs_endpoint_post(&link->endpoint[1 + post->chain.slot % DFS_LANES], post);
}

void dfs_link_renew(struct dfs_link *link, struct dfs_post *post)
{
	dfs_endpoint_post(&link->endpoint[DFS_RENEWALS], post);
}

static const char *dfs_wc_reason(const struct ib_wc *wc)
{
	return ib_wc_status_msg(wc->status);
}

void dfs_chain_completed(struct ib_cq *cq, struct ib_wc *wc)
{
	struct dfs_chain_buffer *buffer = container_of(wc->wr_cqe, struct dfs_chain_buffer, cqe);
	struct dfs_endpoint *endpoint = cq->cq_context;
	struct dfs_post *post = buffer->post;
	const u8 *memory = endpoint->memory + buffer->offset;
	u64 old;
	int error;

	if (unlikely(wc->status != IB_WC_SUCCESS)) {
		/* The post is told by stop, which ends all of them. */
		if (wc->status != IB_WC_WR_FLUSH_ERR)
			dfs_link_fail(endpoint->link, false, dfs_wc_reason(wc));
		return;
	}
	ib_dma_sync_single_for_cpu(endpoint->device, endpoint->dma + buffer->offset,
				   DFS_CHAIN_STRIDE, DMA_BIDIRECTIONAL);
	memcpy(&old, memory + DFS_CHAIN_OLD, sizeof(old));
	WRITE_ONCE(buffer->slot, DF_NO_SLOT);
	post->done(post, 0, old, memory + DFS_CHAIN_IMAGE);
	spin_lock_bh(&endpoint->spin);
	endpoint->completed++;
	endpoint->moved = jiffies;
	buffer->post = NULL;
	endpoint->free_chains[endpoint->free_count++] = buffer - endpoint->chains;
	error = dfs_chains_go_on(endpoint);
	spin_unlock_bh(&endpoint->spin);
	if (error)
		dfs_link_fail(endpoint->link, false, "a chain could not be posted");
}

void dfs_step_completed(struct ib_cq *cq, struct ib_wc *wc)
{
	struct dfs_endpoint *endpoint = cq->cq_context;

	/* Unsignalled: only errors come here. */
	if (wc->status != IB_WC_SUCCESS && wc->status != IB_WC_WR_FLUSH_ERR)
		dfs_link_fail(endpoint->link, false, dfs_wc_reason(wc));
}

/*
 * Whether chains are in flight of which none was completed for DFS_STALL_MS, in two looks that follow each other: after a machine stood still its
 * completions may come later than this work.
 */
static bool dfs_endpoint_stalled(struct dfs_endpoint *endpoint)
{
	bool stalled;

	spin_lock_bh(&endpoint->spin);
	stalled = endpoint->chains && endpoint->free_count < DFS_CHAINS &&
		  time_after(jiffies, endpoint->moved + msecs_to_jiffies(DFS_STALL_MS));
	endpoint->stalled_looks = stalled ? endpoint->stalled_looks + 1 : 0;
	stalled = endpoint->stalled_looks >= 2;
	spin_unlock_bh(&endpoint->spin);
	return stalled;
}

/* While the link is open. */
void dfs_link_watch(struct work_struct *work)
{
	struct dfs_link *link = container_of(to_delayed_work(work), struct dfs_link, watchdog);
	u32 i;

	for (i = 0; i < DFS_ENDPOINTS; i++) {
		if (dfs_endpoint_stalled(&link->endpoint[i]))
			dfs_link_fail(link, false,
				      "the RDMA device has not completed an operation for 5 s");
	}
	if (!test_bit(DFS_LINK_ENDED, &link->flags))
		schedule_delayed_work(&link->watchdog, DFS_LOOK);
}

/* The queue pair is in error and drained. */
void dfs_chains_cancel(struct dfs_endpoint *endpoint)
{
	struct dfs_post *post;
	LIST_HEAD(waiting);
	u32 i;

	spin_lock_bh(&endpoint->spin);
	list_splice_init(&endpoint->waiting, &waiting);
	spin_unlock_bh(&endpoint->spin);
	for (i = 0; endpoint->chains && i < DFS_CHAINS; i++) {
		post = endpoint->chains[i].post;
		endpoint->chains[i].post = NULL;
		if (post)
			post->done(post, -ECANCELED, 0, NULL);
	}
	while (!list_empty(&waiting)) {
		post = list_first_entry(&waiting, struct dfs_post, link);
		list_del_init(&post->link);
		post->done(post, -ECANCELED, 0, NULL);
	}
}

/* --- messages ------------------------------------------------------------------------------- */

int dfs_receive_post(struct dfs_endpoint *endpoint, struct dfs_message_buffer *buffer)
{
	struct ib_sge sge = {
		.addr = endpoint->dma + buffer->offset,
		.length = DFS_MESSAGE_ROOM,
		.lkey = endpoint->pd->local_dma_lkey,
	};
	struct ib_recv_wr wr = {.wr_cqe = &buffer->cqe, .sg_list = &sge, .num_sge = 1};

	ib_dma_sync_single_for_device(endpoint->device, sge.addr, DFS_MESSAGE_ROOM,
				      DMA_BIDIRECTIONAL);
	return ib_post_recv(endpoint->qp, &wr, NULL);
}

/* Under the endpoint's spin: a message out of the ring, or with `length` 0 credits alone. */
static int dfs_send_post(struct dfs_endpoint *endpoint, struct dfs_message_buffer *buffer,
			 const void *bytes, u32 length)
{
	struct ib_sge sge = {
		.addr = endpoint->dma + buffer->offset,
		.length = length,
		.lkey = endpoint->pd->local_dma_lkey,
	};
	struct ib_send_wr wr = {
		.wr_cqe = &buffer->cqe,
		.sg_list = &sge,
		.num_sge = length ? 1 : 0,
		.opcode = IB_WR_SEND_WITH_IMM,
		.send_flags = IB_SEND_SIGNALED,
	};

	wr.ex.imm_data = cpu_to_be32((length ? DFS_IMM_MESSAGE : 0) | endpoint->owed);
	if (length) {
		memcpy(endpoint->memory + buffer->offset, bytes, length);
		ib_dma_sync_single_for_device(endpoint->device, sge.addr, length,
					      DMA_BIDIRECTIONAL);
	}
	endpoint->owed = 0;
	endpoint->posted++;
	return ib_post_send(endpoint->qp, &wr, NULL);
}

/* Under the endpoint's spin: sends what the credits allow, and returns credits that are owed. */
static int dfs_messages_go_on(struct dfs_endpoint *endpoint)
{
	int error = 0;

	while (!error && endpoint->credits && endpoint->free_sends &&
	       endpoint->ring_head != endpoint->ring_tail &&
	       !test_bit(DFS_LINK_ENDED, &endpoint->link->flags)) {
		const union df_msg *message = &endpoint->ring[endpoint->ring_head % DFS_QUEUED];
		u32 index = endpoint->send_stack[--endpoint->free_sends];

		error = dfs_send_post(endpoint, &endpoint->sends[index], message,
				      message->head.length);
		endpoint->credits--;
		endpoint->ring_head++;
	}
	if (!error && endpoint->owed >= DFS_CREDITS / 2 && endpoint->free_credit_sends) {
		u32 index = DFS_CREDITS + --endpoint->free_credit_sends;

		error = dfs_send_post(endpoint, &endpoint->sends[index], NULL, 0);
	}
	return error;
}

void dfs_link_send(struct dfs_link *link, const union df_msg *message)
{
	struct dfs_endpoint *endpoint = &link->endpoint[0];
	const char *failed = NULL;

	spin_lock_bh(&endpoint->spin);
	if (endpoint->ring_tail - endpoint->ring_head >= DFS_QUEUED) {
		failed = "lockd takes no messages";
	} else {
		endpoint->ring[endpoint->ring_tail++ % DFS_QUEUED] = *message;
		if (dfs_messages_go_on(endpoint))
			failed = "a message could not be posted";
	}
	spin_unlock_bh(&endpoint->spin);
	if (failed)
		dfs_link_fail(link, false, failed);
}

void dfs_send_completed(struct ib_cq *cq, struct ib_wc *wc)
{
	struct dfs_endpoint *endpoint = cq->cq_context;
	u32 index = container_of(wc->wr_cqe, struct dfs_message_buffer, cqe) - endpoint->sends;
	int error;

	if (wc->status != IB_WC_SUCCESS) {
		if (wc->status != IB_WC_WR_FLUSH_ERR)
			dfs_link_fail(endpoint->link, false, dfs_wc_reason(wc));
		return;
	}
	spin_lock_bh(&endpoint->spin);
	endpoint->completed++;
	if (index < DFS_CREDITS) {
		endpoint->send_stack[endpoint->free_sends++] = index;
	} else {
		/* The credit sends are alike: whichever is given out next, its buffer has no bytes. */
		endpoint->free_credit_sends++;
	}
	error = dfs_messages_go_on(endpoint);
	spin_unlock_bh(&endpoint->spin);
	if (error)
		dfs_link_fail(endpoint->link, false, "a message could not be posted");
}

/* Whether lockd keeps the rules of credits; takes in what it returns. Under the endpoint's spin. */
static bool dfs_credits_taken(struct dfs_endpoint *endpoint, const struct ib_wc *wc, u32 word)
{
	u32 returned = word & DFS_IMM_CREDITS;

	if (!(wc->wc_flags & IB_WC_WITH_IMM) || (word & ~(DFS_IMM_MESSAGE | DFS_IMM_CREDITS)) ||
	    returned > DFS_CREDITS - endpoint->credits ||
	    (!(word & DFS_IMM_MESSAGE) && wc->byte_len))
		return false;
	endpoint->credits += returned;
	return true;
}

void dfs_receive_completed(struct ib_cq *cq, struct ib_wc *wc)
{
	struct dfs_endpoint *endpoint = cq->cq_context;
	struct dfs_link *link = endpoint->link;
	struct dfs_message_buffer *buffer =
		container_of(wc->wr_cqe, struct dfs_message_buffer, cqe);
	u32 word;
	bool good;
	int error;

	if (wc->status != IB_WC_SUCCESS) {
		if (wc->status != IB_WC_WR_FLUSH_ERR)
			dfs_link_fail(link, false, dfs_wc_reason(wc));
		return;
	}
	word = be32_to_cpu(wc->ex.imm_data);
	spin_lock_bh(&endpoint->spin);
	endpoint->completed++;
	good = dfs_credits_taken(endpoint, wc, word);
	spin_unlock_bh(&endpoint->spin);
	if (good && (word & DFS_IMM_MESSAGE)) {
		ib_dma_sync_single_for_cpu(endpoint->device, endpoint->dma + buffer->offset,
					   DFS_MESSAGE_ROOM, DMA_BIDIRECTIONAL);
		good = dfs_link_deliver(link, endpoint->memory + buffer->offset, wc->byte_len);
	}
	if (!good)
		return dfs_link_fail(link, false, "lockd sent a malformed message");
	spin_lock_bh(&endpoint->spin);
	error = dfs_receive_post(endpoint, buffer);
	/* ORDER: the slot is back before its credit is. */
	if (word & DFS_IMM_MESSAGE)
		endpoint->owed++;
	if (!error)
		error = dfs_messages_go_on(endpoint);
	spin_unlock_bh(&endpoint->spin);
	if (error)
		dfs_link_fail(link, false, "a receive could not be posted");
}

/* Before the start a few messages may come (a Revoke of what others hold is for nobody here): they are kept. */
bool dfs_link_deliver(struct dfs_link *link, const void *bytes, u32 length)
{
	bool early = false;

	if (test_bit(DFS_LINK_ENDED, &link->flags))
		return true;
	spin_lock_bh(&link->early_spin);
	if (!test_bit(DFS_LINK_STARTED, &link->flags)) {
		early = link->early_count < DFS_EARLY && length <= sizeof(link->early[0].bytes);
		if (early) {
			memcpy(link->early[link->early_count].bytes, bytes, length);
			link->early_length[link->early_count++] = length;
		}
		spin_unlock_bh(&link->early_spin);
		return early;
	}
	spin_unlock_bh(&link->early_spin);
	return link->owner->message(link, bytes, length) == 0;
}

void *dfs_link_data(const struct dfs_link *link)
{
	return link->owner_data;
}

u32 dfs_link_epoch(const struct dfs_link *link)
{
	return link->epoch;
}

void dfs_link_counts(const struct dfs_link *link, u64 *posted, u64 *completed)
{
	u32 i;

	*posted = *completed = 0;
	for (i = 0; i < DFS_ENDPOINTS; i++) {
		*posted += READ_ONCE(link->endpoint[i].posted);
		*completed += READ_ONCE(link->endpoint[i].completed);
	}
}
