// SPDX-License-Identifier: Apache-2.0
#include "client/locks/table.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <thread>
#include <utility>

namespace distfuse::client {

namespace {

Status parse_cluster_id(const std::string& text, df_u8 (&id)[DF_CLUSTER_ID_BYTES]) {
  if (text.size() == 2 * DF_CLUSTER_ID_BYTES) {
    std::size_t i = 0;
    for (; i < DF_CLUSTER_ID_BYTES; ++i) {
      const char* first = text.data() + 2 * i;
      if (std::from_chars(first, first + 2, id[i], 16).ptr != first + 2) break;
    }
    if (i == DF_CLUSTER_ID_BYTES) return {};
  }
  return Error{EINVAL, "a cluster id has 32 hex digits, not \"" + text + "\""};
}

Result<df_hello> make_hello(const LockTableOptions& options) {
  df_hello hello{};
  hello.magic = DF_WIRE_MAGIC;
  hello.version = DF_WIRE_VERSION;
  hello.role = DF_ROLE_CONTROL;
  DISTFUSE_TRY(parse_cluster_id(options.cluster_id, hello.cluster));
  std::memcpy(hello.name, options.mount_name.data(),
              std::min(options.mount_name.size(), sizeof(hello.name) - 1));
  return hello;
}

}  // namespace

Result<std::unique_ptr<LockTable>> LockTable::create(const LockTableOptions& options,
                                                     CacheOwner& owner) {
  return Table::create(options, owner);
}

Result<std::unique_ptr<LockTable>> Table::create(const LockTableOptions& options,
                                                 CacheOwner& owner) {
  if (options.lanes == 0 || options.revokers == 0 || options.max_locks == 0) {
    return Error{EINVAL, "lanes, revokers and max_locks are at least 1"};
  }
  std::unique_ptr<Table> table(new Table(options, owner));
  DISTFUSE_TRY(table->open());
  return std::unique_ptr<LockTable>(std::move(table));
}

Table::Table(const LockTableOptions& options, CacheOwner& owner)
    : options_(options), owner_(owner) {}

Status Table::open() {
  auto hello = make_hello(options_);
  if (!hello) return hello.error();
  auto fabric = fabric::open({options_.fabric_kind, options_.device});
  if (!fabric) return fabric.error();
  fabric_ = std::move(*fabric);
  constexpr int kFirstAttempts = 3;
  auto control = Control::connect(*fabric_, options_.lockd, *hello, options_.connect_timeout);
  for (int i = 1; i < kFirstAttempts && !control && control.error().code == ETIMEDOUT; ++i)
    control = Control::connect(*fabric_, options_.lockd, *hello, options_.connect_timeout);
  if (!control) {
    return Error{control.error().code,
                 "no session with lockd at " + options_.lockd + ": " + control.error().message +
                     ": start distfuse-lockd there, or correct [lockd] in the cluster file"};
  }
  welcome_ = (*control)->welcome();
  lane_hello_ = *hello;
  df_hello_join(&lane_hello_, DF_ROLE_LANE, welcome_.session, welcome_.token);
  const df_welcome& welcome = welcome_;
  geometries_.push_back({welcome.buckets, welcome.overflow, welcome.node});
  locks_.enter(0, geometries_.back(), false);
  auto link = make_link(std::move(*control), 0);
  // The first lane now: what keeps lanes from being opened is told at the start.
  if (auto lane = link->lanes->borrow(); !lane) return lane.error();

  // Of what lockd lets us have unanswered: half for locks, a quarter each for file locks that wait and for short calls.
  const unsigned asks = std::max(welcome_.asks, 4u);
  ask_credits_ = std::make_unique<Credits>(asks / 2);
  wait_credits_ = std::make_unique<Credits>(asks / 4);
  call_credits_ = std::make_unique<Credits>(asks / 4);
  link_ = link;
  live_ = true;
  keeper_ = std::make_unique<SessionKeeper>(
      *fabric_,
      SessionKeeper::Options{options_.lockd, *hello, options_.connect_timeout, options_.give_up},
      *this);
  revokers_ = std::make_unique<Revokers>(options_.revokers, [this](RevokerJob& job) { work(job); });
  holds_ = std::make_unique<HoldTimer>([this](Lock& lock) { hold_ended(lock); });
  DISTFUSE_TRY(keeper_->begin(*link->control));
  link->start();
  return {};
}

/// Its end: everything is given up, lockd is told, then every thread ends.
Table::~Table() {
  ending_ = true;
  LinkRef link;
  std::size_t left = 1;
  if (revokers_ != nullptr && !lost_ && live_) {
    left = drop_all();
    if (left != 0)
      spdlog::error("locks: {} locks were still in use at the end:\n{}", left, describe());
  }
  if (keeper_ != nullptr) keeper_->stop();
  {
    const std::lock_guard lock(link_mutex_);
    link = link_;
  }
  if (link != nullptr) {
    if (left == 0 && !lost_ && live_) link->control->say_bye(std::chrono::seconds(2));
    link->close();
    link.reset();
  }
  if (holds_ != nullptr) holds_->stop();
  if (reasserter_.joinable()) reasserter_.join();
  if (sweeper_.joinable()) sweeper_.join();
  if (revokers_ != nullptr) revokers_->stop();
  reap_links(true);
}

SessionInfo Table::session() const {
  SessionInfo info;
  info.session = welcome_.session;
  info.node_id = welcome_.node;
  info.incarnation = keeper_->incarnation();
  info.state = state_name(keeper_->state());
  info.lease_ms = keeper_->lease_ms();
  info.trusted_ms = keeper_->trust_left();
  info.reconnects = keeper_->reconnects();
  info.forfeited = forfeited_;
  info.file_locks = granted_.size();
  return info;
}

LockCounters Table::counters() const {
  const auto read = [](const std::atomic<std::uint64_t>& value) {
    return value.load(std::memory_order_relaxed);
  };
  LockCounters counters;
  counters.hits = const_cast<LockMap&>(locks_).hits();
  counters.free_takes = read(counts_.free_takes);
  counters.asks = read(counts_.asks);
  counters.revokes = read(counts_.revokes);
  counters.sweeps = read(counts_.sweeps);
  counters.resweeps = read(counts_.resweeps);
  counters.glimpses = read(counts_.glimpses);
  counters.finds = read(counts_.finds);
  counters.held = read(counts_.held);
  return counters;
}

std::string Table::describe() {
  std::string text;
  for (const auto& lock : locks_.all()) {
    const std::lock_guard guard(lock->mutex);
    const df_lock& core = lock->core;
    if (df_lock_quiet(&core) != 0 && lock->waiters.empty()) continue;
    const Shed& shed = lock->shed;
    text += fmt::format(
        "  inode {}: held {} target {} want {} chain {} gate {} pins {} asked {} finding {} "
        "next_seq {} slot {}; waiters {}; shed: active {} queued {} sweeping {} swept {} keep {} "
        "guests {} admitted {}\n",
        lock->ino, core.held, core.target, core.want, core.chain, core.gate, core.pins,
        static_cast<unsigned>(core.asked), static_cast<unsigned>(core.finding), core.next_seq,
        core.slot, lock->waiters.size(), shed.active, shed.queued, shed.sweeping, shed.swept,
        to_core(shed.keep), shed.guests, shed.admitted.size());
  }
  return text;
}

// --- what lockd sends -------------------------------------------------------------------------

/// Control thread, or the last to leave a slot gate.
void Table::answer_freeze(Link& link, const df_msg& message) {
  if (!deliver(link, message)) link.control->fail("lockd sent a Freeze that has no place here");
}

LockRef Table::lock_of_key(df_u64 key) {
  const Ino ino = df_key_split_inode(key);
  return df_key_inode(ino) == key ? locks_.find(ino) : nullptr;  // Extents: nothing is held.
}

/// With the lock's mutex.
bool Table::feed(Link& link, Lock& lock, const df_msg& message, const df_value* publish) {
  if (lock.epoch != link.epoch) return true;  // Of a table that is gone.
  if (message.head.type == DF_MSG_REVOKE && hold_back(lock, message)) return true;
  return feed_now(lock, message, publish);
}

/// With the lock's mutex. Whether the Revoke is kept for later.
bool Table::hold_back(Lock& lock, const df_msg& message) {
  if (!options_.hold_time) return false;
  if (lock.held_back.empty()) {
    if (lock.core.held == DF_NL || lock.core.gate != DF_GATE_OPEN) return false;
    const std::uint64_t now = now_us();
    const std::uint64_t at = df_hold_revoked(&lock.hold, lock.core.held, now);
    if (at <= now) return false;
    holds_->set(lock.shared_from_this(), at);
  }
  lock.held_back.push_back(message);
  return true;
}

/// With the lock's mutex: the hold time is up, or the lock is given up anyway. false: lockd sent what has no place.
bool Table::hand_over(Lock& lock) {
  for (const auto& message : std::exchange(lock.held_back, {})) {
    if (!feed_now(lock, message, nullptr)) return false;
  }
  return true;
}

void Table::hold_ended(Lock& lock) {
  const std::lock_guard guard(lock.mutex);
  if (!lock.held_back.empty() && lock.core.gate == DF_GATE_OPEN) {
    const std::uint64_t now = now_us();
    const std::uint64_t at = df_hold_revoked(&lock.hold, lock.core.held, now);
    if (at > now) {
      holds_->set(lock.shared_from_this(), at);
      return;
    }
  }
  if (hand_over(lock)) return;
  if (const LinkRef link = link_of(lock.epoch))
    link->control->fail("lockd sent a Revoke that has no place here");
}

/// With the lock's mutex.
bool Table::feed_now(Lock& lock, const df_msg& message, const df_value* publish) {
  df_out out;
  Due due;
  if (df_lock_message(&lock.core, &message, publish, &out) != 0) return false;
  if (perform(lock, out, due)) run_later(lock, due);
  return true;
}

bool Table::deliver(Link& link, const df_msg& message) {
  const auto lock = lock_of_key(message.head.key);
  if (lock != nullptr) {
    const std::lock_guard guard(lock->mutex);
    return feed(link, *lock, message, nullptr);
  }
  if (message.head.type == DF_MSG_GRANT || message.head.type == DF_MSG_FOUND) return false;
  df_msg reply;
  if (df_client_unknown(&message, &reply) == 1) link.control->send(reply);
  return true;
}

bool Table::receive_glimpse(Link& link, const df_msg& message) {
  const auto lock = lock_of_key(message.head.key);
  if (lock == nullptr) return deliver(link, message);
  std::uint64_t holds = 0;
  bool held = false;
  {
    const std::lock_guard guard(lock->mutex);
    holds = lock->holds;
    held = lock->core.held == DF_X;
  }
  const auto block = held ? owner_.publish(lock->ino) : std::nullopt;
  const std::lock_guard guard(lock->mutex);
  // Given up and taken again since: what the owner said was of the hold before.
  if (!block || lock->holds != holds) return feed(link, *lock, message, nullptr);
  const df_value value{block->size, static_cast<df_u64>(block->mtime_ns),
                       static_cast<df_u64>(block->ctime_ns), 0};
  return feed(link, *lock, message, &value);
}

bool Table::receive(Link& link, const df_msg& message) {
  const df_msg_head& head = message.head;
  switch (head.type) {
    case DF_MSG_GLIMPSE_REPLY:
    case DF_MSG_FILE_REPLY:
      return link.requests.answer(message);
    case DF_MSG_FOUND:
      if (Requests::is_ours(head.seq)) return link.requests.answer(message);
      break;
    case DF_MSG_THAW:
      link.gates.thaw(head.slot);
      return true;
    case DF_MSG_FREEZE:
      link.gates.freeze(message);
      return true;
    case DF_MSG_GLIMPSE:
      return receive_glimpse(link, message);
    case DF_MSG_RESUME:
      keeper_->resumed(link.epoch);
      return true;
    default:
      break;
  }
  return deliver(link, message);
}

void Table::abandon(const std::string& reason) {
  const std::lock_guard lock(link_mutex_);
  if (link_ != nullptr) link_->control->fail(reason);
}

}  // namespace distfuse::client
