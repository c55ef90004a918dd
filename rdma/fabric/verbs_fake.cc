// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/verbs_fake.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "rdma/fabric/chain.h"
#include "rdma/fabric/verbs_fake_machine.h"

namespace distfuse::fabric::verbs {

namespace fake {

namespace {

void complete(FakeQp* qp, const ibv_wc& wc, std::uint32_t reclaims) {
  auto* queue = qp->queue;
  if (queue->entries.size() >= queue->capacity) {
    ++machine().overflows;
    return;
  }
  queue->entries.push_back({wc, qp, reclaims});
  if (!queue->armed || queue->notify == nullptr) return;
  queue->armed = false;
  queue->notify->events.push_back(queue);
  ring(queue->notify->fd);
}

ibv_wc entry(const FakeQp* qp, std::uint64_t id, ibv_wc_status status, ibv_wc_opcode opcode) {
  ibv_wc wc{};
  wc.wr_id = id;
  wc.status = status;
  wc.opcode = opcode;
  wc.qp_num = qp->qp_num;
  return wc;
}

}  // namespace

void to_error(FakeQp* qp) {
  if (qp->state == IBV_QPS_ERR) return;
  qp->state = IBV_QPS_ERR;
  for (const auto& [request, part] : qp->receives) {
    complete(qp, entry(qp, request.wr_id, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV), 0);
  }
  qp->receives.clear();
}

FakeQp* make_qp(ibv_pd* pd, ibv_qp_init_attr* attributes) {
  auto* qp = new FakeQp;
  qp->context = pd->context;
  qp->pd = pd;
  qp->queue = static_cast<FakeCq*>(attributes->send_cq);
  qp->cap = attributes->cap;
  qp->qp_num = machine().next_qp++;
  qp->state = IBV_QPS_RESET;
  machine().pairs[qp->qp_num] = qp;
  ++machine().live;
  return qp;
}

void drop_qp(FakeQp* qp) {
  if (qp->other != nullptr) qp->other->other = nullptr;
  auto& entries = qp->queue->entries;
  std::erase_if(entries, [qp](const Completion& completion) { return completion.qp == qp; });
  machine().pairs.erase(qp->qp_num);
  --machine().live;
  delete qp;
}

namespace {

// ---- execution

const ibv_mr* reach(std::uint32_t rkey, std::uint64_t address, std::size_t length) {
  const auto found = machine().regions.find(rkey);
  if (found == machine().regions.end()) return nullptr;
  const auto* mr = found->second;
  const auto base = reinterpret_cast<std::uintptr_t>(mr->addr);
  if (address < base || address - base > mr->length) return nullptr;
  return length <= mr->length - (address - base) ? mr : nullptr;
}

bool local_ok(const ibv_send_wr& wr) {
  if ((wr.send_flags & IBV_SEND_INLINE) != 0) return true;
  for (int i = 0; i < wr.num_sge; ++i) {
    const auto& part = wr.sg_list[i];
    if (reach(part.lkey, part.addr, part.length) == nullptr) return false;
  }
  return true;
}

std::size_t length_of(const ibv_send_wr& wr) {
  return wr.num_sge == 0 ? 0 : wr.sg_list[0].length;
}

ibv_wc_status access(const ibv_send_wr& wr) {
  if (!local_ok(wr)) return IBV_WC_LOC_PROT_ERR;
  const bool atomic =
      wr.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD || wr.opcode == IBV_WR_ATOMIC_CMP_AND_SWP;
  const auto address = atomic ? wr.wr.atomic.remote_addr : wr.wr.rdma.remote_addr;
  const auto key = atomic ? wr.wr.atomic.rkey : wr.wr.rdma.rkey;
  if (atomic && (address % 8 != 0 || length_of(wr) != 8)) return IBV_WC_REM_INV_REQ_ERR;
  return reach(key, address, length_of(wr)) != nullptr ? IBV_WC_SUCCESS : IBV_WC_REM_ACCESS_ERR;
}

void execute(const ibv_send_wr& wr) {
  Operation op{};
  const bool atomic =
      wr.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD || wr.opcode == IBV_WR_ATOMIC_CMP_AND_SWP;
  const auto address = atomic ? wr.wr.atomic.remote_addr : wr.wr.rdma.remote_addr;
  auto* base = reinterpret_cast<std::byte*>(address);
  if (wr.num_sge == 0) return;
  op.local = reinterpret_cast<std::byte*>(wr.sg_list[0].addr);
  op.length = wr.sg_list[0].length;
  if (wr.opcode == IBV_WR_RDMA_READ) op.op = Op::read;
  if (wr.opcode == IBV_WR_RDMA_WRITE) op.op = Op::write;
  if (wr.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
    op.op = Op::fetch_add;
    op.operand = wr.wr.atomic.compare_add;
  }
  if (wr.opcode == IBV_WR_ATOMIC_CMP_AND_SWP) {
    op.op = Op::compare_swap;
    op.expected = wr.wr.atomic.compare_add;
    op.operand = wr.wr.atomic.swap;
  }
  run_chain(base, {&op, 1});
}

/// A message into the other side's oldest receive.
ibv_wc_status deliver(FakeQp* to, const std::uint8_t* bytes, std::uint32_t length,
                      std::uint32_t immediate) {
  if (to->receives.empty()) {
    ++machine().not_ready;
    return IBV_WC_RNR_RETRY_EXC_ERR;
  }
  const auto [request, part] = to->receives.front();
  to->receives.pop_front();
  const bool fits = length <= part.length;
  auto wc = entry(to, request.wr_id, fits ? IBV_WC_SUCCESS : IBV_WC_LOC_LEN_ERR, IBV_WC_RECV);
  wc.byte_len = length;
  wc.wc_flags = IBV_WC_WITH_IMM;
  wc.imm_data = immediate;
  if (fits && length > 0) std::memcpy(reinterpret_cast<void*>(part.addr), bytes, length);
  complete(to, wc, 0);
  if (!fits) to_error(to);
  return fits ? IBV_WC_SUCCESS : IBV_WC_REM_INV_REQ_ERR;
}

ibv_wc_status send(FakeQp* qp, const ibv_send_wr& wr) {
  if (!local_ok(wr)) return IBV_WC_LOC_PROT_ERR;
  const auto* bytes =
      wr.num_sge == 0 ? nullptr : reinterpret_cast<const std::uint8_t*>(wr.sg_list[0].addr);
  return deliver(qp->other, bytes, static_cast<std::uint32_t>(length_of(wr)), wr.imm_data);
}

ibv_wc_status injected() {
  auto& m = machine();
  if (m.fail_after < 0) return IBV_WC_SUCCESS;
  return m.fail_after-- == 0 ? m.fail_status : IBV_WC_SUCCESS;
}

bool is_send(const ibv_send_wr& wr) {
  return wr.opcode == IBV_WR_SEND_WITH_IMM || wr.opcode == IBV_WR_SEND;
}

/// Executes a list; answers how many were good, and why the next one was not.
std::pair<std::size_t, ibv_wc_status> execute_list(FakeQp* qp,
                                                   const std::vector<ibv_send_wr*>& list) {
  std::vector<const ibv_send_wr*> held;  // READs and atomics: as late as RC allows.
  const auto release = [&held] {
    for (const auto* wr : held) execute(*wr);
    held.clear();
  };
  for (std::size_t i = 0; i < list.size(); ++i) {
    const auto& wr = *list[i];
    auto status = injected();
    const bool reachable = qp->other != nullptr && qp->other->state != IBV_QPS_ERR;
    if (status == IBV_WC_SUCCESS && !reachable) status = IBV_WC_RETRY_EXC_ERR;
    if (status == IBV_WC_SUCCESS && !is_send(wr)) status = access(wr);
    if (status != IBV_WC_SUCCESS) {
      release();
      return {i, status};
    }
    if (wr.opcode == IBV_WR_RDMA_READ || wr.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD ||
        wr.opcode == IBV_WR_ATOMIC_CMP_AND_SWP) {
      if (qp->reads == 0) return {i, IBV_WC_REM_INV_REQ_ERR};  // initiator_depth was not set.
      held.push_back(&wr);
      continue;
    }
    if ((wr.send_flags & IBV_SEND_FENCE) != 0) {
      ++machine().fences;
      release();
    }
    if (!is_send(wr)) {
      execute(wr);
      continue;
    }
    status = send(qp, wr);
    if (status != IBV_WC_SUCCESS) {
      release();
      return {i, status};
    }
  }
  release();
  return {list.size(), IBV_WC_SUCCESS};
}

int post_send(ibv_qp* handle, ibv_send_wr* first, ibv_send_wr** bad) {
  auto& m = machine();
  const Lock lock(m.mu);
  ++m.doorbells;
  auto* qp = static_cast<FakeQp*>(handle);
  std::vector<ibv_send_wr*> list;
  for (auto* wr = first; wr != nullptr; wr = wr->next) list.push_back(wr);
  *bad = first;
  if (qp->state != IBV_QPS_RTS && qp->state != IBV_QPS_ERR) return EINVAL;
  if (qp->used + list.size() > qp->cap.max_send_wr) {
    ++m.overflows;
    return ENOMEM;
  }
  for (const auto* wr : list) {
    const bool has_inline = (wr->send_flags & IBV_SEND_INLINE) != 0;
    if (has_inline && length_of(*wr) > qp->cap.max_inline_data) return EINVAL;
  }
  qp->used += static_cast<std::uint32_t>(list.size());
  auto [good, status] = qp->state == IBV_QPS_ERR
                            ? std::pair<std::size_t, ibv_wc_status>{0, IBV_WC_WR_FLUSH_ERR}
                            : execute_list(qp, list);
  for (std::size_t i = 0; i < list.size(); ++i) {
    ++qp->unsignalled;
    const bool signalled = (list[i]->send_flags & IBV_SEND_SIGNALED) != 0;
    if (i < good && !signalled) continue;
    const auto result = i < good ? IBV_WC_SUCCESS : i == good ? status : IBV_WC_WR_FLUSH_ERR;
    complete(qp, entry(qp, list[i]->wr_id, result, IBV_WC_SEND), std::exchange(qp->unsignalled, 0));
  }
  if (good < list.size()) to_error(qp);
  return 0;
}

int post_recv(ibv_qp* handle, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  const Lock lock(machine().mu);
  auto* qp = static_cast<FakeQp*>(handle);
  *bad = wr;
  if (wr->next != nullptr || wr->num_sge != 1) return EINVAL;
  if (qp->receives.size() >= qp->cap.max_recv_wr) return ENOMEM;
  if (qp->state == IBV_QPS_ERR) {
    complete(qp, entry(qp, wr->wr_id, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV), 0);
  } else {
    qp->receives.emplace_back(*wr, *wr->sg_list);
  }
  return 0;
}

int poll_cq(ibv_cq* handle, int count, ibv_wc* wc) {
  const Lock lock(machine().mu);
  auto* queue = static_cast<FakeCq*>(handle);
  int n = 0;
  for (; n < count && !queue->entries.empty(); ++n) {
    wc[n] = queue->entries.front().wc;
    queue->entries.front().qp->used -= queue->entries.front().reclaims;
    queue->entries.pop_front();
  }
  return n;
}

// ---- objects

ibv_context** get_devices(int* count) {
  auto& m = machine();
  const Lock lock(m.mu);
  *count = m.present ? 1 : 0;
  m.context.device = &m.device;
  auto** list = new ibv_context* [2] { m.present ? &m.context : nullptr, nullptr };
  return list;
}

ibv_cq* create_cq(ibv_context* context, int entries, void* user, ibv_comp_channel* channel, int) {
  const Lock lock(machine().mu);
  auto* queue = new FakeCq;
  queue->context = context;
  queue->cq_context = user;
  queue->notify = static_cast<FakeCompChannel*>(channel);
  queue->capacity = static_cast<std::size_t>(entries);
  ++machine().live;
  return queue;
}

int destroy_cq(ibv_cq* handle) {
  const Lock lock(machine().mu);
  auto* queue = static_cast<FakeCq*>(handle);
  if (queue->unacknowledged != 0) std::abort();  // The real one would wait for ever.
  if (queue->notify != nullptr) {
    auto& events = queue->notify->events;
    for (auto at = std::find(events.begin(), events.end(), queue); at != events.end();
         at = std::find(events.begin(), events.end(), queue)) {
      events.erase(at);
      (void)take(queue->notify->fd);
    }
  }
  delete queue;
  --machine().live;
  return 0;
}

int get_cq_event(ibv_comp_channel* handle, ibv_cq** queue, void** user) {
  const Lock lock(machine().mu);
  auto* channel = static_cast<FakeCompChannel*>(handle);
  if (channel->events.empty()) {
    errno = EAGAIN;
    return -1;
  }
  (void)take(channel->fd);
  *queue = channel->events.front();
  *user = channel->events.front()->cq_context;
  ++channel->events.front()->unacknowledged;
  channel->events.pop_front();
  return 0;
}

int modify_qp(ibv_qp* handle, ibv_qp_attr* attributes, int mask) {
  auto& m = machine();
  const Lock lock(m.mu);
  auto* qp = static_cast<FakeQp*>(handle);
  if ((mask & IBV_QP_STATE) == 0) return EINVAL;
  if (attributes->qp_state == IBV_QPS_ERR) {
    to_error(qp);
    return 0;
  }
  const std::map<ibv_qp_state, ibv_qp_state> before = {
      {IBV_QPS_INIT, IBV_QPS_RESET}, {IBV_QPS_RTR, IBV_QPS_INIT}, {IBV_QPS_RTS, IBV_QPS_RTR}};
  const auto from = before.find(attributes->qp_state);
  if (from == before.end() || from->second != qp->state) return EINVAL;
  if (attributes->qp_state == IBV_QPS_RTR) qp->destination = attributes->dest_qp_num;
  if (attributes->qp_state == IBV_QPS_RTS) {
    qp->reads = attributes->max_rd_atomic;
    const auto found = m.pairs.find(qp->destination);
    if (found == m.pairs.end()) return EINVAL;
    qp->other = found->second;
  }
  qp->state = attributes->qp_state;
  return 0;
}

ibv_mr* reg_mr(ibv_pd* pd, void* memory, std::size_t length, int) {
  auto& m = machine();
  const Lock lock(m.mu);
  auto* mr = new ibv_mr{};
  mr->pd = pd;
  mr->addr = memory;
  mr->length = length;
  mr->lkey = mr->rkey = m.next_key++;
  m.regions[mr->rkey] = mr;
  ++m.live;
  return mr;
}

int dereg_mr(ibv_mr* mr) {
  const Lock lock(machine().mu);
  machine().regions.erase(mr->rkey);
  --machine().live;
  delete mr;
  return 0;
}

VerbsTable make_table() {
  VerbsTable t{};
  t.get_devices = get_devices;
  t.free_devices = [](ibv_context** list) { delete[] list; };
  t.get_device_name = [](ibv_device*) -> const char* { return "fake0"; };
  t.query_device = [](ibv_context*, ibv_device_attr* attributes) {
    attributes->atomic_cap = IBV_ATOMIC_HCA;
    attributes->max_qp_rd_atom = 16;
    attributes->max_qp_init_rd_atom = 16;
    return 0;
  };
  t.query_port = [](ibv_context*, std::uint8_t, ibv_port_attr* port) {
    port->link_layer = IBV_LINK_LAYER_ETHERNET;
    port->active_mtu = IBV_MTU_1024;
    return 0;
  };
  t.query_gid = [](ibv_context*, std::uint8_t, int, ibv_gid* gid) {
    *gid = {};
    return 0;
  };
  t.alloc_pd = [](ibv_context* context) {
    const Lock lock(machine().mu);
    ++machine().live;
    return new ibv_pd{context, 0};
  };
  t.dealloc_pd = [](ibv_pd* pd) {
    const Lock lock(machine().mu);
    --machine().live;
    delete pd;
    return 0;
  };
  t.reg_mr = reg_mr;
  t.dereg_mr = dereg_mr;
  t.create_comp_channel = [](ibv_context*) -> ibv_comp_channel* {
    const Lock lock(machine().mu);
    auto* channel = new FakeCompChannel{};
    channel->fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK);
    ++machine().live;
    return channel;
  };
  t.destroy_comp_channel = [](ibv_comp_channel* channel) {
    const Lock lock(machine().mu);
    close(channel->fd);
    delete static_cast<FakeCompChannel*>(channel);
    --machine().live;
    return 0;
  };
  t.create_cq = create_cq;
  t.destroy_cq = destroy_cq;
  t.req_notify_cq = [](ibv_cq* queue, int) {
    const Lock lock(machine().mu);
    static_cast<FakeCq*>(queue)->armed = true;
    return 0;
  };
  t.poll_cq = poll_cq;
  t.get_cq_event = get_cq_event;
  t.ack_cq_events = [](ibv_cq* queue, unsigned count) {
    const Lock lock(machine().mu);
    static_cast<FakeCq*>(queue)->unacknowledged -= count;
  };
  t.create_qp = [](ibv_pd* pd, ibv_qp_init_attr* attributes) -> ibv_qp* {
    const Lock lock(machine().mu);
    return make_qp(pd, attributes);
  };
  t.destroy_qp = [](ibv_qp* qp) {
    const Lock lock(machine().mu);
    drop_qp(static_cast<FakeQp*>(qp));
    return 0;
  };
  t.modify_qp = modify_qp;
  t.post_send = post_send;
  t.post_recv = post_recv;
  t.wc_status_str = [](ibv_wc_status status) -> const char* {
    return status == IBV_WC_WR_FLUSH_ERR ? "flushed" : "failed";
  };
  fill_cm(t);
  return t;
}

}  // namespace

const VerbsTable& table_of_machine() {
  static const VerbsTable table = make_table();
  return table;
}

}  // namespace fake

using fake::machine;
using Lock = fake::Lock;

const VerbsTable& fake_table() {
  return fake::table_of_machine();
}

void FakeControl::reset() {
  auto& m = machine();
  const Lock lock(m.mu);
  m.present = true;
  m.fail_after = -1;
  m.corrupt = -1;
  m.path.mtu = IBV_MTU_1024;
  m.not_ready = m.overflows = m.doorbells = m.fences = 0;
}

void FakeControl::set_present(bool present) {
  const Lock lock(machine().mu);
  machine().present = present;
}

void FakeControl::fail_send(int after, ibv_wc_status status) {
  const Lock lock(machine().mu);
  machine().fail_after = after;
  machine().fail_status = status;
}

void FakeControl::raise_on_all(rdma_cm_event_type event) {
  auto& m = machine();
  const Lock lock(m.mu);
  for (auto* id : m.ids) {
    const bool removed = event == RDMA_CM_EVENT_DEVICE_REMOVAL && id->link == fake::Link::listening;
    if (removed || id->link == fake::Link::connected) fake::raise(id, event);
  }
}

void FakeControl::set_path_mtu(ibv_mtu mtu) {
  const Lock lock(machine().mu);
  machine().path.mtu = static_cast<std::uint8_t>(mtu);
}

void FakeControl::corrupt_accept(std::size_t at) {
  const Lock lock(machine().mu);
  machine().corrupt = static_cast<int>(at);
}

void FakeControl::send_raw(std::uint32_t immediate, std::uint32_t length) {
  auto& m = machine();
  const Lock lock(m.mu);
  const std::vector<std::uint8_t> bytes(length);
  for (const auto& [number, qp] : m.pairs) {
    if (qp->state == IBV_QPS_RTS) (void)fake::deliver(qp, bytes.data(), length, immediate);
  }
}

std::uint64_t FakeControl::receiver_not_ready() {
  const Lock lock(machine().mu);
  return machine().not_ready;
}

std::uint64_t FakeControl::overflows() {
  const Lock lock(machine().mu);
  return machine().overflows;
}

std::uint64_t FakeControl::doorbells() {
  const Lock lock(machine().mu);
  return machine().doorbells;
}

std::uint64_t FakeControl::fences() {
  const Lock lock(machine().mu);
  return machine().fences;
}

int FakeControl::live_objects() {
  const Lock lock(machine().mu);
  return machine().live;
}

}  // namespace distfuse::fabric::verbs
