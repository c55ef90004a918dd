// SPDX-License-Identifier: Apache-2.0
#include "client/locks/lane.h"

#include <spdlog/spdlog.h>

#include <cstring>
#include <optional>

#include "client/locks/welcome.h"

namespace distfuse::client {

namespace {

using Clock = std::chrono::steady_clock;
// A round trip to a neighbour takes less; sleeping costs a system call and a wake-up, some 50 µs.
constexpr std::chrono::microseconds kSpin{30};

fabric::Op op_of(std::uint8_t kind) {
  switch (kind) {
    case DF_OP_READ:
      return fabric::Op::read;
    case DF_OP_WRITE:
      return fabric::Op::write;
    case DF_OP_CAS:
      return fabric::Op::compare_swap;
    default:
      return fabric::Op::fetch_add;
  }
}

}  // namespace

Result<std::unique_ptr<Lane>> Lane::open(fabric::Fabric& fabric, const std::string& address,
                                         const df_hello& hello, std::chrono::milliseconds timeout) {
  std::unique_ptr<Lane> lane(new Lane);
  auto worker = fabric.create_worker(*lane);
  if (!worker) return worker.error();
  lane->worker_ = std::move(*worker);
  auto memory = lane->worker_->allocate(kChains * kStride);
  if (!memory) return memory.error();
  lane->memory_ = *memory;
  lane->done_.reserve(kChains);
  DISTFUSE_TRY(lane->connect(address, hello, timeout));
  return lane;
}

Status Lane::connect(const std::string& address, const df_hello& hello,
                     std::chrono::milliseconds timeout) {
  auto connection = worker_->connect(address, std::as_bytes(std::span(&hello, 1)), timeout);
  if (!connection) return connection.error();
  connection_ = std::move(*connection);
  while (!connected_ && error_.code == 0) {
    if (!worker_->progress()) worker_->wait(kLook);
  }
  if (error_.code != 0) return error_;
  return {};
}

Status Lane::post(const df_chain& chain, unsigned index) {
  if (error_.code != 0) return error_;
  std::byte* base = memory_.data() + index * kStride;
  std::memcpy(base + kSourceOffset, chain.bytes, DF_SLOT_SIZE);
  fabric::Operation operations[DF_CHAIN_OPS];
  for (unsigned i = 0; i < chain.count; ++i) {
    const df_op& from = chain.op[i];
    fabric::Operation& to = operations[i];
    to.op = op_of(from.kind);
    to.offset = from.offset;
    to.length = from.length;
    to.operand = from.operand;
    to.expected = from.expected;
    if (to.op == fabric::Op::read) {
      to.local = base + kImageOffset;
    } else {
      to.local = to.op == fabric::Op::write ? base + kSourceOffset + from.data : base;
    }
  }
  auto status = connection_->post({operations, chain.count}, index);
  if (status) ++in_flight_;
  return status;
}

Result<unsigned> Lane::next(const std::atomic<bool>& closed) {
  std::optional<Clock::time_point> spin_until;
  while (done_.empty()) {
    if (error_.code != 0) return error_;
    if (worker_->progress()) continue;
    const auto now = Clock::now();
    if (!spin_until) spin_until = now + kSpin;
    if (now < *spin_until) continue;
    if (closed.load(std::memory_order_relaxed)) return Error{ENOTCONN, "the session is lost"};
    worker_->wait(kLook);
  }
  const unsigned index = done_.back();
  done_.pop_back();
  --in_flight_;
  return index;
}

Result<std::optional<unsigned>> Lane::poll(std::chrono::milliseconds timeout) {
  if (done_.empty() && error_.code == 0 && !worker_->progress()) worker_->wait(timeout);
  if (!done_.empty()) {
    const unsigned index = done_.back();
    done_.pop_back();
    --in_flight_;
    return std::optional(index);
  }
  if (error_.code != 0) return error_;
  return std::optional<unsigned>{};
}

ChainResult Lane::result(unsigned index) const {
  const std::byte* base = memory_.data() + index * kStride;
  ChainResult result;
  std::memcpy(&result.old, base, sizeof(result.old));
  result.image = base + kImageOffset;
  return result;
}

Result<ChainResult> Lane::run(const df_chain& chain, const std::atomic<bool>& closed) {
  DISTFUSE_TRY(post(chain, 0));
  if (auto done = next(closed); !done) return done.error();
  return result(0);
}

void Lane::on_connected(fabric::Connection& /*connection*/, std::span<const std::byte> data) {
  auto welcome = read_welcome(data);
  if (!welcome) {
    error_ = welcome.error();
    return;
  }
  connected_ = true;
}

void Lane::on_message(fabric::Connection& /*connection*/, std::span<const std::byte> /*message*/) {
  error_ = Error{ENOTCONN, "lockd sent a message on a lane"};
}

void Lane::on_completion(fabric::Connection& /*connection*/, std::uint64_t cookie,
                         const Status& status) {
  if (!status) {
    error_ = Error{ENOTCONN, status.error().message};
    return;
  }
  done_.push_back(static_cast<unsigned>(cookie));
}

void Lane::on_disconnect(fabric::Connection& /*connection*/, const Error& reason) {
  if (error_.code == 0) error_ = Error{connected_ ? ENOTCONN : reason.code, reason.message};
}

LanePool::LanePool(fabric::Fabric& fabric, std::string address, const df_hello& hello,
                   unsigned limit, std::chrono::milliseconds connect_timeout)
    : fabric_(fabric),
      address_(std::move(address)),
      hello_(hello),
      connect_timeout_(connect_timeout),
      limit_(limit) {}

Result<LanePool::Loan> LanePool::borrow() {
  std::unique_lock lock(mutex_);
  while (true) {
    if (closed_) return Error{ENOTCONN, "the session is lost"};
    if (!idle_.empty()) {
      auto lane = std::move(idle_.back());
      idle_.pop_back();
      return Loan(this, std::move(lane));
    }
    if (open_ >= limit_) {
      returned_.wait(lock);
      continue;
    }
    ++open_;
    lock.unlock();
    auto lane = Lane::open(fabric_, address_, hello_, connect_timeout_);
    if (lane) return Loan(this, std::move(*lane));
    lock.lock();
    --open_;
    if (open_ == 0) return lane.error();
    limit_ = open_;
    spdlog::warn("locks: goes on with {} lanes: {}", limit_, lane.error().message);
  }
}

void LanePool::give_back(std::unique_ptr<Lane> lane) {
  const std::lock_guard lock(mutex_);
  if (lane->usable()) {
    idle_.push_back(std::move(lane));
  } else {
    --open_;
  }
  returned_.notify_one();
}

void LanePool::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  returned_.notify_all();
}

}  // namespace distfuse::client
