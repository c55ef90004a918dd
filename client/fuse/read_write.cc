// SPDX-License-Identifier: Apache-2.0
// read and write: page I/O of the kernel, direct I/O, appends.
//
// These requests may come with pages locked, and the sweep of a revoke waits for locked pages: so they pin through pin_page_io(),
// which does not wait for the revoke of a lock that still covers them.
//
// Appends. The daemon appends at the true end, which need not be where the kernel thinks (the request's offset); pages of the range
// that is really written may be in this mount's kernel, read by somebody else, with zeros beyond the old end. They must go before
// the new size can be seen. Not with X pinned: a READ of such a page holds its lock, may be waiting for the lock that is being
// revoked, and that revoke waits for our pin. So: pin, look whether there are such pages, and if so let go of everything, invalidate, and
// begin again. Then nothing that this thread holds is waited for by who holds the page: the exception to "only the revoker
// threads". A READ that touches the end excludes appends until it is answered (inode.data), so none slips in between the look and the
// write. A handle that was given O_APPEND by fcntl later goes through the page cache and its request may hold page locks: there the
// flusher thread invalidates, soon after the reply.
//
// Direct reads, of a handle with O_APPEND: what was stored through a mapping of another handle of this mount is in the kernel's pages alone, and
// before Linux 6.6 a direct read does not bring it here first. So the pages of the range are invalidated, and so written, before
// anything is pinned. The reader holds no page lock.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>

#include "client/fuse/filesystem.h"

namespace distfuse::client {
namespace {

constexpr std::uint64_t kPage = 4096;

/// A thread's own buffer for reads: page-aligned, kept.
class ReadBuffer {
 public:
  ReadBuffer() = default;
  ReadBuffer(const ReadBuffer&) = delete;
  ReadBuffer& operator=(const ReadBuffer&) = delete;
  ~ReadBuffer() { std::free(memory_); }
  /// Null when there is no memory.
  std::byte* get(std::size_t size) {
    if (size <= size_) return memory_;
    std::free(memory_);
    const std::size_t rounded = (size + kPage - 1) / kPage * kPage;
    memory_ = static_cast<std::byte*>(std::aligned_alloc(kPage, rounded));
    size_ = memory_ == nullptr ? 0 : rounded;
    return memory_;
  }

 private:
  std::byte* memory_ = nullptr;
  std::size_t size_ = 0;
};

thread_local ReadBuffer thread_buffer;

std::byte* read_buffer(std::size_t size) {
  return thread_buffer.get(size);
}

void raise_cached_end(Inode& inode, std::uint64_t end) {
  const std::lock_guard lock(inode.state);
  inode.cached_end = std::max(inode.cached_end, (end + kPage - 1) / kPage * kPage);
}

bool must_kill_setid(const rpc::Attributes& attributes) {
  const bool group = (attributes.mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP);
  return (attributes.mode & S_ISUID) != 0 || group;
}

}  // namespace

void Filesystem::read(fuse_req_t req, Ino, std::size_t size, std::uint64_t offset,
                      fuse_file_info* file) {
  const auto& handle = *reinterpret_cast<const FileHandle*>(file->fh);
  const InodeRef ref_to_inode = handle.inode;  // the handle may be gone as soon as we have answered
  Inode& inode = *ref_to_inode;
  if (handle.direct && pages_cached_from(inode, offset) &&
      !notify_unguarded(inode.ino, static_cast<std::int64_t>(offset / kPage * kPage),
                        static_cast<std::int64_t>(offset % kPage + size)))
    return (void)fuse_reply_err(req, ENOTCONN);
  // X if the file is open for writing here: the lock table asks page_io_needs_x().
  auto pin = locks_->pin_page_io(inode.ino, Mode::s, {offset, size}, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  std::shared_lock data(inode.data);
  auto attributes = pinned_attributes(inode);
  if (!attributes) return reply_error(req, attributes.error());
  if (!handle.direct) raise_cached_end(inode, offset + size);
  if (offset + size <= attributes->size / kPage * kPage)
    data.unlock();  // appends do not concern it
  if (offset >= attributes->size) return (void)fuse_reply_buf(req, nullptr, 0);
  const std::size_t length = std::min<std::uint64_t>(size, attributes->size - offset);
  std::byte* buffer = read_buffer(length);
  if (buffer == nullptr) return (void)fuse_reply_err(req, ENOMEM);
  const FileRef ref{inode.ino, attributes->chunk_size, attributes->first_target};
  const Status done = data_->read(ref, offset, {buffer, length});
  if (!done.ok()) return reply_error(req, done.error());
  fuse_reply_buf(req, reinterpret_cast<const char*>(buffer), length);
}

/// With X pinned: all or nothing.
Result<std::size_t> Filesystem::write_pinned(fuse_req_t req, Inode& inode,
                                             std::span<const std::byte> bytes, std::uint64_t offset,
                                             const fuse_file_info& file) {
  const std::size_t asked = bytes.size();
  auto attributes = pinned_attributes(inode);
  if (!attributes) return attributes.error();
  if (file.writepage != 0) {
    // A mapping never makes a file longer: what lies beyond the end is the tail of its last page.
    if (offset >= attributes->size) return asked;
    bytes = bytes.first(std::min<std::uint64_t>(bytes.size(), attributes->size - offset));
  } else if (must_kill_setid(*attributes) && fuse_req_ctx(req)->uid != 0) {
    rpc::SetAttributes kill{};
    kill.ino = inode.ino;
    kill.kill_setid = true;
    DISTFUSE_TRY(change_attributes(req, inode, kill));
  }
  const FileRef ref{inode.ino, attributes->chunk_size, attributes->first_target, &inode.unsynced};
  const bool durable = (file.flags & (O_SYNC | O_DSYNC)) != 0;
  DISTFUSE_TRY(data_->write(ref, offset, bytes, durable));
  {
    const std::lock_guard lock(inode.state);
    inode.attributes.wrote(offset + bytes.size(), now());
  }
  mark_dirty(inode);
  if (durable) DISTFUSE_TRY(make_durable(inode));
  return asked;
}

Status Filesystem::make_durable(Inode& inode) {
  DISTFUSE_TRY(flush_inode(inode));
  return sync_metadata(inode);
}

/// Whether pages at or beyond the end may be cached; then they count as gone, and the caller sees to it.
bool Filesystem::pages_at_end(Inode& inode, std::uint64_t end) {
  const std::lock_guard lock(inode.state);
  const std::uint64_t begin = end / kPage * kPage;
  if (inode.cached_end <= begin) return false;
  inode.cached_end = begin;
  return true;
}

bool Filesystem::pages_cached_from(Inode& inode, std::uint64_t offset) {
  const std::lock_guard lock(inode.state);
  return inode.cached_end > offset / kPage * kPage;
}

void Filesystem::invalidate_later(Inode& inode, std::uint64_t asked, std::uint64_t at,
                                  std::uint64_t length) {
  if (asked == at) return;  // the kernel's idea was right: its pages hold what was written
  {
    const std::lock_guard lock(flusher_mutex_);
    for (const std::uint64_t begin : {asked, at})
      stale_pages_.push_back({inode.ino, {begin / kPage * kPage, length + kPage}});
  }
  flusher_wake_.notify_one();
}

/// Bytes written, all or none.
Result<std::uint64_t> Filesystem::append(fuse_req_t req, const FileHandle& handle,
                                         std::span<const std::byte> bytes, std::uint64_t asked,
                                         const fuse_file_info& file) {
  Inode& inode = *handle.inode;
  constexpr int kMaxLooks = 20;  // readers that never leave the end alone: invalidate afterwards
  for (int look = 1;; ++look) {
    auto pin = handle.direct ? locks_->pin(inode.ino, Mode::x, interrupted(req))
                             : locks_->pin_page_io(inode.ino, Mode::x, {asked, bytes.size()},
                                                   interrupted(req));
    if (!pin) return pin.error();
    std::unique_lock data(inode.data);
    auto attributes = pinned_attributes(inode);
    if (!attributes) return attributes.error();
    const std::uint64_t end = attributes->size;
    const bool stale = handle.direct && pages_at_end(inode, end);
    if (stale && look < kMaxLooks) {
      data.unlock();
      pin->release();
      if (!notify_unguarded(inode.ino, static_cast<std::int64_t>(end / kPage * kPage), 0))
        return Error{ENOTCONN, {}};
      continue;
    }
    if (end + bytes.size() > kMaxFileSize) return Error{EFBIG, {}};
    auto written = write_pinned(req, inode, bytes, end, file);
    if (!written) return written.error();
    if (stale) invalidate_later(inode, end + 1, end, *written);
    if (!handle.direct) invalidate_later(inode, asked, end, *written);
    return *written;
  }
}

void Filesystem::write(fuse_req_t req, Ino ino, std::span<const std::byte> bytes,
                       std::uint64_t offset, fuse_file_info* file) {
  const auto& handle = *reinterpret_cast<const FileHandle*>(file->fh);
  const InodeRef ref_to_inode = handle.inode;  // the handle may be gone as soon as we have answered
  Inode& inode = *ref_to_inode;
  if ((file->flags & O_APPEND) != 0 && file->writepage == 0) {
    auto appended = append(req, handle, bytes, offset, *file);
    if (!appended) return reply_error(req, appended.error());
    return (void)fuse_reply_write(req, *appended);
  }
  if (offset + bytes.size() > kMaxFileSize) return (void)fuse_reply_err(req, EFBIG);
  // Stored into a page under a session that is lost: another mount may have written there since. The kernel reports it, once.
  if (file->writepage != 0 && inode.voided) return (void)fuse_reply_err(req, EIO);
  auto pin = locks_->pin_page_io(ino, Mode::x, {offset, bytes.size()}, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  if (!handle.direct) raise_cached_end(inode, offset + bytes.size());
  const std::shared_lock data(inode.data);
  auto written = write_pinned(req, inode, bytes, offset, *file);
  if (!written) return reply_error(req, written.error());
  fuse_reply_write(req, *written);
}

}  // namespace distfuse::client
