// SPDX-License-Identifier: Apache-2.0
// The part of VerbsWorker that makes connections: rdma_cm's events, accept and reject, and the loopback.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "rdma/fabric/address.h"
#include "rdma/fabric/verbs_worker.h"

namespace distfuse::fabric::verbs {

namespace {

constexpr int kBacklog = 1024;
// Callers who wait for the handler's answer at a time; more are refused.
constexpr std::size_t kMaxCallers = 256;
// For our steps before the REQ; the connection's own deadline ends them earlier.
constexpr int kResolveMs = 5000;
constexpr std::chrono::seconds kAcceptTime{10};
// Reads and atomics under way per queue pair: as many chains as devices commonly take.
constexpr int kMaxReads = 16;
// 7 would be for ever. Sent seven times, 268 ms apart (4.096 us << 16): a network that is away for less than 1.9 s ends no connection, and with it no session; a
// peer that is dead is found after that. A lower ack timeout sends again what a busy peer is about to answer.
constexpr std::uint8_t kRetries = 6;
constexpr std::uint8_t kAckTimeout = 16;
// Receivers have slots for all that credits allow; this covers the moment between accept and our first receive.
constexpr std::uint8_t kRnrRetries = 6;
constexpr std::uint8_t kMinRnrTimer = 12;  // 0.64 ms.

/// rdma_cm and completion queues carry a connection's number where they would carry a pointer.
void* as_context(std::uint64_t number) {
  return reinterpret_cast<void*>(number);  // NOLINT(performance-no-int-to-ptr)
}

}  // namespace

/// What the handler holds between on_connect_request and accept or reject.
class VerbsRequest : public ConnectRequest {
 public:
  VerbsRequest(std::weak_ptr<VerbsWorker*> worker, std::uint64_t number,
               std::vector<std::byte> data, std::string peer)
      : worker_(std::move(worker)),
        number_(number),
        data_(std::move(data)),
        peer_(std::move(peer)) {}
  ~VerbsRequest() override {
    if (const auto worker = worker_.lock(); worker && number_ != 0) {
      (*worker)->dismiss(number_, "the connection was not accepted");
    }
  }
  std::span<const std::byte> private_data() const override { return data_; }
  std::string peer() const override { return peer_; }
  /// The caller's number, once.
  std::uint64_t take() { return std::exchange(number_, 0); }

 private:
  std::weak_ptr<VerbsWorker*> worker_;
  std::uint64_t number_;
  std::vector<std::byte> data_;
  std::string peer_;
};

Result<std::string> VerbsWorker::listen(std::string_view address) {
  if (listener_ != nullptr) return Error{EALREADY, "the worker listens already"};
  auto where = resolve(address, true);
  if (!where) return where.error();
  rdma_cm_id* id = nullptr;
  if (device_->calls.create_id(cm_channel_, &id, nullptr, RDMA_PS_TCP) != 0) {
    return system_failure("RDMA id");
  }
  if (device_->calls.bind_addr(id, where->get()) != 0 || device_->calls.listen(id, kBacklog) != 0) {
    auto failure = system_failure("cannot listen on " + std::string(address));
    destroy_id(id);
    return failure;
  }
  listener_ = id;
  const auto port = ntohs(device_->calls.get_src_port(id));
  return std::string(address.substr(0, address.rfind(':') + 1)) + std::to_string(port);
}

Result<std::unique_ptr<Connection>> VerbsWorker::connect(std::string_view address,
                                                         std::span<const std::byte> private_data,
                                                         std::chrono::milliseconds timeout) {
  if (private_data.size() > kMaxConnectData) return Error{EINVAL, "private data is too long"};
  auto where = resolve(address, false);
  if (!where) return where.error();
  const auto number = next_number_++;
  rdma_cm_id* id = nullptr;
  if (device_->calls.create_id(cm_channel_, &id, as_context(number), RDMA_PS_TCP) != 0) {
    return system_failure("RDMA id");
  }
  set_ack_timeout(id);
  if (device_->calls.resolve_addr(id, nullptr, where->get(), kResolveMs) != 0) {
    auto failure = system_failure("cannot connect to " + std::string(address));
    destroy_id(id);
    return failure;
  }
  std::unique_ptr<VerbsConnection> connection(new VerbsConnection(*this, number));
  connection->state_ = VerbsConnection::State::resolving;
  connection->id_ = id;
  connection->peer_ = address;
  connection->hello_.assign(private_data.begin(), private_data.end());
  connection->deadline_ = Clock::now() + timeout;
  connections_.insert(number, *connection);
  ++waiting_;
  return std::unique_ptr<Connection>(std::move(connection));
}

/// Of what this side sends; each side has its own, rdma_cm's default being 4.3 s. Older kernels have no such option, and then take that long to send again
/// what was lost.
void VerbsWorker::set_ack_timeout(rdma_cm_id* id) const {
  auto ack_timeout = kAckTimeout;
  (void)device_->calls.set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &ack_timeout,
                                  sizeof(ack_timeout));
}

rdma_conn_param VerbsWorker::connect_param(std::span<const std::byte> data) const {
  rdma_conn_param param{};
  param.private_data = data.data();
  param.private_data_len = static_cast<std::uint8_t>(data.size());
  // Both, on both sides: at 0 the first READ or atomic fails.
  param.initiator_depth =
      static_cast<std::uint8_t>(std::min(kMaxReads, device_->attributes.max_qp_init_rd_atom));
  param.responder_resources =
      static_cast<std::uint8_t>(std::min(kMaxReads, device_->attributes.max_qp_rd_atom));
  param.retry_count = kRetries;
  param.rnr_retry_count = kRnrRetries;
  return param;
}

Result<std::unique_ptr<Connection>> VerbsWorker::accept(std::unique_ptr<ConnectRequest> request,
                                                        std::span<const std::byte> private_data,
                                                        Region* exposed) {
  if (private_data.size() > kMaxAcceptData) return Error{EINVAL, "private data is too long"};
  auto& asked = dynamic_cast<VerbsRequest&>(*request);
  const auto number = asked.take();
  const auto found = callers_.find(number);
  if (found == callers_.end()) return Error{ENOTCONN, asked.peer() + " is gone"};
  auto* id = found->second;
  callers_.erase(found);
  set_ack_timeout(id);
  auto pair = QueuePair::create(device_, counted_, completion_channel_, as_context(number), id);
  if (!pair) {
    destroy_id(id);  // The caller is refused by that.
    return pair.error();
  }
  std::unique_ptr<VerbsConnection> connection(new VerbsConnection(*this, number));
  connection->state_ = VerbsConnection::State::accepted;
  connection->id_ = id;
  connection->pair_ = std::move(*pair);
  connection->peer_ = asked.peer();
  connection->deadline_ = Clock::now() + kAcceptTime;
  connections_.insert(number, *connection);
  ++waiting_;
  RemoteRegion region;
  if (exposed != nullptr) {
    auto& mine = dynamic_cast<VerbsRegion&>(*exposed);
    region = mine.remote();
    connection->own_ = mine.memory();
  }
  const auto bytes = encode_accept(region, private_data);
  auto param = connect_param(bytes);
  if (device_->calls.accept(id, &param) != 0) return system_failure("accept of " + asked.peer());
  return std::unique_ptr<Connection>(std::move(connection));
}

void VerbsWorker::reject(std::unique_ptr<ConnectRequest> request, std::string_view reason) {
  dismiss(dynamic_cast<VerbsRequest&>(*request).take(), reason);
}

void VerbsWorker::dismiss(std::uint64_t number, std::string_view reason) {
  const auto found = callers_.find(number);
  if (found == callers_.end()) return;
  const auto length = std::min(reason.size(), kMaxRejectData);
  (void)device_->calls.reject(found->second, reason.data(), static_cast<std::uint8_t>(length));
  destroy_id(found->second);
  callers_.erase(found);
}

void VerbsWorker::read_cm_events() {
  while (auto event = next_cm_event()) on_cm_event(*event);
}

std::optional<VerbsWorker::CmEvent> VerbsWorker::next_cm_event() {
  rdma_cm_event* raw = nullptr;
  if (device_->calls.get_cm_event(cm_channel_, &raw) != 0) return std::nullopt;
  CmEvent event{
      raw->event, raw->status, raw->id, reinterpret_cast<std::uintptr_t>(raw->id->context), {}};
  const auto* data = static_cast<const std::byte*>(raw->param.conn.private_data);
  if (data != nullptr) event.data.assign(data, data + raw->param.conn.private_data_len);
  // ORDER: acknowledged before anything is done: destroying an id waits for its events.
  (void)device_->calls.ack_cm_event(raw);
  return event;
}

void VerbsWorker::on_cm_event(const CmEvent& event) {
  if (event.type == RDMA_CM_EVENT_CONNECT_REQUEST) return on_connect_request(event);
  if (event.type == RDMA_CM_EVENT_DEVICE_REMOVAL && event.id == listener_) return on_removal();
  if (auto* connection = connections_.find(event.number))
    return on_connection_event(*connection, event);
  // A caller that left before it was answered.
  if (const auto found = callers_.find(event.number); found != callers_.end()) {
    destroy_id(found->second);
    callers_.erase(found);
  }
}

/// Of the device that we listen on. Connections and callers hear of it by events of their own; the loopback has none.
void VerbsWorker::on_removal() {
  spdlog::error("fabric: device {} is gone: nobody can connect any more", device_->name);
  destroy_id(listener_);
  listener_ = nullptr;
  for (const auto& [number, connection] : connections_) {
    if (connection->id_ == nullptr) fail(*connection, Error{ENODEV, "the device is gone"});
  }
}

std::string VerbsWorker::refusal(const rdma_cm_id& caller) const {
  if (callers_.size() >= kMaxCallers) return "too many callers";
  if (caller.verbs != device_->context) return "it came by another device";
  // The caller settles the packets' size for both directions, by its own port alone: what is longer than ours takes would be lost
  // again and again, and the connection end much later without a word why.
  ibv_port_attr port{};
  if (caller.route.num_paths == 0 ||
      device_->calls.query_port(device_->context, caller.port_num, &port) != 0)
    return {};
  const auto path_mtu = caller.route.path_rec[0].mtu;
  if (path_mtu <= port.active_mtu) return {};
  return "path MTU " + std::to_string(128 << path_mtu) + ", but " +
         std::to_string(128 << port.active_mtu) + " at " + device_->name +
         ": give the network of every node the same MTU";
}

void VerbsWorker::on_connect_request(const CmEvent& event) {
  const auto* name = &event.id->route.addr.dst_addr;
  auto peer = to_string(name, sizeof(event.id->route.addr.dst_storage));
  if (const auto why = refusal(*event.id); !why.empty()) {
    spdlog::warn("fabric: refused {}: {}", peer, why);
    const auto length = std::min(why.size(), kMaxRejectData);
    (void)device_->calls.reject(event.id, why.data(), static_cast<std::uint8_t>(length));
    return destroy_id(event.id);
  }
  const auto number = next_number_++;
  event.id->context = as_context(number);
  callers_[number] = event.id;
  auto data = event.data;
  data.resize(std::min(data.size(), kMaxConnectData));
  handler_.on_connect_request(
      std::make_unique<VerbsRequest>(self_, number, std::move(data), std::move(peer)));
}

void VerbsWorker::on_connection_event(VerbsConnection& connection, const CmEvent& event) {
  using State = VerbsConnection::State;
  if (connection.state_ == State::ended) {
    if (event.type == RDMA_CM_EVENT_DEVICE_REMOVAL) release(connection);
    return;
  }
  Status status;
  switch (event.type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
      status = on_address_resolved(connection);
      break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
      status = on_route_resolved(connection);
      break;
    case RDMA_CM_EVENT_ESTABLISHED:
      return on_established(connection, event);
    case RDMA_CM_EVENT_REJECTED: {
      std::string why(reinterpret_cast<const char*>(event.data.data()), event.data.size());
      why.resize(std::min(why.size(), why.find('\0')));
      if (why.empty()) why = "refused by " + connection.peer_;
      status = Error{ECONNREFUSED, why};
      break;
    }
    case RDMA_CM_EVENT_DISCONNECTED:
      // What had been completed before counts.
      while (poll_connection(connection.number_)) {
        if (connections_.find(event.number) != &connection) return;
      }
      // With a status: an end of ours that was not answered.
      status = event.status == 0 ? Error{ECONNRESET, "the peer closed the connection"}
                                 : Error{EHOSTUNREACH, "the end was not answered"};
      break;
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
      break;
    default:
      status = Error{event.type == RDMA_CM_EVENT_DEVICE_REMOVAL ? ENODEV : EHOSTUNREACH,
                     std::string(device_->calls.event_str(event.type)) + ", status " +
                         std::to_string(event.status)};
  }
  if (!status) fail(connection, status.error());
}

Status VerbsWorker::on_address_resolved(VerbsConnection& connection) {
  if (connection.id_->verbs != device_->context) {
    return Error{ENETUNREACH, connection.peer_ + " is not reached by device " + device_->name};
  }
  auto pair = QueuePair::create(device_, counted_, completion_channel_,
                                as_context(connection.number_), connection.id_);
  if (!pair) return pair.error();
  connection.pair_ = std::move(*pair);
  if (device_->calls.resolve_route(connection.id_, kResolveMs) != 0) {
    return system_failure("route to " + connection.peer_);
  }
  return {};
}

Status VerbsWorker::on_route_resolved(VerbsConnection& connection) {
  connection.state_ = VerbsConnection::State::connecting;
  auto param = connect_param(connection.hello_);
  if (device_->calls.connect(connection.id_, &param) != 0) {
    return system_failure("cannot connect to " + connection.peer_);
  }
  return {};
}

void VerbsWorker::on_established(VerbsConnection& connection, const CmEvent& event) {
  using State = VerbsConnection::State;
  const bool called = connection.state_ == State::connecting;
  if (!called && connection.state_ != State::accepted) return;
  if (!called) {
    connection.state_ = State::established;
    --waiting_;
    return;
  }
  auto accept = decode_accept(event.data);
  if (!accept) return fail(connection, accept.error());
  connection.remote_ = accept->region;
  connection.state_ = State::established;
  --waiting_;
  handler_.on_connected(connection, accept->data);
}

Result<std::unique_ptr<Connection>> VerbsWorker::connect_loopback(Region& region) {
  const auto number = next_number_++;
  auto* context = as_context(number);
  auto from = QueuePair::create(device_, counted_, completion_channel_, context, nullptr);
  if (!from) return from.error();
  auto to = QueuePair::create(device_, counted_, completion_channel_, context, nullptr);
  if (!to) return to.error();
  DISTFUSE_TRY(join_loopback(**from, **to));
  DISTFUSE_TRY(join_loopback(**to, **from));
  std::unique_ptr<VerbsConnection> connection(new VerbsConnection(*this, number));
  connection->pair_ = std::move(*from);
  connection->other_ = std::move(*to);
  connection->peer_ = "loopback";
  auto& mine = dynamic_cast<VerbsRegion&>(region);
  connection->remote_ = mine.remote();
  connection->own_ = mine.memory();
  connections_.insert(number, *connection);
  return std::unique_ptr<Connection>(std::move(connection));
}

/// Takes `from` to RTS, connected to `to` through the device's first port, back to itself.
Status VerbsWorker::join_loopback(QueuePair& from, QueuePair& to) const {
  const auto& calls = device_->calls;
  ibv_port_attr port{};
  if (calls.query_port(device_->context, 1, &port) != 0) return system_failure("port 1");
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_INIT;
  attributes.port_num = 1;
  attributes.qp_access_flags =
      IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;
  int code = calls.modify_qp(from.handle(), &attributes,
                             IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
  if (code != 0) return Error{code, "loopback queue pair to INIT"};
  attributes = {};
  attributes.qp_state = IBV_QPS_RTR;
  attributes.path_mtu = port.active_mtu;
  attributes.dest_qp_num = to.handle()->qp_num;
  attributes.max_dest_rd_atomic =
      static_cast<std::uint8_t>(std::min(kMaxReads, device_->attributes.max_qp_rd_atom));
  attributes.min_rnr_timer = kMinRnrTimer;
  attributes.ah_attr.port_num = 1;
  attributes.ah_attr.dlid = port.lid;
  if (port.link_layer == IBV_LINK_LAYER_ETHERNET) {
    attributes.ah_attr.is_global = 1;
    attributes.ah_attr.grh.hop_limit = 1;
    if (calls.query_gid(device_->context, 1, 0, &attributes.ah_attr.grh.dgid) != 0) {
      return system_failure("address of port 1");
    }
  }
  code = calls.modify_qp(from.handle(), &attributes,
                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                             IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
  if (code != 0) return Error{code, "loopback queue pair to RTR"};
  attributes = {};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.timeout = kAckTimeout;
  attributes.retry_cnt = kRetries;
  attributes.rnr_retry = kRnrRetries;
  attributes.max_rd_atomic =
      static_cast<std::uint8_t>(std::min(kMaxReads, device_->attributes.max_qp_init_rd_atom));
  code = calls.modify_qp(from.handle(), &attributes,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                             IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
  if (code != 0) return Error{code, "loopback queue pair to RTS"};
  return {};
}

}  // namespace distfuse::fabric::verbs
