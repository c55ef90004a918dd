// SPDX-License-Identifier: Apache-2.0
// The part of UcxWorker that listens: strangers, their Hellos, accept and reject.
#include <spdlog/spdlog.h>
#include <sys/epoll.h>

#include <cstring>
#include <utility>

#include "rdma/fabric/ucx_worker.h"

namespace distfuse::fabric::ucx {

namespace {

// The rest waits in the kernel's backlog.
constexpr std::size_t kMaxCallers = 256;
constexpr std::chrono::seconds kHelloTime{5};
constexpr std::chrono::milliseconds kListenAgain{100};

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

Result<std::string> UcxWorker::listen(std::string_view address) {
  if (listener_) return Error{EALREADY, "the worker listens already"};
  auto fd = listen_socket(address);
  if (!fd) return fd.error();
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kListenerId;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd->get(), &event) != 0)
    return system_failure("epoll");
  listener_ = std::move(*fd);
  return local_name(listener_.get());
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
  connections_.insert(id, *connection);
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

/// Drops who said nothing in time; listens again when there is room.
void UcxWorker::expire_callers(Clock::time_point now) {
  std::erase_if(callers_, [&](const auto& entry) {
    if (entry.second.asked || entry.second.deadline > now) return false;
    note_stranger(entry.second.peer, "no hello in time");
    return true;
  });
  if (listener_paused_ && callers_.size() < kMaxCallers && now >= listener_resume_) {
    pause_listener(false);
  }
}

std::optional<Clock::time_point> UcxWorker::next_caller_deadline() const {
  std::optional<Clock::time_point> next;
  const auto consider = [&next](Clock::time_point at) { next = next ? std::min(*next, at) : at; };
  for (const auto& [id, caller] : callers_) {
    if (!caller.asked) consider(caller.deadline);
  }
  if (listener_paused_ && callers_.size() < kMaxCallers) consider(listener_resume_);
  return next;
}

}  // namespace distfuse::fabric::ucx
