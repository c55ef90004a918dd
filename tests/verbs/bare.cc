// SPDX-License-Identifier: Apache-2.0
#include "tests/verbs/bare.h"

#include <arpa/inet.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "rdma/fabric/verbs_handshake.h"
#include "tests/verbs/rig.h"

namespace distfuse::verbs_tests {

namespace {

constexpr std::size_t kRegion = 64 * 1024;
constexpr int kAccess = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE |
                        IBV_ACCESS_REMOTE_ATOMIC;

void need(bool good, const char* what) {
  if (good) return;
  std::perror(what);
  std::exit(1);
}

sockaddr_in address(int port) {
  sockaddr_in where{};
  where.sin_family = AF_INET;
  where.sin_port = htons(static_cast<std::uint16_t>(port));
  need(inet_pton(AF_INET, place().host.c_str(), &where.sin_addr) == 1, "DISTFUSE_VERBS_HOST");
  return where;
}

rdma_conn_param parameters(const std::vector<std::byte>& data) {
  rdma_conn_param param{};
  param.private_data = data.data();
  param.private_data_len = static_cast<std::uint8_t>(data.size());
  param.initiator_depth = param.responder_resources = 16;
  param.retry_count = param.rnr_retry_count = 6;
  return param;
}

ibv_cq* make_queue_pair(rdma_cm_id* id, ibv_pd* pd) {
  ibv_cq* cq = ibv_create_cq(id->verbs, 16, nullptr, nullptr, 0);
  need(cq != nullptr, "ibv_create_cq");
  ibv_qp_init_attr attributes{};
  attributes.send_cq = attributes.recv_cq = cq;
  attributes.qp_type = IBV_QPT_RC;
  attributes.cap = {16, 16, 1, 1, 128};
  need(rdma_create_qp(id, pd, &attributes) == 0, "rdma_create_qp");
  return cq;
}

/// The next event, acknowledged; its private data.
rdma_cm_event_type next_event(rdma_event_channel* channel, rdma_cm_id*& id,
                              std::vector<std::byte>& data) {
  rdma_cm_event* event = nullptr;
  need(rdma_get_cm_event(channel, &event) == 0, "rdma_get_cm_event");
  const auto type = event->event;
  id = event->id;
  const auto* bytes = static_cast<const std::byte*>(event->param.conn.private_data);
  data.clear();
  if (bytes != nullptr) data.assign(bytes, bytes + event->param.conn.private_data_len);
  rdma_ack_cm_event(event);
  return type;
}

ibv_send_wr one_sided(ibv_wr_opcode opcode, ibv_sge& part, std::uint64_t remote,
                      std::uint32_t key) {
  ibv_send_wr request{};
  request.opcode = opcode;
  request.sg_list = &part;
  request.num_sge = 1;
  request.wr.rdma.remote_addr = remote;
  request.wr.rdma.rkey = key;
  return request;
}

ibv_send_wr atomic(ibv_wr_opcode opcode, ibv_sge& part, std::uint64_t remote, std::uint32_t key,
                   std::uint64_t compare_add, std::uint64_t swap) {
  ibv_send_wr request{};
  request.opcode = opcode;
  request.sg_list = &part;
  request.num_sge = 1;
  request.wr.atomic = {remote, compare_add, swap, key};
  return request;
}

}  // namespace

void serve_bare(const Manners& manners, void (*say)(const std::string&)) {
  auto* channel = rdma_create_event_channel();
  rdma_cm_id* listener = nullptr;
  need(rdma_create_id(channel, &listener, nullptr, RDMA_PS_TCP) == 0, "rdma_create_id");
  auto where = address(0);
  need(rdma_bind_addr(listener, reinterpret_cast<sockaddr*>(&where)) == 0, "rdma_bind_addr");
  need(rdma_listen(listener, 16) == 0, "rdma_listen");
  say(std::to_string(ntohs(rdma_get_src_port(listener))));
  ibv_pd* pd = nullptr;
  ibv_mr* mr = nullptr;
  void* memory = std::aligned_alloc(4096, kRegion);
  std::memset(memory, 0, kRegion);
  while (true) {
    rdma_cm_id* id = nullptr;
    std::vector<std::byte> data;
    const auto type = next_event(channel, id, data);
    if (type == RDMA_CM_EVENT_DISCONNECTED) {
      rdma_disconnect(id);
      rdma_destroy_qp(id);
      rdma_destroy_id(id);  // Its completion queue goes with the process.
    }
    if (type != RDMA_CM_EVENT_CONNECT_REQUEST) continue;
    if (pd == nullptr) {
      pd = ibv_alloc_pd(id->verbs);
      need(pd != nullptr, "ibv_alloc_pd");
      mr = ibv_reg_mr(pd, memory, kRegion, kAccess);
      need(mr != nullptr, "ibv_reg_mr");
    }
    make_queue_pair(id, pd);
    ibv_sge part{reinterpret_cast<std::uintptr_t>(memory), 4096, mr->lkey};
    ibv_recv_wr receive{};
    receive.sg_list = &part;
    receive.num_sge = 1;
    ibv_recv_wr* bad = nullptr;
    for (int i = 0; i < 16 && !manners.no_receives; ++i) ibv_post_recv(id->qp, &receive, &bad);
    const auto answer =
        fabric::verbs::encode_accept({reinterpret_cast<std::uintptr_t>(memory), kRegion,
                                      manners.wrong_key ? mr->rkey ^ 0xffU : mr->rkey},
                                     {});
    auto param = parameters(answer);
    need(rdma_accept(id, &param) == 0, "rdma_accept");
  }
}

Bare::Bare(int port) {
  channel_ = rdma_create_event_channel();
  need(rdma_create_id(channel_, &id_, nullptr, RDMA_PS_TCP) == 0, "rdma_create_id");
  std::vector<std::byte> data;
  rdma_cm_id* id = nullptr;
  auto where = address(port);
  need(rdma_resolve_addr(id_, nullptr, reinterpret_cast<sockaddr*>(&where), 5000) == 0, "address");
  need(next_event(channel_, id, data) == RDMA_CM_EVENT_ADDR_RESOLVED, "address");
  pd_ = ibv_alloc_pd(id_->verbs);
  need(pd_ != nullptr, "ibv_alloc_pd");
  mr_ = ibv_reg_mr(pd_, memory_, sizeof(memory_), IBV_ACCESS_LOCAL_WRITE);
  need(mr_ != nullptr, "ibv_reg_mr");
  cq_ = make_queue_pair(id_, pd_);
  need(rdma_resolve_route(id_, 5000) == 0, "route");
  need(next_event(channel_, id, data) == RDMA_CM_EVENT_ROUTE_RESOLVED, "route");
  auto param = parameters({});
  need(rdma_connect(id_, &param) == 0, "rdma_connect");
  need(next_event(channel_, id, data) == RDMA_CM_EVENT_ESTABLISHED, "connection");
  const auto accept = fabric::verbs::decode_accept(data);
  need(accept.ok(), "accept");
  remote_ = accept->region.address;
  key_ = accept->region.rkey;
}

Bare::~Bare() {
  rdma_disconnect(id_);
  rdma_destroy_qp(id_);
  ibv_destroy_cq(cq_);
  ibv_dereg_mr(mr_);
  ibv_dealloc_pd(pd_);
  rdma_destroy_id(id_);
  rdma_destroy_event_channel(channel_);
}

void Bare::run(ibv_send_wr* first) {
  ibv_send_wr* bad = nullptr;
  need(ibv_post_send(id_->qp, first, &bad) == 0, "ibv_post_send");
  ibv_wc completion{};
  int n = 0;
  while ((n = ibv_poll_cq(cq_, 1, &completion)) == 0) {
  }
  need(n == 1 && completion.status == IBV_WC_SUCCESS, "completion");
}

void Bare::take_exclusive() {
  ibv_sge old{reinterpret_cast<std::uintptr_t>(memory_), 8, mr_->lkey};
  ibv_sge image{old.addr + 64, 128, mr_->lkey};
  auto swap = atomic(IBV_WR_ATOMIC_CMP_AND_SWP, old, remote_, key_, 0, 1);
  auto read = one_sided(IBV_WR_RDMA_READ, image, remote_, key_);
  read.send_flags = IBV_SEND_SIGNALED;
  swap.next = &read;
  run(&swap);
}

void Bare::take_shared() {
  ibv_sge hint{reinterpret_cast<std::uintptr_t>(memory_) + 512, 1, mr_->lkey};
  ibv_sge old{reinterpret_cast<std::uintptr_t>(memory_), 8, mr_->lkey};
  ibv_sge image{old.addr + 64, 128, mr_->lkey};
  auto write = one_sided(IBV_WR_RDMA_WRITE, hint, remote_ + 65, key_);
  write.send_flags = IBV_SEND_INLINE;
  auto add = atomic(IBV_WR_ATOMIC_FETCH_AND_ADD, old, remote_, key_, 1, 0);
  auto read = one_sided(IBV_WR_RDMA_READ, image, remote_, key_);
  read.send_flags = IBV_SEND_SIGNALED;
  write.next = &add;
  add.next = &read;
  run(&write);
}

void Bare::give_back() {
  ibv_sge old{reinterpret_cast<std::uintptr_t>(memory_), 8, mr_->lkey};
  auto add = atomic(IBV_WR_ATOMIC_FETCH_AND_ADD, old, remote_, key_, ~std::uint64_t{0}, 0);
  add.send_flags = IBV_SEND_SIGNALED;
  run(&add);
}

}  // namespace distfuse::verbs_tests
