// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_worker.h"

#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "rdma/fabric/ucx_chain.h"

namespace distfuse::fabric::ucx {

namespace {

// Completions of direct chains are delivered this many times before sockets are looked at again: a system call in 64.
constexpr unsigned kPollEvery = 64;

}  // namespace

Result<std::unique_ptr<UcxWorker>> UcxWorker::create(std::shared_ptr<Context> context,
                                                     Handler& handler) {
  std::unique_ptr<UcxWorker> worker(new UcxWorker(std::move(context), handler));
  DISTFUSE_TRY(worker->open());
  return worker;
}

Status UcxWorker::open() {
  self_ = std::make_shared<UcxWorker*>(this);
  epoll_ = Descriptor(epoll_create1(EPOLL_CLOEXEC));
  wake_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_ || !wake_) return system_failure("event descriptor");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeId;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0)
    return system_failure("epoll");
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
  if (const auto* connection = connections_.find(id);
      connection != nullptr && connection->paused_) {
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
  if (id == 0) return system_failure("epoll");
  std::unique_ptr<UcxConnection> connection(new UcxConnection(*this, id));
  connection->state_ = UcxConnection::State::connecting;
  connection->stream_.emplace(std::move(*fd));
  connection->peer_ = address;
  connection->deadline_ = Clock::now() + timeout;
  Hello hello;
  hello.host = context_->host();
  hello.data.assign(private_data.begin(), private_data.end());
  encode(hello, connection->hello_);
  connections_.insert(id, *connection);
  ++waiting_;
  return std::unique_ptr<Connection>(std::move(connection));
}

Result<std::unique_ptr<Connection>> UcxWorker::connect_loopback(Region& region) {
  const auto id = next_id_++;
  std::unique_ptr<UcxConnection> connection(new UcxConnection(*this, id));
  connection->peer_ = "loopback";
  connection->own_ = dynamic_cast<UcxRegion&>(region).memory();
  connection->region_length_ = region.bytes().size();
  connections_.insert(id, *connection);
  return std::unique_ptr<Connection>(std::move(connection));
}

bool UcxWorker::progress() {
  bool worked = connections_.deliver(handler_);
  if (worked && ++skipped_polls_ < kPollEvery) return true;
  skipped_polls_ = 0;
  worked |= poll(0);
  const auto batch = std::move(ready_);
  ready_.clear();
  for (const auto& [id, events] : batch) dispatch(id, events);
  expire();
  worked |= connections_.deliver(handler_);
  return worked;
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
  if (connections_.has_events() || !ready_.empty()) return;
  (void)poll(wait_ms(timeout, next_deadline()));
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

void UcxWorker::serve_connection(std::uint64_t id, std::uint32_t events) {
  auto* connection = connections_.find(id);
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
  if (!received) fail(*connections_.find(id), received.error());
}

Status UcxWorker::finish_connect(UcxConnection& connection) {
  int code = 0;
  socklen_t length = sizeof(code);
  (void)getsockopt(connection.stream_->fd(), SOL_SOCKET, SO_ERROR, &code, &length);
  if (code != 0) {
    return failure(code, "cannot connect to " + connection.peer_);
  }
  connection.state_ = UcxConnection::State::greeting;
  DISTFUSE_TRY(connection.stream_->send(connection.hello_));
  update_watch(connection.id_, *connection.stream_);
  return {};
}

/// Serves whole frames; false: the connection is ended or destroyed.
bool UcxWorker::read_frames(std::uint64_t id) {
  while (true) {
    auto* connection = connections_.find(id);
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
  connections_.completed(connection.id_, asked.cookie);
  connection.asked_.pop_front();
  return {};
}

/// Ends a connection once: what is posted completes with the reason, then on_disconnect follows, all by deliver().
void UcxWorker::fail(UcxConnection& connection, Error reason) {
  using State = UcxConnection::State;
  if (connection.state_ == State::ended) return;
  if (connection.has_deadline()) --waiting_;
  connection.state_ = State::ended;
  spdlog::info("fabric: connection with {} ended: {}", connection.peer_, reason.message);
  connection.reason_ = std::move(reason);
  for (const auto& asked : connection.asked_) {
    connections_.failed(connection.id_, asked.cookie);
  }
  connection.asked_.clear();
  connections_.ended(connection.id_);
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
  expire_callers(now);
  if (waiting_ == 0) return;
  connections_.expire(
      now, [this](auto& connection, Error reason) { fail(connection, std::move(reason)); });
}

std::optional<Clock::time_point> UcxWorker::next_deadline() const {
  const auto next = next_caller_deadline();
  if (waiting_ == 0) return next;
  const auto connections = connections_.next_deadline();
  return next && connections ? std::min(*next, *connections) : (next ? next : connections);
}

}  // namespace distfuse::fabric::ucx
