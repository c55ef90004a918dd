// SPDX-License-Identifier: Apache-2.0
#include "lockd/fencer.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "common/log.h"

namespace distfuse::lockd {

void Storage::wait(int wake_fd, std::chrono::milliseconds timeout) {
  pollfd fd{wake_fd, POLLIN, 0};
  (void)::poll(&fd, 1, timeout.count() < 0 ? -1 : static_cast<int>(timeout.count()));
}

Fencer::Fencer(std::unique_ptr<Storage> storage, std::function<void(SessionId)> done,
               std::function<void()> who_lives, std::function<void(const std::string&)> over,
               std::chrono::milliseconds retry)
    : storage_(std::move(storage)),
      done_(std::move(done)),
      who_lives_(std::move(who_lives)),
      over_(std::move(over)),
      retry_(retry),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!wake_) std::abort();
  thread_ = std::thread([this] { run(); });
}

Fencer::~Fencer() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake();
  thread_.join();
}

void Fencer::wake() {
  const std::uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) < 0 && errno != EAGAIN) std::abort();
}

void Fencer::fence(SessionId session) {
  {
    const std::lock_guard lock(mutex_);
    asked_.push_back({session, {}});
  }
  wake();
}

void Fencer::live(LiveSessions live) {
  {
    const std::lock_guard lock(mutex_);
    live_ = std::move(live);
  }
  wake();
}

bool Fencer::stopping() {
  const std::lock_guard lock(mutex_);
  return stop_;
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

/// A list that did not reach everyone is not used again: the next attempt has a fresh one.
void Fencer::teach() {
  std::optional<LiveSessions> live;
  {
    const std::lock_guard lock(mutex_);
    live.swap(live_);
  }
  if (live) asked_who_lives_ = false;
  if (!storage_->needs_sessions()) return;
  if (!live) {
    if (!std::exchange(asked_who_lives_, true)) who_lives_();
    return;
  }
  const auto status = storage_->tell(*live);
  if (!status.ok() && status.error().code == ESTALE) return over_(status.error().message);
  const std::string trouble = status.ok() ? "" : status.error().message;
  if (trouble == trouble_) return;
  if (status.ok())
    spdlog::info("every storaged knows the living sessions");
  else
    spdlog::warn("not every storaged can be told who lives: {}", trouble);
  trouble_ = trouble;
}

void Fencer::sleep(std::chrono::milliseconds timeout) {
  storage_->wait(wake_.get(), timeout);
  std::uint64_t count = 0;
  (void)!::read(wake_.get(), &count, sizeof count);
}

void Fencer::run() {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return;
      pending_.splice(pending_.end(), asked_);
    }
    teach();
    for (auto it = pending_.begin(); it != pending_.end() && !stopping();) {
      const bool fenced = attempt(*it);
      if (fenced) done_(it->session);
      it = fenced ? pending_.erase(it) : std::next(it);
    }
    const bool again = !pending_.empty() || (storage_->needs_sessions() && !asked_who_lives_);
    sleep(again ? retry_ : std::chrono::milliseconds(-1));
  }
}

}  // namespace distfuse::lockd
