// SPDX-License-Identifier: Apache-2.0
// A thread that does what may block for an owner thread, one job after the other. The owner bounds how many it gives.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace distfuse::storaged {

class WorkerThread {
 public:
  WorkerThread() : thread_([this] { serve(); }) {}
  /// Does what was given, then ends.
  ~WorkerThread() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    ready_.notify_one();
    thread_.join();
  }
  WorkerThread(const WorkerThread&) = delete;
  WorkerThread& operator=(const WorkerThread&) = delete;

  void run(std::function<void()> job) {
    {
      std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    ready_.notify_one();
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ready_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      auto job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> jobs_;  // protected by mutex_
  bool stop_ = false;                       // protected by mutex_
  std::thread thread_;                      // last: it uses the others
};

}  // namespace distfuse::storaged
