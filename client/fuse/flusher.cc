// SPDX-License-Identifier: Apache-2.0
// Sizes and times to the meta target: each second, at close, fsync and shed. Needs no pin: what is dirty was written under X, and X
// cannot go before shed() has had inode.server, which a flush holds.
#include <spdlog/spdlog.h>

#include <chrono>
#include <shared_mutex>

#include "client/fuse/filesystem.h"

namespace distfuse::client {

namespace {

/// A second: what nobody refers to any more is gone after eight.
constexpr std::size_t kReapShards = 8;

}  // namespace

void Filesystem::mark_dirty(Inode& inode) {
  if (inode.queued.exchange(true)) return;
  const std::lock_guard lock(flusher_mutex_);
  dirty_.insert(inode.ino);
}

Status Filesystem::flush_inode(Inode& inode) {
  const std::lock_guard server(inode.server);
  return flush_locked(inode);
}

/// With inode.data (exclusive) and inode.server held, before a change that the server makes to the inode and that carries no size: its newer ctime would make other
/// mounts believe the server's old size, and not the size that this mount publishes. No write ends between this and the change: it holds
/// inode.data.
void Filesystem::flush_before_change(Inode& inode) {
  (void)flush_locked(inode).ok();  // an error is recorded, for fsync and close
}

Status Filesystem::flush_locked(Inode& inode) {
  std::optional<AttributeCache::Flush> flush;
  {
    const std::lock_guard lock(inode.state);
    flush = inode.attributes.begin_flush();
  }
  if (!flush) return {};
  if (lost()) return Error{ESTALE, {}};  // What is dirty becomes an error with the new session.
  auto fresh = call_for_attributes(flush->request);
  const std::lock_guard lock(inode.state);
  if (fresh) {
    inode.attributes.end_flush(*flush, *fresh);
    return {};
  }
  if (fresh.error().code == ENOENT && !inode.registered) {
    inode.attributes.give_up();  // its last name and its last open are gone
    return {};
  }
  if (session_ended(fresh.error())) return fresh.error();
  const int code = code_of(fresh.error());
  spdlog::error("inode {}: size and times cannot be written: {} {}", inode.ino,
                std::generic_category().message(code), fresh.error().message);
  inode.errors.record(code);
  return Error{code, {}};
}

int Filesystem::take_error(FileHandle& handle) {
  note_loss(*handle.inode);
  const std::lock_guard lock(handle.inode->state);
  return handle.inode->errors.check_and_advance(handle.seen_errors);
}

void Filesystem::flush_dirty() {
  const std::shared_lock generation(generation_mutex_);
  if (lost()) return;
  std::unordered_set<Ino> dirty;
  {
    const std::lock_guard lock(flusher_mutex_);
    dirty.swap(dirty_);
  }
  for (const Ino ino : dirty) {
    InodeRef inode = inodes_.find(ino);
    if (inode == nullptr) continue;
    inode->queued = false;  // first: what is written from now on queues it again
    (void)flush_inode(*inode).ok();
    bool left = false;
    {
      const std::lock_guard lock(inode->state);
      left = inode->attributes.dirty() != 0;
    }
    if (left) mark_dirty(*inode);
    inodes_.reap(std::move(inode));
  }
}

/// The session is lost: nothing that the kernel has is ours to vouch for. Attributes first, which wait for nothing. What was stored through
/// mappings comes back as writes, which write() refuses until this is over.
void Filesystem::void_kernel() {
  const auto all = inodes_.all();
  for (const InodeRef& inode : all) notify(inode->ino, -1, 0);
  for (const InodeRef& inode : all) {
    notify(inode->ino, 0, 0);
    inode->voided = false;
  }
  const std::lock_guard lock(flusher_mutex_);
  void_caches_ = false;
}

void Filesystem::flusher_main() {
  std::unique_lock lock(flusher_mutex_);
  while (!flusher_stop_) {
    const bool woken = flusher_wake_.wait_for(lock, std::chrono::seconds(1), [this] {
      return flusher_stop_ || void_caches_ || !stale_pages_.empty();
    });
    const auto stale = std::exchange(stale_pages_, {});
    const bool all = void_caches_;
    lock.unlock();
    for (const auto& [ino, range] : stale)
      notify(ino, static_cast<std::int64_t>(range.offset), static_cast<std::int64_t>(range.length));
    if (all) void_kernel();
    if (!woken) {
      flush_dirty();
      inodes_.reap_some(kReapShards);
    }
    lock.lock();
  }
}

}  // namespace distfuse::client
