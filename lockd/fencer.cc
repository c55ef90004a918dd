// SPDX-License-Identifier: Apache-2.0
#include "lockd/fencer.h"

#include <utility>

#include "common/log.h"

namespace distfuse::lockd {

Fencer::Fencer(std::unique_ptr<Storage> storage, std::function<void(SessionId)> done,
               std::chrono::milliseconds retry)
    : storage_(std::move(storage)),
      done_(std::move(done)),
      retry_(retry),
      thread_([this] { run(); }) {}

Fencer::~Fencer() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Fencer::fence(SessionId session) {
  {
    const std::lock_guard lock(mutex_);
    asked_.push_back({session, {}});
  }
  changed_.notify_all();
}

/// Whether the session is refused everywhere now. A trouble is logged when it is a new one.
bool Fencer::attempt(Pending& pending) {
  const auto status = storage_->fence(pending.session);
  if (status.ok()) {
    spdlog::info("session {:#x} is fenced at every storaged", pending.session);
    return true;
  }
  if (pending.trouble != status.error().message) {
    pending.trouble = status.error().message;
    spdlog::warn("session {:#x} cannot be fenced yet, its locks stay taken: {}", pending.session,
                 pending.trouble);
  }
  return false;
}

void Fencer::run() {
  std::list<Pending> pending;
  std::unique_lock lock(mutex_);
  while (!stop_) {
    pending.splice(pending.end(), asked_);
    if (pending.empty()) {
      changed_.wait(lock);
      continue;
    }
    for (auto it = pending.begin(); it != pending.end() && !stop_;) {
      lock.unlock();
      const bool fenced = attempt(*it);
      if (fenced) done_(it->session);
      it = fenced ? pending.erase(it) : std::next(it);
      lock.lock();
    }
    if (!pending.empty() && !stop_)
      changed_.wait_for(lock, retry_, [&] { return stop_ || !asked_.empty(); });
  }
}

}  // namespace distfuse::lockd
