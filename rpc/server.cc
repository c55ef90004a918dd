// SPDX-License-Identifier: Apache-2.0
// The server's thread, streams and connections. Requests: server_requests.cc.
#include "rpc/server.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "rpc/server_impl.h"

namespace distfuse::rpc {
namespace {

constexpr std::uint64_t kListenerId = 1, kTimerId = 2;  // tokens are random: they differ
constexpr std::uint32_t kMaxHandshakes = 256;  // 256 × 4 KiB of Hello; more wait in the backlog
constexpr std::chrono::seconds kHandshakeTime{5};
constexpr std::uint32_t kControlEvery =
    256;  // looks at the streams once in so many rounds of a busy thread

std::string errno_text(const char* what) {
  return std::string(what) + ": " + std::strerror(errno);
}

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

}  // namespace

void Handler::on_metadata(const Peer&, const RequestContext&, MetadataRequest&&,
                          MetadataResponder responder) {
  responder.reply(error_reply(EOPNOTSUPP));
}
std::byte* Handler::write_buffer(const DataRequest&) {
  return nullptr;
}
void Handler::drop_write_buffer(std::byte*) {}
void Handler::on_sessions(Sessions&&, DataResponder responder) {
  responder.reply(0);
}
void Handler::on_data(const Peer&, const DataRequest&, std::byte*, DataResponder responder) {
  responder.reply(EOPNOTSUPP);
}

Result<std::unique_ptr<Server>> Server::create(const ServerOptions& options, Handler& handler) {
  auto server = std::make_unique<ServerImpl>(options, handler);
  DISTFUSE_TRY(server->start());
  return std::unique_ptr<Server>(std::move(server));
}

Status ServerImpl::start() {
  if (options_.cluster_id.size() != sizeof(wire::Hello::cluster_id))
    return Error{EINVAL, "cluster id '" + options_.cluster_id + "' is not 32 hex digits"};
  auto listener = listen_on(options_.listen);
  if (!listener) return listener.error();
  listener_ = std::move(*listener);
  auto context = UcxContext::create(options_.device);
  if (!context) return context.error();
  auto worker = UcxWorker::create(*context);
  if (!worker) return worker.error();
  worker_ = std::move(*worker);
  timer_ = Descriptor(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  wake_ = Descriptor(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  control_ = Descriptor(epoll_create1(EPOLL_CLOEXEC));
  events_ = Descriptor(epoll_create1(EPOLL_CLOEXEC));
  if (!timer_ || !wake_ || !control_ || !events_)
    return Error{errno, errno_text("event descriptors")};
  watch(listener_.get(), kListenerId);
  watch(timer_.get(), kTimerId);
  for (int fd : {control_.get(), wake_.get(), worker_->event_fd()}) {
    epoll_event event{EPOLLIN, {.fd = fd}};
    if (epoll_ctl(events_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
      return Error{errno, errno_text("epoll")};
  }
  const auto metadata = [](void* self, const void* header, std::size_t header_length, void* data,
                           std::size_t length, const ucp_am_recv_param_t* param) {
    return static_cast<ServerImpl*>(self)->on_message(
        true, {static_cast<const std::byte*>(header), header_length}, data, length,
        (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0);
  };
  const auto data = [](void* self, const void* header, std::size_t header_length, void* data_,
                       std::size_t length, const ucp_am_recv_param_t* param) {
    return static_cast<ServerImpl*>(self)->on_message(
        false, {static_cast<const std::byte*>(header), header_length}, data_, length,
        (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0);
  };
  worker_->refuse_other_messages();
  if (options_.metadata) worker_->on_message(wire::kMetadataRequest, metadata, this);
  worker_->on_message(wire::kDataRequest, data, this);
  return {};
}

ServerImpl::~ServerImpl() {
  if (!worker_) return;
  for (auto& [token, connection] : connections_) doom(*connection);
  const auto deadline = Clock::now() + std::chrono::seconds(5);
  do progress();
  while (!closing_.empty() && Clock::now() < deadline);
  if (!closing_.empty()) spdlog::error("rpc: {} connections do not close", closing_.size());
}

// ---- the thread

bool ServerImpl::progress() {
  bool worked = worker_->progress();
  worked |= dispatch_ready();
  worked |= run_posted();
  if (++ticks_ % kControlEvery == 0) control(worked);
  if (!doomed_.empty() || !closing_.empty()) reap();
  return worked;
}

bool ServerImpl::arm() {
  if (!ready_.empty() || !doomed_.empty() || reap_again_ ||
      has_posted_.load(std::memory_order_acquire))
    return false;
  bool worked = false;
  control(worked);
  return !worked && worker_->arm();
}

void ServerImpl::wait(std::chrono::milliseconds timeout) {
  if (!arm()) return;
  pollfd fd{events_.get(), POLLIN, 0};
  poll(&fd, 1, timeout.count() < 0 ? -1 : static_cast<int>(timeout.count()));
}

void ServerImpl::post(std::function<void()> function) {
  bool first = false;
  {
    std::lock_guard lock(posted_mutex_);
    first = posted_.empty();
    posted_.push_back(std::move(function));
    has_posted_.store(true, std::memory_order_release);
  }
  const std::uint64_t one = 1;
  if (first && write(wake_.get(), &one, sizeof one) < 0 && errno != EAGAIN) std::abort();
}

bool ServerImpl::run_posted() {
  if (!has_posted_.load(std::memory_order_acquire)) return false;
  std::vector<std::function<void()>> functions;
  {
    std::lock_guard lock(posted_mutex_);
    std::uint64_t count = 0;
    if (read(wake_.get(), &count, sizeof count) < 0 && errno != EAGAIN) std::abort();
    functions.swap(posted_);
    has_posted_.store(false, std::memory_order_release);
  }
  for (auto& function : functions) function();
  return true;
}

void ServerImpl::watch(int fd, std::uint64_t id) {
  epoll_event event{EPOLLIN | EPOLLRDHUP, {.u64 = id}};
  if (epoll_ctl(control_.get(), EPOLL_CTL_ADD, fd, &event) != 0) std::abort();
}

void ServerImpl::set_timer(bool on) {
  if (on == timer_on_) return;
  timer_on_ = on;
  itimerspec time{};
  if (on) time.it_interval.tv_sec = time.it_value.tv_sec = 1;
  timerfd_settime(timer_.get(), 0, &time, nullptr);
}

// ---- streams

void ServerImpl::control(bool& worked) {
  epoll_event events[32];
  const int count = epoll_wait(control_.get(), events, 32, 0);
  for (int i = 0; i < count; ++i) {
    worked = true;
    if (events[i].data.u64 == kListenerId) {
      accept_streams(worked);
    } else if (events[i].data.u64 == kTimerId) {
      std::uint64_t ticks = 0;
      if (read(timer_.get(), &ticks, sizeof ticks) > 0) expire_handshakes();
    } else if (auto it = connections_.find(events[i].data.u64); it != connections_.end()) {
      if (!it->second->doomed) stream_event(*it->second);
    }
  }
}

void ServerImpl::accept_streams(bool& worked) {
  while (handshakes_ < kMaxHandshakes) {
    Descriptor stream(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!stream) {
      if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR) return;
      spdlog::error("rpc: {} accepts no connection for a second: {}", address(),
                    std::strerror(errno));
      break;
    }
    worked = true;
    tune(stream.get());
    auto connection = std::make_unique<Connection>();
    connection->server = this;
    connection->token = draw_token();
    connection->deadline = Clock::now() + kHandshakeTime;
    connection->peer.name = peer_address(stream.get());
    connection->stream = std::move(stream);
    watch(connection->stream.get(), connection->token);
    ++handshakes_;
    set_timer(true);
    connections_.emplace(connection->token, std::move(connection));
  }
  // No descriptor left, or too many that say nothing: the timer looks again.
  epoll_event none{0, {.u64 = kListenerId}};
  epoll_ctl(control_.get(), EPOLL_CTL_MOD, listener_.get(), &none);
  accepting_ = false;
  set_timer(true);
}

void ServerImpl::expire_handshakes() {
  const auto now = Clock::now();
  for (auto& [token, connection] : connections_) {
    if (connection->endpoint == nullptr && !connection->held && !connection->doomed &&
        now >= connection->deadline)
      violation(*connection, "said no complete hello in time");
  }
  if (!accepting_) {
    epoll_event event{EPOLLIN, {.u64 = kListenerId}};
    epoll_ctl(control_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
    accepting_ = true;
  }
  if (handshakes_ == 0) set_timer(false);
}

void ServerImpl::stream_event(Connection& connection) {
  if (connection.endpoint != nullptr || connection.held) {
    char byte = 0;
    const ssize_t n = recv(connection.stream.get(), &byte, 1, MSG_DONTWAIT);
    if (n > 0) return violation(connection, "sent bytes after its hello");
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    spdlog::debug("rpc: {} has gone", connection.peer.name);
    return doom(connection);
  }
  switch (connection.reader.read(connection.stream.get())) {
    case FrameReader::State::incomplete:
      return;
    case FrameReader::State::complete:
      return hello(connection);
    case FrameReader::State::broken:
      if (connection.reader.saw_bytes())
        return violation(connection, "does not speak this protocol");
      return doom(connection);  // a port that was only touched
  }
}

void ServerImpl::hello(Connection& connection) {
  const wire::FrameHead head = connection.reader.head();
  if (head.version != wire::kProtocolVersion)
    return refuse(
        connection,
        {EPROTO, "the server speaks protocol " + std::to_string(wire::kProtocolVersion) +
                     ", the client " + std::to_string(head.version) + ": upgrade the older one"});
  const auto body = connection.reader.body();
  wire::Hello hello{};
  if (static_cast<wire::Kind>(head.kind) != wire::Kind::hello || body.size() < sizeof hello)
    return violation(connection, "sent a malformed hello");
  std::memcpy(&hello, body.data(), sizeof hello);
  const auto address = body.subspan(sizeof hello);
  if (address.size() != hello.address_length || address.empty() ||
      address_hash(address) != hello.address_hash || hello.channel == 0)
    return violation(connection, "sent a malformed hello");
  if (auto status = check_hello(connection, hello, address); !status.ok())
    return refuse(connection, status.error());
  // Of a server that stood still: the client has given this one up, and connects anew from the same worker. Two endpoints to one
  // worker, one of which ends at once, make UCX 1.13 abort there (an assertion in its wire-up).
  if (has_ended(connection.stream.get())) return doom(connection);
  if (!succeed(hello))
    return refuse(connection, {EPROTO, "a later daemon of this mount has taken over"});
  if (!join_channel(connection, hello)) return;
  if (connection.held) {
    --handshakes_;
    ++held_;
    return spdlog::debug("rpc: {} waits for the end of earlier connections", connection.peer.name);
  }
  open(connection, hello, address);
}

/// Ends what belongs to earlier daemons of the session. False: there is a later one.
bool ServerImpl::succeed(const wire::Hello& hello) {
  if (hello.daemon == 0) return true;
  for (const auto& [token, other] : connections_)
    if (other->channel != 0 && other->session == hello.session && !other->doomed &&
        other->daemon > hello.daemon)
      return false;
  for (auto& [token, other] : connections_)
    if (other->channel != 0 && other->session == hello.session && other->daemon < hello.daemon)
      doom(*other);
  return true;
}

bool ServerImpl::has_predecessor(const Connection& connection) const {
  const auto precedes = [&](const Connection& other) {
    return other.channel != 0 && other.session == connection.session &&
           other.daemon < connection.daemon;
  };
  if (connection.daemon == 0) return false;
  // An endpoint that is still being closed brings nothing more: its token is unknown. (Two endpoints to one worker cannot be: the workers are two
  // processes'.)
  return std::any_of(closing_.begin(), closing_.end(),
                     [&](const auto& other) { return other->slots != 0 && precedes(*other); }) ||
         std::any_of(connections_.begin(), connections_.end(),
                     [&](const auto& other) { return precedes(*other.second); });
}

/// False: doomed. Ends the channel's earlier connection; held if that is not gone yet.
bool ServerImpl::join_channel(Connection& connection, const wire::Hello& hello) {
  Channel& channel = channels_[hello.channel];
  if (channel.connections == 0) {
    channel.session = hello.session;
    channel.role = hello.role;
  } else if (channel.session != hello.session || channel.role != hello.role) {
    violation(connection, "names the channel of another");
    return false;
  } else if (hello.attempt <= channel.attempt) {
    doom(connection);  // overtaken: the client has given it up
    return false;
  }
  channel.attempt = hello.attempt;
  connection.channel = hello.channel;
  connection.session = hello.session;
  connection.daemon = hello.daemon;
  connection.held = channel.connections++ != 0 || has_predecessor(connection);
  if (channel.present != nullptr) doom(*channel.present);
  channel.present = &connection;
  return true;
}

/// The connection is gone.
void ServerImpl::leave_channel(Connection& connection) {
  if (connection.channel == 0) return;
  const auto it = channels_.find(connection.channel);
  if (--it->second.connections == 0) channels_.erase(it);
}

/// Connections have gone. What waited for that is opened.
void ServerImpl::admit_held() {
  if (held_ == 0) return;
  std::vector<Connection*> ready;
  for (const auto& [token, connection] : connections_)
    if (connection->held && !connection->doomed &&
        channels_.at(connection->channel).connections == 1 && !has_predecessor(*connection))
      ready.push_back(connection.get());
  for (Connection* connection : ready) admit(*connection);
}

void ServerImpl::admit(Connection& connection) {
  connection.held = false;
  --held_;
  ++handshakes_;
  wire::Hello hello{};
  const auto body = connection.reader.body();
  std::memcpy(&hello, body.data(), sizeof hello);
  const auto address = body.subspan(sizeof hello);
  // The session may have been fenced, and the client may have given up, while it was held.
  if (auto status = check_hello(connection, hello, address); !status.ok())
    return refuse(connection, status.error());
  if (has_ended(connection.stream.get())) return doom(connection);
  open(connection, hello, address);
}

Status ServerImpl::check_hello(const Connection&, const wire::Hello& hello,
                               std::span<const std::byte>) {
  if (std::memcmp(hello.cluster_id, options_.cluster_id.data(), sizeof hello.cluster_id) != 0)
    return Error{
        EPROTO,
        "the server belongs to another cluster: compare the cluster id in both configurations"};
  const std::uint32_t services =
      (options_.metadata ? wire::kMetadata : 0U) | (options_.data ? wire::kData : 0U);
  if (hello.services == 0 || (hello.services & ~services) != 0)
    return Error{EPROTO,
                 "this address does not serve what was asked (metadata or data): compare the "
                 "addresses in the configuration"};
  if (hello.role < static_cast<std::uint32_t>(Role::client) ||
      hello.role > static_cast<std::uint32_t>(Role::storaged))
    return Error{EPROTO, "unknown role"};
  const bool needs_session = hello.role == static_cast<std::uint32_t>(Role::client);
  if (needs_session != (hello.session != 0))
    return Error{EPROTO, "a client needs a session, others have none"};
  if (needs_session && !handler_.session_allowed(hello.session))
    return Error{kFenced, "the session was fenced"};
  if (connections_.size() > options_.max_connections) return Error{EAGAIN, "too many connections"};
  return {};
}

void ServerImpl::refuse(Connection& connection, const Error& error) {
  spdlog::warn("rpc: {} refused: {}", connection.peer.name, error.message);
  ++counters_.refused;
  const wire::Refused refused{error.code};
  const auto text = std::as_bytes(
      std::span(error.message.data(), std::min(error.message.size(), wire::kMaxReason)));
  (void)send_frame(connection.stream.get(),
                   make_frame(wire::Kind::refused, bytes_of(refused), text));
  doom(connection);
}

void ServerImpl::open(Connection& connection, const wire::Hello& hello,
                      std::span<const std::byte> address) {
  auto endpoint = worker_->connect(
      address,
      [](void* argument, ucp_ep_h, ucs_status_t status) {
        auto& c = *static_cast<Connection*>(argument);
        if (c.doomed) return;
        spdlog::debug("rpc: {} has gone: {}", c.peer.name, ucs_status_string(status));
        c.server->doom(c);
      },
      &connection);
  if (!endpoint) return refuse(connection, endpoint.error());
  connection.endpoint = *endpoint;
  --handshakes_;
  ++counters_.connections;
  connection.peer_token = hello.token;
  connection.peer.role = static_cast<Role>(hello.role);
  connection.peer.session = hello.session;
  const auto own = worker_->address();
  const wire::Welcome welcome{connection.token,  options_.boot,
                              options_.credits,  static_cast<std::uint32_t>(own.size()),
                              address_hash(own), 0};
  if (!send_frame(connection.stream.get(), make_frame(wire::Kind::welcome, bytes_of(welcome), own)))
    doom(connection);
}

// ---- the end of a connection

void ServerImpl::doom(Connection& connection) {
  if (connection.doomed) return;
  connection.doomed = true;
  doomed_.push_back(&connection);
  if (connection.channel != 0) {
    Channel& channel = channels_.at(connection.channel);
    if (channel.present == &connection) channel.present = nullptr;
  }
}

void ServerImpl::violation(Connection& connection, const std::string& what) {
  if (connection.doomed) return;
  spdlog::warn("rpc: {} {}: dropped", connection.peer.name, what);
  ++counters_.dropped;
  doom(connection);
}

void ServerImpl::disconnect_session(SessionId session) {
  disconnect_sessions([session](SessionId other) { return other != session; });
}

void ServerImpl::disconnect_sessions(const std::function<bool(SessionId)>& keep) {
  for (auto& [token, connection] : connections_)
    if (connection->endpoint != nullptr && connection->peer.session != 0 &&
        !keep(connection->peer.session))
      doom(*connection);
}

/// Outside of UCX's callbacks: an endpoint must not be closed from within one.
void ServerImpl::reap() {
  std::vector<Connection*> doomed;
  doomed.swap(doomed_);
  for (Connection* connection : doomed) {
    release_waiting(*connection);
    connection->stream.reset();
    if (connection->held) --held_;
    if (connection->endpoint == nullptr && !connection->held) --handshakes_;
    close_endpoint(*connection);
    auto node = connections_.extract(connection->token);
    closing_.push_back(std::move(node.mapped()));
  }
  reap_again_ = false;
  std::vector<std::unique_ptr<Connection>> gone;
  std::erase_if(closing_, [&](auto& c) {
    if (!c->endpoint_closed || c->slots != 0) return false;
    gone.push_back(std::move(c));
    return true;
  });
  for (const auto& connection : gone) leave_channel(*connection);
  admit_held();
}

void ServerImpl::close_endpoint(Connection& connection) {
  connection.endpoint_closed = true;
  if (connection.endpoint == nullptr) return;
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  param.user_data = &connection;
  param.cb.send = [](void* request, ucs_status_t, void* argument) {
    static_cast<Connection*>(argument)->endpoint_closed = true;
    ucp_request_free(request);
  };
  connection.endpoint_closed = false;
  const ucs_status_ptr_t request = ucp_ep_close_nbx(connection.endpoint, &param);
  if (!UCS_PTR_IS_PTR(request)) connection.endpoint_closed = true;
}

}  // namespace distfuse::rpc
