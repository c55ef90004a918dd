// SPDX-License-Identifier: Apache-2.0
#include "lockd/testing/raw_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "lockd/daemon.h"

namespace distfuse::lockd::testing {

using Clock = std::chrono::steady_clock;

namespace {
constexpr std::uint64_t kRenewal = ~0ULL;  ///< Cookie.
}

Result<std::unique_ptr<RawClient>> RawClient::connect(const RawClientOptions& options) {
  std::unique_ptr<RawClient> client(new RawClient(options));
  DISTFUSE_TRY(client->start());
  return client;
}

RawClient::~RawClient() {
  lane_.reset();
  control_.reset();
}

Result<std::unique_ptr<fabric::Connection>> RawClient::connect_as(df_role role,
                                                                  std::uint64_t session,
                                                                  const SessionToken& token) {
  df_hello hello{};
  hello.magic = DF_WIRE_MAGIC;
  hello.version = options_.version;
  hello.role = role;
  const auto cluster = parse_cluster_id(options_.cluster_id);
  if (!cluster.ok()) return cluster.error();
  std::memcpy(hello.cluster, cluster->data(), cluster->size());
  if (session != 0)
    df_hello_join(&hello, role, session, token.data());
  else
    options_.name.copy(reinterpret_cast<char*>(hello.name), sizeof hello.name - 1);
  answer_.reset();
  auto connection =
      worker_->connect(options_.lockd, std::as_bytes(std::span(&hello, 1)), options_.timeout);
  if (!connection.ok()) return connection.error();
  if (!run_until([&] { return answer_.has_value(); }, options_.timeout + milliseconds(1000)))
    return Error{ECONNREFUSED, trouble_.empty() ? "no answer" : trouble_};
  if (answer_->refusal != DF_ACCEPTED)
    return Error{EPERM, fmt::format("refusal {}", answer_->refusal)};
  return connection;
}

Status RawClient::start() {
  auto fabric = fabric::open(options_.fabric);
  if (!fabric.ok()) return fabric.error();
  fabric_ = std::move(fabric).value();
  auto worker = fabric_->create_worker(*this);
  if (!worker.ok()) return worker.error();
  worker_ = std::move(worker).value();
  auto memory = worker_->allocate(sizeof(Buffer) * fabric::kMaxOutstanding + sizeof lease_value_);
  if (!memory.ok()) return memory.error();
  lease_memory_ = memory->data() + sizeof(Buffer) * fabric::kMaxOutstanding;
  buffers_ = new (memory->data()) Buffer[fabric::kMaxOutstanding];
  for (std::uint64_t i = 0; i < fabric::kMaxOutstanding; ++i) free_.push_back(i);
  auto control = connect_as(DF_ROLE_CONTROL, options_.session, options_.token);
  if (!control.ok()) return control.error();
  control_ = std::move(control).value();
  welcome_ = *answer_;
  table_ = {welcome_.buckets, welcome_.overflow, welcome_.node};
  auto lane = connect_as(DF_ROLE_LANE,
                         options_.lane_session != 0 ? options_.lane_session : welcome_.session,
                         options_.lane_token.value_or(token()));
  if (!lane.ok()) return lane.error();
  lane_ = std::move(lane).value();
  if (lane_->remote_region_length() < df_table_bytes(&table_))
    return Error{EPROTO, "the table is too short"};
  return {};
}

// ---- event loop

bool RawClient::run_until(const std::function<bool()>& done, milliseconds timeout) {
  const auto until = Clock::now() + timeout;
  bool counted = false;
  while (!done()) {
    if (lost_) return false;
    renew();
    while (!outgoing_.empty() && control_ != nullptr) {
      const auto& message = outgoing_.front();
      const auto status =
          control_->send(std::as_bytes(std::span(message.bytes, message.head.length)));
      if (!status.ok() && status.error().code == EAGAIN) break;
      outgoing_.pop_front();
    }
    for (auto& [key, lock] : locks_)
      if (lock.retry) ask_again(lock);
    if (worker_->progress()) {
      counted = false;
      continue;
    }
    if (done()) return true;
    const auto now = Clock::now();
    if (now >= until) return false;
    // Sleeps only after an idle turn, so that short operations do not pay for a system call.
    if (counted)  // Short enough for a renewal in time.
      worker_->wait(std::min(milliseconds(5), std::chrono::ceil<milliseconds>(until - now)));
    counted = true;
  }
  return true;
}

/// Every quarter of the lease, one WRITE.
void RawClient::renew() {
  if (!renews_ || renewing_ || Clock::now() < renew_at_ || lane_ == nullptr) return;
  lease_value_ += 0x9e3779b97f4a7c15ULL;
  std::memcpy(lease_memory_, &lease_value_, sizeof lease_value_);
  const fabric::Operation write{fabric::Op::write, welcome_.lease_offset, lease_memory_,
                                sizeof lease_value_};
  if (const auto status = lane_->post(std::span(&write, 1), kRenewal); !status.ok()) return;
  renewing_ = true;
  renew_at_ = Clock::now() + milliseconds(welcome_.lease_ms / 4);
}

void RawClient::reclaimed() {
  df_msg message;
  df_msg_init(&message, DF_MSG_RECLAIMED, 0, 0, 0);
  send_message(message);
}

void RawClient::run_for(milliseconds time) {
  (void)run_until([] { return false; }, time);
}

void RawClient::on_connected(fabric::Connection& /*connection*/, std::span<const std::byte> data) {
  df_welcome welcome;
  if (const int check = df_welcome_check(data.data(), static_cast<df_u32>(data.size()), &welcome);
      check != DF_CHECK_OK && welcome.refusal == 0) {
    trouble_ = fmt::format("bad welcome: {}", df_check_text(check));
    welcome.refusal = DF_REFUSED_MALFORMED;
  }
  answer_ = welcome;
}

void RawClient::on_disconnect(fabric::Connection& /*connection*/, const Error& reason) {
  trouble_ = reason.message;
  lost_ = true;
}

// ---- locks

RawClient::Lock& RawClient::lock_of(std::uint64_t key) {
  const auto [it, fresh] = locks_.try_emplace(key);
  if (fresh) df_lock_init(&it->second.core, &table_, key);
  return it->second;
}

void RawClient::perform(Lock& lock, df_out& out) {
  const auto bits = out.wake;
  if (out.shed != 0) lock.shedding = true;
  if ((bits & DF_WAKE_GRANTED) != 0 && lock.wanted != DF_NL &&
      df_lock_pin_granted(&lock.core, lock.wanted) == DF_PIN_OK) {
    lock.wanted = DF_NL;
    lock.pinned = true;
  }
  for (unsigned i = 0; i < out.messages; ++i) send_message(out.message[i]);
  if (out.post != 0) submit(lock, out.chain);
  wake(lock, bits);
  if (lock.shedding) try_shed(lock);
}

void RawClient::wake(Lock& lock, std::uint32_t bits) {
  lock.wakes |= bits;
  if (lock.wanted == DF_NL) return;
  if ((bits & DF_WAKE_BUSY) != 0) lock.retry = true;
  if ((bits & DF_WAKE_GRANTED) != 0) ask_again(lock);  // Granted less than is wanted.
}

void RawClient::ask_again(Lock& lock) {
  lock.retry = false;
  if (lock.wanted == DF_NL) return;
  df_out out{};
  const int result = df_lock_want(&lock.core, lock.wanted, 0, &out);
  if (result == DF_WANT_HELD && df_lock_pin(&lock.core, lock.wanted) == DF_PIN_OK) {
    lock.wanted = DF_NL;
    lock.pinned = true;
    return;
  }
  perform(lock, out);
}

void RawClient::try_shed(Lock& lock) {
  if (df_lock_close_gate(&lock.core) != 0) return;
  lock.shedding = false;
  const auto keep = lock.core.keep;
  df_value value{lock.value, lock.value + 1, lock.value + 2, DF_VALUE_PUBLISHED};
  df_out out{};
  if (df_lock_shed_done(&lock.core, keep, lock.dirty ? &value : nullptr, &out) != 0) std::abort();
  lock.dirty = false;
  perform(lock, out);
}

void RawClient::want(std::uint64_t key, df_mode mode) {
  auto& lock = lock_of(key);
  if (df_lock_pin(&lock.core, mode) == DF_PIN_OK) {
    lock.pinned = true;
    return;
  }
  lock.wanted = mode;
  ask_again(lock);
}

bool RawClient::pinned(std::uint64_t key) {
  return lock_of(key).pinned;
}

bool RawClient::acquire(std::uint64_t key, df_mode mode, milliseconds timeout) {
  want(key, mode);
  auto& lock = lock_of(key);
  if (lock.pinned) return true;
  if (run_until([&] { return lock.pinned; }, timeout)) return true;
  if (lost_) return false;
  lock.wanted = DF_NL;
  df_out out{};
  df_lock_cancel(&lock.core, &out);
  perform(lock, out);
  return false;
}

void RawClient::unpin(std::uint64_t key) {
  auto& lock = lock_of(key);
  if (!lock.pinned) std::abort();
  lock.pinned = false;
  df_lock_unpin(&lock.core);
  if (lock.shedding) try_shed(lock);
}

bool RawClient::drop(std::uint64_t key, milliseconds timeout) {
  auto& lock = lock_of(key);
  const auto until = Clock::now() + timeout;
  while (lock.core.held != DF_NL && Clock::now() < until && !lost_) {
    df_out out{};
    const int begun = df_lock_drop(&lock.core, &out);
    if (begun == 1) return true;
    perform(lock, out);
    if (begun == 0)
      return run_until([&] { return lock.core.held == DF_NL && lock.core.chain == DF_CHAIN_NONE; },
                       timeout);
    run_for(milliseconds(1));
  }
  return lock.core.held == DF_NL;
}

df_mode RawClient::held(std::uint64_t key) {
  return static_cast<df_mode>(lock_of(key).core.held);
}
std::uint32_t RawClient::slot(std::uint64_t key) {
  return lock_of(key).core.slot;
}

std::uint64_t RawClient::value(std::uint64_t key) {
  auto& lock = lock_of(key);
  if (!lock.dirty) lock.value = lock.core.value.size;
  return lock.value;
}

void RawClient::set_value(std::uint64_t key, std::uint64_t value) {
  auto& lock = lock_of(key);
  if (lock.core.held != DF_X || !lock.pinned) std::abort();
  lock.value = value;
  lock.dirty = true;
}

// ---- chains

void RawClient::submit(Lock& lock, const df_chain& chain) {
  const bool parks = chain.kind == DF_CHAIN_TAKE || chain.kind == DF_CHAIN_RELEASE ||
                     chain.kind == DF_CHAIN_PUBLISH;
  if (parks && frozen_.contains(chain.slot)) {
    parked_.emplace_back(&lock, chain);
    return;
  }
  if (chain.kind == DF_CHAIN_TAKE || chain.kind == DF_CHAIN_RELEASE) ++inside_[chain.slot];
  if (free_.empty())
    unposted_.emplace_back(&lock, chain);
  else
    post(lock, chain);
}

void RawClient::post(Lock& lock, const df_chain& chain) {
  if (before_post) before_post(chain.kind);
  const auto index = free_.back();
  auto& buffer = buffers_[index];
  std::memcpy(buffer.bytes.data(), chain.bytes, buffer.bytes.size());
  std::array<fabric::Operation, DF_CHAIN_OPS> operations{};
  for (std::size_t i = 0; i < chain.count; ++i) {
    const auto& from = chain.op[i];
    auto& to = operations[i];
    to.offset = from.offset;
    to.length = from.length;
    to.operand = from.operand;
    to.expected = from.expected;
    to.local = reinterpret_cast<std::byte*>(&buffer.old);
    to.op = from.kind == DF_OP_CAS ? fabric::Op::compare_swap : fabric::Op::fetch_add;
    if (from.kind == DF_OP_READ) {
      to.op = fabric::Op::read;
      to.local = buffer.image.data();
    } else if (from.kind == DF_OP_WRITE) {
      to.op = fabric::Op::write;
      to.local = buffer.bytes.data() + from.data;
    }
  }
  const auto status = lane_->post(std::span(operations.data(), chain.count), index);
  if (!status.ok()) {
    lost_ = true;
    return;
  }
  free_.pop_back();
  posted_[index] = {&lock, chain.kind, chain.slot};
  if (after_post) after_post(chain.kind);
}

void RawClient::on_completion(fabric::Connection& /*connection*/, std::uint64_t cookie,
                              const Status& status) {
  if (!status.ok()) {
    lost_ = true;
    return;
  }
  if (cookie == kRenewal) {
    renewing_ = false;
    return;
  }
  const auto posted = posted_[cookie];
  const auto old = buffers_[cookie].old;
  alignas(df_slot) const auto image = buffers_[cookie].image;
  free_.push_back(cookie);
  df_out out{};
  const bool read = posted.kind == DF_CHAIN_FIND || posted.kind == DF_CHAIN_TAKE;
  df_lock_chain_done(&posted.lock->core, old, read ? image.data() : nullptr, &out);
  const bool undo_follows = out.post != 0 && out.chain.kind == DF_CHAIN_UNDO;
  perform(*posted.lock, out);
  const bool stay_ends = (posted.kind == DF_CHAIN_TAKE && !undo_follows) ||
                         posted.kind == DF_CHAIN_UNDO || posted.kind == DF_CHAIN_RELEASE;
  if (stay_ends) leave(posted.slot);
  if (!unposted_.empty() && !free_.empty()) {
    const auto [lock, chain] = unposted_.front();
    unposted_.pop_front();
    post(*lock, chain);
  }
}

void RawClient::leave(std::uint32_t slot) {
  if (--inside_.at(slot) != 0) return;
  inside_.erase(slot);
  const auto freeze = freeze_waits_.find(slot);
  if (freeze == freeze_waits_.end()) return;
  const auto message = freeze->second;
  freeze_waits_.erase(freeze);
  answer(message);
}

// ---- messages

void RawClient::send_message(const df_msg& message) {
  if (message.head.type == DF_MSG_ASK) ++asks;
  if (message.head.type == DF_MSG_FIND) ++finds;
  // A Freeze may follow the Welcome so closely that connect_as has not returned yet.
  if (outgoing_.empty() && control_ != nullptr) {
    const auto status =
        control_->send(std::as_bytes(std::span(message.bytes, message.head.length)));
    if (status.ok() || status.error().code != EAGAIN) return;
  }
  outgoing_.push_back(message);
}

Status RawClient::send_raw(std::span<const std::byte> bytes) {
  return control_->send(bytes);
}
Status RawClient::send_raw_on_lane(std::span<const std::byte> bytes) {
  return lane_->send(bytes);
}

void RawClient::on_message(fabric::Connection& /*connection*/, std::span<const std::byte> bytes) {
  df_msg message;
  if (df_msg_read(bytes.data(), static_cast<df_u32>(bytes.size()), &message) != DF_CHECK_OK ||
      df_msg_from_lockd(message.head.type) == 0)
    std::abort();
  if (on_any_message) on_any_message(message);
  if (message.head.type == DF_MSG_FILE_REPLY)
    file_replies_[message.head.seq] = message.file_reply;
  else if (message.head.type == DF_MSG_RESUME)
    resumed_ = true;
  else if (message.head.type == DF_MSG_GLIMPSE_REPLY)
    glimpse_replies_[message.head.seq] = message.glimpse_reply;
  else
    on_lock_message(message);
}

void RawClient::on_lock_message(const df_msg& message) {
  const auto slot = message.head.slot;
  if (message.head.type == DF_MSG_REVOKE) ++revokes;
  if (message.head.type == DF_MSG_THAW) {
    frozen_.erase(slot);
    freeze_waits_.erase(slot);
    std::deque<std::pair<Lock*, df_chain>> parked;
    parked.swap(parked_);
    for (const auto& [lock, chain] : parked) submit(*lock, chain);
    return;
  }
  if (message.head.type == DF_MSG_FREEZE) {
    ++freezes;
    frozen_.insert(slot);
    if (inside_.contains(slot)) {
      freeze_waits_[slot] = message;
      return;
    }
  }
  answer(message);
}

void RawClient::answer(const df_msg& message) {
  const auto found = locks_.find(message.head.key);
  if (found == locks_.end()) {
    df_msg reply;
    if (df_client_unknown(&message, &reply) == 1) send_message(reply);
    return;
  }
  auto& lock = found->second;
  df_value value{lock.value, lock.value + 1, lock.value + 2, DF_VALUE_PUBLISHED};
  df_out out{};
  if (df_lock_message(&lock.core, &message, lock.dirty ? &value : nullptr, &out) != 0) {
    lost_ = true;
    return;
  }
  perform(lock, out);
}

// ---- file locks, glimpse, end

std::uint64_t RawClient::file_send(df_msg_type type, std::uint64_t ino, std::uint64_t owner,
                                   df_file_type lock, std::uint8_t flags, std::uint64_t start,
                                   std::uint64_t end) {
  df_msg message;
  const auto seq = next_seq_++;
  df_msg_init(&message, type, 0, df_key_inode(ino), seq);
  message.file.owner = owner;
  message.file.start = start;
  message.file.end = end;
  message.file.pid = static_cast<df_s32>(owner);
  message.file.type = lock;
  message.file.flags = flags;
  send_message(message);
  return seq;
}

std::optional<df_msg_file_reply> RawClient::file_reply(std::uint64_t seq, milliseconds timeout) {
  if (!run_until([&] { return file_replies_.contains(seq); }, timeout)) return std::nullopt;
  return file_replies_.at(seq);
}

void RawClient::file_cancel(std::uint64_t seq) {
  df_msg message;
  df_msg_init(&message, DF_MSG_FILE_CANCEL, 0, 0, seq);
  send_message(message);
}

std::optional<df_msg_glimpse_reply> RawClient::glimpse(std::uint64_t key, milliseconds timeout) {
  const auto seq = next_seq_++;
  df_msg message;
  df_msg_init(&message, DF_MSG_GLIMPSE, slot(key), key, seq);
  send_message(message);
  if (!run_until([&] { return glimpse_replies_.contains(seq); }, timeout)) return std::nullopt;
  return glimpse_replies_.at(seq);
}

bool RawClient::bye() {
  for (auto& [key, lock] : locks_)
    if (!drop(key)) return false;
  // What a revoke began may still be on its way.
  const auto quiet = [&] {
    return std::ranges::all_of(
        locks_, [](const auto& each) { return df_lock_quiet(&each.second.core) != 0; });
  };
  if (!run_until(quiet, milliseconds(10000))) return false;
  df_msg message;
  df_msg_init(&message, DF_MSG_BYE, 0, 0, 0);
  send_message(message);
  // lockd closes the connection when it has seen the Bye.
  (void)run_until([] { return false; }, milliseconds(3000));
  return lost_;
}

}  // namespace distfuse::lockd::testing
