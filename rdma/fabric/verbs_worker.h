// SPDX-License-Identifier: Apache-2.0
// The `verbs` fabric's worker. See verbs_fabric.cc for the protocol.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/descriptor.h"
#include "rdma/fabric/connection_set.h"
#include "rdma/fabric/fabric.h"
#include "rdma/fabric/verbs_device.h"
#include "rdma/fabric/verbs_handshake.h"
#include "rdma/fabric/verbs_queue_pair.h"

namespace distfuse::fabric::verbs {

class VerbsWorker;
using Clock = std::chrono::steady_clock;

class VerbsRegion : public Region {
 public:
  explicit VerbsRegion(std::shared_ptr<Registered> memory) : memory_(std::move(memory)) {}
  std::span<std::byte> bytes() override { return memory_->bytes(); }
  [[nodiscard]] const std::shared_ptr<Registered>& memory() const { return memory_; }
  [[nodiscard]] RemoteRegion remote() const {
    return {reinterpret_cast<std::uintptr_t>(memory_->bytes().data()), memory_->bytes().size(),
            memory_->rkey()};
  }

 private:
  std::shared_ptr<Registered> memory_;
};

class VerbsConnection : public Connection {
 public:
  ~VerbsConnection() override;
  Status post(std::span<const Operation> chain, std::uint64_t cookie) override;
  Status send(std::span<const std::byte> message) override;
  std::uint64_t remote_region_length() const override { return remote_.length; }
  std::string peer() const override { return peer_; }

 private:
  friend class VerbsWorker;
  friend class ConnectionSet<VerbsConnection>;
  VerbsConnection(VerbsWorker& worker, std::uint64_t number) : worker_(worker), number_(number) {}

  /// resolving: address, then route; connecting: REQ sent; accepted: REP sent.
  enum class State { resolving, connecting, accepted, established, ended };
  [[nodiscard]] bool has_deadline() const {
    return state_ != State::established && state_ != State::ended;
  }

  VerbsWorker& worker_;
  std::uint64_t number_;
  State state_ = State::established;
  std::string peer_;
  std::vector<std::byte> hello_;
  Clock::time_point deadline_{};
  rdma_cm_id* id_ = nullptr;  // None: loopback.
  std::unique_ptr<QueuePair> pair_;
  std::unique_ptr<QueuePair> other_;  // loopback: the passive end.
  std::shared_ptr<Registered> own_;   // Exposed to the peer; must outlive the queue pair.
  RemoteRegion remote_;
  std::size_t outstanding_ = 0;  // Chains whose completions were not delivered yet.
  /// When wait() has first seen what is in flight now: since then none was completed.
  std::optional<Clock::time_point> moved_;
  bool stalled_ = false;  // Since kStall; looked at once more before it is ended.
  bool armed_ = false;
  std::vector<ibv_wc> stash_;  // Polled by wait() after arming.
  Error reason_{0, {}};        // ended.
};

class VerbsWorker : public Worker {
 public:
  static Result<std::unique_ptr<VerbsWorker>> create(std::shared_ptr<Device> device,
                                                     Handler& handler);
  ~VerbsWorker() override;
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

 private:
  friend class VerbsConnection;
  friend class VerbsRequest;

  /// A connection manager's event, copied so that it could be acknowledged at once.
  struct CmEvent {
    rdma_cm_event_type type;
    int status;
    rdma_cm_id* id;
    std::uint64_t number;
    std::vector<std::byte> data;
  };

  VerbsWorker(std::shared_ptr<Device> device, Handler& handler)
      : device_(std::move(device)), handler_(handler) {}
  Status open();
  [[nodiscard]] std::optional<std::uint32_t> local_key(const void* memory,
                                                       std::size_t length) const;
  [[nodiscard]] rdma_conn_param connect_param(std::span<const std::byte> data) const;
  Status join_loopback(QueuePair& from, QueuePair& to) const;

  bool poll_connections();
  bool poll_connection(std::uint64_t number);
  bool absorb(std::uint64_t number, const ibv_wc& completion);
  void read_completion_channel();
  void read_cm_events();
  std::optional<CmEvent> next_cm_event();
  void on_cm_event(const CmEvent& event);
  void on_removal();
  void on_connect_request(const CmEvent& event);
  /// Why a caller is not even shown to the handler; empty: it is.
  [[nodiscard]] std::string refusal(const rdma_cm_id& caller) const;
  void on_connection_event(VerbsConnection& connection, const CmEvent& event);
  Status on_address_resolved(VerbsConnection& connection);
  Status on_route_resolved(VerbsConnection& connection);
  void on_established(VerbsConnection& connection, const CmEvent& event);
  void dismiss(std::uint64_t number, std::string_view reason);
  void expire();
  bool end_stalled();
  void fail(VerbsConnection& connection, Error reason);
  void release(VerbsConnection& connection);
  void set_ack_timeout(rdma_cm_id* id) const;
  void destroy_id(rdma_cm_id* id) { (void)device_->calls.destroy_id(id); }

  std::shared_ptr<Device> device_;
  Handler& handler_;
  CounterCell counted_;
  rdma_event_channel* cm_channel_ = nullptr;
  ibv_comp_channel* completion_channel_ = nullptr;
  Descriptor epoll_;
  Descriptor wake_;
  rdma_cm_id* listener_ = nullptr;
  std::uint64_t next_number_ = 1;
  unsigned skipped_polls_ = 0;
  bool look_ = true;  // At the channels, with the next progress().
  std::vector<std::uint64_t> polled_;
  std::size_t waiting_ = 0;  // Connections with a deadline.
  ConnectionSet<VerbsConnection> connections_;
  std::map<std::uint64_t, rdma_cm_id*> callers_;  // Asked the handler and not answered.
  std::vector<std::unique_ptr<Registered>> buffers_;
  std::shared_ptr<VerbsWorker*> self_;  // For requests that outlive us.
};

}  // namespace distfuse::fabric::verbs
