// SPDX-License-Identifier: Apache-2.0
// A minimal verbs program: one reliable connection, chains posted and polled for without anything in between. What the product's
// latency is held against, and a peer that breaks the fabric's rules.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace distfuse::verbs_tests {

/// How a bare responder answers a caller of the fabric.
struct Manners {
  bool wrong_key = false;    ///< Its region's key is not the one that it tells.
  bool no_receives = false;  ///< It never posts a receive.
};

/// Listens at the place's device, prints nothing, answers "ready PORT" through `say`, accepts callers for ever.
[[noreturn]] void serve_bare(const Manners& manners, void (*say)(const std::string&));

/// The initiator. Ends the program on any error.
class Bare {
 public:
  explicit Bare(int port);
  ~Bare();
  Bare(const Bare&) = delete;
  Bare& operator=(const Bare&) = delete;

  /// CAS 0 -> 1 and the READ of 128 bytes; or a hint's WRITE, FAA +1, and the READ: as the lock core's chains.
  void take_exclusive();
  void take_shared();
  void give_back();  ///< FAA -1.

 private:
  void run(ibv_send_wr* first);

  rdma_event_channel* channel_ = nullptr;
  rdma_cm_id* id_ = nullptr;
  ibv_pd* pd_ = nullptr;
  ibv_cq* cq_ = nullptr;
  ibv_mr* mr_ = nullptr;
  std::uint64_t remote_ = 0;
  std::uint32_t key_ = 0;
  alignas(4096) std::byte memory_[4096]{};
};

}  // namespace distfuse::verbs_tests
