// SPDX-License-Identifier: Apache-2.0
#include "storaged/purger.h"

#include <spdlog/spdlog.h>

#include <cstring>

namespace distfuse::storaged {
namespace {

/// What the purge thread waits for and the meta thread fills in; shared, so that neither depends on the other's life.
template <typename T>
struct Answer {
  std::mutex mutex;
  std::condition_variable filled;
  bool done = false;  // protected by mutex
  T value;            // protected by mutex
};

}  // namespace

Purger::Purger(rpc::Server& server, MetadataStore& store, std::unique_ptr<rpc::Client> targets,
               std::uint32_t count)
    : server_(server), store_(store), targets_(std::move(targets)), count_(count), thread_([this] {
        serve();
      }) {}

void Purger::stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Purger::wake() {
  std::lock_guard lock(mutex_);
  if (std::exchange(wanted_, true)) return;
  changed_.notify_one();
}

bool Purger::sleep(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  if (limit > limit.zero()) {
    changed_.wait_for(lock, kGather, [this] { return stop_; });
    changed_.wait_for(lock, limit, [this] { return stop_ || wanted_; });
  }
  wanted_ = false;
  return !stop_;
}

Purger::Work Purger::ask(std::size_t limit) {
  auto answer = std::make_shared<Answer<Work>>();
  server_.post([this, answer, limit, short_of_space = short_of_space_] {
    const auto more_due = store_.reap_orphans(short_of_space);  // an error is logged by the store
    auto jobs = store_.pending_purges(limit);
    if (!jobs) spdlog::error("purge: {}", jobs.error().message);
    std::lock_guard lock(answer->mutex);
    if (jobs) answer->value.jobs = std::move(*jobs);
    answer->value.more_due = more_due && *more_due;
    answer->done = true;
    answer->filled.notify_one();
  });
  std::unique_lock lock(answer->mutex);
  answer->filled.wait(lock, [&] { return answer->done; });
  return std::move(answer->value);
}

void Purger::serve() {
  constexpr std::chrono::milliseconds kIdle = std::chrono::hours(1);
  std::chrono::milliseconds pause{0};
  while (sleep(pause)) {
    if (store_.counters().orphans > 0) look_at_space();
    auto [jobs, more_due] = ask(removed_.size() + kBatch);
    std::erase_if(jobs, [this](const PurgeJob& job) { return removed_.contains(job.ino); });
    if (jobs.size() > kBatch) jobs.resize(kBatch);
    if (!jobs.empty() && !remove(jobs)) {
      pause = kRetry;
      continue;
    }
    const bool due = std::chrono::steady_clock::now() - first_removed_ >= kSyncEvery;
    if (!removed_.empty() && (removed_.size() >= kSyncAfter || due)) {
      if (sync_targets()) forget_removed();
    }
    const bool later = !removed_.empty() || store_.counters().orphans > 0;
    pause = more_due || jobs.size() == kBatch ? std::chrono::milliseconds(0)
            : later                           ? std::chrono::milliseconds(kRetry)
                                              : kIdle;
  }
  if (!removed_.empty() && sync_targets()) forget_removed();
}

bool Purger::remove(const std::vector<PurgeJob>& jobs) {
  std::vector<rpc::DataCall> calls(jobs.size() * count_);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    calls[i].target = static_cast<std::uint32_t>(i % count_);
    calls[i].request.op = static_cast<std::uint16_t>(rpc::DataOp::remove);
    calls[i].request.ino = jobs[i / count_].ino;
    calls[i].request.chunk_size = jobs[i / count_].chunk_size;
  }
  const Status status = targets_->run(calls);
  report(status.ok() ? 0 : status.error().code);
  if (removed_.empty()) first_removed_ = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    bool everywhere = true;
    for (std::uint32_t target = 0; target < count_; ++target)
      everywhere = everywhere && calls[i * count_ + target].error == 0;
    if (everywhere) removed_.insert(jobs[i].ino);
  }
  return status.ok();
}

bool Purger::sync_targets() {
  std::vector<rpc::DataCall> calls(count_);
  for (std::uint32_t target = 0; target < count_; ++target) {
    calls[target].target = target;
    calls[target].request.op = static_cast<std::uint16_t>(rpc::DataOp::sync);
    calls[target].request.chunk_size = rpc::kDefaultChunkSize;
  }
  const Status status = targets_->run(calls);
  report(status.ok() ? 0 : status.error().code);
  return status.ok();
}

/// A target that does not answer tells nothing: it is the others that count.
void Purger::look_at_space() {
  const auto now = std::chrono::steady_clock::now();
  if (now - space_seen_ < kSpaceEvery) return;
  std::vector<rpc::DataStatfs> space(count_);
  std::vector<rpc::DataCall> calls(count_);
  for (std::uint32_t target = 0; target < count_; ++target) {
    calls[target].target = target;
    calls[target].request.op = static_cast<std::uint16_t>(rpc::DataOp::statfs);
    calls[target].request.chunk_size = rpc::kDefaultChunkSize;
    calls[target].buffer = reinterpret_cast<std::byte*>(&space[target]);
  }
  (void)targets_->run(calls).ok();
  short_of_space_ = false;
  for (std::uint32_t target = 0; target < count_; ++target) {
    const auto& each = space[target];
    const bool low = each.blocks_available < each.blocks / 100 * kLowPercent;
    short_of_space_ = short_of_space_ || (calls[target].error == 0 && low);
  }
  space_seen_ = std::chrono::steady_clock::now();
}

void Purger::forget_removed() {
  auto inodes = std::make_shared<std::vector<rpc::Ino>>(removed_.begin(), removed_.end());
  removed_.clear();
  auto answer = std::make_shared<Answer<bool>>();
  server_.post([this, inodes, answer] {
    for (rpc::Ino ino : *inodes) {
      const Status status = store_.purged(ino);
      if (!status.ok()) {
        spdlog::error("purge: {}", status.error().message);
        break;  // the rest is removed once more
      }
    }
    std::lock_guard lock(answer->mutex);
    answer->done = true;
    answer->filled.notify_one();
  });
  std::unique_lock lock(answer->mutex);
  answer->filled.wait(lock, [&] { return answer->done; });
}

void Purger::report(int error) {
  if (error != 0 && !failing_)
    spdlog::warn("purge: a data target does not remove chunks ({}); tried again",
                 std::strerror(error));
  if (error == 0 && failing_) spdlog::info("purge: all data targets remove chunks again");
  failing_ = error != 0;
}

}  // namespace distfuse::storaged
