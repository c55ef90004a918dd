// SPDX-License-Identifier: Apache-2.0
// The fabric: reliable connections that carry one-sided operations on a peer's registered memory, and messages. Two
// implementations, `verbs` (RC queue pairs by librdmacm) and `ucx` (regions shared through UCX on one machine, TCP otherwise); code above
// never asks which one it is on.
//
// Parties: a Fabric (a device or a UCX context) per process; Workers, each owned by one thread, with Connections. A listening worker
// gets on_connect_request with the peer's private data, and accepts (handing out a region's address and key, and private
// data of its own) or rejects. All calls on a Worker and its Connections come from the owner thread, but wake().
// Handler calls come from progress() on that thread.
//
// Order: the operations of one chain take effect at the target in order, each before the next; chains of one connection in
// the order posted; messages of one connection arrive in the order sent. Nothing is ordered between connections, nor
// between a chain and a message of the same connection until the chain's completion was seen.
// Atomics are atomic against atomics by any connection, and not against the target's CPU: the owner uses connect_loopback.
//
// Recovery: none here. A failed operation, a dead or silent peer ends the connection: every posted chain completes with an error,
// then on_disconnect comes once; the connection may be destroyed from there on.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/result.h"

namespace distfuse::fabric {

/// Private data of a connect (rdma_cm's limit on RC). verbs: arrives padded to it with zeros.
inline constexpr std::size_t kMaxConnectData = 56;
/// Of an accept: rdma_cm's 196 less the region that travels with it.
inline constexpr std::size_t kMaxAcceptData = 136;
inline constexpr std::size_t kMaxMessage = 4096;  ///< One message.
inline constexpr std::size_t kMaxChain = 6;       ///< Operations of one chain.
/// Bytes that the reads of one chain move, and bytes that its writes do.
inline constexpr std::size_t kMaxTransfer = 65536;
/// Chains posted and not completed, per connection; more: EAGAIN.
inline constexpr std::size_t kMaxOutstanding = 64;

enum class Op : std::uint8_t { read, write, compare_swap, fetch_add };

struct Operation {
  Op op;
  std::uint64_t offset = 0;  ///< In the remote region; 8-aligned for atomics.
  /// In memory from Worker::allocate. read: filled; write: source; atomics: 8 bytes, the old value.
  std::byte* local = nullptr;
  std::uint32_t length = 0;    ///< read, write.
  std::uint64_t operand = 0;   ///< fetch_add: the addend; compare_swap: the new value.
  std::uint64_t expected = 0;  ///< compare_swap.
};

/// Memory of this process that peers may read, write and change by atomics. Zeroed, 4096-aligned.
class Region {
 public:
  virtual ~Region() = default;
  [[nodiscard]] virtual std::span<std::byte> bytes() = 0;
};

class Connection {
 public:
  virtual ~Connection() = default;  ///< Ends it without on_disconnect.

  /// Posts a chain; on_completion(cookie) comes once, after the last operation took effect and all results are in `local`.
  /// EAGAIN: too many outstanding; ENOTCONN: ended.
  [[nodiscard]] virtual Status post(std::span<const Operation> chain, std::uint64_t cookie) = 0;
  /// Copies and sends. EAGAIN: the send queue is full, try after progress.
  [[nodiscard]] virtual Status send(std::span<const std::byte> message) = 0;
  [[nodiscard]] virtual std::uint64_t remote_region_length() const = 0;
  [[nodiscard]] virtual std::string peer() const = 0;  ///< For logs.
  /// The owner's.
  void* user = nullptr;
};

/// A connect request that waits for Worker::accept or reject.
class ConnectRequest {
 public:
  virtual ~ConnectRequest() = default;
  [[nodiscard]] virtual std::span<const std::byte> private_data() const = 0;
  [[nodiscard]] virtual std::string peer() const = 0;
};

class Handler {
 public:
  virtual ~Handler() = default;
  /// A request that is dropped is rejected.
  virtual void on_connect_request(std::unique_ptr<ConnectRequest> request) { (void)request; }
  /// Of connect: established, with the acceptor's private data. A failure comes as on_disconnect.
  virtual void on_connected(Connection& connection, std::span<const std::byte> private_data) = 0;
  virtual void on_message(Connection& connection, std::span<const std::byte> message) = 0;
  virtual void on_completion(Connection& connection, std::uint64_t cookie,
                             const Status& status) = 0;
  /// ECONNRESET: the peer itself ended it: it closed its end, or died and its kernel did. Any other code: not known; the peer may
  /// live and believe itself connected (timeouts, a device or network that failed, malformed frames).
  virtual void on_disconnect(Connection& connection, const Error& reason) = 0;
};

class Worker {
 public:
  virtual ~Worker() = default;  ///< Its connections are destroyed before it; else it aborts.
  /// Registered memory for `local` of operations; lives as long as the worker.
  [[nodiscard]] virtual Result<std::span<std::byte>> allocate(std::size_t length) = 0;
  /// "host:port"; port 0: any. Answers with the address bound.
  [[nodiscard]] virtual Result<std::string> listen(std::string_view address) = 0;
  /// Starts to connect; on_connected or on_disconnect follows, the latter at the latest after `timeout`.
  [[nodiscard]] virtual Result<std::unique_ptr<Connection>> connect(
      std::string_view address, std::span<const std::byte> private_data,
      std::chrono::milliseconds timeout) = 0;
  /// A connection to a region of this process, for atomics by its owner; ready at once.
  [[nodiscard]] virtual Result<std::unique_ptr<Connection>> connect_loopback(Region& region) = 0;
  /// `exposed` (may be null): what the peer's operations go to.
  [[nodiscard]] virtual Result<std::unique_ptr<Connection>> accept(
      std::unique_ptr<ConnectRequest> request, std::span<const std::byte> private_data,
      Region* exposed) = 0;
  virtual void reject(std::unique_ptr<ConnectRequest> request, std::string_view reason) = 0;
  /// Runs what is ready, never sleeps; answers whether anything was.
  virtual bool progress() = 0;
  /// Sleeps until something is ready, wake() or the timeout. Negative: no timeout.
  virtual void wait(std::chrono::milliseconds timeout) = 0;
  virtual void wake() = 0;  ///< From any thread.
};

class Fabric {
 public:
  virtual ~Fabric() = default;
  [[nodiscard]] virtual Result<std::unique_ptr<Worker>> create_worker(Handler& handler) = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<Region>> create_region(std::size_t length) = 0;
  /// Whether one-sided operations on this machine's peers need no CPU of the target (for reports only).
  [[nodiscard]] virtual std::string describe() const = 0;
};

struct Options {
  std::string kind = "ucx";  ///< ucx or verbs.
  std::string device;        ///< verbs: the RDMA device; empty: any. ucx: not used.
};

/// Error: an unknown kind, a device that is not there (ENODEV).
[[nodiscard]] Result<std::unique_ptr<Fabric>> open(const Options& options);

}  // namespace distfuse::fabric
