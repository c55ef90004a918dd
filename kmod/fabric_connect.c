// SPDX-License-Identifier: GPL-2.0-only
/* Links: opening, starting, stopping, closing. The contract is in fabric.h. */
#include <linux/slab.h>
#include <net/net_namespace.h>

#include "fabric_internal.h"

/* 7 would be for ever. 268 ms each (4.096 us << 16), 1.9 s in all; why: rdma/fabric/verbs_connect.cc. */
#define DFS_RETRIES 6
#define DFS_ACK_TIMEOUT 16
#define DFS_READS 16

struct dfs_accept {
	__le32 magic;
	__le16 version;
	__le16 length;
	__le64 address;
	__le64 region_length;
	__le32 rkey;
	__le32 zero;
};
#define DFS_ACCEPT_MAGIC 0x43464456u
#define DFS_ACCEPT_VERSION 1

static void dfs_endpoint_event(struct dfs_endpoint *endpoint, int error)
{
	endpoint->event_error = error;
	complete(&endpoint->event);
}

/* What lockd gives as its reason; else the mount says no more than that it was refused. */
static void dfs_tell_refusal(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	u8 length = 0;
	const char *reason = rdma_consumer_reject_data(id, event, &length);

	if (reason && *reason)
		pr_info_ratelimited("distfuse: lockd refuses the connection: %.*s\n",
				    (int)strnlen(reason, length), reason);
}

static int dfs_cm_event(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	struct dfs_endpoint *endpoint = id->context;
	const struct rdma_conn_param *param = &event->param.conn;

	switch (event->event) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		dfs_endpoint_event(endpoint, 0);
		break;
	case RDMA_CM_EVENT_ESTABLISHED:
		endpoint->accept_length =
			min_t(u32, param->private_data_len, sizeof(endpoint->accept));
		if (param->private_data)
			memcpy(endpoint->accept, param->private_data, endpoint->accept_length);
		else
			endpoint->accept_length = 0;
		endpoint->established = true;
		dfs_endpoint_event(endpoint, 0);
		break;
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
		dfs_endpoint_event(endpoint, -EHOSTUNREACH);
		break;
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_CONNECT_ERROR:
		dfs_endpoint_event(endpoint, -ETIMEDOUT);
		break;
	case RDMA_CM_EVENT_REJECTED:
		dfs_tell_refusal(id, event);
		dfs_endpoint_event(endpoint, -ECONNREFUSED);
		break;
	case RDMA_CM_EVENT_DISCONNECTED:
		dfs_link_fail(endpoint->link, true, "lockd ended the connection");
		dfs_endpoint_event(endpoint, -ECONNRESET);
		break;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		dfs_link_fail(endpoint->link, false, "the RDMA device went away");
		dfs_endpoint_event(endpoint, -ENODEV);
		break;
	default:
		break;
	}
	return 0;
}

static void dfs_qp_event(struct ib_event *event, void *context)
{
	struct dfs_endpoint *endpoint = context;

	if (event->event == IB_EVENT_QP_FATAL || event->event == IB_EVENT_QP_REQ_ERR ||
	    event->event == IB_EVENT_QP_ACCESS_ERR)
		dfs_link_fail(endpoint->link, false, ib_event_msg(event->event));
}

static int dfs_endpoint_await(struct dfs_endpoint *endpoint, u32 timeout_ms)
{
	if (!wait_for_completion_timeout(&endpoint->event, msecs_to_jiffies(timeout_ms)))
		return -ETIMEDOUT;
	reinit_completion(&endpoint->event);
	return endpoint->event_error;
}

static int dfs_endpoint_map(struct dfs_endpoint *endpoint, u32 size)
{
	endpoint->memory_size = size;
	endpoint->memory = kzalloc(size, GFP_KERNEL);
	if (!endpoint->memory)
		return -ENOMEM;
	endpoint->dma =
		ib_dma_map_single(endpoint->device, endpoint->memory, size, DMA_BIDIRECTIONAL);
	if (ib_dma_mapping_error(endpoint->device, endpoint->dma)) {
		endpoint->dma = 0;
		return -ENOMEM;
	}
	return 0;
}

static int dfs_lane_memory(struct dfs_endpoint *endpoint)
{
	u32 i;
	int error = dfs_endpoint_map(endpoint, DFS_CHAINS * DFS_CHAIN_STRIDE);

	endpoint->chains = kcalloc(DFS_CHAINS, sizeof(*endpoint->chains), GFP_KERNEL);
	if (error || !endpoint->chains)
		return -ENOMEM;
	for (i = 0; i < DFS_CHAINS; i++) {
		endpoint->chains[i].cqe.done = dfs_chain_completed;
		endpoint->chains[i].offset = i * DFS_CHAIN_STRIDE;
		endpoint->chains[i].slot = DF_NO_SLOT;
		endpoint->free_chains[endpoint->free_count++] = i;
	}
	endpoint->step_cqe.done = dfs_step_completed;
	return 0;
}

static int dfs_control_memory(struct dfs_endpoint *endpoint)
{
	u32 i, offset = 0;
	int error = dfs_endpoint_map(endpoint, (DFS_SENDS + DFS_RECEIVES) * DFS_MESSAGE_ROOM);

	endpoint->ring = kvcalloc(DFS_QUEUED, sizeof(*endpoint->ring), GFP_KERNEL);
	if (error || !endpoint->ring)
		return -ENOMEM;
	for (i = 0; i < DFS_SENDS; i++, offset += DFS_MESSAGE_ROOM) {
		endpoint->sends[i].cqe.done = dfs_send_completed;
		endpoint->sends[i].offset = offset;
		if (i < DFS_CREDITS)
			endpoint->send_stack[endpoint->free_sends++] = i;
	}
	for (i = 0; i < DFS_RECEIVES; i++, offset += DFS_MESSAGE_ROOM) {
		endpoint->receives[i].cqe.done = dfs_receive_completed;
		endpoint->receives[i].offset = offset;
	}
	endpoint->free_credit_sends = DFS_CREDIT_SENDS;
	endpoint->credits = DFS_CREDITS;
	return 0;
}

static int dfs_endpoint_queues(struct dfs_endpoint *endpoint, u32 sends, u32 receives)
{
	struct ib_qp_init_attr attributes = {
		.event_handler = dfs_qp_event,
		.qp_context = endpoint,
		.sq_sig_type = IB_SIGNAL_REQ_WR,
		.qp_type = IB_QPT_RC,
		.cap =
			{
				.max_send_wr = sends + 1, /* and the drain's */
				.max_recv_wr = receives + 1,
				.max_send_sge = 1,
				.max_recv_sge = 1,
			},
	};
	u32 i;
	int error;

	endpoint->pd = ib_alloc_pd(endpoint->device, 0);
	if (IS_ERR(endpoint->pd)) {
		error = PTR_ERR(endpoint->pd);
		endpoint->pd = NULL;
		return error;
	}
	endpoint->cq =
		ib_alloc_cq_any(endpoint->device, endpoint, sends + receives + 2, IB_POLL_SOFTIRQ);
	if (IS_ERR(endpoint->cq)) {
		error = PTR_ERR(endpoint->cq);
		endpoint->cq = NULL;
		return error;
	}
	attributes.send_cq = endpoint->cq;
	attributes.recv_cq = endpoint->cq;
	error = rdma_create_qp(endpoint->id, endpoint->pd, &attributes);
	if (error)
		return error;
	endpoint->qp = endpoint->id->qp;
	/* ORDER: before the connection exists, so that the peer's first message finds a slot. */
	for (i = 0; i < receives && !error; i++)
		error = dfs_receive_post(endpoint, &endpoint->receives[i]);
	return error;
}

/* The device is known from here on. */
static int dfs_endpoint_resources(struct dfs_endpoint *endpoint, bool control)
{
	int error = control ? dfs_control_memory(endpoint) : dfs_lane_memory(endpoint);

	if (error)
		return error;
	return control ? dfs_endpoint_queues(endpoint, DFS_SENDS, DFS_RECEIVES)
		       : dfs_endpoint_queues(endpoint, DFS_CHAINS * DF_CHAIN_OPS, 0);
}

static int dfs_endpoint_connect(struct dfs_endpoint *endpoint, const struct df_hello *hello,
				u32 timeout_ms)
{
	const struct ib_device_attr *limits = &endpoint->device->attrs;
	struct rdma_conn_param param = {
		.private_data = hello,
		.private_data_len = sizeof(*hello),
		.initiator_depth = min_t(int, DFS_READS, limits->max_qp_init_rd_atom),
		.responder_resources = min_t(int, DFS_READS, limits->max_qp_rd_atom),
		.retry_count = DFS_RETRIES,
		.rnr_retry_count = DFS_RETRIES,
	};
	int error = rdma_connect(endpoint->id, &param);

	return error ? error : dfs_endpoint_await(endpoint, timeout_ms);
}

static int dfs_endpoint_accepted(struct dfs_endpoint *endpoint)
{
	const struct dfs_accept *accept = (const void *)endpoint->accept;

	if (endpoint->accept_length < sizeof(*accept) ||
	    le32_to_cpu(accept->magic) != DFS_ACCEPT_MAGIC ||
	    le16_to_cpu(accept->version) != DFS_ACCEPT_VERSION ||
	    le16_to_cpu(accept->length) > endpoint->accept_length - sizeof(*accept))
		return -EPROTO;
	endpoint->remote_address = le64_to_cpu(accept->address);
	endpoint->remote_length = le64_to_cpu(accept->region_length);
	endpoint->rkey = le32_to_cpu(accept->rkey);
	return 0;
}

static int dfs_endpoint_open(struct dfs_endpoint *endpoint, const struct sockaddr_storage *address,
			     const struct df_hello *hello, u32 timeout_ms)
{
	struct sockaddr_storage to = *address;
	struct rdma_cm_id *id;
	int error;

	id = rdma_create_id(&init_net, dfs_cm_event, endpoint, RDMA_PS_TCP, IB_QPT_RC);
	if (IS_ERR(id))
		return PTR_ERR(id);
	endpoint->id = id;
	/* Devices without such an option take longer to find a dead peer. */
	(void)rdma_set_ack_timeout(id, DFS_ACK_TIMEOUT);
	error = rdma_resolve_addr(id, NULL, (struct sockaddr *)&to, timeout_ms);
	error = error ? error : dfs_endpoint_await(endpoint, timeout_ms);
	if (error)
		return error;
	error = rdma_resolve_route(id, timeout_ms);
	error = error ? error : dfs_endpoint_await(endpoint, timeout_ms);
	if (error)
		return error;
	endpoint->device = id->device;
	error = dfs_endpoint_resources(endpoint, hello->role == DF_ROLE_CONTROL);
	error = error ? error : dfs_endpoint_connect(endpoint, hello, timeout_ms);
	return error ? error : dfs_endpoint_accepted(endpoint);
}

/* Whatever of it there is. */
static void dfs_endpoint_close(struct dfs_endpoint *endpoint)
{
	if (endpoint->id && endpoint->established)
		rdma_disconnect(endpoint->id);
	if (endpoint->qp) {
		ib_drain_qp(endpoint->qp);
		rdma_destroy_qp(endpoint->id);
	}
	if (endpoint->cq)
		ib_free_cq(endpoint->cq);
	if (endpoint->dma)
		ib_dma_unmap_single(endpoint->device, endpoint->dma, endpoint->memory_size,
				    DMA_BIDIRECTIONAL);
	if (endpoint->pd)
		ib_dealloc_pd(endpoint->pd);
	if (endpoint->id)
		rdma_destroy_id(endpoint->id);
	kfree(endpoint->memory);
	kfree(endpoint->chains);
	kvfree(endpoint->ring);
}

static struct dfs_link *dfs_link_alloc(const struct dfs_link_owner *owner, void *owner_data,
				       u32 epoch)
{
	struct dfs_link *link = kvzalloc(sizeof(*link), GFP_KERNEL);
	u32 i;

	if (!link)
		return NULL;
	link->owner = owner;
	link->owner_data = owner_data;
	link->epoch = epoch;
	spin_lock_init(&link->early_spin);
	INIT_DELAYED_WORK(&link->watchdog, dfs_link_watch);
	for (i = 0; i < DFS_ENDPOINTS; i++) {
		struct dfs_endpoint *endpoint = &link->endpoint[i];

		endpoint->link = link;
		spin_lock_init(&endpoint->spin);
		INIT_LIST_HEAD(&endpoint->waiting);
		init_completion(&endpoint->event);
	}
	return link;
}

/* The whole table and the lease word must be where the accept says that memory is. */
static bool dfs_geometry_fits(const struct dfs_endpoint *endpoint, const struct df_welcome *welcome)
{
	u64 table = (u64)welcome->slots * DF_SLOT_SIZE;

	return table <= endpoint->remote_length && welcome->lease_offset % 8 == 0 &&
	       (!welcome->lease_ms || (welcome->lease_offset >= table &&
				       welcome->lease_offset <= endpoint->remote_length - 8));
}

static int dfs_link_welcome(struct dfs_endpoint *endpoint, struct df_welcome *welcome)
{
	int check = df_welcome_check(endpoint->accept + sizeof(struct dfs_accept),
				     endpoint->accept_length - sizeof(struct dfs_accept), welcome);

	if (check == DF_CHECK_VERSION) {
		welcome->refusal = DF_REFUSED_VERSION;
		return -EPROTO;
	}
	if (check != DF_CHECK_OK) {
		welcome->refusal = DF_REFUSED_MALFORMED;
		return -EPROTO;
	}
	return welcome->refusal ? -EPROTO : 0;
}

int dfs_link_open(const struct sockaddr_storage *address, const struct df_hello *hello,
		  u32 timeout_ms, const struct dfs_link_owner *owner, void *owner_data, u32 epoch,
		  struct df_welcome *welcome, struct dfs_link **result)
{
	struct dfs_link *link = dfs_link_alloc(owner, owner_data, epoch);
	struct df_hello lane = *hello;
	u32 i;
	int error;

	memset(welcome, 0, sizeof(*welcome));
	if (!link)
		return -ENOMEM;
	error = dfs_endpoint_open(&link->endpoint[0], address, hello, timeout_ms);
	error = error ? error : dfs_link_welcome(&link->endpoint[0], welcome);
	df_hello_join(&lane, DF_ROLE_LANE, welcome->session, welcome->token);
	for (i = 1; i < DFS_ENDPOINTS && !error; i++) {
		struct df_welcome answer;

		error = dfs_endpoint_open(&link->endpoint[i], address, &lane, timeout_ms);
		error = error ? error : dfs_link_welcome(&link->endpoint[i], &answer);
		if (!error && !dfs_geometry_fits(&link->endpoint[i], welcome)) {
			welcome->refusal = DF_REFUSED_MALFORMED;
			error = -EPROTO;
		}
	}
	if (error) {
		set_bit(DFS_LINK_ENDED, &link->flags);
		dfs_link_close(link);
		return error;
	}
	schedule_delayed_work(&link->watchdog, DFS_LOOK);
	*result = link;
	return 0;
}

void dfs_link_start(struct dfs_link *link)
{
	bool good = true;
	u32 i;

	spin_lock_bh(&link->early_spin);
	for (i = 0; i < link->early_count && good; i++)
		good = !link->owner->message(link, link->early[i].bytes, link->early_length[i]);
	set_bit(DFS_LINK_STARTED, &link->flags);
	spin_unlock_bh(&link->early_spin);
	if (!good)
		dfs_link_fail(link, false, "lockd sent a malformed message");
	else if (test_bit(DFS_LINK_ENDED, &link->flags))
		link->owner->ended(link, false,
				   link->early_reason ? link->early_reason : "ended at once");
}

void dfs_link_stop(struct dfs_link *link)
{
	u32 i;

	set_bit(DFS_LINK_ENDED, &link->flags);
	if (test_and_set_bit(DFS_LINK_STOPPED, &link->flags))
		return;
	cancel_delayed_work_sync(&link->watchdog);
	for (i = 0; i < DFS_ENDPOINTS; i++) {
		if (link->endpoint[i].qp)
			ib_drain_qp(link->endpoint[i].qp);
		dfs_chains_cancel(&link->endpoint[i]);
	}
}

void dfs_link_close(struct dfs_link *link)
{
	u32 i;

	dfs_link_stop(link);
	for (i = DFS_ENDPOINTS; i-- > 0;)
		dfs_endpoint_close(&link->endpoint[i]);
	kvfree(link);
}
