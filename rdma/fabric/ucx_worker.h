// SPDX-License-Identifier: Apache-2.0
// The `ucx` fabric's worker. See ucx_fabric.cc for the protocol.
#pragma once

#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rdma/fabric/connection_set.h"
#include "rdma/fabric/fabric.h"
#include "rdma/fabric/ucx_memory.h"
#include "rdma/fabric/ucx_stream.h"
#include "rdma/fabric/ucx_wire.h"

namespace distfuse::fabric::ucx {

class UcxWorker;
using Clock = std::chrono::steady_clock;

// What epoll says of things that are neither callers nor connections.
inline constexpr std::uint64_t kWakeId = 1;
inline constexpr std::uint64_t kListenerId = 2;

class UcxConnection : public Connection {
 public:
  ~UcxConnection() override;
  Status post(std::span<const Operation> chain, std::uint64_t cookie) override;
  Status send(std::span<const std::byte> message) override;
  std::uint64_t remote_region_length() const override { return region_length_; }
  std::string peer() const override { return peer_; }

 private:
  friend class UcxWorker;
  friend class ConnectionSet<UcxConnection>;
  UcxConnection(UcxWorker& worker, std::uint64_t id) : worker_(worker), id_(id) {}
  Status ask(std::span<const Operation> chain, std::uint64_t cookie);
  Status transmit(std::span<const std::byte> frame);

  enum class State { connecting, greeting, established, ended };
  [[nodiscard]] bool has_deadline() const {
    return state_ == State::connecting || state_ == State::greeting;
  }

  UcxWorker& worker_;
  std::uint64_t id_;
  State state_ = State::established;
  std::optional<Stream> stream_;  // None: loopback.
  std::string peer_;
  std::vector<std::byte> hello_;  // connecting: to be sent.
  Clock::time_point deadline_{};  // connecting, greeting.
  struct Asked {
    std::array<Operation, kMaxChain> operations;
    std::size_t count;
    std::uint64_t cookie;
  };
  std::deque<Asked> asked_;      // ChainRequests whose results have not come, ≤ kMaxOutstanding.
  std::size_t outstanding_ = 0;  // Chains whose completions were not delivered yet.
  Error reason_{0, {}};          // ended.
  std::unique_ptr<Mapping> mapping_;
  std::uint64_t region_length_ = 0;
  std::shared_ptr<Memory> own_;  // Exposed to the peer, or (loopback) used by ourselves.
  std::uint64_t* gate_ = nullptr;
  bool paused_ = false;  // Its requests wait until it has taken the answers that it has.
};

class UcxWorker : public Worker {
 public:
  static Result<std::unique_ptr<UcxWorker>> create(std::shared_ptr<Context> context,
                                                   Handler& handler);
  ~UcxWorker() override;
  Result<std::span<std::byte>> allocate(std::size_t length) override;
  Result<std::string> listen(std::string_view address) override;
  Result<std::unique_ptr<Connection>> connect(std::string_view address,
                                              std::span<const std::byte> private_data,
                                              std::chrono::milliseconds timeout) override;
  Result<std::unique_ptr<Connection>> connect_loopback(Region& region) override;
  Result<std::unique_ptr<Connection>> accept(std::unique_ptr<ConnectRequest> request,
                                             std::span<const std::byte> private_data,
                                             Region* exposed) override;
  void reject(std::unique_ptr<ConnectRequest> request, std::string_view reason) override;
  bool progress() override;
  void wait(std::chrono::milliseconds timeout) override;
  void wake() override;

  /// One who asks to connect, from its first byte to accept or reject.
  struct Caller {
    Stream stream;
    std::string peer;
    Clock::time_point deadline;
    HostId host{};
    bool asked = false;  // The handler has its request; no deadline from then on.
  };

 private:
  friend class UcxConnection;
  friend class UcxRequest;

  UcxWorker(std::shared_ptr<Context> context, Handler& handler)
      : context_(std::move(context)), handler_(handler) {}
  Status open();
  Result<UcpWorker*> ucp();
  Status expose(UcxConnection& connection, const Caller& caller, Region& region, Accept& answer);
  std::uint64_t watch(int fd, std::uint32_t events);
  void update_watch(std::uint64_t id, const Stream& stream);
  bool poll(int timeout_ms);
  void dispatch(std::uint64_t id, std::uint32_t events);
  void accept_callers();
  void pause_listener(bool pause);
  void note_stranger(const std::string& peer, const std::string& why);
  void read_caller(std::uint64_t id);
  void on_hello(std::uint64_t id, Hello hello);
  void dismiss(std::uint64_t id, std::string_view reason);
  void serve_connection(std::uint64_t id, std::uint32_t events);
  Status finish_connect(UcxConnection& connection);
  bool read_frames(std::uint64_t id);
  Status on_request(UcxConnection& connection, const ChainRequest& request);
  Status on_results(UcxConnection& connection, std::span<const std::byte> results);
  Status on_accept(UcxConnection& connection, const Accept& accept);
  void fail(UcxConnection& connection, Error reason);
  void forget(UcxConnection& connection);
  void expire();
  void expire_callers(Clock::time_point now);
  [[nodiscard]] std::optional<Clock::time_point> next_caller_deadline() const;
  [[nodiscard]] std::optional<Clock::time_point> next_deadline() const;

  std::shared_ptr<Context> context_;
  Handler& handler_;
  std::unique_ptr<UcpWorker>
      ucp_;  // Made with the first peer of this machine; it only maps, nothing is sent over it.
  Descriptor epoll_;
  Descriptor wake_;
  Descriptor listener_;
  bool listener_paused_ = false;
  Clock::time_point listener_resume_{};
  std::uint64_t strangers_ = 0;
  Clock::time_point next_note_{};
  std::uint64_t next_id_ = 16;  // Below: fixed ids of wake, UCX and listener.
  unsigned skipped_polls_ = 0;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> ready_;  // Of the last epoll_wait.
  ConnectionSet<UcxConnection> connections_;
  std::map<std::uint64_t, Caller> callers_;
  std::size_t waiting_ = 0;  // Connections with a deadline.
  std::vector<std::unique_ptr<std::byte[], void (*)(std::byte*)>> buffers_;
  std::shared_ptr<UcxWorker*> self_;  // For requests that outlive us.
};

}  // namespace distfuse::fabric::ucx
