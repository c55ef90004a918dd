// SPDX-License-Identifier: Apache-2.0
// Revokes that are held back for a lock's minimum hold time (rdma/lock/hold.h), and the thread that hands them over when it is up.
//
// Parties: the control thread, which keeps a Revoke with its lock and sets the alarm; the timer's thread, which calls `due` for the lock.
// A lock whose revokes were handed over earlier (a drop), or forgotten (its link ended), has none left when its alarm comes.
//
// Limits: one alarm a lock at a time (Lock::held_back is empty before it is set), so no more than there are locks.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <queue>
#include <thread>
#include <vector>

#include "client/locks/lock.h"

namespace distfuse::client {

/// Microseconds of one monotonic clock.
std::uint64_t now_us();

class HoldTimer {
 public:
  using Due = std::function<void(Lock& lock)>;
  explicit HoldTimer(Due due);
  ~HoldTimer() { stop(); }

  void set(LockRef lock, std::uint64_t at_us);
  /// `due` is not called after it.
  void stop();

 private:
  struct Alarm {
    std::uint64_t at_us;
    LockRef lock;
    bool operator>(const Alarm& other) const { return at_us > other.at_us; }
  };
  void run();

  const Due due_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::priority_queue<Alarm, std::vector<Alarm>, std::greater<>> alarms_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace distfuse::client
