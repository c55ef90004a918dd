// SPDX-License-Identifier: Apache-2.0
// Taking: pins, tries, and page I/O that joins a lock which is being given up.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "client/locks/table.h"

namespace distfuse::client {

namespace {

using std::chrono::milliseconds;

// Locks are at least 8-aligned: the lowest bit of a pin's pointer says that it is a guest.
constexpr std::uintptr_t kGuest = 1;

Error lost_error() {
  return Error{ENOTCONN, "the session with lockd is lost"};
}

}  // namespace

Pin Table::pin_of(Lock& lock, Mode mode, bool guest) {
  const auto address = reinterpret_cast<std::uintptr_t>(&lock) | (guest ? kGuest : 0);
  return {this, reinterpret_cast<void*>(address), mode};
}

/// What the waiter's pin must be, now.
Mode Table::needed(const Lock& lock, const Waiter& waiter) {
  if (waiter.page_io == nullptr || waiter.mode != Mode::s) return waiter.mode;
  return owner_.page_io_needs_x(lock.ino) ? Mode::x : Mode::s;
}

/// Whether the held mode, although it is being given up, is one that the waiter may be served under.
bool Table::may_join(const Lock& lock, const Waiter& waiter) {
  if (waiter.page_io == nullptr || lock.core.gate != DF_GATE_REVOKING) return false;
  if (lock.covers(needed(lock, waiter))) return true;
  // An open for writing has begun, and waits until the pages under S are gone, this one's too.
  return lock.covers(waiter.mode) && lock.shed.active && lock.shed.pages;
}

/// Whether the waiter's pages may be what the sweep of a forfeited lock waits for: nobody will serve them under that lock any more, and the
/// lock comes back only after the sweep. What was dirty in them must not be written.
bool Table::is_forfeited(const Lock& lock, const Waiter& waiter) {
  return waiter.page_io != nullptr && lock.page_io && lock.core.forfeited != 0 &&
         lock.core.gate == DF_GATE_REVOKING;
}

/// A pin was counted by the core: what the shell remembers of it.
void Table::admit(Lock& lock, const Waiter& waiter) {
  lock.recent = true;
  df_hold_used(&lock.hold);
  if (waiter.page_io != nullptr) lock.page_io = true;
}

LockRef Table::make(Ino ino) {
  auto lock = locks_.get(ino);
  const std::size_t size = locks_.size();
  if (size > options_.max_locks) {
    start_trim();
    if (size > 2 * options_.max_locks) std::this_thread::sleep_for(milliseconds(1));
  }
  return lock;
}

Result<Pin> Table::pin(Ino ino, Mode mode, const Interrupted& interrupted) {
  return acquire(ino, mode, nullptr, interrupted);
}

Result<Pin> Table::pin_page_io(Ino ino, Mode mode, Range range, const Interrupted& interrupted) {
  return acquire(ino, mode, &range, interrupted);
}

Result<Pin> Table::acquire(Ino ino, Mode mode, const Range* page_io,
                           const Interrupted& interrupted) {
  const auto lock = make(ino);
  if (lock == nullptr) return lost_error();
  Waiter waiter;
  waiter.mode = mode;
  waiter.page_io = page_io;
  Guard guard(lock->mutex);
  const Mode now = needed(*lock, waiter);
  const bool trusted = keeper_->trusted();
  if (trusted && df_lock_pin(&lock->core, to_core(now)) == DF_PIN_OK) {
    ++lock->hits;
    admit(*lock, waiter);
    return pin_of(*lock, now);
  }
  return wait_for(*lock, guard, waiter, trusted, interrupted);
}

/// Whether page I/O, waiting `since`, is to be served under the lock that is being given up.
bool Table::may_be_guest(Lock& lock, const Waiter& waiter, Since& waits_since) {
  Shed& shed = lock.shed;
  if (!shed.active || !shed.sweeping || !may_join(lock, waiter)) return false;
  const auto since = waits_since.time();
  if (since <= shed.admit_until) return true;
  const auto now = Clock::now();
  if (now - std::max(since, shed.sweep_since) < (shed.guests == 0 ? kPark : kParkBehind)) {
    return false;
  }
  shed.admit_until = now;  // All that are parked now: the sweep may need any of them.
  lock.changed.notify_all();
  return true;
}

/// One look at a lock that was not simply there: a pin, an error, or nothing yet.
std::optional<Result<Pin>> Table::look(Lock& lock, Guard& guard, Waiter& waiter, Since& since) {
  if (waiter.state == Waiter::State::granted) return pin_of(lock, waiter.granted);
  if (lock.core.lost != 0) {
    leave(lock, guard, waiter);
    return lost_error();
  }
  if (is_forfeited(lock, waiter)) {
    leave(lock, guard, waiter);
    return Error{EIO, "the lock could not be had again after lockd's restart"};
  }
  if (may_be_guest(lock, waiter, since)) {
    const Mode now = needed(lock, waiter);
    const Mode mode = lock.covers(now) ? now : waiter.mode;
    if (df_lock_pin_guest(&lock.core, to_core(mode)) != DF_PIN_OK) std::abort();
    admit(lock, waiter);
    ++lock.shed.guests;
    lock.shed.admitted.push_back(*waiter.page_io);
    leave(lock, guard, waiter);
    return pin_of(lock, mode, true);
  }
  const bool queued = std::ranges::find(lock.waiters, &waiter) != lock.waiters.end();
  const Mode now = needed(lock, waiter);
  if (!queued && df_lock_pin(&lock.core, to_core(now)) == DF_PIN_OK) {
    admit(lock, waiter);
    return pin_of(lock, now);
  }
  return {};
}

/// Queues the waiter and tells the machine, unless it is parked, or was told already.
void Table::want(Lock& lock, Guard& guard, Waiter& waiter) {
  const bool queued = std::ranges::find(lock.waiters, &waiter) != lock.waiters.end();
  if (queued && waiter.state == Waiter::State::waiting) return;
  if (waiter.state == Waiter::State::granted) return;
  if (!lock.credit) {
    if (!ask_credits_->try_take()) {
      guard.unlock();
      ask_credits_->wait(kPoll);
      guard.lock();
      return;
    }
    lock.credit = true;
  }
  if (!queued) lock.waiters.push_back(&waiter);
  waiter.state = Waiter::State::waiting;
  df_out out;
  Due due;
  switch (df_lock_want(&lock.core, to_core(needed(lock, waiter)), 0, &out)) {
    case DF_WANT_HELD:
      std::erase(lock.waiters, &waiter);  // The next look pins it.
      settle(lock);
      return;
    case DF_WANT_LOST:
      return;
    default:
      if (lock.hold.shed != 0) df_hold_wanted(&lock.hold, now_us());
      break;
  }
  if (!perform(lock, out, due)) return;
  guard.unlock();
  run(lock, due);
  guard.lock();
}

/// Locks may not be used now: what was granted meanwhile is given back, for it may be revoked. May give the mutex up for a while.
void Table::wait_for_trust(Lock& lock, Guard& guard, Waiter& waiter) {
  if (waiter.state == Waiter::State::granted) {
    waiter.state = Waiter::State::again;
    Pin pin = pin_of(lock, waiter.granted);
    guard.unlock();
    pin.release();
    guard.lock();
  }
  lock.changed.wait_for(guard, kTrustPoll);
}

/// A lock that is free is had with one chain, and two looks at the clock: whether there is trust, before and after. Each costs a microsecond
/// where the kernel's clock page has no cycle counter, so times are taken only by those who wait.
Result<Pin> Table::wait_for(Lock& lock, Guard& guard, Waiter& waiter, bool trusted,
                            const Interrupted& interrupted) {
  Since since;
  std::optional<Clock::time_point> asked_at;
  std::optional<Since> doubt;
  milliseconds pause{1};  // lockd has no room: 1 ms, doubling to 100.
  for (;; trusted = keeper_->trusted()) {
    if (trusted || lock.core.lost != 0 || is_forfeited(lock, waiter)) {
      if (auto answer = look(lock, guard, waiter, since)) return std::move(*answer);
    }
    const bool parked = may_join(lock, waiter);
    if (!trusted) {
      if (!doubt) doubt.emplace();
      const auto doubted_at = doubt->time();
      wait_for_trust(lock, guard, waiter);
      if (Clock::now() - doubted_at > options_.give_up + kGiveUpLate && lock.core.lost == 0) {
        give_back(lock, guard, waiter);
        return Error{EIO,
                     "no sign of lockd for " + std::to_string(options_.give_up.count()) + " ms"};
      }
    } else {
      doubt.reset();
      if (waiter.state == Waiter::State::busy) {
        lock.changed.wait_for(guard, pause);
        pause = std::min(pause * 2, milliseconds(100));
      }
      if (!parked) {
        want(lock, guard, waiter);
        if (!keeper_->trusted()) continue;
        if (auto answer = look(lock, guard, waiter, since)) return std::move(*answer);
      }
      (void)since.time();
      if (parked || waiter.state == Waiter::State::waiting) {
        lock.changed.wait_for(guard, may_join(lock, waiter) ? kPark / 2 : kPoll);
      }
    }
    if (!interrupted) continue;
    const auto now = Clock::now();
    if (!asked_at) asked_at = since.time();
    if (now - *asked_at < kPoll) continue;
    asked_at = now;
    guard.unlock();
    const bool stop = interrupted();
    guard.lock();
    if (!stop) continue;
    if (waiter.state == Waiter::State::granted && keeper_->trusted()) continue;
    give_back(lock, guard, waiter);
    return Error{EINTR, "interrupted while waiting for a lock"};
  }
}

/// Leaves, whatever it has got meanwhile.
void Table::give_back(Lock& lock, Guard& guard, Waiter& waiter) {
  leave(lock, guard, waiter);
  if (waiter.state != Waiter::State::granted) return;
  Pin pin = pin_of(lock, waiter.granted);
  guard.unlock();
  pin.release();
  guard.lock();
}

/// The waiter waits no more; when it was the last one, the machine need not go on. May give the mutex up for a while.
void Table::leave(Lock& lock, Guard& guard, Waiter& waiter) {
  if (std::erase(lock.waiters, &waiter) == 0 || lock.core.want == DF_NL) return;
  if (std::ranges::any_of(lock.waiters, [](Waiter* other) { return !other->try_only; })) return;
  df_out out;
  Due due;
  df_lock_cancel(&lock.core, &out);
  if (!perform(lock, out, due)) return;
  guard.unlock();
  run(lock, due);
  guard.lock();
}

void Table::unpin(void* pinned, Mode /*mode*/) {
  const auto address = reinterpret_cast<std::uintptr_t>(pinned);
  Lock& lock = *reinterpret_cast<Lock*>(address & ~kGuest);
  LockRef due;
  {
    const std::lock_guard guard(lock.mutex);
    df_lock_unpin(&lock.core);
    Shed& shed = lock.shed;
    if ((address & kGuest) != 0 && shed.guests > 0) --shed.guests;
    if (shed.active && !shed.queued && lock.core.pins == 0) {
      shed.queued = true;
      due = lock.shared_from_this();
    }
  }
  if (due != nullptr) revokers_->push({RevokerJob::Kind::shed, std::move(due), nullptr});
}

Result<std::vector<Pin>> Table::pin_all(std::span<const Wanted> wanted,
                                        const Interrupted& interrupted) {
  std::vector<std::size_t> order(wanted.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return wanted[i].ino; });
  std::vector<Pin> pins(wanted.size());
  for (std::size_t i = 0; i < order.size();) {
    const Ino ino = wanted[order[i]].ino;
    const std::size_t first = order[i];
    df_u32 mode = DF_NL;
    for (; i < order.size() && wanted[order[i]].ino == ino; ++i) {
      mode = df_join(mode, to_core(wanted[order[i]].mode));
    }
    auto pinned = pin(ino, from_core(mode), interrupted);
    if (!pinned) return pinned.error();
    pins[first] = std::move(*pinned);
  }
  return pins;
}

// --- tries ------------------------------------------------------------------------------------

/// Under no mutex: pins what is there already, or begins a try: then `posting` says that a chain is due.
void Table::start_attempt(Attempt& attempt, Pin& pin) {
  if (attempt.lock == nullptr) return;
  Lock& lock = *attempt.lock;
  Waiter& waiter = attempt.waiter;
  if (!keeper_->trusted()) return;
  Guard guard(lock.mutex);
  if (df_lock_pin(&lock.core, to_core(waiter.mode)) == DF_PIN_OK) {
    ++lock.hits;
    admit(lock, waiter);
    pin = pin_of(lock, waiter.mode);
    return;
  }
  if (!live_) return;
  df_out out;
  if (df_lock_want(&lock.core, to_core(waiter.mode), 1, &out) != DF_WANT_STARTED) return;
  if (lock.hold.shed != 0) df_hold_wanted(&lock.hold, now_us());
  lock.waiters.push_back(&waiter);
  attempt.posting = perform(lock, out, attempt.due);
  if (attempt.posting) return;
  leave(lock, guard, waiter);
  if (waiter.state == Waiter::State::granted) pin = pin_of(lock, waiter.mode);
}

Pin Table::finish_try(Lock& lock, Waiter& waiter) {
  Guard guard(lock.mutex);
  if (waiter.state == Waiter::State::granted) return pin_of(lock, waiter.mode);
  leave(lock, guard, waiter);
  return {};
}

Pin Table::try_pin(Ino ino, Mode mode) {
  Attempt attempt;
  attempt.lock = make(ino);
  attempt.waiter.mode = mode;
  attempt.waiter.try_only = true;
  Pin pin;
  start_attempt(attempt, pin);
  if (!attempt.posting) return pin;
  run(*attempt.lock, attempt.due);
  return finish_try(*attempt.lock, attempt.waiter);
}

/// The chain of an attempt that was posted is complete; `posting` and `due`: what follows.
void Table::attempt_done(Link& link, Attempt& attempt, const ChainResult& result) {
  const df_u32 slot = attempt.due.chain.slot;
  {
    const std::lock_guard guard(attempt.lock->mutex);
    attempt.posting = false;
    if (attempt.lock->epoch != link.epoch) return;
    df_out out;
    df_lock_chain_done(&attempt.lock->core, result.old, result.image, &out);
    count_take(attempt.due.chain.kind, out);
    attempt.posting = perform(*attempt.lock, out, attempt.due);
  }
  if (attempt.inside && !(attempt.posting && attempt.due.chain.kind == DF_CHAIN_UNDO)) {
    link.gates.leave(slot);
    attempt.inside = false;
  }
}

/// Runs the attempts' chains together over one lane. Attempts that meet a frozen slot are left `posting`: waiting for a thaw with
/// chains in flight inside other gates could be a cycle. So are those of another epoch: run() drops them.
void Table::drive(std::span<Attempt> attempts) {
  const auto first = std::ranges::find_if(attempts, &Attempt::posting);
  const LinkRef link = link_of(first->due.epoch);
  if (link == nullptr) return;
  auto lane = link->lanes->borrow();
  if (!lane) return link_failed(*link, lane.error());
  std::vector<Attempt*> ready;
  std::vector<unsigned> unused(Lane::kChains);
  std::vector<Attempt*> posted(Lane::kChains);
  std::iota(unused.rbegin(), unused.rend(), 0u);
  for (auto& attempt : attempts) {
    if (attempt.posting && attempt.due.epoch == link->epoch) ready.push_back(&attempt);
  }
  while (true) {
    while (!ready.empty() && !unused.empty()) {
      Attempt* attempt = ready.back();
      ready.pop_back();
      const df_chain& chain = attempt->due.chain;
      if (chain.kind == DF_CHAIN_TAKE || chain.kind == DF_CHAIN_RELEASE ||
          chain.kind == DF_CHAIN_PUBLISH) {
        if (!link->gates.try_enter(chain.slot)) continue;
        attempt->inside = true;
      }
      if (auto status = (*lane)->post(chain, unused.back()); !status) {
        return link_failed(*link, status.error());
      }
      posted[unused.back()] = attempt;
      unused.pop_back();
    }
    if (unused.size() == Lane::kChains) return;
    const auto done = (*lane)->next(link->lanes->closed());
    if (!done) return link_failed(*link, done.error());
    Attempt* attempt = posted[*done];
    unused.push_back(*done);
    attempt_done(*link, *attempt, (*lane)->result(*done));
    if (attempt->posting) ready.push_back(attempt);
  }
}

std::vector<Pin> Table::try_pin_many(std::span<const Ino> inodes, Mode mode) {
  std::vector<Pin> pins(inodes.size());
  std::vector<Attempt> attempts(inodes.size());
  bool any = false;
  for (std::size_t i = 0; i < inodes.size(); ++i) {
    attempts[i].lock = make(inodes[i]);
    attempts[i].waiter.mode = mode;
    attempts[i].waiter.try_only = true;
    start_attempt(attempts[i], pins[i]);
    any |= attempts[i].posting;
  }
  if (!any) return pins;
  std::vector<bool> started(inodes.size());
  for (std::size_t i = 0; i < inodes.size(); ++i) started[i] = attempts[i].posting;
  drive(attempts);
  for (std::size_t i = 0; i < inodes.size(); ++i) {
    if (!started[i]) continue;
    if (attempts[i].posting) run(*attempts[i].lock, attempts[i].due);
    pins[i] = finish_try(*attempts[i].lock, attempts[i].waiter);
  }
  return pins;
}

}  // namespace distfuse::client
