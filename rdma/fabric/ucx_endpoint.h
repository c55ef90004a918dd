// SPDX-License-Identifier: Apache-2.0
// One-sided operations on a peer's region, in two ways:
//
// Direct: the peer's memory is mapped here (ucp_rkey_ptr over posix or sysv shared memory); a chain is run by this CPU
// inside post(), with this CPU's atomics. No packet, no process of the peer runs.
// Remote: UCP get, put and atomics; UCX emulates them over TCP with the help of the peer's progress. ORDER: each
// operation is posted when the one before is complete at the target (a put: when its flush is), because UCP orders
// neither a get's reading nor operations on different transports.
#pragma once

#include <ucp/api/ucp.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>

#include "rdma/fabric/fabric.h"
#include "rdma/fabric/ucx_wire.h"

namespace distfuse::fabric::ucx {

/// Runs `chain` on memory that this CPU can reach: `base` is the region's first byte.
void run_chain(std::byte* base, std::span<const Operation> chain);

class Endpoint {
 public:
  /// The chain is complete, or (not OK) the endpoint is of no more use. Called from post() or progress.
  using Done = std::function<void(std::uint64_t cookie)>;
  using Failed = std::function<void(Error)>;

  /// Direct; `worker` is of the context for shared memory.
  static Result<std::unique_ptr<Endpoint>> map(ucp_worker_h worker, const Accept& peer);
  /// Remote.
  static Result<std::unique_ptr<Endpoint>> connect(ucp_worker_h worker, const Accept& peer,
                                                   Done done, Failed failed);
  ~Endpoint();
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  [[nodiscard]] bool direct() const { return base_ != nullptr; }
  /// Direct: the chain has run when it returns; false: the peer has closed the gate.
  [[nodiscard]] bool run(std::span<const Operation> chain);
  /// Remote: queued; `done` or `failed` follows.
  void post(std::span<const Operation> chain, std::uint64_t cookie);

  /// Starts to close: neither callback comes from here on. Destroy it when closed() says so.
  void close();
  [[nodiscard]] bool closed();

 private:
  struct Chain {
    std::array<Operation, kMaxChain> operations;
    std::size_t count = 0;
    std::uint64_t cookie = 0;
    std::size_t next = 0;
    bool flushing = false;  // The put is posted, its flush follows.
  };

  Endpoint() = default;
  Status open(ucp_worker_h worker, const Accept& peer, ucp_err_handling_mode_t mode);
  void advance();
  ucs_status_ptr_t issue(Chain& chain);
  void step_done(ucs_status_t status);
  void fail(ucs_status_t status);
  static void on_step(void* request, ucs_status_t status, void* self);
  static void on_error(void* self, ucp_ep_h ep, ucs_status_t status);

  Done done_;
  Failed failed_;
  ucp_ep_h ep_ = nullptr;
  ucp_rkey_h rkey_ = nullptr;
  bool force_ = false;  // Peer error handling is on, so the endpoint can be closed by force.
  bool closing_ = false;
  bool broken_ = false;
  bool in_flight_ = false;
  ucs_status_ptr_t close_request_ = nullptr;
  std::uint64_t remote_ = 0;
  std::byte* base_ = nullptr;
  std::uint64_t* gate_ = nullptr;
  std::deque<Chain> queue_;  // ≤ kMaxOutstanding, by the connection.
  std::uint64_t operand_ = 0;
};

}  // namespace distfuse::fabric::ucx
