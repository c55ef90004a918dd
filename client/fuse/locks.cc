// SPDX-License-Identifier: Apache-2.0
// fcntl and flock locks: lockd's, cluster-wide; a waiting request is a FUSE thread that waits, and ends when it is interrupted.
#include <fcntl.h>
#include <sys/file.h>

#include <limits>

#include "client/fuse/filesystem.h"

namespace distfuse::client {
namespace {

LockTable::FileLock to_file_lock(Ino ino, std::uint64_t owner, const struct flock& lock) {
  LockTable::FileLock result{};
  result.ino = ino;
  result.owner = owner;
  result.type = lock.l_type;
  result.start = static_cast<std::uint64_t>(lock.l_start);
  // libfuse gives a length, 0: to the end.
  result.end = lock.l_len == 0 ? static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())
                               : static_cast<std::uint64_t>(lock.l_start + lock.l_len - 1);
  result.pid = lock.l_pid;
  return result;
}

}  // namespace

void Filesystem::getlk(fuse_req_t req, Ino ino, fuse_file_info* file, struct flock* lock) {
  auto holder = locks_->file_lock_test(to_file_lock(ino, file->lock_owner, *lock));
  if (!holder) return reply_error(req, holder.error());
  lock->l_type = holder->type;
  if (holder->type != F_UNLCK) {
    constexpr auto kEnd = static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());
    lock->l_whence = SEEK_SET;
    lock->l_start = static_cast<off_t>(holder->start);
    lock->l_len = holder->end >= kEnd ? 0 : static_cast<off_t>(holder->end - holder->start + 1);
    lock->l_pid = holder->pid;
  }
  fuse_reply_lock(req, lock);
}

void Filesystem::setlk(fuse_req_t req, Ino ino, fuse_file_info* file, struct flock* lock,
                       bool wait) {
  if (lock->l_type != F_UNLCK) {
    const InodeRef inode = inodes_.get(ino);
    const std::lock_guard state(inode->state);
    inode->posix_locks = true;
  }
  reply_status(req,
               locks_->file_lock(to_file_lock(ino, file->lock_owner, *lock), wait, signalled(req)));
}

void Filesystem::flock(fuse_req_t req, Ino ino, fuse_file_info* file, int operation) {
  LockTable::FileLock lock{};
  lock.ino = ino;
  lock.owner = file->lock_owner;
  lock.flock = true;
  lock.end = static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());
  switch (operation & ~LOCK_NB) {
    case LOCK_SH:
      lock.type = F_RDLCK;
      break;
    case LOCK_EX:
      lock.type = F_WRLCK;
      break;
    case LOCK_UN:
      lock.type = F_UNLCK;
      break;
    default:
      return (void)fuse_reply_err(req, EINVAL);
  }
  reply_status(req, locks_->file_lock(lock, (operation & LOCK_NB) == 0, signalled(req)));
}

}  // namespace distfuse::client
