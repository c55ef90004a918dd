// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_worker.h"

#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "rdma/fabric/ucx_chain.h"

namespace distfuse::fabric::ucx {

namespace {

constexpr std::uint64_t kWakeId = 1;
constexpr std::uint64_t kListenerId = 3;

// Strangers: who connects has this long for a Hello, and so many may be at it at once. The rest waits in the kernel's backlog.
constexpr std::chrono::seconds kHelloTime{5};
constexpr std::size_t kMaxCallers = 256;
constexpr std::chrono::milliseconds kListenAgain{100};
// Completions of direct chains are delivered this many times before sockets are looked at again: a system call in 64.
constexpr unsigned kPollEvery = 64;

Error system_error(const char* what) {
  const int code = errno;
  return Error{code, std::string(what) + ": " + std::strerror(code)};
}

}  // namespace

/// What the handler holds between on_connect_request and accept or reject.
class UcxRequest : public ConnectRequest {
 public:
  UcxRequest(std::weak_ptr<UcxWorker*> worker, std::uint64_t id, std::vector<std::byte> data,
             std::string peer)
      : worker_(std::move(worker)), id_(id), data_(std::move(data)), peer_(std::move(peer)) {}
  ~UcxRequest() override {
    if (const auto worker = worker_.lock(); worker && id_ != 0) {
      (*worker)->dismiss(id_, "the connection was not accepted");
    }
  }
  std::span<const std::byte> private_data() const override { return data_; }
  std::string peer() const override { return peer_; }
  /// The caller's id, once.
  std::uint64_t take() { return std::exchange(id_, 0); }

 private:
  std::weak_ptr<UcxWorker*> worker_;
  std::uint64_t id_;
  std::vector<std::byte> data_;
  std::string peer_;
};

Result<std::unique_ptr<UcxWorker>> UcxWorker::create(std::shared_ptr<Context> context,
                                                     Handler& handler) {
  std::unique_ptr<UcxWorker> worker(new UcxWorker(std::move(context), handler));
  DISTFUSE_TRY(worker->open());
  return worker;
}

Status UcxWorker::open() {
  self_ = std::make_shared<UcxWorker*>(this);
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_.valid() || !wake_.valid()) return system_error("event descriptor");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeId;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0)
    return system_error("epoll");
  return {};
}

Result<UcpWorker*> UcxWorker::ucp() {
  if (ucp_ != nullptr) return ucp_.get();
  if (context_->handle() == nullptr) return Error{ENODEV, "UCX_TLS has no shared memory"};
  auto worker = UcpWorker::create(context_->handle());
  if (!worker) return worker.error();
  ucp_ = std::move(*worker);
  return ucp_.get();
}

UcxWorker::~UcxWorker() {
  self_.reset();
  if (!connections_.empty()) std::abort();  // They point to us: the owner destroys them first.
}

Result<std::span<std::byte>> UcxWorker::allocate(std::size_t length) {
  const std::size_t rounded = std::max<std::size_t>(4096, (length + 4095) & ~std::size_t{4095});
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(4096, rounded));
  if (memory == nullptr) return Error{ENOMEM, "no memory for local buffers"};
  std::memset(memory, 0, rounded);
  buffers_.emplace_back(memory, [](std::byte* p) { std::free(p); });
  return std::span(memory, length);
}

Result<std::string> UcxWorker::listen(std::string_view address) {
  if (listener_.valid()) return Error{EALREADY, "the worker listens already"};
  auto fd = listen_socket(address);
  if (!fd) return fd.error();
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kListenerId;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd->get(), &event) != 0) return system_error("epoll");
  listener_ = std::move(*fd);
  return local_name(listener_.get());
}

std::uint64_t UcxWorker::watch(int fd, std::uint32_t events) {
  const auto id = next_id_++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return 0;
  return id;
}

void UcxWorker::update_watch(std::uint64_t id, const Stream& stream) {
  epoll_event event{};
  event.events = EPOLLIN;
  if (stream.wants_to_write()) event.events |= EPOLLOUT;
  if (const auto* connection = find(id); connection != nullptr && connection->paused_) {
    event.events = EPOLLOUT;
  }
  event.data.u64 = id;
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, stream.fd(), &event);
}

Result<std::unique_ptr<Connection>> UcxWorker::connect(std::string_view address,
                                                       std::span<const std::byte> private_data,
                                                       std::chrono::milliseconds timeout) {
  if (private_data.size() > kMaxConnectData) return Error{EINVAL, "private data is too long"};
  auto fd = connect_socket(address);
  if (!fd) return fd.error();
  const auto id = watch(fd->get(), EPOLLIN | EPOLLOUT);
  if (id == 0) return system_error("epoll");
  std::unique_ptr<UcxConnection> connection(new UcxConnection(*this, id));
  connection->state_ = UcxConnection::State::connecting;
  connection->stream_.emplace(std::move(*fd));
  connection->peer_ = address;
  connection->deadline_ = Clock::now() + timeout;
  Hello hello;
  hello.host = context_->host();
  hello.data.assign(private_data.begin(), private_data.end());
  encode(hello, connection->hello_);
  connections_[id] = connection.get();
  ++waiting_;
  return std::unique_ptr<Connection>(std::move(connection));
}

Result<std::unique_ptr<Connection>> UcxWorker::connect_loopback(Region& region) {
  const auto id = next_id_++;
  std::unique_ptr<UcxConnection> connection(new UcxConnection(*this, id));
  connection->peer_ = "loopback";
  connection->own_ = dynamic_cast<UcxRegion&>(region).memory();
  connection->region_length_ = region.bytes().size();
  connections_[id] = connection.get();
  return std::unique_ptr<Connection>(std::move(connection));
}

Result<std::unique_ptr<Connection>> UcxWorker::accept(std::unique_ptr<ConnectRequest> request,
                                                      std::span<const std::byte> private_data,
                                                      Region* exposed) {
  if (private_data.size() > kMaxAcceptData) return Error{EINVAL, "private data is too long"};
  auto& asked = dynamic_cast<UcxRequest&>(*request);
  const auto id = asked.take();
  const auto found = callers_.find(id);
  if (found == callers_.end()) return Error{ENOTCONN, asked.peer() + " is gone"};
  std::unique_ptr<UcxConnection> connection(new UcxConnection(*this, id));
  Accept answer;
  answer.data.assign(private_data.begin(), private_data.end());
  if (exposed != nullptr) {
    if (auto status = expose(*connection, found->second, *exposed, answer); !status) {
      dismiss(id, status.error().message);
      return status.error();
    }
  }
  connection->stream_.emplace(std::move(found->second.stream));
  connection->peer_ = found->second.peer;
  callers_.erase(found);
  connections_[id] = connection.get();
  std::vector<std::byte> frame;
  encode(answer, frame);
  DISTFUSE_TRY(connection->stream_->send(frame));
  // It may have sent more with its Hello, and a frame too many is found by reading.
  update_watch(id, *connection->stream_);
  return std::unique_ptr<Connection>(std::move(connection));
}

/// How the caller reaches the region: by mapping it, through an open gate, or by asking us.
Status UcxWorker::expose(UcxConnection& connection, const Caller& caller, Region& region,
                         Accept& answer) {
  const auto& memory = dynamic_cast<UcxRegion&>(region).memory();
  connection.own_ = memory;
  answer.region_length = memory->bytes().size();
  if (caller.host == HostId{} || caller.host != context_->host()) return {};
  auto worker = ucp();
  if (!worker) return worker.error();
  connection.gate_ = memory->open_gate();
  if (connection.gate_ == nullptr) {
    return Error{EMFILE, "the region has " + std::to_string(Memory::kGates) + " connections"};
  }
  answer.shared = true;
  answer.region_address = reinterpret_cast<std::uintptr_t>(memory->bytes().data());
  answer.gate_address = reinterpret_cast<std::uintptr_t>(connection.gate_);
  answer.worker = (*worker)->address();
  answer.rkey = memory->rkey();
  return {};
}

void UcxWorker::reject(std::unique_ptr<ConnectRequest> request, std::string_view reason) {
  dismiss(dynamic_cast<UcxRequest&>(*request).take(), reason);
}

/// Tells a caller why not, if its socket takes it at once, and hangs up.
void UcxWorker::dismiss(std::uint64_t id, std::string_view reason) {
  const auto found = callers_.find(id);
  if (found == callers_.end()) return;
  std::vector<std::byte> frame;
  encode(Reject{std::string(reason)}, frame);
  (void)found->second.stream.send(frame);
  callers_.erase(found);
}

UcxConnection* UcxWorker::find(std::uint64_t id) {
  const auto found = connections_.find(id);
  return found == connections_.end() ? nullptr : found->second;
}

bool UcxWorker::progress() {
  bool worked = deliver();
  if (worked && ++skipped_polls_ < kPollEvery) return true;
  skipped_polls_ = 0;
  worked |= poll(0);
  const auto batch = std::move(ready_);
  ready_.clear();
  for (const auto& [id, events] : batch) dispatch(id, events);
  expire();
  worked |= deliver();
  return worked;
}

/// Completions, and after the last of them the end of a connection.
bool UcxWorker::deliver() {
  const std::size_t count = events_.size();  // What handlers add comes next time.
  for (std::size_t i = 0; i < count; ++i) {
    const auto event = events_.front();
    events_.pop_front();
    auto* connection = find(event.connection);
    if (connection == nullptr) continue;
    if (event.kind == Event::Kind::ended) {
      handler_.on_disconnect(*connection, Error(connection->reason_));
      continue;
    }
    --connection->outstanding_;
    const Status status =
        event.kind == Event::Kind::completed ? Status{} : Status{connection->reason_};
    handler_.on_completion(*connection, event.cookie, status);
  }
  return count != 0;
}

bool UcxWorker::poll(int timeout_ms) {
  if (!ready_.empty()) return true;
  epoll_event events[64];
  const int n = epoll_wait(epoll_.get(), events, 64, timeout_ms);
  for (int i = 0; i < n; ++i) {
    const auto event = events[i];  // The fields of the original are packed.
    ready_.emplace_back(std::uint64_t{event.data.u64}, std::uint32_t{event.events});
  }
  return !ready_.empty();
}

void UcxWorker::wait(std::chrono::milliseconds timeout) {
  if (!events_.empty() || !ready_.empty()) return;
  using std::chrono::milliseconds;
  auto left = timeout;
  if (const auto deadline = next_deadline()) {
    const auto until =
        std::max(milliseconds(0), std::chrono::ceil<milliseconds>(*deadline - Clock::now()));
    left = left.count() < 0 ? until : std::min(left, until);
  }
  (void)poll(static_cast<int>(std::clamp<std::int64_t>(left.count(), -1, 1 << 30)));
}

void UcxWorker::wake() {
  const std::uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
}

void UcxWorker::dispatch(std::uint64_t id, std::uint32_t events) {
  if (id == kWakeId) {
    std::uint64_t count = 0;
    (void)!::read(wake_.get(), &count, sizeof(count));
    return;
  }
  if (id == kListenerId) return accept_callers();
  if (callers_.contains(id)) return read_caller(id);
  serve_connection(id, events);
}

void UcxWorker::accept_callers() {
  while (callers_.size() < kMaxCallers) {
    auto fd = accept_socket(listener_.get());
    if (!fd) {
      const int code = fd.error().code;
      if (code != EMFILE && code != ENFILE && code != ENOMEM && code != ENOBUFS) return;
      spdlog::warn("fabric: {}; trying again in {} ms", fd.error().message, kListenAgain.count());
      listener_resume_ = Clock::now() + kListenAgain;
      return pause_listener(true);
    }
    auto peer = peer_name(fd->get());
    const auto id = watch(fd->get(), EPOLLIN);
    if (id == 0) continue;
    callers_.emplace(
        id, Caller{Stream(std::move(*fd)), std::move(peer), Clock::now() + kHelloTime, {}, false});
  }
  // The rest waits in the kernel's backlog, and we do not spin on it.
  listener_resume_ = Clock::now();
  pause_listener(true);
}

void UcxWorker::pause_listener(bool pause) {
  listener_paused_ = pause;
  epoll_event event{};
  if (!pause) event.events = EPOLLIN;
  event.data.u64 = kListenerId;
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
}

/// Strangers can come by the thousand: one line a second says enough.
void UcxWorker::note_stranger(const std::string& peer, const std::string& why) {
  ++strangers_;
  const auto now = Clock::now();
  if (now < next_note_) return;
  spdlog::warn("fabric: dropped {}: {} ({} dropped so far)", peer, why, strangers_);
  next_note_ = now + std::chrono::seconds(1);
}

void UcxWorker::read_caller(std::uint64_t id) {
  auto& caller = callers_.at(id);
  auto status = caller.stream.receive();
  if (!status) {
    callers_.erase(id);  // Nothing was promised to it; accept will find it gone.
    return;
  }
  if (caller.asked) {
    if (caller.stream.input().empty()) return;
    note_stranger(caller.peer, "it does not wait for its answer");
    callers_.erase(id);
    return;
  }
  auto decoded = decode(caller.stream.input());
  if (!decoded) {
    note_stranger(caller.peer, decoded.error().message);
    callers_.erase(id);
    return;
  }
  if (decoded->consumed == 0) return;
  auto* hello = std::get_if<Hello>(&decoded->frame);
  if (hello == nullptr) {
    note_stranger(caller.peer, "its first frame is no hello");
    callers_.erase(id);
    return;
  }
  caller.stream.consume(decoded->consumed);
  on_hello(id, std::move(*hello));
}

void UcxWorker::on_hello(std::uint64_t id, Hello hello) {
  auto& caller = callers_.at(id);
  caller.host = hello.host;
  if (hello.version != kVersion) {
    const auto reason = "fabric protocol version " + std::to_string(hello.version) + " is not " +
                        std::to_string(kVersion);
    note_stranger(caller.peer, reason);
    return dismiss(id, reason);
  }
  caller.asked = true;
  handler_.on_connect_request(
      std::make_unique<UcxRequest>(self_, id, std::move(hello.data), caller.peer));
}

void UcxWorker::serve_connection(std::uint64_t id, std::uint32_t events) {
  auto* connection = find(id);
  if (connection == nullptr || connection->state_ == UcxConnection::State::ended) return;
  if (connection->state_ == UcxConnection::State::connecting) {
    if (auto status = finish_connect(*connection); !status) fail(*connection, status.error());
    return;
  }
  if ((events & EPOLLOUT) != 0) {
    if (auto status = connection->stream_->flush(); !status) {
      return fail(*connection, status.error());
    }
    if (!connection->stream_->wants_to_write()) {
      connection->paused_ = false;
      update_watch(id, *connection->stream_);
      if (!read_frames(id)) return;
    }
  }
  if ((events & ~static_cast<std::uint32_t>(EPOLLOUT)) == 0 || connection->paused_) return;
  const auto received = connection->stream_->receive();
  // What came before the end still counts.
  if (!read_frames(id)) return;
  if (!received) fail(*find(id), received.error());
}

Status UcxWorker::finish_connect(UcxConnection& connection) {
  int code = 0;
  socklen_t length = sizeof(code);
  (void)getsockopt(connection.stream_->fd(), SOL_SOCKET, SO_ERROR, &code, &length);
  if (code != 0) {
    return Error{code, "cannot connect to " + connection.peer_ + ": " + std::strerror(code)};
  }
  connection.state_ = UcxConnection::State::greeting;
  DISTFUSE_TRY(connection.stream_->send(connection.hello_));
  update_watch(connection.id_, *connection.stream_);
  return {};
}

/// Serves whole frames; false: the connection is ended or destroyed.
bool UcxWorker::read_frames(std::uint64_t id) {
  while (true) {
    auto* connection = find(id);
    if (connection == nullptr || connection->state_ == UcxConnection::State::ended) return false;
    auto decoded = decode(connection->stream_->input());
    if (!decoded) {
      fail(*connection, decoded.error());
      return false;
    }
    if (decoded->consumed == 0 || connection->paused_) return true;
    const bool greeting = connection->state_ == UcxConnection::State::greeting;
    if (const auto* accept = std::get_if<Accept>(&decoded->frame); accept != nullptr && greeting) {
      connection->stream_->consume(decoded->consumed);
      if (auto status = on_accept(*connection, *accept); !status) {
        fail(*connection, status.error());
        return false;
      }
      handler_.on_connected(*connection, accept->data);
    } else if (const auto* reject = std::get_if<Reject>(&decoded->frame);
               reject != nullptr && greeting) {
      fail(*connection, Error{ECONNREFUSED, reject->reason});
      return false;
    } else if (const auto* message = std::get_if<Message>(&decoded->frame);
               message != nullptr && !greeting) {
      // The bytes stay where they are until the next receive().
      connection->stream_->consume(decoded->consumed);
      handler_.on_message(*connection, message->bytes);
    } else if (const auto* request = std::get_if<ChainRequest>(&decoded->frame);
               request != nullptr && !greeting) {
      connection->stream_->consume(decoded->consumed);
      if (auto status = on_request(*connection, *request); !status) {
        fail(*connection, status.error());
        return false;
      }
    } else if (const auto* results = std::get_if<ChainResults>(&decoded->frame);
               results != nullptr && !greeting) {
      connection->stream_->consume(decoded->consumed);
      if (auto status = on_results(*connection, results->bytes); !status) {
        fail(*connection, status.error());
        return false;
      }
    } else {
      fail(*connection, Error{EPROTO, "malformed: a frame out of place"});
      return false;
    }
  }
}

Status UcxWorker::on_accept(UcxConnection& connection, const Accept& accept) {
  if (accept.shared) {
    auto worker = ucp();
    if (!worker) return worker.error();
    auto mapping = Mapping::create(**worker, accept);
    if (!mapping) return mapping.error();
    connection.mapping_ = std::move(*mapping);
  }
  connection.region_length_ = accept.region_length;
  connection.state_ = UcxConnection::State::established;
  --waiting_;
  return {};
}

/// A chain of a peer that cannot map our region: our CPU runs it, with the atomics that mapping peers use too.
Status UcxWorker::on_request(UcxConnection& connection, const ChainRequest& request) {
  if (connection.own_ == nullptr) return Error{EPROTO, "a chain where no region is exposed"};
  std::vector<std::byte> reply;
  DISTFUSE_TRY(serve_chain(connection.own_->bytes(), request, reply));
  DISTFUSE_TRY(connection.stream_->send_always(reply));
  // Answers that it does not take hold up its next requests, so one answer more than the queue's bound is the most.
  connection.paused_ = connection.stream_->queued() > Stream::kMaxQueued;
  if (connection.stream_->wants_to_write()) update_watch(connection.id_, *connection.stream_);
  return {};
}

Status UcxWorker::on_results(UcxConnection& connection, std::span<const std::byte> results) {
  if (connection.asked_.empty()) return Error{EPROTO, "results of no chain"};
  const auto& asked = connection.asked_.front();
  DISTFUSE_TRY(store_results({asked.operations.data(), asked.count}, results));
  events_.push_back({Event::Kind::completed, connection.id_, asked.cookie});
  connection.asked_.pop_front();
  return {};
}

/// Ends a connection once: what is posted completes with the reason, then on_disconnect follows, all by deliver().
void UcxWorker::fail(UcxConnection& connection, Error reason) {
  using State = UcxConnection::State;
  if (connection.state_ == State::ended) return;
  if (connection.state_ != State::established) --waiting_;
  connection.state_ = State::ended;
  spdlog::info("fabric: connection with {} ended: {}", connection.peer_, reason.message);
  connection.reason_ = std::move(reason);
  for (const auto& asked : connection.asked_) {
    events_.push_back({Event::Kind::failed, connection.id_, asked.cookie});
  }
  connection.asked_.clear();
  events_.push_back({Event::Kind::ended, connection.id_, 0});
  forget(connection);
}

/// Gives back what an ended or destroyed connection held.
void UcxWorker::forget(UcxConnection& connection) {
  if (connection.gate_ != nullptr) connection.own_->close_gate(connection.gate_);
  connection.gate_ = nullptr;
  connection.stream_.reset();
  connection.mapping_.reset();
}

void UcxWorker::expire() {
  if (callers_.empty() && waiting_ == 0 && !listener_paused_) return;
  const auto now = Clock::now();
  std::erase_if(callers_, [&](const auto& entry) {
    if (entry.second.asked || entry.second.deadline > now) return false;
    note_stranger(entry.second.peer, "no hello in time");
    return true;
  });
  if (listener_paused_ && callers_.size() < kMaxCallers && now >= listener_resume_) {
    pause_listener(false);
  }
  if (waiting_ == 0) return;
  for (const auto& [id, connection] : connections_) {
    using State = UcxConnection::State;
    if (connection->state_ != State::connecting && connection->state_ != State::greeting) continue;
    if (connection->deadline_ > now) continue;
    fail(*connection, Error{ETIMEDOUT, connection->peer_ + " does not answer"});
  }
}

std::optional<Clock::time_point> UcxWorker::next_deadline() const {
  std::optional<Clock::time_point> next;
  const auto consider = [&next](Clock::time_point at) { next = next ? std::min(*next, at) : at; };
  for (const auto& [id, caller] : callers_) {
    if (!caller.asked) consider(caller.deadline);
  }
  if (listener_paused_ && callers_.size() < kMaxCallers) consider(listener_resume_);
  if (waiting_ == 0) return next;
  for (const auto& [id, connection] : connections_) {
    using State = UcxConnection::State;
    if (connection->state_ == State::connecting || connection->state_ == State::greeting) {
      consider(connection->deadline_);
    }
  }
  return next;
}

}  // namespace distfuse::fabric::ucx
