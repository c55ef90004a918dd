// SPDX-License-Identifier: Apache-2.0
#include <linux/falloc.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <limits>
#include <memory>

#include "client/kernel/storage.h"
#include "kmod/uapi.h"

namespace distfuse::client::kernel {

namespace {

/// Of the size that a SEEK_DATA looks up to, and that a sync covers: the module clamps at the true one.
constexpr std::uint64_t kMaxFileSize = std::uint64_t{1} << 46;

}  // namespace

/// The size is the module's to clamp at: what was never written reads as zeros.
void Storage::read(fuse_req_t req, Ino ino, std::size_t size, std::uint64_t offset) {
  auto file = file_ref(ino, req);
  if (!file) return reply_error(req, file.error());
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(size);
  const auto present = generation();
  if (!present) return (void)fuse_reply_err(req, EIO);
  const Status done = present->data->read(*file, offset, {buffer.get(), size});
  if (!done.ok()) return reply_error(req, done.error());
  fuse_reply_buf(req, reinterpret_cast<const char*>(buffer.get()), size);
}

void Storage::write(fuse_req_t req, Ino ino, std::span<const std::byte> bytes,
                    std::uint64_t offset) {
  auto file = file_to_change(ino, req);
  if (!file) return reply_error(req, file.error());
  const auto present = generation_to_change();
  if (!present) return reply_error(req, present.error());
  const Status done = (*present)->data->write(file->ref, offset, bytes, false);
  if (!done.ok()) return reply_error(req, done.error());
  fuse_reply_write(req, bytes.size());
}

/// The module has written back data, size and times before it asks. Every target of the file syncs: a former daemon may have written there.
void Storage::fsync(fuse_req_t req, Ino ino) {
  auto file = file_ref(ino, req);
  if (!file) return reply_error(req, file.error());
  auto unsynced = unsynced_.find(ino);
  file->unsynced = unsynced.get();
  const Status synced =
      in_some_session([&](Generation& present) { return present.data->sync(*file, kMaxFileSize); });
  unsynced.reset();
  if (!synced.ok()) return reply_error(req, synced.error());
  fsyncdir(req, ino);
}

/// Metadata, after the data if there is some. DFS_LOST: some of the inode may be gone (kmod/uapi.h).
void Storage::fsyncdir(fuse_req_t req, Ino ino) {
  const std::uint64_t mark = Unsynced::mark();
  const auto reply = ask(rpc::SyncMetadata{}, req);
  if (!reply) return reply_error(req, reply.error());
  bool lost = false;
  if (const auto unsynced = unsynced_.find(ino); unsynced != nullptr) {
    unsynced->synced(Unsynced::kMetadataTarget, reply->boot, mark, &metadata_syncs_);
    lost = unsynced->take_loss();
  }
  metadata_syncs_.synced(reply->boot, mark);
  unsynced_.settle(ino);
  if (!lost) return (void)fuse_reply_err(req, 0);
  spdlog::error("inode {}: a storaged's machine restarted before what was written there was synced",
                ino);
  fuse_reply_err(req, DFS_LOST);
}

void Storage::fallocate(fuse_req_t req, Ino ino, int mode, std::uint64_t offset,
                        std::uint64_t length) {
  if (offset > kMaxFileSize || length > kMaxFileSize - offset)
    return (void)fuse_reply_err(req, EFBIG);
  auto file = file_to_change(ino, req);
  if (!file) return reply_error(req, file.error());
  const auto present = generation_to_change();
  if (!present) return reply_error(req, present.error());
  Status done;
  if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0)
    done = (*present)->data->punch(file->ref, offset, length);
  if (done.ok() && (mode & FALLOC_FL_PUNCH_HOLE) == 0)
    done = (*present)->data->allocate(file->ref, offset, length);
  if (done.ok() && (mode & FALLOC_FL_KEEP_SIZE) == 0) {
    rpc::SetAttributes grow{ino, rpc::SetAttributes::kSize | rpc::SetAttributes::kGrowOnly, {}};
    grow.values.size = offset + length;
    auto grown = call(grow, req);
    if (!grown) return reply_error(req, grown.error());
  }
  reply_status(req, done);
}

/// The module has written back what is dirty, and asks below the size.
void Storage::lseek(fuse_req_t req, Ino ino, std::uint64_t offset, int whence) {
  if (whence != SEEK_DATA && whence != SEEK_HOLE) return (void)fuse_reply_err(req, EINVAL);
  auto attributes = ask_for_attributes(rpc::GetAttributes{{ino}}, req);
  if (!attributes) return reply_error(req, attributes.error());
  const FileRef file{ino, attributes->chunk_size, attributes->first_target};
  const auto present = generation();
  if (!present) return (void)fuse_reply_err(req, EIO);
  auto found = present->data->seek(file, offset, attributes->size, whence == SEEK_HOLE);
  if (!found) return reply_error(req, found.error());
  fuse_reply_lseek(req, static_cast<off_t>(*found));
}

}  // namespace distfuse::client::kernel
