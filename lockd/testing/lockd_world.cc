// SPDX-License-Identifier: Apache-2.0
#include "lockd/testing/lockd_world.h"

#include <cstdio>
#include <cstdlib>

namespace distfuse::lockd::testing {

namespace {

void check(bool good, int line = __builtin_LINE()) {
  if (good) return;
  std::fprintf(stderr, "lockd_world.cc:%d: what must hold does not\n", line);
  std::abort();
}

}  // namespace

LockdWorld::LockdWorld(const Options& options) : choice_(options) {
  options_.table = kTable;
  options_.lease_ms = options.leases ? kLease : 0;
  options_.limits.sessions = {.sessions = 8, .lanes = 2, .node_ids = 12};
  options_.limits.asks = kKeys + 2;  // A request of each lock, two glimpses.
  options_.limits.waiters = 14;
  options_.limits.objects = 6;
  options_.limits.file_locks = {.locks_per_session = 8, .locks_total = 24, .waiters_total = 6};
  create({});
  for (std::size_t i = 0; i < kKeys; ++i) keys_.push_back(df_key_inode(1 + i));
  for (std::size_t i = 0; i < kHonest; ++i) join_honest();
  for (std::size_t i = 0; i < kHonest; ++i) lock_file(i, 0);
  distribute({});
}

void LockdWorld::create(const std::vector<ListedSession>& listed) {
  daemon_ = std::move(Daemon::create(options_, shell_)).value();
  daemon_->at(now_);
  daemon_->recover(listed);
}

// ---- the fabric

df_hello LockdWorld::hello_of() {
  df_hello hello{};
  hello.magic = DF_WIRE_MAGIC;
  hello.version = DF_WIRE_VERSION;
  hello.role = DF_ROLE_CONTROL;
  return hello;
}

df_hello LockdWorld::hello_of(df_role role, SessionId session, const SessionToken& token) {
  auto hello = hello_of();
  df_hello_join(&hello, role, session, token.data());
  return hello;
}

Greeting LockdWorld::hello(ConnectionId connection, const df_hello& hello, const char* peer) {
  auto greeting = daemon_->hello(connection, std::as_bytes(std::span(&hello, 1)), peer);
  if (greeting.verdict != Verdict::later) return greeting;
  distribute({});
  check(!shell_.greetings.empty() && shell_.greetings.back().first == connection);
  greeting = shell_.greetings.back().second;
  shell_.greetings.clear();
  return greeting;
}

void LockdWorld::deliver(ConnectionId connection, const df_msg& message) {
  daemon_->message(connection, std::as_bytes(std::span(message.bytes, message.head.length)));
}

void LockdWorld::distribute(const Hear& other) {
  while (!shell_.sent.empty() || !shell_.records.empty()) {
    const auto records = std::exchange(shell_.records, {});
    for (const auto& change : records) {
      if (change.kind == SessionChange::Kind::begin) list_[change.session.id] = change.session;
      if (change.kind == SessionChange::Kind::lost) list_[change.session.id].lost = true;
      if (change.kind == SessionChange::Kind::end)
        list_.erase(change.session.id);
      else
        daemon_->recorded(change.kind, change.session.id, true);
    }
    const auto sent = std::exchange(shell_.sent, {});
    for (const auto& [connection, message] : sent) {
      bool honest = false;
      for (auto& client : honest_) {
        if (client.away() || client.control() != connection) continue;
        client.hear(message);
        honest = true;
      }
      if (!honest && other) other(connection, message);
    }
  }
}

void LockdWorld::fence_one() {
  if (shell_.to_fence.empty()) return;
  const auto session = shell_.to_fence.front();
  shell_.to_fence.erase(shell_.to_fence.begin());
  daemon_->fenced(session);
}

// ---- time and restart

bool LockdWorld::coming_back() const {
  return std::any_of(honest_.begin(), honest_.end(),
                     [](const HonestClient& client) { return client.coming_back(); });
}

bool LockdWorld::knows_token(const df_hello& hello) const {
  return std::any_of(honest_.begin(), honest_.end(), [&](const HonestClient& client) {
    return client.session() == hello.session && client.token() == std::to_array(hello.token);
  });
}

void LockdWorld::pass_time(Milliseconds ms) {
  if (!choice_.leases) return;
  if (daemon_->phase() == Daemon::Phase::grace && coming_back())
    ms = std::min(ms, daemon_->grace_left() / 2);
  // Steps shorter than a lease: whoever renews is seen to.
  while (ms != 0) {
    const auto step = std::min<Milliseconds>(ms, kLease / 4);
    ms -= step;
    now_ += step;
    for (const auto& client : honest_)
      if (!client.away()) ++shell_.lease_words[static_cast<NodeId>(client.node())];
    daemon_->at(now_);
    daemon_->tick();
  }
}

bool LockdWorld::restart() {
  if (!choice_.leases) return false;
  distribute({});
  std::vector<ListedSession> listed;
  for (const auto& [id, session] : list_) listed.push_back(session);
  for (auto& client : honest_) client.detach();
  shell_.chains.clear();
  shell_.to_fence.clear();
  shell_.records.clear();
  shell_.sent.clear();
  shell_.lease_words.clear();
  for (std::uint32_t i = 0; i < shell_.slots.size(); ++i)
    df_lockd_prepare_slot(&shell_.slots[i], i);
  ++options_.incarnation;
  create(listed);
  return true;
}

void LockdWorld::come_back(HonestClient& honest) {
  if (!honest.away()) return;
  const auto connection = next_connection_++;
  const auto greeting =
      hello(connection, hello_of(DF_ROLE_CONTROL, honest.session(), honest.token()), "honest");
  check(greeting.verdict == Verdict::control);
  honest.rejoin(connection, greeting.welcome);
  lock_file(honest.node() - 1, DF_FILE_RECLAIM);
}

// ---- the honest

void LockdWorld::join_honest() {
  const auto connection = next_connection_++;
  const auto greeting = hello(connection, hello_of(), "honest");
  check(greeting.verdict == Verdict::control && greeting.welcome.node == honest_.size() + 1);
  honest_.emplace_back(shell_, connection, greeting.welcome, keys_);
}

/// Honest client i holds a write lock on bytes [100 i, 100 i + 99] of one file.
void LockdWorld::lock_file(std::size_t i, std::uint8_t flags) {
  df_msg lock;
  df_msg_init(&lock, DF_MSG_FILE_LOCK, 0, df_key_inode(kFileInode), 1);
  lock.file.owner = 1;
  lock.file.start = 100 * i;
  lock.file.end = 100 * i + 99;
  lock.file.type = DF_FILE_WRITE;
  lock.file.flags = flags;
  deliver(honest_[i].control(), lock);
}

void LockdWorld::honest_step(HonestClient& honest, std::size_t lock, std::uint8_t what) {
  static constexpr std::uint32_t kModes[] = {DF_S, DF_X, DF_X, DF_IX};
  switch (what % 8) {
    case 0:
      return honest.act(lock, kModes[what >> 6], (what & 0x20) != 0);
    case 1:
      return (void)honest.step_chain(lock);
    case 2:
      return (void)hear_from(honest);
    case 3:
      return (void)honest.step_inbox();
    case 4:
      return (void)(honest.step_shed(lock) || honest.step_freeze() || honest.step_reassert());
    case 5:
      return shell_.run_chains(*daemon_, what / 16U + 1U);
    case 6:
      for (unsigned i = 0; i < what / 16U + 1U && turn(); ++i) {
      }
      return;
    default:
      if (what >> 6 == 0) return honest.cancel(lock);
      if (what >> 6 == 1) return honest.drop(lock);
      if (what >> 6 == 2) return come_back(honest);
      return honest.glimpse(lock);
  }
}

bool LockdWorld::hear_from(HonestClient& honest) {
  const auto message = honest.say();
  if (message) deliver(honest.control(), *message);
  return message.has_value();
}

/// Everything that has begun moves on by one step; nothing new begins.
bool LockdWorld::turn() {
  bool moved = !shell_.chains.empty();
  shell_.run_chains(*daemon_, 1);
  for (auto& honest : honest_) {
    moved = hear_from(honest) || moved;
    distribute({});
    moved = honest.step_inbox() || moved;
    moved = honest.step_freeze() || moved;
    moved = honest.step_reassert() || moved;
    for (std::size_t i = 0; i < kKeys; ++i) {
      moved = honest.step_chain(i) || moved;
      moved = honest.step_shed(i) || moved;
    }
  }
  distribute({});
  return moved;
}

void LockdWorld::rest() {
  for (unsigned turns = 0; turn(); ++turns) check(turns < 20000);
}

/// Holders let go and those told BUSY ask again, until nobody waits.
void LockdWorld::settle() {
  for (unsigned round = 0; round < 200; ++round) {
    rest();
    bool waiting = false;
    for (auto& honest : honest_) {
      for (std::size_t i = 0; i < kKeys; ++i) {
        if (honest.quiet(i)) continue;
        waiting = waiting || honest.waits(i);
        honest.let_go(i);
      }
    }
    if (!waiting) break;
  }
  rest();
}

/// Each lock is had in X once by everyone, which puts right what the liars left, and dropped.
void LockdWorld::sweep() {
  for (std::size_t i = 0; i < kKeys; ++i) {
    for (auto& honest : honest_) {
      honest.let_go(i);
      rest();
      honest.act(i, DF_X, false);
      settle();
      check(!honest.waits(i));
      for (auto& other : honest_) {
        other.let_go(i);
        other.drop(i);
      }
      rest();
    }
  }
  const auto counters = daemon_->lock_counters();
  check(counters.waiters == 0 && counters.objects == 0);
  for (const auto& slot : shell_.slots)
    for (const auto key : keys_) check(slot.key != key || slot.word == 0);
}

void LockdWorld::finish() {
  for (auto& honest : honest_) come_back(honest);
  if (choice_.scribbled) return;
  // Fences are told, deadlines pass, grace ends.
  for (unsigned i = 0; i < 8; ++i) {
    rest();
    while (!shell_.to_fence.empty()) fence_one();
    distribute({});
    pass_time(kLease);
  }
  rest();
  check(daemon_->phase() == Daemon::Phase::normal && daemon_->sessions().all().size() == kHonest);
  settle();
  for (const auto& honest : honest_) {
    check(honest.live());
    for (std::size_t i = 0; i < kKeys; ++i) check(!honest.waits(i));
  }
  sweep();
}

// ---- what must hold

void LockdWorld::verify() const {
  const auto counters = daemon_->lock_counters();
  check(counters.waiters <= options_.limits.waiters);
  check(counters.objects <= options_.limits.objects);
  check(daemon_->file_locks().counts().locks <= options_.limits.file_locks.locks_total);
  for (const auto& [id, session] : daemon_->sessions().all())
    check(daemon_->requests(session) <= options_.limits.asks);
  if (choice_.scribbled) return;
  for (std::size_t i = 0; i < kHonest; ++i) verify_session(i);
  for (std::size_t key = 0; key < kKeys; ++key) verify_key(key);
}

void LockdWorld::verify_session(std::size_t i) const {
  const auto& honest = honest_[i];
  const auto* session = daemon_->sessions().find(honest.session());
  check(session != nullptr);
  check(honest.away() ? session->state == SessionState::absent
                      : session->joined() && session->control == honest.control());
  if (!liar_in_grace_) check(honest.forfeited() == 0);
  if (honest.away() || liar_in_grace_) return;
  FileLockRequest request;
  request.space = {kFileInode, false};
  request.owner = {1, 99};  // Nobody.
  request.start = 100 * i;
  request.end = 100 * i + 99;
  const auto conflict = daemon_->file_locks().test(request);
  check(conflict && conflict->owner.session == honest.session() &&
        conflict->start == request.start && conflict->end == request.end);
}

void LockdWorld::verify_key(std::size_t key) const {
  std::map<std::uint32_t, df_slot> needed;
  for (const auto& a : honest_) {
    for (const auto& b : honest_)
      check(&a == &b || df_compatible(a.effective(key), b.effective(key)) != 0);
    const auto held = a.holds(key);
    if (held.mode == DF_NL) continue;
    const auto& slot = shell_.slots[held.slot];
    check(slot.key == keys_[key]);
    if (held.mode == DF_X) check(df_word_owner(slot.word) == a.node());
    needed[held.slot].word += df_unit(held.mode, a.node());
  }
  check(needed.size() <= 1);  // One key, one slot.
  for (const auto& [index, sum] : needed) {
    const auto word = shell_.slots[index].word;
    check(df_word_is(word) >= df_word_is(sum.word));
    check(df_word_ix(word) >= df_word_ix(sum.word));
    check(df_word_s(word) >= df_word_s(sum.word));
  }
}

}  // namespace distfuse::lockd::testing
