// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/verbs_table.h"

namespace distfuse::fabric::verbs {

const VerbsTable& system_table() {
  // Lambdas where the library has a macro or an inline function.
  static const VerbsTable table = {
      .get_devices = rdma_get_devices,
      .free_devices = rdma_free_devices,
      .get_device_name = ibv_get_device_name,
      .query_device = ibv_query_device,
      .query_port = [](ibv_context* context, std::uint8_t port,
                       ibv_port_attr* attr) { return ibv_query_port(context, port, attr); },
      .query_gid = ibv_query_gid,
      .alloc_pd = ibv_alloc_pd,
      .dealloc_pd = ibv_dealloc_pd,
      .reg_mr = [](ibv_pd* pd, void* memory, std::size_t length,
                   int access) { return ibv_reg_mr(pd, memory, length, access); },
      .dereg_mr = ibv_dereg_mr,
      .create_comp_channel = ibv_create_comp_channel,
      .destroy_comp_channel = ibv_destroy_comp_channel,
      .create_cq = ibv_create_cq,
      .destroy_cq = ibv_destroy_cq,
      .req_notify_cq = [](ibv_cq* cq, int solicited) { return ibv_req_notify_cq(cq, solicited); },
      .poll_cq = [](ibv_cq* cq, int count, ibv_wc* wc) { return ibv_poll_cq(cq, count, wc); },
      .get_cq_event = ibv_get_cq_event,
      .ack_cq_events = ibv_ack_cq_events,
      .create_qp = ibv_create_qp,
      .destroy_qp = ibv_destroy_qp,
      .modify_qp = ibv_modify_qp,
      .post_send = [](ibv_qp* qp, ibv_send_wr* wr,
                      ibv_send_wr** bad) { return ibv_post_send(qp, wr, bad); },
      .post_recv = [](ibv_qp* qp, ibv_recv_wr* wr,
                      ibv_recv_wr** bad) { return ibv_post_recv(qp, wr, bad); },
      .wc_status_str = ibv_wc_status_str,
      .create_event_channel = rdma_create_event_channel,
      .destroy_event_channel = rdma_destroy_event_channel,
      .create_id = rdma_create_id,
      .destroy_id = rdma_destroy_id,
      .bind_addr = rdma_bind_addr,
      .listen = rdma_listen,
      .get_src_port = rdma_get_src_port,
      .resolve_addr = rdma_resolve_addr,
      .resolve_route = rdma_resolve_route,
      .create_cm_qp = rdma_create_qp,
      .destroy_cm_qp = rdma_destroy_qp,
      .connect = rdma_connect,
      .accept = rdma_accept,
      .reject = rdma_reject,
      .disconnect = rdma_disconnect,
      .set_option = rdma_set_option,
      .get_cm_event = rdma_get_cm_event,
      .ack_cm_event = rdma_ack_cm_event,
      .event_str = rdma_event_str,
  };
  return table;
}

}  // namespace distfuse::fabric::verbs
