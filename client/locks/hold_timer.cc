// SPDX-License-Identifier: Apache-2.0
#include "client/locks/hold_timer.h"

#include <utility>

namespace distfuse::client {

std::uint64_t now_us() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                        std::chrono::steady_clock::now().time_since_epoch())
                                        .count());
}

HoldTimer::HoldTimer(Due due) : due_(std::move(due)), thread_([this] { run(); }) {}

void HoldTimer::set(LockRef lock, std::uint64_t at_us) {
  const std::lock_guard guard(mutex_);
  const bool first = alarms_.empty() || at_us < alarms_.top().at_us;
  alarms_.push({at_us, std::move(lock)});
  if (first) changed_.notify_one();
}

void HoldTimer::stop() {
  {
    const std::lock_guard guard(mutex_);
    stop_ = true;
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void HoldTimer::run() {
  std::unique_lock guard(mutex_);
  while (!stop_) {
    if (alarms_.empty()) {
      changed_.wait(guard);
      continue;
    }
    const std::uint64_t now = now_us();
    const std::uint64_t at = alarms_.top().at_us;
    if (at > now) {
      changed_.wait_for(guard, std::chrono::microseconds(at - now));
      continue;
    }
    LockRef lock = alarms_.top().lock;
    alarms_.pop();
    guard.unlock();
    due_(*lock);
    lock.reset();
    guard.lock();
  }
}

}  // namespace distfuse::client
