// SPDX-License-Identifier: Apache-2.0
// What the lock table asks of the owner of the caches: sweep the kernel's, shed ours, publish what the server does not know.
#include <spdlog/spdlog.h>

#include <chrono>

#include "client/fuse/filesystem.h"

namespace distfuse::client {

/// ENOENT means that the kernel does not have the inode: or not yet, when the reply that tells it of the inode, with attributes that it
/// may believe, is still on its way there. Then the caches that are to be emptied do not exist yet, and would be filled after we
/// had left: so wait until the kernel has it, or has forgotten it again.
void Filesystem::notify(Ino ino, std::int64_t offset, std::int64_t length) {
  using std::chrono::milliseconds;
  constexpr int kTries = 2000;
  for (int tried = 0;; ++tried) {
    ++notifying_;  // before serving_ is looked at: see await_notifications()
    const int done =
        serving_ ? fuse_lowlevel_notify_inval_inode(fuse_, ino, offset, length) : -ENODEV;
    --notifying_;
    if (done != -ENOENT || !inodes_.known_to_kernel(ino)) return;
    if (tried == kTries) {
      spdlog::warn("inode {}: the kernel was told of it, but does not know it", ino);
      return;
    }
    std::this_thread::sleep_for(milliseconds(tried < 20 ? 0 : 1));
  }
}

/// Who is just about to write to the session's descriptor is waited for: it is closed next, and its number may be another file's then. Not
/// for ever: in a connection that is still there an invalidation may wait for a page of a request that nobody serves.
void Filesystem::stop_serving() {
  serving_ = false;
  for (int waited = 0; notifying_ != 0 && waited < 1000; ++waited)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void Filesystem::await_notifications() const {
  while (notifying_ != 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void Filesystem::invalidate_kernel(Ino ino, std::span<const Range> ranges) {
  if (ranges.empty()) {
    {
      const InodeRef inode = inodes_.find(ino);
      if (inode != nullptr) {
        const std::lock_guard lock(inode->state);
        inode->cached_end = 0;  // first: a read that is admitted meanwhile raises it again
      }
    }
    return notify(ino, 0, 0);
  }
  for (const Range& range : ranges)
    notify(ino, static_cast<std::int64_t>(range.offset), static_cast<std::int64_t>(range.length));
}

void Filesystem::invalidate_attributes(Ino ino) {
  notify(ino, -1, 0);
}

Mode Filesystem::keep_allowed(Ino ino, Mode asked) {
  const InodeRef inode = inodes_.find(ino);
  return inode != nullptr && inode->write_opens != 0 ? Mode::none : asked;
}

/// A shared mapping stores into a clean page without asking: while the file is open for writing here, its pages are read under X.
bool Filesystem::page_io_needs_x(Ino ino) {
  const InodeRef inode = inodes_.find(ino);
  return inode != nullptr && inode->write_opens != 0;
}

/// With inode.server held. Who asks may want to remove the file's last name: an idle registration goes, so that the file can. An open
/// that is on its way here finds it in the server's grace.
void Filesystem::shed_registration(Inode& inode) {
  {
    const std::lock_guard lock(inode.state);
    if (inode.opens != 0) return;
  }
  // An error is the end of the session, which unregisters too.
  if (inode.registered && !close_at_server(inode).ok()) inode.registered = false;
}

void Filesystem::shed(Ino ino, Mode keep) {
  if (keep == Mode::none) entries_.forget(ino);
  InodeRef inode = inodes_.find(ino);
  if (inode == nullptr) return;
  {
    const std::lock_guard server(inode->server);
    const Status flushed = flush_locked(*inode);  // recorded for fsync and close
    if (keep == Mode::none) shed_registration(*inode);
    const bool ended = !flushed.ok() && session_ended(flushed.error());
    const std::lock_guard lock(inode->state);
    // That is not recorded: what is dirty then waits for the next session's beginning. Not here.
    if (ended && keep == Mode::none && inode->attributes.dirty() != 0) inode->errors.record(EIO);
    if (keep == Mode::none) {
      inode->attributes.drop();
      inode->xattrs.clear();
    } else {
      inode->attributes.downgraded();
    }
  }
  inodes_.reap(std::move(inode));
}

std::optional<ValueBlock> Filesystem::publish(Ino ino) {
  const InodeRef inode = inodes_.find(ino);
  if (inode == nullptr) return std::nullopt;
  const std::lock_guard lock(inode->state);
  // Not valid, but dirty: the size and the times that are dirty are still ours to tell.
  const bool known = inode->attributes.valid() || inode->attributes.dirty() != 0;
  if (!known || !inode->attributes.changed_here()) return std::nullopt;
  const rpc::Attributes& attributes = inode->attributes.get();
  return ValueBlock{attributes.size, attributes.mtime.ns, attributes.ctime.ns};
}

/// The lock was not had again after lockd's restart.
void Filesystem::forfeit(Ino ino) {
  entries_.forget(ino);
  InodeRef inode = inodes_.find(ino);
  if (inode == nullptr) return;
  {
    const std::lock_guard server(inode->server);
    const std::lock_guard lock(inode->state);
    if (inode->attributes.dirty() != 0) inode->errors.record(EIO);
    inode->attributes.drop();
    inode->xattrs.clear();
  }
  inodes_.reap(std::move(inode));
}

}  // namespace distfuse::client
