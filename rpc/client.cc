// SPDX-License-Identifier: Apache-2.0
// The pool of channels, request ids, and what callers see.
#include "rpc/client.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "rpc/channel.h"
#include "rpc/data_check.h"

namespace distfuse::rpc {
namespace {

/// Request ids and the lowest that is unanswered: exact, because a channel has at most one metadata request at a time.
class RequestIds {
 public:
  explicit RequestIds(unsigned channels) : unanswered_(channels, 0) {}

  struct Id {
    std::uint64_t id;
    std::uint64_t lowest_unanswered;
  };
  Id begin(unsigned channel) {
    std::lock_guard lock(mutex_);
    Id id{next_.fetch_add(1), 0};
    id.lowest_unanswered = id.id;
    for (std::uint64_t other : unanswered_)
      if (other != 0) id.lowest_unanswered = std::min(id.lowest_unanswered, other);
    unanswered_[channel] = id.id;
    return id;
  }
  void end(unsigned channel) {
    std::lock_guard lock(mutex_);
    unanswered_[channel] = 0;
  }
  /// For data requests, which are idempotent and leave no reply record.
  std::uint64_t untracked() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> next_{1};
  std::mutex mutex_;
  std::vector<std::uint64_t> unanswered_;  ///< By channel; 0: none. Protected by mutex_.
};

constexpr const char* kStillLearning =
    "the storaged has started and is still not told by lockd who lives: does lockd run?";

/// The pauses between attempts at a storaged that is learning.
class Learning {
 public:
  explicit Learning(std::chrono::milliseconds give_up) : left_(give_up) {}
  /// False: it has taken too long.
  bool wait() {
    if (left_.count() <= 0) return false;
    std::this_thread::sleep_for(pause_);
    left_ -= pause_;
    pause_ = std::min(2 * pause_, std::chrono::milliseconds(200));
    return true;
  }

 private:
  std::chrono::milliseconds left_;
  std::chrono::milliseconds pause_{5};
};

class ClientImpl final : public Client {
 public:
  explicit ClientImpl(const ClientOptions& options)
      : ids_(options.channels), limit_(options.channels) {
    state_.options = options;
  }
  Status start();
  Result<MetadataReply> call_named(const MetadataRequest& request, std::uint32_t uid,
                                   std::uint32_t gid, const RequestName* name) override;
  Status run(std::span<DataCall> calls) override;
  Status check_reachable(std::chrono::milliseconds timeout) override;
  std::uint64_t connection(std::uint32_t target) override;
  void watch(int wake_fd, std::chrono::milliseconds timeout) override;
  [[nodiscard]] ClientCounters counters() const override;

 private:
  /// A channel for the length of one call.
  class Loan {
   public:
    Loan(ClientImpl& client, std::unique_ptr<Channel> channel)
        : client_(&client), channel_(std::move(channel)) {}
    Loan(Loan&&) = default;
    ~Loan() {
      if (channel_) client_->give_back(std::move(channel_));
    }
    Channel* operator->() const { return channel_.get(); }

   private:
    ClientImpl* client_;
    std::unique_ptr<Channel> channel_;
  };
  std::string execute_data(Channel& channel, std::span<DataCall> calls);
  Result<Loan> borrow();
  void give_back(std::unique_ptr<Channel> channel);

  ClientState state_;
  RequestIds ids_;
  std::atomic<std::uint64_t> metadata_calls_{0}, data_calls_{0};
  const unsigned limit_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Channel>>
      idle_;  ///< Protected by mutex_. Taken from the end, the last used first: its caches are warm.
  unsigned created_ = 0;  ///< Protected by mutex_.
};

Status ClientImpl::start() {
  const ClientOptions& options = state_.options;
  if (options.cluster_id.size() != sizeof(wire::Hello::cluster_id))
    return Error{EINVAL, "cluster id '" + options.cluster_id + "' is not 32 hex digits"};
  if (options.channels == 0) return Error{EINVAL, "a client needs at least one channel"};
  const auto add = [this](const std::string& address, wire::Service service, std::string name) {
    auto target = std::make_unique<Target>();
    target->address = address;
    target->service = service;
    target->name = std::move(name);
    state_.targets.push_back(std::move(target));
    return split_address(address);
  };
  for (std::size_t i = 0; i < options.data.size(); ++i)
    if (auto parts = add(options.data[i], wire::kData, "data target " + std::to_string(i)); !parts)
      return parts.error();
  if (!options.meta.empty())
    if (auto parts = add(options.meta, wire::kMetadata, "meta target"); !parts)
      return parts.error();
  auto context = UcxContext::create(options.device);
  if (!context) return context.error();
  state_.context = *context;
  return {};
}

Result<ClientImpl::Loan> ClientImpl::borrow() {
  std::unique_lock lock(mutex_);
  returned_.wait(lock, [this] { return !idle_.empty() || created_ < limit_; });
  if (!idle_.empty()) {
    auto channel = std::move(idle_.back());
    idle_.pop_back();
    return Loan(*this, std::move(channel));
  }
  const unsigned index = created_++;
  lock.unlock();
  auto channel = Channel::create(state_, index);
  if (channel) return Loan(*this, std::move(*channel));
  spdlog::error("rpc: no channel: {}", channel.error().message);
  lock.lock();
  // An index in the middle would be used twice: then the pool stays one smaller.
  if (index + 1 == created_) --created_;
  returned_.notify_one();
  return channel.error();
}

void ClientImpl::give_back(std::unique_ptr<Channel> channel) {
  {
    std::lock_guard lock(mutex_);
    // One that gave up comes last: a target may be away for it alone.
    idle_.insert(channel->gave_up() ? idle_.begin() : idle_.end(), std::move(channel));
  }
  returned_.notify_one();
}

Result<MetadataReply> ClientImpl::call_named(const MetadataRequest& request, std::uint32_t uid,
                                             std::uint32_t gid, const RequestName* name) {
  if (state_.options.meta.empty()) return Error{EINVAL, "no meta target"};
  auto loan = borrow();
  if (!loan) return loan.error();
  Channel& channel = *loan->operator->();
  auto id = ids_.begin(channel.index());
  if (name != nullptr) id = {name->id, name->lowest_unanswered};
  struct End {
    RequestIds& ids;
    unsigned index;
    ~End() { ids.end(index); }
  } end{ids_, channel.index()};
  auto encoded = encode_request({.session = state_.options.session,
                                 .request_id = id.id,
                                 .lowest_unanswered = id.lowest_unanswered,
                                 .uid = uid,
                                 .gid = gid},
                                request);
  if (!encoded) return encoded.error();
  metadata_calls_.fetch_add(1, std::memory_order_relaxed);
  for (Learning learning(state_.options.give_up);;) {
    Bytes reply_bytes;
    Flight flight;
    flight.kind = Flight::Kind::metadata;
    flight.target = static_cast<std::uint32_t>(state_.targets.size() - 1);
    flight.request = *encoded;
    flight.reply = &reply_bytes;
    std::string reason = channel.execute({&flight, 1}, state_.options.give_up);
    if (flight.state == Flight::State::failed) return Error{flight.error, std::move(reason)};
    auto reply = decode_reply(reply_bytes);
    if (!reply) {
      spdlog::error("rpc: the meta target sent a bad reply: {}", reply.error().message);
      return reply.error();
    }
    if (reply->error == kLearning) {
      if (learning.wait()) continue;
      return Error{EIO, kStillLearning};
    }
    if (reply->error != 0) return Error{reply->error, {}};
    reply->boot = flight.boot;
    return reply;
  }
}

Status ClientImpl::run(std::span<DataCall> calls) {
  const std::size_t targets = state_.options.data.size();
  const bool with_meta = !state_.options.meta.empty();
  for (DataCall& call : calls) {
    const bool sessions = call.request.op == static_cast<std::uint16_t>(DataOp::sessions);
    call.request.session = state_.options.session;
    call.request.request_id = ids_.untracked();
    call.error = EIO;
    if (call.target >= targets + (sessions && with_meta ? 1 : 0))
      return Error{EINVAL, "no such data target"};
    DISTFUSE_TRY(
        check_data_request(call.request, sends_bulk(call.request.op) ? call.request.length : 0));
  }
  auto loan = borrow();
  if (!loan) return loan.error();
  Channel& channel = *loan->operator->();
  data_calls_.fetch_add(calls.size(), std::memory_order_relaxed);
  const std::string reason = execute_data(channel, calls);
  Status result;
  for (std::size_t i = calls.size(); i-- > 0;)
    if (calls[i].error != 0) result = Error{calls[i].error, calls[i].error == EIO ? reason : ""};
  return result;
}

/// Runs them, and again those whose target is learning. Answers with the reason of the last failure.
std::string ClientImpl::execute_data(Channel& channel, std::span<DataCall> calls) {
  auto& flights = channel.scratch;
  flights.assign(calls.size(), Flight{});
  for (std::size_t i = 0; i < calls.size(); ++i) flights[i].data = &calls[i];
  std::string reason;
  for (Learning learning(state_.options.give_up);;) {
    for (Flight& flight : flights) {
      DataCall* const call = flight.data;
      flight = Flight{};
      flight.kind = Flight::Kind::data;
      flight.target = call->target;
      flight.data = call;
    }
    std::string failure = channel.execute(flights, state_.options.give_up);
    if (!failure.empty()) reason = std::move(failure);
    for (const Flight& flight : flights)
      flight.data->error =
          flight.state == Flight::State::failed ? flight.error : flight.data->reply.error;
    std::erase_if(flights, [](const Flight& flight) { return flight.data->error != kLearning; });
    if (flights.empty()) return reason;
    if (learning.wait()) continue;
    for (const Flight& flight : flights) flight.data->error = EIO;
    return kStillLearning;
  }
}

std::uint64_t ClientImpl::connection(std::uint32_t target) {
  auto loan = borrow();
  return loan ? (*loan)->connection(target) : 0;
}

void ClientImpl::watch(int wake_fd, std::chrono::milliseconds timeout) {
  if (auto loan = borrow()) (*loan)->watch(wake_fd, timeout);
}

Status ClientImpl::check_reachable(std::chrono::milliseconds timeout) {
  auto loan = borrow();
  if (!loan) return loan.error();
  std::vector<Flight> flights(state_.targets.size());
  for (std::size_t i = 0; i < flights.size(); ++i)
    flights[i].target = static_cast<std::uint32_t>(i);
  std::string reason = (*loan)->execute(flights, timeout);
  for (const Flight& flight : flights)
    if (flight.state == Flight::State::failed) return Error{flight.error, reason};
  return {};
}

ClientCounters ClientImpl::counters() const {
  return {.metadata_calls = metadata_calls_,
          .data_calls = data_calls_,
          .connects = state_.connects,
          .retries = state_.retries,
          .failures = state_.failures};
}

}  // namespace

Result<std::unique_ptr<Client>> Client::create(const ClientOptions& options) {
  auto client = std::make_unique<ClientImpl>(options);
  DISTFUSE_TRY(client->start());
  return std::unique_ptr<Client>(std::move(client));
}

}  // namespace distfuse::rpc
