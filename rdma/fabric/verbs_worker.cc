// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/verbs_worker.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "rdma/fabric/address.h"

namespace distfuse::fabric::verbs {

namespace {

// With few connections their completion queues are polled, with more only those that have said something: a poll is
// some 20 ns, an event a system call.
constexpr std::size_t kPolledConnections = 8;
constexpr int kBatch = 16;
// Longer than a queue pair takes to give up a peer by its own retries, shorter than a client trusts its session by default (7 s).
constexpr std::chrono::seconds kStall{5};
// Completion queues are polled this many times before the channels are looked at again, which is a system call; who spins for a
// completion pays for one in 64. Before and after a sleep they always are.
constexpr unsigned kPollEvery = 64;

Status make_nonblocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return system_failure("fcntl");
  return {};
}

}  // namespace

Result<std::unique_ptr<VerbsWorker>> VerbsWorker::create(std::shared_ptr<Device> device,
                                                         Handler& handler) {
  std::unique_ptr<VerbsWorker> worker(new VerbsWorker(std::move(device), handler));
  DISTFUSE_TRY(worker->open());
  return worker;
}

Status VerbsWorker::open() {
  self_ = std::make_shared<VerbsWorker*>(this);
  cm_channel_ = device_->calls.create_event_channel();
  if (cm_channel_ == nullptr) return system_failure("RDMA event channel");
  completion_channel_ = device_->calls.create_comp_channel(device_->context);
  if (completion_channel_ == nullptr) return system_failure("completion channel");
  DISTFUSE_TRY(make_nonblocking(cm_channel_->fd));
  DISTFUSE_TRY(make_nonblocking(completion_channel_->fd));
  epoll_ = Descriptor(epoll_create1(EPOLL_CLOEXEC));
  wake_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_ || !wake_) return system_failure("event descriptor");
  for (const int fd : {cm_channel_->fd, completion_channel_->fd, wake_.get()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return system_failure("epoll");
  }
  return {};
}

VerbsWorker::~VerbsWorker() {
  self_.reset();
  if (!connections_.empty()) std::abort();  // They point to us: the owner destroys them first.
  for (const auto& [number, id] : callers_) destroy_id(id);
  if (listener_ != nullptr) destroy_id(listener_);
  buffers_.clear();
  if (completion_channel_ != nullptr) {
    (void)device_->calls.destroy_comp_channel(completion_channel_);
  }
  if (cm_channel_ != nullptr) device_->calls.destroy_event_channel(cm_channel_);
}

Result<std::span<std::byte>> VerbsWorker::allocate(std::size_t length) {
  auto memory = Registered::create(device_, length, IBV_ACCESS_LOCAL_WRITE);
  if (!memory) return memory.error();
  buffers_.push_back(std::move(*memory));
  return buffers_.back()->bytes();
}

std::optional<std::uint32_t> VerbsWorker::local_key(const void* memory, std::size_t length) const {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  for (const auto& buffer : buffers_) {
    const auto base = reinterpret_cast<std::uintptr_t>(buffer->bytes().data());
    const std::size_t size = buffer->bytes().size();
    if (address >= base && address - base <= size && length <= size - (address - base)) {
      return buffer->lkey();
    }
  }
  return std::nullopt;
}

bool VerbsWorker::progress() {
  bool worked = poll_connections();
  worked |= connections_.deliver(handler_);
  if (!look_ && ++skipped_polls_ < kPollEvery) return worked;
  skipped_polls_ = 0;
  look_ = false;
  epoll_event ready[3];
  const int n = epoll_wait(epoll_.get(), ready, 3, 0);
  for (int i = 0; i < n; ++i) {
    worked = true;
    const int fd = ready[i].data.fd;
    if (fd == wake_.get()) {
      std::uint64_t count = 0;
      (void)!::read(wake_.get(), &count, sizeof(count));
    } else if (fd == cm_channel_->fd) {
      read_cm_events();
    } else {
      read_completion_channel();
      worked |= poll_connections();
    }
  }
  expire();
  worked |= connections_.deliver(handler_);
  return worked;
}

bool VerbsWorker::poll_connections() {
  const bool all = connections_.size() <= kPolledConnections;
  // Numbers, for handlers may destroy connections; and no allocation while somebody spins.
  polled_.clear();
  for (const auto& [number, connection] : connections_) {
    if (all || !connection->armed_ || !connection->stash_.empty()) polled_.push_back(number);
  }
  bool worked = false;
  for (const auto number : polled_) worked |= poll_connection(number);
  return worked;
}

bool VerbsWorker::poll_connection(std::uint64_t number) {
  auto* connection = connections_.find(number);
  using State = VerbsConnection::State;
  // ORDER: not before it is established, so that on_connected comes before the first message.
  if (connection == nullptr || connection->state_ != State::established) return false;
  std::vector<ibv_wc> stash;
  stash.swap(connection->stash_);
  bool worked = !stash.empty();
  for (const auto& completion : stash) {
    if (!absorb(number, completion)) return true;
  }
  for (int round = 0; round < 4; ++round) {
    ibv_wc completions[kBatch];
    const int n = connection->pair_->poll(completions);
    if (n < 0) {
      fail(*connection, Error{EIO, "completion queue failed"});
      return true;
    }
    for (int i = 0; i < n; ++i) {
      if (!absorb(number, completions[i])) return true;
    }
    worked |= n > 0;
    if (n < kBatch) break;
  }
  // Among many: quiet until it says something. One more look, for what came before it was armed.
  if (!worked && !connection->armed_ && connections_.size() > kPolledConnections) {
    connection->armed_ = connection->pair_->arm();
    connection->stash_.resize(kBatch);
    const int n = connection->pair_->poll(connection->stash_);
    connection->stash_.resize(static_cast<std::size_t>(std::max(n, 0)));
  }
  return worked;
}

/// False: the connection is ended or destroyed.
bool VerbsWorker::absorb(std::uint64_t number, const ibv_wc& completion) {
  auto* connection = connections_.find(number);
  if (connection == nullptr || connection->pair_ == nullptr) return false;
  const auto outcome = connection->pair_->absorb(completion);
  using Kind = QueuePair::Outcome::Kind;
  if (outcome.kind == Kind::broken) {
    fail(*connection, *outcome.error);
    return false;
  }
  if (outcome.kind == Kind::chain) {
    connections_.completed(number, outcome.cookie);
    connection->stalled_ = false;
    connection->moved_.reset();
  }
  if (outcome.kind != Kind::message) return true;
  handler_.on_message(*connection, outcome.message);
  connection = connections_.find(number);
  if (connection == nullptr || connection->pair_ == nullptr) return false;
  if (auto status = connection->pair_->consumed(outcome.slot); !status) {
    fail(*connection, status.error());
    return false;
  }
  return true;
}

void VerbsWorker::read_completion_channel() {
  ibv_cq* queue = nullptr;
  void* context = nullptr;
  while (device_->calls.get_cq_event(completion_channel_, &queue, &context) == 0) {
    counted_.add(Count::events);
    device_->calls.ack_cq_events(queue, 1);  // Destroying the queue waits for this.
    if (auto* connection = connections_.find(reinterpret_cast<std::uintptr_t>(context))) {
      connection->armed_ = false;
    }
  }
}

/// Chains that the device neither completes nor fails (soft-RoCE does, after lost packets) end their connection. True: look again at once.
bool VerbsWorker::end_stalled() {
  const auto now = Clock::now();
  for (auto& [number, connection] : connections_) {
    if (connection->state_ != VerbsConnection::State::established ||
        connection->pair_->posted().empty())
      continue;
    if (!connection->moved_) connection->moved_ = now;
    if (now - *connection->moved_ < kStall) continue;
    // We may have been stopped ourselves: what came meanwhile is looked at first.
    if (connection->stalled_)
      fail(*connection, Error{ETIMEDOUT, "the RDMA device has not completed an operation for " +
                                             std::to_string(kStall.count()) + " s"});
    else
      connection->stalled_ = true;
    return true;
  }
  return false;
}

void VerbsWorker::wait(std::chrono::milliseconds timeout) {
  look_ = true;
  if (connections_.has_events() || end_stalled()) return;
  for (const auto& [number, connection] : connections_) {
    if (connection->state_ != VerbsConnection::State::established) continue;
    if (connection->armed_ && connection->stash_.empty()) continue;
    // ORDER: arm, then look: a completion in between has either raised the event or is found here.
    connection->armed_ = connection->pair_->arm();
    if (!connection->stash_.empty()) return;
    connection->stash_.resize(kBatch);
    const int n = connection->pair_->poll(connection->stash_);
    connection->stash_.resize(static_cast<std::size_t>(std::max(n, 0)));
    if (n != 0) return;
  }
  epoll_event ready{};  // Level-triggered: progress() finds it again.
  counted_.add(Count::sleeps);
  const int n = epoll_wait(epoll_.get(), &ready, 1, wait_ms(timeout, connections_.next_deadline()));
  if (n > 0) counted_.add(Count::wakeups);
}

void VerbsWorker::wake() {
  const std::uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
}

void VerbsWorker::expire() {
  if (waiting_ == 0) return;
  connections_.expire(Clock::now(), [this](auto& connection, Error reason) {
    fail(connection, std::move(reason));
  });
}

/// Ends a connection once: what is posted completes with the reason, then on_disconnect follows, all by deliver(). Only to a peer that ended
/// it do we answer with an end at once. To any other it would look like our own will, and a client's end by will says that it trusts
/// nothing any more: so the id stays until its owner destroys the connection, and the queue pair is dead.
void VerbsWorker::fail(VerbsConnection& connection, Error reason) {
  using State = VerbsConnection::State;
  if (connection.state_ == State::ended) return;
  if (connection.has_deadline()) --waiting_;
  const bool was_established = connection.state_ == State::established;
  connection.state_ = State::ended;
  spdlog::info("fabric: connection with {} ended: {}", connection.peer_, reason.message);
  connection.reason_ = std::move(reason);
  if (connection.pair_ != nullptr) {
    // ORDER: first the queue pair is dead, then the chains are given back with the memory that they name.
    connection.pair_->stop();
    for (const auto cookie : connection.pair_->posted()) {
      connections_.failed(connection.number_, cookie);
    }
  }
  connections_.ended(connection.number_);
  // ENODEV: the device is removed only when nothing of it is left.
  const int code = connection.reason_.code;
  const bool silent = was_established && code != ECONNRESET && code != ENODEV;
  if (!silent) return release(connection);
  connection.stash_.clear();
  connection.pair_.reset();
}

/// Gives back what an ended or destroyed connection held.
void VerbsWorker::release(VerbsConnection& connection) {
  if (connection.id_ != nullptr) {
    (void)device_->calls.disconnect(connection.id_);
  }
  connection.stash_.clear();
  connection.pair_.reset();
  connection.other_.reset();
  if (connection.id_ != nullptr) destroy_id(connection.id_);
  connection.id_ = nullptr;
  connection.own_.reset();
}

}  // namespace distfuse::fabric::verbs
