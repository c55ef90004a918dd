// SPDX-License-Identifier: Apache-2.0
// A few threads for the calls that may block and that the ring cannot make (lseek for data and holes, ftruncate, listing,
// syncfs). Jobs are run in any order; their second half runs on the owner's thread, from progress().
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace distfuse::storaged {

class HelperPool {
 public:
  /// `event_fd` is written when a second half is ready.
  HelperPool(unsigned threads, int event_fd);
  ~HelperPool();  ///< Runs what a thread has begun; drops the rest and all second halves.
  HelperPool(const HelperPool&) = delete;
  HelperPool& operator=(const HelperPool&) = delete;

  /// `work` on a thread of the pool, then `finish` on the owner's. Bounded by the caller: one job an operation.
  void run(std::function<void()> work, std::function<void()> finish);
  bool progress();  ///< Owner. Answers whether a second half ran.
  [[nodiscard]] std::size_t pending() const { return pending_; }

 private:
  struct Job {
    std::function<void()> work;
    std::function<void()> finish;
  };
  void serve();

  const int event_fd_;
  std::size_t pending_ = 0;  // owner's
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Job> jobs_;                         // protected by mutex_
  std::vector<std::function<void()>> finished_;  // protected by mutex_
  bool stop_ = false;                            // protected by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace distfuse::storaged
