// SPDX-License-Identifier: Apache-2.0
// The software device's state, shared by its two halves: queue pairs (verbs_fake.cc) and connection manager (verbs_fake_cm.cc).
#pragma once

#include <unistd.h>

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "rdma/fabric/verbs_table.h"

namespace distfuse::fabric::verbs::fake {

struct FakeId;
struct FakeQp;

struct FakeEvent : rdma_cm_event {
  std::vector<std::uint8_t> data;
};

struct FakeEventChannel : rdma_event_channel {
  std::deque<FakeEvent*> events;
};

struct FakeCq;
struct FakeCompChannel : ibv_comp_channel {
  std::deque<FakeCq*> events;
};

struct Completion {
  ibv_wc wc;
  FakeQp* qp;
  std::uint32_t reclaims;  // Send queue slots that this completion gives back.
};

struct FakeCq : ibv_cq {
  FakeCompChannel* notify = nullptr;
  std::deque<Completion> entries;
  std::size_t capacity = 0;
  bool armed = false;
  unsigned unacknowledged = 0;
};

struct FakeQp : ibv_qp {
  FakeCq* queue = nullptr;
  ibv_qp_cap cap{};
  FakeQp* other = nullptr;
  std::deque<std::pair<ibv_recv_wr, ibv_sge>> receives;
  std::uint32_t used = 0;         // Of the send queue.
  std::uint32_t unsignalled = 0;  // Since the last signalled one.
  std::uint32_t destination = 0;
  std::uint8_t reads = 0;
};

enum class Link { idle, listening, asking, asked, connected, closed };

struct FakeId : rdma_cm_id {
  Link link = Link::idle;
  std::uint16_t port_number = 0;
  std::uint16_t target = 0;
  FakeId* other = nullptr;
  FakeEventChannel* events() const { return static_cast<FakeEventChannel*>(channel); }
};

/// All state of the device, under one mutex: a call is one step.
struct Machine {
  std::mutex mu;
  bool present = true;
  ibv_context context{};
  ibv_device device{};
  std::uint32_t next_key = 100;
  std::uint32_t next_qp = 16;
  std::uint16_t next_port = 30000;
  std::map<std::uint32_t, ibv_mr*> regions;
  std::map<std::uint32_t, FakeQp*> pairs;
  std::set<FakeId*> ids;
  int live = 0;
  int fail_after = -1;
  ibv_wc_status fail_status = IBV_WC_SUCCESS;
  int corrupt = -1;
  ibv_sa_path_rec path{};
  std::uint64_t not_ready = 0;
  std::uint64_t overflows = 0;
  std::uint64_t doorbells = 0;
  std::uint64_t fences = 0;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

using Lock = std::lock_guard<std::mutex>;

inline void ring(int fd) {
  const std::uint64_t one = 1;
  (void)!::write(fd, &one, sizeof(one));
}

inline bool take(int fd) {
  std::uint64_t count = 0;
  return ::read(fd, &count, sizeof(count)) == sizeof(count);
}

/// Flushes a queue pair; the mutex is held.
void to_error(FakeQp* qp);
/// Queues a connection manager's event; `padded`: the transport's size of this kind of private data. The mutex is held.
void raise(FakeId* id, rdma_cm_event_type type, int status = 0, std::vector<std::uint8_t> data = {},
           std::size_t padded = 0);
/// Sets the connection manager's entries.
void fill_cm(VerbsTable& table);
FakeQp* make_qp(ibv_pd* pd, ibv_qp_init_attr* attributes);
void drop_qp(FakeQp* qp);

}  // namespace distfuse::fabric::verbs::fake
