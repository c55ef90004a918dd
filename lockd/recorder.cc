// SPDX-License-Identifier: Apache-2.0
#include "lockd/recorder.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <iterator>
#include <utility>

namespace distfuse::lockd {

namespace {
constexpr std::chrono::milliseconds kRetry{500};
}

Recorder::Recorder(std::unique_ptr<SessionLog> log, Done done)
    : log_(std::move(log)), done_(std::move(done)), thread_([this] { run(); }) {}

Recorder::~Recorder() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Recorder::record(const SessionChange& change) {
  {
    const std::lock_guard lock(mutex_);
    asked_.push_back(change);
  }
  changed_.notify_all();
}

/// Answers with what is to be tried again.
std::vector<SessionChange> Recorder::write(std::vector<SessionChange> changes) {
  const auto status = log_->append(changes);
  if (!status.ok() && !trouble_)
    spdlog::error("the list of sessions cannot be written, no session can begin: {}",
                  status.error().message);
  if (status.ok() && trouble_) spdlog::info("the list of sessions is written again");
  trouble_ = !status.ok();
  std::vector<SessionChange> again;
  for (const auto& change : changes) {
    if (status.ok() || change.kind == SessionChange::Kind::begin)
      done_(change.kind, change.session.id, status.ok());
    else
      again.push_back(change);
  }
  return again;
}

void Recorder::run() {
  std::vector<SessionChange> changes;
  std::unique_lock lock(mutex_);
  for (;;) {
    if (changes.empty())
      changed_.wait(lock, [this] { return stop_ || !asked_.empty(); });
    else
      changed_.wait_for(lock, kRetry, [this] { return stop_ || !asked_.empty(); });
    const bool last = stop_;
    changes.insert(changes.end(), std::make_move_iterator(asked_.begin()),
                   std::make_move_iterator(asked_.end()));
    asked_.clear();
    if (!changes.empty()) {
      lock.unlock();
      changes = write(std::move(changes));
      lock.lock();
    }
    if (last) return;
  }
}

}  // namespace distfuse::lockd
