// SPDX-License-Identifier: Apache-2.0
// The life of the session, as far as the locks are concerned: links that come and go, lockd's restart, the end. Protocol: rdma/lock/session.h
// and rdma/lock/client.h; the keeper's thread calls the session_* functions.
//
// A restart: session_detach puts every lock into the next epoch, detached: nothing is posted or sent for it, cached use goes on while the
// session is trusted. session_connected makes the link of that epoch. The re-assertion runs on threads of its own, because renewals must go
// on meanwhile: kReasserters of them, each with a lane full of chains; then the file locks, one after the other. session_resume attaches
// the locks again; wants, releases and glimpses go on from there.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "client/locks/table.h"

namespace distfuse::client {

namespace {

using std::chrono::milliseconds;

constexpr std::size_t kReasserters = 4;

}  // namespace

// --- links ------------------------------------------------------------------------------------

LinkRef Table::make_link(std::unique_ptr<Control> control, std::uint32_t epoch) {
  auto lanes = std::make_unique<LanePool>(*fabric_, options_.lockd, lane_hello_, options_.lanes,
                                          options_.connect_timeout);
  LinkUser& user = *this;
  return std::make_shared<Link>(user, epoch, geometries_.back(), std::move(control),
                                std::move(lanes),
                                [this](const df_msg& request) { granted_.note(request); });
}

LinkRef Table::link_of(std::uint32_t epoch) const {
  const std::lock_guard lock(link_mutex_);
  return link_ != nullptr && link_->epoch == epoch ? link_ : nullptr;
}

Result<LinkRef> Table::live_link(const Interrupted& interrupted) {
  const auto give_up = Clock::now() + options_.give_up + kGiveUpLate;
  for (milliseconds pause{1};; pause = std::min(pause * 2, milliseconds(20))) {
    if (lost_) return Error{ENOTCONN, "the session with lockd is lost"};
    if (live_) {
      const std::lock_guard lock(link_mutex_);
      if (link_ != nullptr) return link_;
    }
    if (Clock::now() > give_up) return Error{EIO, "lockd is away"};
    if (interrupted && interrupted()) return Error{EINTR, "interrupted while lockd is away"};
    std::this_thread::sleep_for(pause);
  }
}

/// A link is destroyed here and nowhere else: not on its own control thread, which may be the last to use it.
void Table::reap_links(bool all) {
  std::vector<LinkRef> gone;
  const std::lock_guard lock(link_mutex_);
  if (all && link_ != nullptr) retired_.push_back(std::move(link_));
  std::erase_if(retired_, [&](LinkRef& link) {
    if (!all && link.use_count() != 1) return false;
    gone.push_back(std::move(link));
    return true;
  });
}

void Table::link_ended(Link& link, const std::string& reason) {
  link.close();
  keeper_->cut(link.epoch, reason);
}

/// Nothing may be posted again whose first outcome is not known.
void Table::link_failed(Link& link, const Error& error) {
  link.lanes->close();
  keeper_->cut(link.epoch, error.message);
}

// --- the session ------------------------------------------------------------------------------

/// In the old link's order: first nobody gets it any more, then every lock leaves its epoch.
void Table::session_detach(std::uint32_t epoch) {
  reap_links(false);
  live_ = false;
  {
    const std::lock_guard lock(link_mutex_);
    if (link_ != nullptr) {
      link_->close();
      // Its control connection stays until lockd answers, or we trust nothing any more: closing it would tell lockd that we had stopped.
      retired_.push_back(std::move(link_));
      link_ = nullptr;
    }
  }
  if (reasserter_.joinable()) reasserter_.join();
  locks_.enter(epoch, geometries_.back(), true);
  for (const auto& lock : locks_.all()) {
    const std::lock_guard guard(lock->mutex);
    if (lock->epoch == epoch) continue;
    lock->epoch = epoch;
    lock->held_back.clear();
    df_lock_detach(&lock->core);
    settle(*lock);
    lock->changed.notify_all();
  }
}

void Table::session_connected(std::unique_ptr<Control> control) {
  const df_welcome& welcome = control->welcome();
  geometries_.push_back({welcome.buckets, welcome.overflow, welcome.node});
  std::uint32_t epoch = 0;
  {
    const std::lock_guard lock(link_mutex_);
    epoch = retired_.back()->epoch + 1;
  }
  auto link = make_link(std::move(control), epoch);
  locks_.enter(epoch, geometries_.back(), true);
  {
    const std::lock_guard lock(link_mutex_);
    link_ = link;
  }
  link->start();
  link.reset();
  reap_links(false);
}

void Table::session_reassert() {
  LinkRef link;
  {
    const std::lock_guard lock(link_mutex_);
    link = link_;
  }
  {
    const std::lock_guard lock(busy_mutex_);
    busy_.clear();
  }
  if (reasserter_.joinable()) reasserter_.join();
  reasserter_ = std::thread([this, link = std::move(link)] { reassert_all(link); });
}

void Table::session_reclaimed() {
  const std::lock_guard lock(link_mutex_);
  df_msg message;
  df_msg_init(&message, DF_MSG_RECLAIMED, 0, 0, 0);
  if (link_ != nullptr) link_->control->send(message);
}

void Table::session_resume() {
  LinkRef link;
  {
    const std::lock_guard lock(link_mutex_);
    link = link_;
  }
  locks_.enter(link->epoch, geometries_.back(), false);
  for (const auto& lock : locks_.all()) {
    const std::lock_guard guard(lock->mutex);
    df_out out;
    Due due;
    df_lock_resume(&lock->core, &out);
    if (perform(*lock, out, due)) run_later(*lock, due);
    lock->changed.notify_all();
  }
  live_ = true;
}

void Table::session_lost(const std::string& reason) {
  lost_ = true;
  live_ = false;
  locks_.close();
  {
    const std::lock_guard lock(link_mutex_);
    if (link_ != nullptr) retired_.push_back(std::move(link_));
    link_ = nullptr;
    for (const auto& link : retired_) {
      link->close();
      link->control->close();
    }
  }
  for (const auto& lock : locks_.all()) {
    const std::lock_guard guard(lock->mutex);
    df_out out;
    Due due;
    ++lock->holds;
    lock->held_back.clear();
    lock->shed.active = false;
    df_lock_session_lost(&lock->core, &out);
    (void)perform(*lock, out, due);  // Only wakes.
    lock->changed.notify_all();
  }
  if (const std::size_t count = granted_.clear(); count != 0)
    spdlog::error("locks: {} fcntl and flock locks are lost with the session", count);
  owner_.session_lost(reason);
}

// --- re-assertion -----------------------------------------------------------------------------

/// true: `due` is to be run. Counts what will wake.
bool Table::begin_reassert(Link& link, Lock& lock, Due& due) {
  const std::lock_guard guard(lock.mutex);
  if (lock.epoch != link.epoch) return false;
  df_out out;
  lock.core.table = &link.geometry;
  ++to_reassert_;
  if (df_lock_reassert(&lock.core, &out) == 0) {
    --to_reassert_;
    return false;
  }
  return perform(lock, out, due);
}

/// One lane full of chains. No gates: there is no Freeze in grace.
void Table::reassert_some(Link& link, std::span<LockRef> locks) {
  auto lane = link.lanes->borrow();
  if (!lane) return link_failed(link, lane.error());
  std::vector<Lock*> posted(Lane::kChains);
  std::vector<unsigned> unused(Lane::kChains);
  std::iota(unused.rbegin(), unused.rend(), 0u);
  const auto post = [&](Lock& lock, const Due& due) {
    const Status status = (*lane)->post(due.chain, unused.back());
    if (!status) {
      link_failed(link, status.error());
      return false;
    }
    posted[unused.back()] = &lock;
    unused.pop_back();
    return true;
  };
  std::size_t next = 0;
  while (true) {
    Due due;
    while (next < locks.size() && !unused.empty()) {
      Lock& lock = *locks[next++];
      if (begin_reassert(link, lock, due) && !post(lock, due)) return;
    }
    if (unused.size() == Lane::kChains) return;
    const auto done = (*lane)->next(link.lanes->closed());
    if (!done) return link_failed(link, done.error());
    Lock& lock = *posted[*done];
    unused.push_back(*done);
    const auto result = (*lane)->result(*done);
    bool more = false;
    {
      const std::lock_guard guard(lock.mutex);
      if (lock.epoch != link.epoch) return;
      df_out out;
      df_lock_chain_done(&lock.core, result.old, result.image, &out);
      more = perform(lock, out, due);
    }
    if (more && !post(lock, due)) return;
  }
}

/// Those that were told to come again.
void Table::reassert_busy(Link& link) {
  std::vector<LockRef> again;
  {
    const std::lock_guard lock(busy_mutex_);
    again.swap(busy_);
  }
  // Begun anew, each counts again.
  to_reassert_ -= again.size();
  reassert_some(link, again);
}

/// false: the link ended.
bool Table::reassert_file_locks(Link& link) {
  std::size_t refused = 0;
  for (df_msg message : granted_.all()) {
    message.file.flags |= DF_FILE_RECLAIM;
    const auto reply = link.requests.ask(message);
    if (!reply) return false;
    if (reply->file_reply.error == 0) continue;
    ++refused;
    message.head.type = DF_MSG_FILE_UNLOCK;
    message.file.type = DF_FILE_NONE;
    granted_.note(message);
  }
  if (refused != 0)
    spdlog::error("locks: {} fcntl and flock locks could not be had again", refused);
  return true;
}

void Table::reassert_all(const LinkRef& link) {
  const auto began = Clock::now();
  auto locks = locks_.all();
  to_reassert_ = 1;  // Our own, so that it is not 0 before all are begun.
  const std::size_t each = locks.size() / kReasserters + 1;
  std::vector<std::thread> threads;
  for (std::size_t first = 0; first < locks.size(); first += each) {
    const std::span some = std::span(locks).subspan(first, std::min(each, locks.size() - first));
    threads.emplace_back([this, &link, some] { reassert_some(*link, some); });
  }
  for (auto& thread : threads) thread.join();
  --to_reassert_;
  for (milliseconds pause{1}; to_reassert_ != 0 && !link->lanes->closed();
       pause = std::min(pause * 2, milliseconds(100))) {
    std::this_thread::sleep_for(pause);
    reassert_busy(*link);
  }
  if (link->lanes->closed() || !reassert_file_locks(*link)) return;
  spdlog::info("locks: {} locks and {} file locks taken again in {} ms", counts_.held.load(),
               granted_.size(),
               std::chrono::duration_cast<milliseconds>(Clock::now() - began).count());
  keeper_->reasserted(link->epoch);
}

// --- without trust ----------------------------------------------------------------------------

/// The kernel would go on serving what it has. One sweeper at a time: what it has not come to when trust is back stays.
void Table::session_suspect() {
  if (sweeping_.exchange(true)) return;
  if (sweeper_.joinable()) sweeper_.join();
  sweeper_ = std::thread([this] {
    sweep_suspect();
    sweeping_ = false;
  });
}

/// Attributes first: they never wait. Then pages; those of files that are open for writing last, because their writeback waits for trust.
void Table::sweep_suspect() {
  const auto over = [this] { return keeper_->trusted() || ending_; };
  const auto locks = locks_.all();
  std::vector<Lock*> pages;
  std::vector<Lock*> written;
  for (const auto& lock : locks) {
    if (over()) return;
    {
      const std::lock_guard guard(lock->mutex);
      if (lock->core.held == DF_NL) continue;
      if (lock->page_io)
        (owner_.page_io_needs_x(lock->ino) ? written : pages).push_back(lock.get());
    }
    owner_.invalidate_attributes(lock->ino);
  }
  for (const auto* part : {&pages, &written}) {
    for (Lock* lock : *part) {
      if (over()) return;
      owner_.invalidate_kernel(lock->ino, {});
    }
  }
}

}  // namespace distfuse::client
