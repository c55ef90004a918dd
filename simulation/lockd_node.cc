// SPDX-License-Identifier: Apache-2.0
#include "simulation/lockd_node.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "simulation/storaged_node.h"
#include "simulation/world.h"

namespace distfuse::simulation {

LockdNode::LockdNode(World& world, unsigned index, unsigned number)
    : Process("lockd" + std::to_string(number), index), world_(world), number_(number) {
  table_ = {world.options.buckets, world.options.overflow, DF_NODE_LOCKD};
}

void LockdNode::start() {
  begin_life();
  const auto& o = world_.options;
  ++incarnation_;
  world_.note(*this, "starts", incarnation_);
  if (incarnation_ > 1) world_.reached(Branch::lockd_restarted);
  region_.assign(lockd::region_bytes(table_) / 8, 0);
  for (df_u32 i = 0; i < slot_count(); ++i)
    df_lockd_prepare_slot(reinterpret_cast<df_slot*>(region_.data()) + i, i);
  lockd::DaemonOptions options;
  options.incarnation = incarnation_;
  options.table = table_;
  options.limits.sessions.sessions = o.node_ids;
  options.limits.sessions.node_ids = static_cast<lockd::NodeId>(o.node_ids);
  options.limits.asks = o.keys + 8;
  options.limits.waiters = o.waiters;
  options.limits.objects = o.objects;
  options.lease_ms = static_cast<std::uint32_t>(o.lease_ms);
  auto daemon = lockd::Daemon::create(options, *this);
  if (!daemon.ok()) throw Violation("lockd does not start: " + daemon.error().message);
  daemon_ = std::move(*daemon);
  storage_.clear();
  storage_.resize(o.storageds);
  for (unsigned i = 0; i < o.storageds; ++i) connect_storage(i);
  std::vector<lockd::ListedSession> listed;
  for (const auto& [id, session] : list_) listed.push_back(session);
  // The mutant: as if the list did not know how long the leases are.
  if (o.mutant == Mutant::grace_ends_early)
    for (auto& session : listed) session.lease_ms /= 16;
  tick_at_ = lockd::kNever;
  tell_time();
  daemon_->recover(listed);
  after_event();
}

void LockdNode::crash(bool power) {
  world_.note(*this, power ? "power lost" : "killed");
  world_.network.process_gone(*this, power);
  if (daemon_->phase() == lockd::Daemon::Phase::grace) world_.reached(Branch::lockd_lost_in_grace);
  // Of what was being appended some may have come to the disk.
  for (auto kept = world_.random.below(unsynced_.size() + 1); kept != 0; --kept) {
    apply(unsynced_.front());
    unsynced_.pop_front();
  }
  unsynced_.clear();
  end_life();
  daemon_.reset();
  region_.clear();
  loop_.clear();
  loop_done_.clear();
  storage_.clear();
  fences_.clear();
  freezing_.clear();
  rekeys_ = repairs_ = expired_ = 0;
}

df_u8* LockdNode::at(std::uint64_t offset, std::uint64_t length) {
  if (offset + length > region_.size() * 8)
    throw Violation("a one-sided operation outside of lockd's memory");
  return reinterpret_cast<df_u8*>(region_.data()) + offset;
}

// ---- connections

Acceptance LockdNode::greeted(ConnectionId connection, const Process& from, const Hello& hello,
                              Packet& answer) {
  tell_time();
  greeting_ = true;
  auto greeting = daemon_->hello(connection, std::as_bytes(std::span(&hello.lock, 1)), from.name());
  greeting_ = false;
  answer.welcome = greeting.welcome;
  world_.note(*this, "Hello", from.index(), static_cast<unsigned>(greeting.verdict),
              greeting.welcome.session);
  after_event();
  if (greeting.verdict == lockd::Verdict::later) return Acceptance::later;
  return greeting.verdict == lockd::Verdict::control || greeting.verdict == lockd::Verdict::lane
             ? Acceptance::accepted
             : Acceptance::refused;
}

void LockdNode::greet(lockd::ConnectionId connection, const lockd::Greeting& greeting) {
  Packet answer;
  answer.welcome = greeting.welcome;
  world_.network.answer(connection, greeting.verdict == lockd::Verdict::control, std::move(answer));
}

void LockdNode::connected(ConnectionId connection, const Packet&) {
  for (unsigned i = 0; i < storage_.size(); ++i) {
    if (storage_[i].connection != connection) continue;
    storage_[i].up = true;
    storage_[i].asked.clear();
    Packet packet;
    packet.call.op = StorageOp::sessions;
    packet.call.lockd = number_;
    packet.call.incarnation = incarnation_;
    packet.call.request = next_request_++;
    const auto live = daemon_->live_sessions();
    packet.call.ids = live.ids;
    packet.call.high = live.high;
    world_.network.send(connection, *this, std::move(packet));
    for (const auto& [session, left] : fences_)
      if (left.contains(i)) send_fence(i, session);
    return;
  }
}

void LockdNode::not_connected(ConnectionId connection, const Packet*) {
  for (unsigned i = 0; i < storage_.size(); ++i)
    if (storage_[i].connection == connection) connect_storage(i);
}

void LockdNode::received(ConnectionId connection, const Packet& packet) {
  for (unsigned i = 0; i < storage_.size(); ++i)
    if (storage_[i].connection == connection) {
      const auto it = storage_[i].asked.find(packet.reply.request);
      if (it == storage_[i].asked.end()) return;
      const auto session = it->second;
      storage_[i].asked.erase(it);
      return fence_answered(i, session);
    }
  if (forgotten(packet.lock)) return;
  tell_time();
  const auto lost = daemon_->counters().lost;
  const bool normal = daemon_->phase() == lockd::Daemon::Phase::normal;
  daemon_->message(connection,
                   std::as_bytes(std::span(packet.lock.bytes, packet.lock.head.length)));
  if (normal && daemon_->counters().lost != lost && world_.options.liars == 0)
    throw Violation(name() + " ends an honest session");
  if (packet.lock.head.type == DF_MSG_ASK && daemon_->waiters(packet.lock.head.slot).second > 2)
    world_.reached(Branch::waiters_queue_in_order);
  after_event();
}

void LockdNode::ended(ConnectionId connection, bool by_peer) {
  for (unsigned i = 0; i < storage_.size(); ++i)
    if (storage_[i].connection == connection) return connect_storage(i);
  tell_time();
  daemon_->connection_ended(connection, "the fabric says so", by_peer);
  after_event();
}

void LockdNode::send(lockd::ConnectionId connection, std::span<const std::byte> message) {
  Packet packet;
  std::memcpy(&packet.lock, message.data(), message.size());
  world_.note(*this, df_msg_name(packet.lock.head.type), packet.lock.head.key >> 24U,
              packet.lock.head.slot, packet.lock.head.seq);
  if (packet.lock.head.type == DF_MSG_FREEZE) {
    if (greeting_) world_.reached(Branch::joined_during_freeze);
    const auto [it, fresh] = freezing_.emplace(packet.lock.head.slot, packet.lock.head.seq);
    if (!fresh && it->second != packet.lock.head.seq) world_.reached(Branch::freeze_restarted);
    it->second = packet.lock.head.seq;
  } else if (packet.lock.head.type == DF_MSG_THAW) {
    freezing_.erase(packet.lock.head.slot);
  }
  world_.network.send(connection, *this, std::move(packet));
}

void LockdNode::close(lockd::ConnectionId connection) {
  world_.network.close(connection, *this);
}

std::vector<bool> LockdNode::owners_in_table() {
  std::vector<bool> owners(0x8000);
  for (df_u32 i = 0; i < slot_count(); ++i) owners[df_word_owner(slots()[i].word)] = true;
  return owners;
}

/// The same in each run of a seed, and nobody's chance but its own.
lockd::SessionToken LockdNode::new_token() {
  Random random(std::uint64_t{number_} << 48 | ++tokens_);
  lockd::SessionToken token;
  const std::uint64_t words[] = {random.next(), random.next()};
  static_assert(sizeof words == sizeof token);
  std::memcpy(token.data(), words, sizeof token);
  return token;
}

// ---- the loopback

namespace {

/// Nothing but the contended bit is taken off.
bool disarms(const df_chain& chain) {
  return chain.count == 1 && chain.op[0].kind == DF_OP_FAA && chain.op[0].operand == DF_CONTENDED;
}

}  // namespace

/// The mutant: a slot is forgotten when its bit is off, and with it who asked meanwhile.
bool LockdNode::forgotten(const df_msg& message) const {
  if (world_.options.mutant != Mutant::disarm_races || message.head.type != DF_MSG_ASK)
    return false;
  const auto disarming = [&](const Running& running) {
    return disarms(running.chain.chain) && running.chain.chain.slot == message.head.slot;
  };
  return std::any_of(loop_.begin(), loop_.end(), disarming) ||
         std::any_of(loop_done_.begin(), loop_done_.end(), disarming);
}

void LockdNode::post(std::uint64_t cookie, const df_chain& chain) {
  loop_.push_back({RunningChain{chain, 0, 0, {}}, cookie});
  for (df_u32 i = 0; i < chain.count; ++i) {
    last_loop_ =
        std::max(last_loop_, world_.now()) + world_.random.spread(world_.options.latency / 4 + 1);
    world_.scheduler.hardware(last_loop_ - world_.now(), [this, life = life()] {
      if (life == this->life()) loop_step();
    });
  }
}

void LockdNode::loop_step() {
  if (!loop_.front().chain.execute(*this)) return;
  loop_done_.push_back(std::move(loop_.front()));
  loop_.pop_front();
  world_.scheduler.later(*this, 1 + world_.random.below(world_.options.latency),
                         [this] { loop_done(); });
}

void LockdNode::loop_done() {
  const auto done = std::move(loop_done_.front());
  loop_done_.pop_front();
  world_.note(*this, "loopback", done.chain.chain.kind, done.chain.chain.slot, done.chain.old);
  tell_time();
  daemon_->chain_done(done.cookie, done.chain.old,
                      done.chain.image.empty() ? nullptr : done.chain.image.data());
  after_event();
}

// ---- time, disk

void LockdNode::tell_time() {
  daemon_->at(clock.ms(world_.now()));
}

/// The next tick; an honest client is never dropped; and what the core counts.
void LockdNode::after_event() {
  const auto now = counters();
  if (now.drops != 0 && world_.options.liars == 0)
    throw Violation(name() + " drops an honest client");
  if (now.rekeys > rekeys_) world_.reached(Branch::rekeyed);
  if (now.repairs > repairs_) world_.reached(Branch::owner_cleared);
  if (daemon_->counters().expired > expired_) world_.reached(Branch::lease_expired);
  rekeys_ = now.rekeys;
  repairs_ = now.repairs;
  expired_ = daemon_->counters().expired;
  const auto at = daemon_->wake_at();
  if (at == lockd::kNever || at == tick_at_) return;
  tick_at_ = at;
  world_.scheduler.later(*this, clock.until(world_.now(), at) + world_.random.below(200),
                         [this, at] {
                           if (tick_at_ != at) return;
                           tick_at_ = lockd::kNever;
                           tell_time();
                           const bool grace = daemon_->phase() == lockd::Daemon::Phase::grace;
                           const auto lost = daemon_->counters().lost;
                           daemon_->tick();
                           if (grace && daemon_->counters().lost != lost)
                             world_.reached(Branch::grace_timed_out);
                           after_event();
                         });
}

std::uint64_t LockdNode::lease_word(lockd::NodeId node) {
  return region_[lockd::lease_words_offset(table_) / 8 + node];
}

void LockdNode::record(const lockd::SessionChange& change) {
  // The worst moment to die: between the steps of a loss.
  if (change.kind == lockd::SessionChange::Kind::lost && world_.faulty &&
      world_.options.kill_lockd != 0 && world_.random.once_in(6))
    world_.scheduler.later(*this, world_.random.below(4 * world_.options.disk), [this] {
      auto& world = world_;
      crash(false);
      world.scheduler.hardware(1000, [this] {
        if (!alive()) start();
      });
    });
  unsynced_.push_back(change);
  world_.scheduler.later(*this, world_.random.spread(world_.options.disk), [this] { append(); });
}

/// One line is on the disk, the oldest first.
void LockdNode::append() {
  const auto change = unsynced_.front();
  unsynced_.pop_front();
  apply(change);
  if (change.kind == lockd::SessionChange::Kind::end) return;
  tell_time();
  daemon_->recorded(change.kind, change.session.id, true);
  note_expiry(change.session.id);
  after_event();
}

void LockdNode::apply(const lockd::SessionChange& change) {
  switch (change.kind) {
    case lockd::SessionChange::Kind::begin:
      list_[change.session.id] = change.session;
      return;
    case lockd::SessionChange::Kind::lost:
      if (const auto it = list_.find(change.session.id); it != list_.end()) it->second.lost = true;
      return;
    default:
      list_.erase(change.session.id);
  }
}

/// Fenced and noted, and yet not free: its lease has not run out.
void LockdNode::note_expiry(std::uint64_t session) {
  const auto* lost = daemon_->sessions().find(session);
  if (lost != nullptr && lost->state == lockd::SessionState::waiting && lost->noted)
    world_.reached(Branch::cut_waits_for_lease);
}

// ---- fences

void LockdNode::connect_storage(unsigned s) {
  storage_[s].up = false;
  storage_[s].connection = 0;
  world_.scheduler.later(*this, 200 + world_.random.below(3000), [this, s] {
    Hello hello;
    hello.channel = 1000 + number_;
    storage_[s].connection = world_.network.connect(*this, *world_.storageds[s], hello);
  });
}

void LockdNode::fence(lockd::SessionId session) {
  world_.note(*this, "fences", session);
  auto& left = fences_[session];
  for (unsigned i = 0; i < storage_.size(); ++i) left.insert(i);
  for (unsigned i = 0; i < storage_.size(); ++i) send_fence(i, session);
  if (world_.options.mutant == Mutant::reclaim_before_fence)
    world_.scheduler.later(*this, 1, [this, session] {
      tell_time();
      daemon_->fenced(session);
      after_event();
    });
}

void LockdNode::send_fence(unsigned s, std::uint64_t session) {
  auto& storage = storage_[s];
  if (!storage.up) return world_.reached(Branch::fence_waited);
  Packet packet;
  packet.call.op = StorageOp::fence;
  packet.call.lockd = number_;
  packet.call.session = session;
  packet.call.request = next_request_++;
  storage.asked[packet.call.request] = session;
  world_.network.send(storage.connection, *this, std::move(packet));
}

void LockdNode::fence_answered(unsigned s, std::uint64_t session) {
  const auto it = fences_.find(session);
  if (it == fences_.end()) return;
  it->second.erase(s);
  if (!it->second.empty()) return;
  fences_.erase(it);
  world_.note(*this, "fenced", session);
  if (world_.options.mutant == Mutant::reclaim_before_fence) return;
  tell_time();
  daemon_->fenced(session);
  note_expiry(session);
  after_event();
}

std::string LockdNode::unrest() const {
  if (daemon_->phase() != lockd::Daemon::Phase::normal) return name() + ": is in grace";
  if (!fences_.empty()) return name() + ": a fence is not answered";
  const auto now = counters();
  if (now.objects != 0) return name() + ": a slot is left contended";
  if (now.waiters != 0) return name() + ": a waiter is left";
  if (!loop_.empty() || !loop_done_.empty()) return name() + ": the loopback is busy";
  return {};
}

}  // namespace distfuse::simulation
