// SPDX-License-Identifier: Apache-2.0
#include "client/locks/table.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <thread>

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
    : options_(options),
      owner_(owner),
      gates_([this](const df_msg& freeze) { answer_freeze(freeze); }) {}

Status Table::open() {
  auto hello = make_hello(options_);
  if (!hello) return hello.error();
  auto fabric = fabric::open({options_.fabric_kind, options_.device});
  if (!fabric) return fabric.error();
  fabric_ = std::move(*fabric);
  auto control = Control::connect(*fabric_, options_.lockd, *hello, options_.connect_timeout);
  if (!control) {
    return Error{control.error().code,
                 "no session with lockd at " + options_.lockd + ": " + control.error().message +
                     ": start distfuse-lockd there, or correct [lockd] in the cluster file"};
  }
  welcome_ = (*control)->welcome();
  geometry_ = df_table{welcome_.buckets, welcome_.overflow, welcome_.node};

  df_hello lane_hello = *hello;
  lane_hello.role = DF_ROLE_LANE;
  lane_hello.session = welcome_.session;
  std::memset(lane_hello.name, 0, sizeof(lane_hello.name));
  lanes_ = std::make_unique<LanePool>(*fabric_, options_.lockd, lane_hello, options_.lanes,
                                      options_.connect_timeout);
  // The first lane now: what keeps lanes from being opened is told at the start.
  if (auto lane = lanes_->borrow(); !lane) return lane.error();

  // Of what lockd lets us have unanswered: half for locks, a quarter each for file locks that wait and for short calls.
  const unsigned asks = std::max(welcome_.asks, 4u);
  ask_credits_ = std::make_unique<Credits>(asks / 2);
  wait_credits_ = std::make_unique<Credits>(asks / 4);
  call_credits_ = std::make_unique<Credits>(asks / 4);
  control_ = std::move(*control);
  requests_ = std::make_unique<Requests>(*control_);
  revokers_ = std::make_unique<Revokers>(options_.revokers, [this](RevokerJob& job) { work(job); });
  control_->start(*this);
  return {};
}

Table::~Table() {
  if (revokers_ != nullptr) {
    const std::size_t left = lost_ ? 0 : drop_all();
    if (left != 0)
      spdlog::error("locks: {} locks were still in use at the end:\n{}", left, describe());
    if (left == 0 && !lost_) control_->say_bye(std::chrono::seconds(2));
    revokers_->stop();
  }
  control_.reset();
  lanes_.reset();
}

SessionInfo Table::session() const {
  return {welcome_.session, welcome_.node, welcome_.incarnation};
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

void Table::answer_unknown(const df_msg& message) {
  df_msg reply;
  if (df_client_unknown(&message, &reply) == 1) control_->send(reply);
}

/// Control thread, or the last to leave a slot gate.
void Table::answer_freeze(const df_msg& message) {
  if (!deliver(message)) control_->fail("lockd sent a Freeze that has no place here");
}

LockRef Table::lock_of_key(df_u64 key) {
  const Ino ino = df_key_split_inode(key);
  return df_key_inode(ino) == key ? locks_.find(ino) : nullptr;  // Extents: nothing is held.
}

bool Table::feed(Lock& lock, const df_msg& message, const df_value* publish) {
  df_out out;
  df_chain chain;
  if (df_lock_message(&lock.core, &message, publish, &out) != 0) return false;
  if (perform(lock, out, chain)) {
    revokers_->push(
        {RevokerJob::Kind::chain, lock.shared_from_this(), std::make_unique<df_chain>(chain)});
  }
  return true;
}

bool Table::deliver(const df_msg& message) {
  const auto lock = lock_of_key(message.head.key);
  if (lock != nullptr) {
    const std::lock_guard guard(lock->mutex);
    return feed(*lock, message, nullptr);
  }
  if (message.head.type == DF_MSG_GRANT || message.head.type == DF_MSG_FOUND) return false;
  answer_unknown(message);
  return true;
}

bool Table::receive_glimpse(const df_msg& message) {
  const auto lock = lock_of_key(message.head.key);
  if (lock == nullptr) {
    answer_unknown(message);
    return true;
  }
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
  if (!block || lock->holds != holds) return feed(*lock, message, nullptr);
  const df_value value{block->size, static_cast<df_u64>(block->mtime_ns),
                       static_cast<df_u64>(block->ctime_ns), 0};
  return feed(*lock, message, &value);
}

bool Table::receive(const df_msg& message) {
  const df_msg_head& head = message.head;
  switch (head.type) {
    case DF_MSG_GLIMPSE_REPLY:
    case DF_MSG_FILE_REPLY:
      return requests_->answer(message);
    case DF_MSG_FOUND:
      if (Requests::is_ours(head.seq)) return requests_->answer(message);
      break;
    case DF_MSG_THAW:
      gates_.thaw(head.slot);
      return true;
    case DF_MSG_FREEZE:
      gates_.freeze(message);
      return true;
    case DF_MSG_GLIMPSE:
      return receive_glimpse(message);
    default:
      break;
  }
  return deliver(message);
}

void Table::lost(const std::string& reason) {
  lost_ = true;
  locks_.close();
  lanes_->close();
  gates_.close();
  requests_->close();
  for (const auto& lock : locks_.all()) {
    const std::lock_guard guard(lock->mutex);
    df_out out;
    df_chain chain;
    ++lock->holds;
    lock->shed.active = false;
    df_lock_session_lost(&lock->core, &out);
    (void)perform(*lock, out, chain);  // Only wakes.
    lock->changed.notify_all();
  }
  owner_.session_lost(reason);
}

void Table::abandon(const std::string& reason) {
  session_failed(Error{ENOTCONN, reason});
}

void Table::session_failed(const Error& error) {
  lanes_->close();  // Nothing may be posted again whose first outcome is not known.
  if (!lost_) control_->fail(error.message);
}

}  // namespace distfuse::client
