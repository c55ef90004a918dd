// SPDX-License-Identifier: Apache-2.0
// How many requests of this session lockd may have unanswered (Welcome.asks): who would exceed it waits here.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace distfuse::client {

class Credits {
 public:
  explicit Credits(unsigned count) : left_(count) {}

  bool try_take() {
    const std::lock_guard lock(mutex_);
    if (left_ == 0) return false;
    --left_;
    return true;
  }
  /// Waits for a credit to be there; takes none.
  void wait(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    returned_.wait_for(lock, timeout, [this] { return left_ != 0; });
  }
  void give() {
    const std::lock_guard lock(mutex_);
    ++left_;
    returned_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable returned_;
  unsigned left_;
};

}  // namespace distfuse::client
