// SPDX-License-Identifier: Apache-2.0
// Performing what the machines ask for: wakes, sheds, messages, chains.
#include <spdlog/spdlog.h>

#include <cstdlib>

#include "client/locks/table.h"

namespace distfuse::client {

namespace {

[[noreturn]] void broken(const Lock& lock, const char* what) {
  spdlog::critical("locks: inode {}: {}", lock.ino, what);
  std::abort();
}

bool is_gated(std::uint32_t kind) {
  return kind == DF_CHAIN_TAKE || kind == DF_CHAIN_RELEASE || kind == DF_CHAIN_PUBLISH;
}

}  // namespace

void Table::wake(Lock& lock, unsigned bits) {
  if (bits == 0) return;
  if ((bits & DF_WAKE_FORFEITED) != 0) {
    lock.forfeited = true;
    forfeited_.fetch_add(1, std::memory_order_relaxed);
    spdlog::error("locks: inode {}: the lock could not be had again", lock.ino);
  }
  if ((bits & DF_WAKE_BUSY) != 0 && lock.core.asserting != 0) {
    const std::lock_guard guard(busy_mutex_);
    busy_.push_back(lock.shared_from_this());
    bits &= ~unsigned{DF_WAKE_BUSY};
  }
  if ((bits & DF_WAKE_GRANTED) != 0) df_hold_granted(&lock.hold, now_us());
  // A lock that is forfeited by its resume counted already, or was never begun: nobody looks at the count any more then.
  if ((bits & (DF_WAKE_REASSERTED | DF_WAKE_FORFEITED)) != 0 && to_reassert_ != 0) --to_reassert_;
  std::erase_if(lock.waiters, [&](Waiter* waiter) {
    using State = Waiter::State;
    if ((bits & DF_WAKE_LOST) != 0) {
      waiter->state = State::lost;
      return true;
    }
    if ((bits & DF_WAKE_GRANTED) != 0) {
      waiter->granted = needed(lock, *waiter);
      if (df_lock_pin_granted(&lock.core, to_core(waiter->granted)) == DF_PIN_OK) {
        // Pinned here, not when its thread wakes up: a revoke that follows at once waits for it.
        admit(lock, *waiter);
        waiter->state = State::granted;
        return true;
      }
      if (!waiter->try_only && lock.covers(waiter->mode)) waiter->state = State::again;
    }
    if (waiter->try_only) {
      if ((bits & DF_WAKE_WOULD_BLOCK) == 0) return false;
      waiter->state = State::would_block;
      return true;
    }
    if ((bits & DF_WAKE_BUSY) != 0) waiter->state = State::busy;
    return false;
  });
  lock.changed.notify_all();
}

/// Under the mutex: performs `out`; true: `due` must be run, without the mutex.
bool Table::perform(Lock& lock, const df_out& out, Due& due) {
  wake(lock, out.wake);
  if (out.shed != 0) begin_shed(lock, from_core(out.keep));
  const LinkRef link = out.messages != 0 ? link_of(lock.epoch) : nullptr;
  for (unsigned i = 0; i < out.messages; ++i) {
    const auto type = out.message[i].head.type;
    if (type == DF_MSG_ASK) counts_.asks.fetch_add(1, std::memory_order_relaxed);
    if (type == DF_MSG_FIND) counts_.finds.fetch_add(1, std::memory_order_relaxed);
    if (link != nullptr) link->control->send(out.message[i]);
  }
  if (out.post != 0) {
    due.chain = out.chain;
    due.epoch = lock.epoch;
  }
  settle(lock);
  return out.post != 0;
}

void Table::settle(Lock& lock) {
  const bool held = lock.core.held != DF_NL;
  if (held != lock.counted) {
    lock.counted = held;
    counts_.held.fetch_add(held ? 1 : ~std::uint64_t{0}, std::memory_order_relaxed);
  }
  if (lock.credit && lock.core.want == DF_NL && lock.core.target == DF_NL) {
    lock.credit = false;
    ask_credits_->give();
  }
}

void Table::begin_shed(Lock& lock, Mode keep) {
  if (lock.shed.active) broken(lock, "shed twice at once");
  lock.shed = Shed{};
  lock.shed.active = true;
  lock.shed.queued = true;
  lock.shed.keep = keep;
  if (lock.core.revoke_seq != 0) df_hold_shed(&lock.hold, now_us());
  lock.shed.pages = lock.page_io && lock.core.held == DF_S;
  counts_.revokes.fetch_add(1, std::memory_order_relaxed);
  revokers_->push({RevokerJob::Kind::shed, lock.shared_from_this(), nullptr});
}

/// Runs `first` and what follows from it. Without the lock's mutex.
void Table::run(Lock& lock, const Due& first) {
  const LinkRef link = link_of(first.epoch);
  if (link == nullptr) return;  // The lock is, or will be, detached.
  Due due = first;
  bool inside = false;
  for (bool more = true; more;) {
    if (is_gated(due.chain.kind)) {
      if (!link->gates.enter(due.chain.slot)) return;
      inside = true;
    }
    const df_u32 kind = due.chain.kind;
    const df_u32 slot = due.chain.slot;
    {
      auto lane = link->lanes->borrow();
      if (!lane) return link_failed(*link, lane.error());
      const auto result = (*lane)->run(due.chain, link->lanes->closed());
      if (!result) return link_failed(*link, result.error());
      const std::lock_guard guard(lock.mutex);
      if (lock.epoch != link->epoch) return;
      df_out out;
      df_lock_chain_done(&lock.core, result->old, result->image, &out);
      count_take(kind, out);
      more = perform(lock, out, due);
    }
    // From a TAKE to the end of its UNDO is one stay.
    if (inside && !(more && due.chain.kind == DF_CHAIN_UNDO)) {
      link->gates.leave(slot);
      inside = false;
    }
  }
}

void Table::run_later(Lock& lock, const Due& due) {
  revokers_->push({RevokerJob::Kind::chain, lock.shared_from_this(), std::make_unique<Due>(due)});
}

void Table::count_take(df_u32 kind, const df_out& out) {
  if (kind == DF_CHAIN_TAKE && (out.wake & DF_WAKE_GRANTED) != 0) {
    counts_.free_takes.fetch_add(1, std::memory_order_relaxed);
  }
}

}  // namespace distfuse::client
