// SPDX-License-Identifier: Apache-2.0
// fsync, statfs, fallocate, copy_file_range, lseek for data and holes.
#include <fcntl.h>
#include <linux/falloc.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>

#include "client/fuse/filesystem.h"

namespace distfuse::client {
namespace {

constexpr std::size_t kCopyBuffer = 4 << 20;
/// One request of copy_file_range moves no more, so that a lock is not kept for minutes; the caller asks again.
constexpr std::size_t kMaxCopy = 64 << 20;

}  // namespace

/// Durable means: the data at every target that the file touches, then size and times at the meta target, then its log. What another
/// mount has written and not flushed is that mount's to sync.
void Filesystem::fsync(fuse_req_t req, Ino, fuse_file_info* file) {
  FileHandle& handle = *reinterpret_cast<FileHandle*>(file->fh);
  Inode& inode = *handle.inode;
  auto ref = file_ref(inode);
  if (!ref) return reply_error(req, ref.error());
  // The size that we know may be old; all targets cover any.
  Status done = data_->sync(*ref, kMaxFileSize);
  if (done.ok()) done = make_durable(inode);
  // Once, with the errors that the next session's beginning records.
  if (!done.ok() && session_ended(done.error())) return reply_error(req, Error{ENOTCONN, {}});
  const int earlier = take_error(handle);
  fuse_reply_err(req, done.ok() ? earlier : code_of(done.error()));
}

/// The inode's metadata; an error if some of it, or of its data, is known to be lost: then `errors` has it too.
Status Filesystem::sync_metadata(Inode& inode) {
  const std::uint64_t mark = Unsynced::mark();
  auto synced = call(rpc::SyncMetadata{});
  if (!synced) return synced.error();
  inode.unsynced.synced(Unsynced::kMetadataTarget, synced->boot, mark, &metadata_syncs_);
  metadata_syncs_.synced(synced->boot, mark);
  return note_loss(inode) ? Error{EIO, {}} : Status{};
}

/// True: a machine that had changes of the inode, not synced, has restarted. Recorded for every open file.
bool Filesystem::note_loss(Inode& inode) {
  if (!inode.unsynced.take_loss()) return false;
  spdlog::error("inode {}: a storaged's machine restarted before what was written there was synced",
                inode.ino);
  const std::lock_guard lock(inode.state);
  inode.errors.record(EIO);
  return true;
}

void Filesystem::statfs(fuse_req_t req) {
  auto space = data_->statfs();
  if (!space) return reply_error(req, space.error());
  auto inodes = call(rpc::StatFilesystem{}, req);
  if (!inodes) return reply_error(req, inodes.error());
  struct statvfs result {};
  result.f_bsize = space->block_size;
  result.f_frsize = space->block_size;
  result.f_blocks = space->blocks;
  result.f_bfree = space->blocks_free;
  result.f_bavail = space->blocks_available;
  result.f_files = inodes->inodes_used + space->files_free;
  result.f_ffree = result.f_favail = space->files_free;
  result.f_namemax = 255;
  fuse_reply_statfs(req, &result);
}

Status Filesystem::change_space(const FileRef& file, int mode, std::uint64_t offset,
                                std::uint64_t length) {
  if ((mode & FALLOC_FL_PUNCH_HOLE) != 0) return data_->punch(file, offset, length);
  if ((mode & FALLOC_FL_ZERO_RANGE) != 0) DISTFUSE_TRY(data_->punch(file, offset, length));
  DISTFUSE_TRY(data_->allocate(file, offset, length));
  return {};
}

void Filesystem::fallocate(fuse_req_t req, Ino ino, int mode, std::uint64_t offset,
                           std::uint64_t length) {
  constexpr int kKeep = FALLOC_FL_KEEP_SIZE;
  if (mode != 0 && mode != kKeep && mode != (FALLOC_FL_PUNCH_HOLE | kKeep) &&
      (mode & ~kKeep) != FALLOC_FL_ZERO_RANGE)
    return (void)fuse_reply_err(req, EOPNOTSUPP);
  if (offset > kMaxFileSize || length > kMaxFileSize - offset)
    return (void)fuse_reply_err(req, EFBIG);
  const InodeRef inode = inodes_.get(ino);
  auto pin = locks_->pin(ino, Mode::x, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  auto attributes = pinned_attributes(*inode);
  if (!attributes) return reply_error(req, attributes.error());
  const FileRef file{ino, attributes->chunk_size, attributes->first_target, &inode->unsynced};
  const std::unique_lock data(inode->data);
  const Status done = change_space(file, mode, offset, length);
  if (!done.ok()) return reply_error(req, done.error());
  {
    const std::lock_guard lock(inode->state);
    const std::uint64_t end = (mode & kKeep) != 0 ? 0 : offset + length;
    inode->attributes.wrote(end, now());
  }
  mark_dirty(*inode);
  fuse_reply_err(req, 0);
}

Result<std::size_t> Filesystem::copy_bytes(const FileRef& from, std::uint64_t from_offset,
                                           const FileRef& to, std::uint64_t to_offset,
                                           std::size_t length) {
  std::vector<std::byte> buffer(std::min(length, kCopyBuffer));
  std::size_t done = 0;
  while (done < length) {
    const std::span<std::byte> part(buffer.data(), std::min(length - done, buffer.size()));
    Status moved = data_->read(from, from_offset + done, part);
    if (moved.ok()) moved = data_->write(to, to_offset + done, part, false);
    if (!moved.ok() && done == 0) return moved.error();
    if (!moved.ok()) break;
    done += part.size();
  }
  return done;
}

void Filesystem::copy_file_range(fuse_req_t req, Ino from, std::uint64_t from_offset, Ino to,
                                 std::uint64_t to_offset, std::size_t length) {
  const Wanted wanted[] = {{from, Mode::s}, {to, Mode::x}};
  auto pins = locks_->pin_all(wanted, interrupted(req));
  if (!pins) return reply_error(req, pins.error());
  const InodeRef source = inodes_.get(from);
  const InodeRef target = inodes_.get(to);
  auto source_attributes = pinned_attributes(*source);
  if (!source_attributes) return reply_error(req, source_attributes.error());
  auto target_attributes = pinned_attributes(*target);
  if (!target_attributes) return reply_error(req, target_attributes.error());
  if (from_offset >= source_attributes->size) return (void)fuse_reply_write(req, 0);
  length = std::min<std::uint64_t>({length, kMaxCopy, source_attributes->size - from_offset});
  const bool apart =
      from != to || from_offset + length <= to_offset || to_offset + length <= from_offset;
  if (!apart) return (void)fuse_reply_err(req, EINVAL);
  if (to_offset + length > kMaxFileSize) return (void)fuse_reply_err(req, EFBIG);
  const FileRef read_from{from, source_attributes->chunk_size, source_attributes->first_target};
  const FileRef write_to{to, target_attributes->chunk_size, target_attributes->first_target,
                         &target->unsynced};
  const std::shared_lock data(target->data);
  auto copied = copy_bytes(read_from, from_offset, write_to, to_offset, length);
  if (!copied) return reply_error(req, copied.error());
  {
    const std::lock_guard lock(target->state);
    target->attributes.wrote(to_offset + *copied, now());
  }
  mark_dirty(*target);
  fuse_reply_write(req, *copied);
}

void Filesystem::lseek(fuse_req_t req, Ino ino, std::uint64_t offset, int whence) {
  if (whence != SEEK_DATA && whence != SEEK_HOLE) return (void)fuse_reply_err(req, EINVAL);
  const InodeRef inode = inodes_.get(ino);
  // What mappings of this mount stored is data too; the kernel does not write it back for this request. Nothing is held here that
  // writeback could wait for.
  if (inode->write_opens != 0 && !notify_unguarded(ino, 0, 0))
    return reply_error(req, Error{ENOTCONN, {}});
  auto pin = locks_->pin(ino, Mode::s, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  auto attributes = pinned_attributes(*inode);
  if (!attributes) return reply_error(req, attributes.error());
  const FileRef file{ino, attributes->chunk_size, attributes->first_target};
  auto found = data_->seek(file, offset, attributes->size, whence == SEEK_HOLE);
  if (!found) return reply_error(req, found.error());
  fuse_reply_lseek(req, static_cast<off_t>(*found));
}

}  // namespace distfuse::client
