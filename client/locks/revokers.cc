// SPDX-License-Identifier: Apache-2.0
#include "client/locks/revokers.h"

#include <utility>

namespace distfuse::client {

Revokers::Revokers(unsigned threads, Work work) : work_(std::move(work)) {
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

Revokers::~Revokers() {
  stop();
}

void Revokers::push(RevokerJob job) {
  const bool urgent = job.kind == RevokerJob::Kind::shed || job.kind == RevokerJob::Kind::chain;
  const std::lock_guard lock(mutex_);
  if (stop_) return;
  (urgent ? urgent_ : idle_).push_back(std::move(job));
  filled_.notify_one();
}

void Revokers::stop() {
  std::deque<RevokerJob> dropped[2];
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    dropped[0].swap(urgent_);
    dropped[1].swap(idle_);
    filled_.notify_all();
  }
  for (auto& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void Revokers::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    filled_.wait(lock, [this] { return stop_ || !urgent_.empty() || !idle_.empty(); });
    if (stop_) return;
    auto& queue = urgent_.empty() ? idle_ : urgent_;
    auto job = std::move(queue.front());
    queue.pop_front();
    lock.unlock();
    work_(job);
    job = {};
    lock.lock();
  }
}

}  // namespace distfuse::client
