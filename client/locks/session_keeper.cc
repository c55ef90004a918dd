// SPDX-License-Identifier: Apache-2.0
#include "client/locks/session_keeper.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "rdma/lock/client.h"

namespace distfuse::client {

using std::chrono::milliseconds;

namespace {

/// The condition variable's clock stands still when the machine sleeps; the lease's does not.
constexpr std::uint64_t kLongestSleep = 500;

}  // namespace

const char* state_name(df_session_state state) {
  switch (state) {
    case DF_SESSION_LIVE:
      return "live";
    case DF_SESSION_SUSPECT:
      return "suspect";
    case DF_SESSION_CONNECTING:
      return "connecting";
    case DF_SESSION_RECLAIMING:
      return "reclaiming";
    default:
      return "lost";
  }
}

Result<std::unique_ptr<Lane>> SessionKeeper::open_lane(const df_welcome& welcome) {
  if (welcome.lease_ms == 0) return std::unique_ptr<Lane>{};
  df_hello hello = options_.hello;
  df_hello_join(&hello, DF_ROLE_LANE, welcome.session, welcome.token);
  return Lane::open(fabric_, options_.address, hello, options_.connect_timeout);
}

Status SessionKeeper::begin(const Control& control) {
  auto lane = open_lane(control.welcome());
  if (!lane) return lane.error();
  lane_ = std::move(*lane);
  df_session_out out;
  df_session_begin(&machine_, &control.welcome(), control.posted_ms(),
                   static_cast<df_u64>(options_.give_up.count()), &out);
  perform(out);
  thread_ = std::thread([this] { run(); });
  return {};
}

void SessionKeeper::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
    if (polling_) lane_->wake();
  }
  if (thread_.joinable()) thread_.join();
  if (connector_.joinable()) connector_.join();
  trusted_until_ = 0;
}

void SessionKeeper::push(Event event) {
  const std::lock_guard lock(mutex_);
  if (stop_) return;
  events_.push_back(std::move(event));
  changed_.notify_all();
  if (polling_) lane_->wake();
}

void SessionKeeper::cut(std::uint32_t epoch, const std::string& reason) {
  push({Event::Kind::cut, epoch, reason, 0, nullptr, nullptr});
}

void SessionKeeper::reasserted(std::uint32_t epoch) {
  push({Event::Kind::reasserted, epoch, {}, 0, nullptr, nullptr});
}

void SessionKeeper::fenced() {
  push({Event::Kind::fenced, 0, {}, 0, nullptr, nullptr});
}

void SessionKeeper::resumed(std::uint32_t epoch) {
  push({Event::Kind::resumed, epoch, {}, 0, nullptr, nullptr});
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stop_ || lost_ || resumed_epoch_ > epoch || epoch_ != epoch; });
}

void SessionKeeper::pause(bool on) {
  const std::lock_guard lock(mutex_);
  paused_ = on;
  changed_.notify_all();
}

void SessionKeeper::withhold(bool on) {
  const std::lock_guard lock(mutex_);
  withheld_ = on;
  changed_.notify_all();
}

void SessionKeeper::run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (paused_) {
      changed_.wait(lock);
      continue;
    }
    const std::uint64_t now = now_ms();
    if (!events_.empty()) {
      Event event = std::move(events_.front());
      events_.pop_front();
      lock.unlock();
      handle(event);
      lock.lock();
    } else if (now >= wake_at_) {
      lock.unlock();
      df_session_out out;
      df_session_tick(&machine_, now, &out);
      perform(out);
      lock.lock();
    } else if (machine_.renewing != 0 && lane_ != nullptr && !withheld_) {
      polling_ = true;
      lock.unlock();
      poll_lane();
      lock.lock();
      polling_ = false;
    } else {
      changed_.wait_for(lock, milliseconds(std::min(wake_at_ - now, kLongestSleep)));
    }
  }
}

void SessionKeeper::poll_lane() {
  const std::uint64_t now = now_ms();
  const std::uint64_t left = wake_at_ > now ? wake_at_ - now : 1;
  const auto done = lane_->poll(milliseconds(std::min(left, kLongestSleep)));
  if (!done) return cut(epoch_, "the lease's lane: " + done.error().message);
  if (!done->has_value()) return;
  df_session_out out;
  df_session_renewed(&machine_, now_ms(), &out);
  perform(out);
}

void SessionKeeper::renew(const df_session_out& out) {
  df_chain chain;
  df_chain_init(&chain, DF_CHAIN_NONE, DF_NO_SLOT);
  df_chain_write(&chain, machine_.lease_offset, 0, &out.renew_value, sizeof(out.renew_value));
  if (lane_ == nullptr) return;
  const Status posted = lane_->post(chain, 0);
  if (!posted) cut(epoch_, "the lease's lane: " + posted.error().message);
}

std::string SessionKeeper::reason_of_loss(df_u8 loss) const {
  const std::string after = last_error_.empty() ? "" : " (" + last_error_ + ")";
  switch (loss) {
    case DF_LOSS_REFUSED:
      return "lockd has fenced it" + after;
    case DF_LOSS_FENCED:
      return "a storaged refuses it: it is fenced" + after;
    case DF_LOSS_GIVEN_UP:
      return "no lockd for " + std::to_string(machine_.give_up_ms) + " ms" + after;
    default:
      return "lockd is another one than before" + after;
  }
}

/// The order of the fields is the order of the work.
void SessionKeeper::perform(const df_session_out& out) {
  wake_at_ = out.wake_at;
  trusted_until_.store(machine_.trusted_until, std::memory_order_release);
  state_ = machine_.state;
  incarnation_ = machine_.incarnation;
  lease_ms_ = machine_.lease_ms;
  if (out.suspect != 0) {
    if (machine_.state != DF_SESSION_LOST)
      spdlog::warn("locks: no sign of lockd for too long: caches are not used until there is one");
    user_.session_suspect();
  }
  if (out.trust != 0) {
    spdlog::warn("locks: lockd is there again: caches are used again");
    user_.session_trusted();
  }
  if (out.lost != 0) {
    {
      const std::lock_guard lock(mutex_);
      lost_ = true;
      changed_.notify_all();
    }
    user_.session_lost(reason_of_loss(out.lost));
    lane_.reset();
  }
  if (out.detach != 0) {
    lane_.reset();
    ++epoch_;
    {
      const std::lock_guard lock(mutex_);
      changed_.notify_all();
    }
    user_.session_detach(epoch_);
  }
  if (out.reassert != 0) user_.session_reassert();
  if (out.resume != 0) user_.session_resume();
  if (out.renew != 0) renew(out);
  if (out.connect != 0) begin_connect();
  if (out.reclaimed != 0) user_.session_reclaimed();
}

void SessionKeeper::handle(Event& event) {
  using Kind = Event::Kind;
  if (event.kind == Kind::connected) return handle_connected(event);
  if (event.kind == Kind::failed) return handle_failed(event);
  df_session_out out;
  if (event.kind == Kind::fenced) {
    df_session_fenced(&machine_, now_ms(), &out);
    return perform(out);
  }
  if (event.epoch != epoch_) return;
  switch (event.kind) {
    case Kind::cut:
      if (machine_.state == DF_SESSION_LOST) return;
      spdlog::warn("locks: the connection to lockd ended: {}", event.reason);
      last_error_ = event.reason;
      df_session_cut(&machine_, now_ms(), &out);
      return perform(out);
    case Kind::reasserted:
      df_session_reasserted(&machine_, now_ms(), &out);
      return perform(out);
    default:
      break;
  }
  df_session_resumed(&machine_, now_ms(), &out);
  perform(out);
  if (out.resume != 0) spdlog::info("locks: lockd {:x} has resumed", machine_.incarnation);
  const std::lock_guard lock(mutex_);
  resumed_epoch_ = event.epoch + 1;
  changed_.notify_all();
}

void SessionKeeper::handle_connected(Event& event) {
  connector_.join();
  const df_welcome welcome = event.control->welcome();
  df_session_out out;
  df_session_welcome(&machine_, &welcome, event.control->posted_ms(), now_ms(), &out);
  if (out.reassert != 0) {
    ++reconnects_;
    lane_ = std::move(event.lane);
    user_.session_connected(std::move(event.control));
  }
  perform(out);
}

void SessionKeeper::handle_failed(const Event& event) {
  connector_.join();
  last_error_ = event.reason;
  df_session_out out;
  if (event.refusal != 0) {
    df_welcome welcome{};
    welcome.refusal = event.refusal;
    df_session_welcome(&machine_, &welcome, now_ms(), now_ms(), &out);
  } else {
    df_session_unreachable(&machine_, now_ms(), &out);
  }
  perform(out);
}

/// An attempt is never begun before the outcome of the last was handled, which joins its thread.
void SessionKeeper::begin_connect() {
  connector_ = std::thread([this] { connect(); });
}

void SessionKeeper::connect() {
  df_hello hello = options_.hello;
  df_hello_join(&hello, DF_ROLE_CONTROL, machine_.id, machine_.token);  // They never change.
  df_u32 refusal = 0;
  auto control =
      Control::connect(fabric_, options_.address, hello, options_.connect_timeout, &refusal);
  if (!control) {
    return push({Event::Kind::failed, 0, control.error().message, refusal, nullptr, nullptr});
  }
  auto lane = open_lane((*control)->welcome());
  if (!lane) {
    return push({Event::Kind::failed, 0, lane.error().message, 0, nullptr, nullptr});
  }
  push({Event::Kind::connected, 0, {}, 0, std::move(*control), std::move(*lane)});
}

}  // namespace distfuse::client
