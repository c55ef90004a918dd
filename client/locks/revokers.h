// SPDX-License-Identifier: Apache-2.0
// The revoker threads and their queue. A job never waits for another lock, nor for a pin: a shed that has pins left leaves its
// thread and comes back with the last unpin. So a few threads serve any number of revokes without a cycle through the pool.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "client/locks/lock.h"

namespace distfuse::client {

/// A chain that a lock's machine gave out, and the epoch that the lock was in.
struct Due {
  df_chain chain;
  std::uint32_t epoch = 0;
};

struct RevokerJob {
  enum class Kind : std::uint8_t { shed, chain, drop, trim };
  Kind kind = Kind::shed;
  LockRef lock;              ///< trim: none.
  std::unique_ptr<Due> due;  ///< chain: to be run.
};

class Revokers {
 public:
  using Work = std::function<void(RevokerJob&)>;
  Revokers(unsigned threads, Work work);
  ~Revokers();  ///< Drops what is queued.

  /// Never waits. A lock is queued at most once for each kind (Shed::queued, one chain a lock, Lock::dropping), so the queue holds
  /// at most three jobs a lock.
  void push(RevokerJob job);
  /// Ends the threads; the job in work is finished.
  void stop();

 private:
  void run();

  const Work work_;
  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<RevokerJob> urgent_;  ///< shed and chain: somebody waits elsewhere.
  std::deque<RevokerJob> idle_;    ///< drop and trim.
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace distfuse::client
