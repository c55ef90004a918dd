// SPDX-License-Identifier: Apache-2.0
// The applications of a mount: threads that read, write, fsync and look at files; and the moods of its memory management.
#include <fmt/format.h>

#include <algorithm>

#include "simulation/client_node.h"
#include "simulation/world.h"

namespace distfuse::simulation {

/// A step of this operation; nothing, if the operation ended meanwhile.
void ClientNode::later(unsigned i, Time delay, void (ClientNode::*step)(unsigned)) {
  world_.scheduler.later(*this, delay, [this, i, step, operation = threads_[i].operation] {
    if (threads_[i].operation == operation) (this->*step)(i);
  });
}

void ClientNode::next(unsigned i, Time pause) {
  auto& thread = threads_[i];
  ++thread.operation;
  thread.state = Thread::idle;
  thread.pinned = false;
  later(i, pause, &ClientNode::choose);
}

void ClientNode::choose(unsigned i) {
  auto& thread = threads_[i];
  const auto& o = world_.options;
  auto& random = world_.random;
  if (!world_.working) return later(i, 2000, &ClientNode::choose);
  thread.key = static_cast<unsigned>(o.hot && random.percent(50) ? 0 : random.below(o.keys));
  thread.page = static_cast<unsigned>(random.below(o.pages));
  thread.pause_ms = 1;
  thread.since = world_.now();
  const auto dice = random.below(100);
  if (dice < o.fsync_percent)
    thread.work = Work::fsync;
  else if (dice < o.fsync_percent + o.stat_percent)
    thread.work = Work::stat;
  else if (dice < o.fsync_percent + o.stat_percent + o.file_percent)
    thread.work = Work::file_lock;
  else if (random.percent(o.direct_percent))
    thread.work = random.percent(o.write_percent) ? Work::direct_write : Work::direct_read;
  else
    thread.work = random.percent(o.write_percent) ? Work::write : Work::read;
  const df_u32 modes[] = {DF_S, DF_X, DF_IS, DF_IX};
  if (thread.work <= Work::direct_write) thread.mode = modes[static_cast<unsigned>(thread.work)];
  attempt(i);
}

void ClientNode::take(unsigned key) {
  auto& thread = threads_[0];
  ++thread.operation;
  thread.key = key;
  thread.work = Work::sweep;
  thread.mode = DF_X;
  thread.since = world_.now();
  attempt(0);
}

void ClientNode::attempt(unsigned i) {
  auto& thread = threads_[i];
  auto& l = link(thread.key);
  auto& lock = locks_[thread.key];
  auto& random = world_.random;
  thread.state = Thread::suspended;
  if (thread.work == Work::fsync) {
    auto& file = files_[thread.key];
    if (file.fsyncing) return finish(i);
    thread.state = Thread::syncing;
    file.fsyncing = true;
    file.covered = file.unreported;
    return fsync_step(thread.key);
  }
  // Requests wait while the session is not trusted, or ends.
  if (!trusted(l) || l.leaving || lock.core.lost != 0)
    return later(i, 500 + random.below(3000), &ClientNode::attempt);
  if (thread.work == Work::stat) return stat(i);
  if (thread.work == Work::file_lock) return file_lock(i);
  if (df_lock_pin(&lock.core, thread.mode) == DF_PIN_OK) return pinned(i);
  if (random.once_in(3) && df_lock_pin_guest(&lock.core, thread.mode) == DF_PIN_OK) {
    world_.reached(Branch::guest_admitted);
    return pinned(i);
  }
  if (thread.work != Work::sweep && random.percent(world_.options.try_percent)) {
    df_out out;
    thread.state = Thread::trying;
    const int result = df_lock_want(&lock.core, thread.mode, 1, &out);
    if (result == DF_WANT_STARTED) return output(thread.key, out);
    if (result == DF_WANT_BUSY) return finish(i);
    return later(i, 100, &ClientNode::attempt);
  }
  want(i);
}

void ClientNode::want(unsigned i) {
  auto& thread = threads_[i];
  auto& lock = locks_[thread.key];
  df_out out;
  thread.state = Thread::waiting;
  if (df_lock_want(&lock.core, thread.mode, 0, &out) == DF_WANT_HELD) {
    if (df_lock_pin(&lock.core, thread.mode) != DF_PIN_OK)
      throw Violation(name() + ": held, and not to be pinned");
    pinned(i);
  }
  output(thread.key, out);
  if (world_.working && world_.random.percent(world_.options.cancel_percent))
    later(i, world_.random.spread(world_.options.latency * 4), &ClientNode::cancel);
}

void ClientNode::cancel(unsigned i) {
  auto& thread = threads_[i];
  const auto key = thread.key;
  if (thread.state != Thread::waiting) return;
  finish(i);
  for (const auto& other : threads_)
    if (other.key == key && other.state == Thread::waiting) return;
  df_out out;
  df_lock_cancel(&locks_[key].core, &out);
  output(key, out);
}

// ---- under the lock

void ClientNode::pinned(unsigned i) {
  auto& thread = threads_[i];
  thread.pinned = true;
  thread.state = Thread::acting;
  later(i, world_.random.below(4), &ClientNode::act);
}

df_u32 ClientNode::usable(unsigned key) const {
  const auto& lock = locks_[key];
  if (!alive() || lock.core.lost != 0 || lock.core.gate == DF_GATE_CLOSED || !trusted(link(key)))
    return DF_NL;
  return lock.core.held;
}

/// Nobody else would use now what this use excludes.
void ClientNode::check_use(unsigned key, df_u32 mode) const {
  if (world_.oracle.tainted(page_id(key, 0))) return;
  for (const auto& other : world_.clients) {
    if (other.get() == this || !other->alive()) continue;
    const auto theirs = other->usable(key);
    if (df_compatible(mode, theirs) == 0)
      throw Violation(name() + " uses key " + std::to_string(key) + " in mode " +
                      std::to_string(mode) + " while " + other->name() + " trusts mode " +
                      std::to_string(theirs));
  }
}

void ClientNode::act(unsigned i) {
  auto& thread = threads_[i];
  auto& l = link(thread.key);
  if (!trusted(l)) return later(i, 200 + world_.random.below(2000), &ClientNode::act);
  check_use(thread.key, thread.mode);
  if (l.machine.state == DF_SESSION_CONNECTING) world_.reached(Branch::trusted_while_connecting);
  if (thread.work == Work::sweep) return hold_then_finish(i);
  const bool direct = thread.work == Work::direct_read || thread.work == Work::direct_write;
  // Where the lock held is more than an intention, the cache is in the way: through it.
  const bool writes = thread.work == Work::write || thread.work == Work::direct_write;
  if (direct && df_covers(locks_[thread.key].core.held, writes ? DF_X : DF_S) == 0)
    return act_direct(i);
  if (files_[thread.key].direct != 0)  // One of ours, from before the lock was more.
    return later(i, 10 + world_.random.below(100), &ClientNode::act);
  if (act_cached(i, writes)) hold_then_finish(i);
}

/// False: the page must come first; act() is called again.
bool ClientNode::act_cached(unsigned i, bool writes) {
  auto& thread = threads_[i];
  const auto key = thread.key, index = thread.page;
  auto& page = files_[key].pages[index];
  if (writes) {
    page.order = world_.oracle.write(page_id(key, index), session(key));
    page.present = page.dirty = true;
    files_[key].unreported.emplace_back(index, page.order);
    locks_[key].changed = locks_[key].unpublished = true;
    world_.note(*this, "writes", page_id(key, index), page.order);
    return true;
  }
  if (page.present) {
    world_.note(*this, "reads", page_id(key, index), page.order);
    world_.oracle.read(page_id(key, index), session(key), page.order);
    return true;
  }
  call(key, index, {}, [this, i, key, index, operation = thread.operation](const auto& reply) {
    if (threads_[i].operation != operation) return;
    auto& filled = files_[key].pages[index];
    if (!filled.present) {
      filled.present = true;
      filled.order = reply.order;
    }
    act(i);
  });
  return false;
}

void ClientNode::act_direct(unsigned i) {
  auto& thread = threads_[i];
  StorageCall what;
  what.op = thread.work == Work::direct_write ? StorageOp::write : StorageOp::read;
  // Our own old pages are none any more; the version will say so to others only.
  if (what.op == StorageOp::write) locks_[thread.key].seen = false;
  ++files_[thread.key].direct;
  call(thread.key, thread.page, std::move(what),
       [this, i, key = thread.key, operation = thread.operation](const auto&) {
         --files_[key].direct;
         if (threads_[i].operation == operation) hold_then_finish(i);
       });
}

void ClientNode::hold_then_finish(unsigned i) {
  later(i, world_.random.spread(world_.options.hold), &ClientNode::finish);
}

// ---- the end of an operation

void ClientNode::finish(unsigned i) {
  auto& thread = threads_[i];
  const auto key = thread.key;
  const bool was_pinned = thread.pinned;
  if (was_pinned) df_lock_unpin(&locks_[key].core);
  const auto from = std::max(thread.since, world_.calm_since);
  if (world_.calm_since != kNever && world_.now() > from)
    world_.longest = std::max(world_.longest, world_.now() - from);
  if (world_.calm_since != kNever && world_.now() > from + world_.bound())
    throw Violation(name() + ": an operation on key " + std::to_string(key) + " took " +
                    std::to_string((world_.now() - from) / 1000) + " ms without faults");
  const auto& o = world_.options;
  next(i, world_.random.spread(o.busy * o.clients * o.threads / o.operations));
  if (was_pinned) shed_progress(key);
}

/// Its session is lost, or (`pins`: they are to be given back) its lock. An fsync goes on: it is about the file.
void ClientNode::fail(unsigned i, bool pins) {
  auto& thread = threads_[i];
  if (thread.state == Thread::idle || thread.state == Thread::syncing ||
      thread.state == Thread::suspended)
    return;
  thread.pinned = thread.pinned && pins;
  thread.since = world_.now();
  finish(i);
}

// ---- besides

void ClientNode::stat(unsigned i) {
  auto& thread = threads_[i];
  auto& l = link(thread.key);
  const auto slot = locks_[thread.key].core.slot;
  if (slot != DF_NO_SLOT && l.glimpses < 3 && l.machine.state == DF_SESSION_LIVE) {
    df_msg message;
    df_msg_init(&message, DF_MSG_GLIMPSE, slot, df_key_inode(thread.key + 1), next_glimpse_++);
    send(l, message);
    ++l.glimpses;
  }
  finish(i);
}

void ClientNode::drop(unsigned key) {
  auto& l = link(key);
  if (!l.session || l.machine.state != DF_SESSION_LIVE || locks_[key].core.lost != 0) return;
  df_out out;
  if (df_lock_drop(&locks_[key].core, &out) == 0 && out.shed != 0) output(key, out);
}

void ClientNode::disturb() {
  const auto& o = world_.options;
  auto& random = world_.random;
  const auto key = static_cast<unsigned>(random.below(o.keys));
  if (world_.working) {
    if (random.percent(o.drop_percent)) drop(key);
    if (random.percent(20)) forget_if_quiet(key);
    if (o.writeback && random.percent(30) && link(key).session) flush_all(key);
  }
  for (auto& l : links_) try_bye(l);
  world_.scheduler.later(*this, random.spread(std::max<Time>(o.busy / 400, 500)),
                         [this] { disturb(); });
}

bool ClientNode::at_rest() const {
  return unrest().empty();
}

std::string ClientNode::describe(unsigned key) const {
  const auto& lock = locks_[key];
  const auto& core = lock.core;
  const auto& l = link(key);
  return fmt::format(
      "session {} state {}; slot {} held {} target {} want {} chain {} gate {} keep {} pins {} "
      "asked {} finding {} "
      "cancelling {} lost {} shedding {} said {} in flight {} parked {}",
      l.session, static_cast<unsigned>(l.machine.state), core.slot, +core.held, +core.target,
      +core.want, +core.chain, +core.gate, +core.keep, core.pins, +core.asked, +core.finding,
      +core.cancelling, +core.lost, lock.shedding, lock.done_said, lock.in_flight,
      lock.parked.has_value());
}

/// What is still to be done, in words; empty: nothing.
std::string ClientNode::unrest() const {
  if (!alive()) return {};
  for (const auto& thread : threads_)
    if (thread.state != Thread::idle)
      return fmt::format("{}: a thread is in state {} on key {}: {}", name(),
                         static_cast<unsigned>(thread.state), thread.key, describe(thread.key));
  for (const auto& l : links_) {
    if (!l.session || l.machine.state != DF_SESSION_LIVE || !l.up)
      return name() + ": the session at lockd " + std::to_string(l.lockd) + " is not live";
    if (!l.frozen.empty() || !l.freezes.empty()) return name() + ": a slot is left frozen";
    if (l.glimpses != 0) return name() + ": a glimpse is not answered";
    if (l.leaving) return name() + ": has not left";
  }
  for (unsigned key = 0; key < locks_.size(); ++key) {
    const auto& lock = locks_[key];
    if (lock.shedding || lock.in_flight || lock.parked || lock.core.want != DF_NL ||
        lock.core.target != DF_NL || lock.core.pins != 0)
      return fmt::format("{}: something is left undone on key {}: {}", name(), key, describe(key));
    for (const auto& page : files_[key].pages)
      if (page.writing != 0) return name() + ": a page is left in writeback";
  }
  return {};
}

bool ClientNode::holds_anything() const {
  return std::any_of(locks_.begin(), locks_.end(),
                     [](const Lock& lock) { return lock.core.held != DF_NL; });
}

}  // namespace distfuse::simulation
