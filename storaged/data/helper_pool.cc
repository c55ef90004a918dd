// SPDX-License-Identifier: Apache-2.0
#include "storaged/data/helper_pool.h"

#include <unistd.h>

#include <cstdint>
#include <utility>

namespace distfuse::storaged {

HelperPool::HelperPool(unsigned threads, int event_fd) : event_fd_(event_fd) {
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { serve(); });
}

HelperPool::~HelperPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    jobs_.clear();
  }
  ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void HelperPool::run(std::function<void()> work, std::function<void()> finish) {
  ++pending_;
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back({std::move(work), std::move(finish)});
  }
  ready_.notify_one();
}

void HelperPool::serve() {
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job.work();
    {
      std::lock_guard lock(mutex_);
      finished_.push_back(std::move(job.finish));
    }
    const std::uint64_t one = 1;
    (void)!::write(
        event_fd_, &one,
        sizeof one);  // fails only when the counter is full, and then it is readable anyway
  }
}

bool HelperPool::progress() {
  if (pending_ == 0) return false;
  std::vector<std::function<void()>> finished;
  {
    std::lock_guard lock(mutex_);
    finished.swap(finished_);
  }
  pending_ -= finished.size();
  for (auto& finish : finished) finish();
  return !finished.empty();
}

}  // namespace distfuse::storaged
