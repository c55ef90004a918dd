// SPDX-License-Identifier: Apache-2.0
// Sessions that follow one another: what a mount does when its session is lost, and how it goes on.
//
// Parties: FUSE threads, each with the session of its operation for as long as that runs (generation_mutex_, shared); the table of the
// session, which tells of its loss; the flusher, which empties the kernel's caches; the renewer, which makes the next session.
//
// A loss. lockd refuses the session, or cannot be found, or a storaged says that it is fenced: whatever we trust then. From then on an operation that waits for a lock ends without having done anything (ENOTCONN inside) and is begun again in the next
// session; so is any other that may run twice. A change of names that has asked a storaged ends with its answer, or EIO when it is fenced. Requests that come wait for the next session,
// for give_up_s since the loss, or since they came if that was earlier; then they get EIO, until there is one.
// The renewer: a new session with lockd and the storageds; waits until every operation of the old one has ended; what was dirty becomes an error
// for fsync or close of each open file; everything known is forgotten; open files are registered again; then the new session is the
// present one. The old table is destroyed behind it.
//
// No cycle: a request that waits here may hold pages that a sweep waits for. So the renewer waits for no sweep (for a moment only), an
// operation that sweeps lets go of its session meanwhile (notify_unguarded), and the old table's end comes last.
//
// What the kernel wrote through mappings under the lost session is refused (Inode::voided) until the sweep has emptied its pages.
//
// Weak: pages that the kernel has are served by it until the sweep comes to them.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "client/fuse/filesystem.h"

namespace distfuse::client {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

/// Of the operation that this thread runs.
struct Running {
  std::shared_lock<std::shared_mutex>* session = nullptr;
  bool repeatable = false;
  bool again = false;
};
thread_local Running running;

}  // namespace

/// The CacheOwner of one session. When that is the present one no longer, its table may still ask to give up what it holds: nothing of
/// the next session must be touched for it.
class SessionOwner final : public CacheOwner {
 public:
  SessionOwner(Filesystem& filesystem, std::uint64_t generation)
      : filesystem_(filesystem), generation_(generation) {}
  void invalidate_kernel(Ino ino, std::span<const Range> ranges) override {
    filesystem_.invalidate_kernel(ino, ranges);
  }
  void invalidate_attributes(Ino ino) override { filesystem_.invalidate_attributes(ino); }
  Mode keep_allowed(Ino ino, Mode asked) override { return filesystem_.keep_allowed(ino, asked); }
  bool page_io_needs_x(Ino ino) override { return filesystem_.page_io_needs_x(ino); }
  void shed(Ino ino, Mode keep) override {
    const std::shared_lock session(filesystem_.generation_mutex_);
    if (present()) filesystem_.shed(ino, keep);
  }
  void forfeit(Ino ino) override {
    const std::shared_lock session(filesystem_.generation_mutex_);
    if (present()) filesystem_.forfeit(ino);
  }
  std::optional<ValueBlock> publish(Ino ino) override { return filesystem_.publish(ino); }
  void session_lost(const std::string& reason) override {
    filesystem_.session_lost(generation_, reason);
  }

 private:
  [[nodiscard]] bool present() const {
    return filesystem_.generation_ == generation_ && !filesystem_.lost();
  }
  Filesystem& filesystem_;
  const std::uint64_t generation_;
};

double Filesystem::validity() const {
  const std::uint64_t left = locks_->trust_left();
  return left == ~std::uint64_t{0} ? kForever : static_cast<double>(left) / 1000;
}

bool Filesystem::session_ended(const Error& error) const {
  const bool fenced = error.code == rpc::kFenced;
  // The table's keeper tells us of the loss. At the very end the table is gone while its last sheds still run.
  if (fenced && locks_ != nullptr) locks_->fenced();
  return fenced || lost();
}

bool Filesystem::begin_again(const Error& error) const {
  if (running.session == nullptr || stopping_) return false;
  if (error.code != ENOTCONN && !(running.repeatable && session_ended(error))) return false;
  running.again = true;
  return true;
}

// --- operations -------------------------------------------------------------------------------

/// 0: there is a session; else what the request, which came at `since`, is to be answered.
int Filesystem::await_session(fuse_req_t req, steady_clock::time_point since) {
  if (!lost()) return 0;
  const Interrupted killed = interrupted(req);
  const std::chrono::seconds patience(options_.cluster.client.give_up_s);
  std::unique_lock lock(renewer_mutex_);
  while (lost()) {
    if (stopping_) return ENOTCONN;
    if (steady_clock::now() - std::min(lost_at_, since) > patience) return EIO;
    renewer_wake_.wait_for(lock, milliseconds(50));
    lock.unlock();
    const bool stop = killed();
    lock.lock();
    if (stop && lost()) return EINTR;
  }
  return 0;
}

void Filesystem::serve(fuse_req_t req, bool repeatable, const std::function<void()>& operation) {
  const auto since = steady_clock::now();
  while (true) {
    if (const int code = await_session(req, since); code != 0)
      return (void)fuse_reply_err(req, code);
    std::shared_lock session(generation_mutex_);
    if (lost()) continue;
    running = {&session, repeatable, false};
    operation();
    const bool again = running.again;
    running = {};
    if (!again) return;
    session.unlock();
    std::this_thread::sleep_for(
        milliseconds(1));  // The table tells its waiters first, and us then.
  }
}

/// Invalidates without holding on to the session; false: there is another one now, or none.
bool Filesystem::notify_unguarded(Ino ino, std::int64_t offset, std::int64_t length) {
  const std::uint64_t before = generation_;
  if (running.session != nullptr) running.session->unlock();
  notify(ino, offset, length);
  if (running.session != nullptr) running.session->lock();
  return generation_ == before && !lost();
}

// --- the loss ---------------------------------------------------------------------------------

/// The table's keeper.
void Filesystem::session_lost(std::uint64_t generation, const std::string& reason) {
  if (stopping_) return;
  spdlog::error("mount {}: the session is lost: {}", options_.mountpoint, reason);
  for (const InodeRef& inode : inodes_.all()) {
    if (inode->write_opens != 0) inode->voided = true;
  }
  {
    const std::lock_guard lock(flusher_mutex_);
    void_caches_ = true;
  }
  {
    const std::lock_guard lock(renewer_mutex_);
    lost_generation_ = generation;
    lost_at_ = steady_clock::now();
    renewer_wake_.notify_all();
  }
  flusher_wake_.notify_one();
}

Result<Filesystem::Generation> Filesystem::make_generation(std::uint64_t number) {
  const config::Cluster& cluster = options_.cluster;
  Generation fresh;
  fresh.owner = std::make_unique<SessionOwner>(*this, number);
  LockTableOptions lock_options;
  lock_options.fabric_kind = cluster.fabric.kind;
  lock_options.device = cluster.fabric.device;
  lock_options.lockd = cluster.lockd.listen;
  lock_options.cluster_id = cluster.id;
  lock_options.mount_name = options_.name;
  lock_options.max_locks = cluster.client.max_locks;
  // For scripts/bench handover alone.
  const char* hold_time = std::getenv("DISTFUSE_HOLD_TIME");
  lock_options.hold_time = hold_time == nullptr || std::string_view(hold_time) != "off";
  lock_options.give_up = std::chrono::seconds(cluster.client.give_up_s);
  auto locks = LockTable::create(lock_options, *fresh.owner);
  if (!locks) return locks.error();
  fresh.locks = std::move(*locks);

  rpc::ClientOptions rpc_options;
  rpc_options.meta = cluster.meta().meta_listen;
  rpc_options.data = cluster.data_addresses();
  rpc_options.cluster_id = cluster.id;
  rpc_options.session = fresh.locks->session().session;
  rpc_options.device = cluster.fabric.storage_device();
  rpc_options.give_up = std::chrono::seconds(cluster.client.give_up_s);
  auto client = rpc::Client::create(rpc_options);
  if (!client) return client.error();
  fresh.rpc = std::move(*client);
  fresh.data = std::make_unique<FileData>(*fresh.rpc, targets_);
  return fresh;
}

/// Nothing is known of the inode any more; an open file is registered again. An inode that is gone is ESTALE to whoever uses it.
void Filesystem::void_inode(Inode& inode, rpc::Client& rpc, std::size_t& failed) {
  const std::lock_guard server(inode.server);
  bool open = false;
  {
    const std::lock_guard lock(inode.state);
    if (inode.attributes.dirty() != 0) {
      inode.errors.record(EIO);
      ++failed;
    }
    inode.attributes.drop();
    inode.xattrs.clear();
    inode.posix_locks = false;
    open = inode.opens != 0;
  }
  inode.registered = open && rpc.call(rpc::OpenFile{inode.ino}, 0, 0).ok();
}

/// No operation of the old session runs, and none of the new one yet.
void Filesystem::publish_generation(Generation& fresh, std::uint64_t number) {
  std::size_t failed = 0;
  const std::unique_lock exclusive(generation_mutex_);
  entries_.clear();
  for (const InodeRef& inode : inodes_.all()) void_inode(*inode, *fresh.rpc, failed);
  std::swap(session_owner_, fresh.owner);
  std::swap(rpc_, fresh.rpc);
  std::swap(data_, fresh.data);
  std::swap(locks_, fresh.locks);
  generation_ = number;
  ++lost_sessions_;
  if (failed != 0)
    spdlog::error(
        "mount {}: size or times of {} files could not be written before the session was lost",
        options_.mountpoint, failed);
}

/// false: it must be tried again.
bool Filesystem::renew_session() {
  const std::uint64_t number = lost_generation_ + 1;
  auto fresh = make_generation(number);
  if (!fresh) {
    if (std::exchange(no_session_, fresh.error().message) != fresh.error().message)
      spdlog::warn("mount {}: no new session yet: {}", options_.mountpoint, no_session_);
    return false;
  }
  // What the kernel has should be gone before locks are taken anew; but a sweep may be waiting for requests that wait for us.
  for (int waited = 0; void_caches_ && waited < 200; ++waited)
    std::this_thread::sleep_for(milliseconds(1));
  publish_generation(*fresh, number);
  no_session_.clear();
  {
    const std::lock_guard lock(renewer_mutex_);
    renewer_wake_.notify_all();
  }
  spdlog::warn("mount {}: goes on with a new session {:x}", options_.mountpoint,
               locks_->session().session);
  return !lost();  // The old one ends with `fresh`.
}

void Filesystem::renewer_main() {
  milliseconds pause{50};
  std::unique_lock lock(renewer_mutex_);
  while (!renewer_stop_) {
    if (!lost()) {
      pause = milliseconds(50);
      renewer_wake_.wait(lock, [this] { return renewer_stop_ || lost(); });
      continue;
    }
    lock.unlock();
    const bool renewed = renew_session();
    lock.lock();
    if (renewed) continue;
    renewer_wake_.wait_for(lock, pause, [this] { return renewer_stop_; });
    pause = std::min(pause * 2, milliseconds(1000));
  }
}

}  // namespace distfuse::client
