// SPDX-License-Identifier: Apache-2.0
// Giving up: the revokers' work. See the head of table.h for the order and why.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <utility>

#include "client/locks/table.h"

namespace distfuse::client {

using std::chrono::milliseconds;

void Table::work(RevokerJob& job) {
  switch (job.kind) {
    case RevokerJob::Kind::shed:
      work_shed(*job.lock);
      return erase_unwanted(job.lock);
    case RevokerJob::Kind::chain:
      return run(*job.lock, *job.due);
    case RevokerJob::Kind::drop:
      return work_drop(job.lock);
    case RevokerJob::Kind::trim:
      return trim();
  }
}

/// What may be kept, asked once. false: the session is lost.
bool Table::decide(Lock& lock, Guard& guard) {
  Shed& shed = lock.shed;
  if (shed.decided) return true;
  shed.decided = true;
  if (lock.forfeited) shed.keep = Mode::none;
  if (shed.keep != Mode::none) {
    const Mode asked = shed.keep;
    guard.unlock();
    const Mode allowed = owner_.keep_allowed(lock.ino, asked);
    guard.lock();
    if (lock.core.lost != 0) return false;
    shed.keep = df_covers(to_core(asked), to_core(allowed)) != 0 ? allowed : Mode::none;
  }
  shed.swept =
      shed.keep != Mode::none;  // What is kept covers the kernel's clean pages and attributes.
  return true;
}

/// false: the session is lost.
bool Table::sweep(Lock& lock, Guard& guard, std::span<const Range> ranges) {
  Shed& shed = lock.shed;
  const bool pages = lock.page_io;
  shed.sweeping = true;
  shed.sweep_since = Clock::now();
  lock.changed.notify_all();
  guard.unlock();
  counts_.sweeps.fetch_add(1, std::memory_order_relaxed);
  if (pages) {
    owner_.invalidate_kernel(lock.ino, ranges);
  } else {
    owner_.invalidate_attributes(lock.ino);
  }
  guard.lock();
  shed.sweeping = false;
  return lock.core.lost == 0;
}

/// One stay of a shed at a revoker: until it is done, or pins are left that end without us.
void Table::work_shed(Lock& lock) {
  Guard guard(lock.mutex);
  if (lock.core.lost != 0 || !lock.shed.active || !decide(lock, guard)) return;
  while (drain(lock, guard) && !finish_shed(lock, guard)) {
  }
}

/// Sweeps until no pin is left, and closes the gate. false: pins are left, or the session is lost.
bool Table::drain(Lock& lock, Guard& guard) {
  Shed& shed = lock.shed;
  while (true) {
    if (lock.forfeited && shed.keep != Mode::none) {
      shed.keep = Mode::none;
      shed.swept = false;
    } else if (!shed.swept) {
      shed.swept = true;
      if (!sweep(lock, guard, {})) return false;
    } else if (!shed.admitted.empty()) {
      const auto ranges = std::exchange(shed.admitted, {});
      counts_.resweeps.fetch_add(1, std::memory_order_relaxed);
      if (!sweep(lock, guard, ranges)) return false;
    } else if (lock.core.pins != 0) {
      shed.queued = false;  // The last unpin brings it back.
      return false;
    } else {
      break;
    }
  }
  if (df_lock_close_gate(&lock.core) != 0) {
    spdlog::critical("locks: inode {}: the gate does not close without pins", lock.ino);
    std::abort();
  }
  lock.changed.notify_all();
  return true;
}

/// The gate is closed: nobody reads or writes under this lock until it is ours again. false: it was forfeited meanwhile, so what the sweep
/// kept must go as well: again.
bool Table::finish_shed(Lock& lock, Guard& guard) {
  const Mode keep = lock.shed.keep;
  const bool exclusive = lock.core.held == DF_X;
  const bool forfeited = std::exchange(lock.forfeited, false);
  std::optional<ValueBlock> block;
  guard.unlock();
  if (forfeited) {
    owner_.forfeit(lock.ino);
  } else {
    // Before the shed, which lets the owner forget.
    if (exclusive) block = owner_.publish(lock.ino);
    owner_.shed(lock.ino, keep);
  }
  guard.lock();
  if (lock.core.lost != 0) return true;
  ++lock.holds;
  if (lock.core.gate != DF_GATE_CLOSED) return false;
  if (keep == Mode::none) lock.page_io = false;
  lock.shed.active = false;
  df_value value{};
  if (block) {
    value.size = block->size;
    value.mtime_ns = static_cast<df_u64>(block->mtime_ns);
    value.ctime_ns = static_cast<df_u64>(block->ctime_ns);
  }
  df_out out;
  Due due;
  df_hold_given(&lock.hold, now_us());
  if (df_lock_shed_done(&lock.core, to_core(keep), block ? &value : nullptr, &out) != 0) {
    spdlog::critical("locks: inode {}: shed to {} was not asked for", lock.ino, to_core(keep));
    std::abort();
  }
  if (!perform(lock, out, due)) return true;
  guard.unlock();
  run(lock, due);
  guard.lock();
  return true;
}

/// One step of a drop: true: it is gone (or held in a stronger mode), or the session is lost.
bool Table::drop_step(Lock& lock, Guard& guard, Mode mode) {
  if (lock.core.lost != 0) return true;
  if (lock.core.held == DF_NL) return true;
  if (lock.core.gate == DF_GATE_OPEN) {
    if (df_covers(to_core(mode), lock.core.held) == 0) return true;
    if (!lock.held_back.empty()) {
      (void)hand_over(lock);  // What it says of lockd, the next message will say.
      return false;
    }
    df_out out;
    Due due;
    if (df_lock_drop(&lock.core, &out) == 0 && perform(lock, out, due)) {
      guard.unlock();
      run(lock, due);
      guard.lock();
    }
  }
  return false;
}

void Table::drop(Ino ino, Mode mode) {
  const auto lock = locks_.find(ino);
  if (lock == nullptr) return;
  Guard guard(lock->mutex);
  // Something else may be under way first: an acquire, a revoke that would keep S.
  while (!drop_step(*lock, guard, mode)) lock->changed.wait_for(guard, milliseconds(10));
}

// --- in the background ------------------------------------------------------------------------

void Table::push_drop(const LockRef& lock) {
  {
    const std::lock_guard guard(lock->mutex);
    if (std::exchange(lock->dropping, true)) return;
  }
  revokers_->push({RevokerJob::Kind::drop, lock, nullptr});
}

void Table::forget(Ino ino) {
  if (const auto lock = locks_.find(ino)) push_drop(lock);
}

void Table::erase_unwanted(LockRef& lock) {
  const Ino ino = lock->ino;
  {
    const std::lock_guard guard(lock->mutex);
    if (!lock->unwanted || lock->core.held != DF_NL || !lock->waiters.empty()) return;
    lock->unwanted = false;
  }
  lock.reset();
  locks_.erase_if_quiet(ino);
}

/// Takes a lock out that nobody uses: at once if it says nothing, else when it has been given up.
void Table::work_drop(LockRef& lock) {
  const Ino ino = lock->ino;
  {
    Guard guard(lock->mutex);
    lock->dropping = false;
    const bool idle = lock->core.pins == 0 && lock->waiters.empty();
    if (idle && lock->core.held != DF_NL && lock->core.gate == DF_GATE_OPEN) {
      lock->unwanted = true;
      (void)drop_step(*lock, guard, Mode::x);
      return;
    }
  }
  lock.reset();
  locks_.erase_if_quiet(ino);
}

/// Brings the number of locks below the limit: second chance by Lock::recent, shard by shard.
void Table::trim() {
  const std::size_t target = options_.max_locks - options_.max_locks / 16;
  std::size_t size = locks_.size();
  bool dropped = false;
  for (std::size_t turn = 0; turn < 2 * LockMap::kShards && size > target && live_; ++turn) {
    for (auto& lock : locks_.some(trim_shard_.fetch_add(1))) {
      if (size <= target) break;
      {
        const std::lock_guard guard(lock->mutex);
        if (lock->core.pins != 0 || !lock->waiters.empty()) continue;
        if (std::exchange(lock->recent, false)) continue;
      }
      push_drop(lock);
      dropped = true;
      --size;
    }
  }
  trimming_ = false;
  // Who made a lock meanwhile saw us at work. Without a drop there is nothing to be had until somebody unpins and comes by.
  if (dropped && locks_.size() > options_.max_locks) start_trim();
}

void Table::start_trim() {
  if (!trimming_.exchange(true)) revokers_->push({RevokerJob::Kind::trim, nullptr, nullptr});
}

/// Gives everything up; how many locks could not be, because they were still in use after 30 s.
std::size_t Table::drop_all() {
  const auto give_up = Clock::now() + std::chrono::seconds(30);
  for (milliseconds pause{1};; pause = std::min(pause * 2, milliseconds(20))) {
    std::size_t left = 0;
    for (const auto& lock : locks_.all()) {
      Guard guard(lock->mutex);
      if (df_lock_quiet(&lock->core) != 0) continue;
      ++left;
      if (lock->core.pins == 0) (void)drop_step(*lock, guard, Mode::x);
    }
    if (left == 0 || lost_ || !live_ || Clock::now() > give_up) return lost_ ? 0 : left;
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace distfuse::client
