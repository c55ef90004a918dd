// SPDX-License-Identifier: Apache-2.0
// Syncs of the chunk store. A batch is one run over an inode's dirty chunks: fdatasync of each, then fsync of what was changed
// of the directories above; it answers every sync that was waiting when it began. syncfs does for everything at once; no
// batch starts while it runs, because what it has taken from the ledger is not durable before it ends.
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "storaged/data/file_chunk_store_impl.h"

namespace distfuse::storaged {

void FileChunkStore::sync(PendingOperation& op) {
  if (op.request.ino == 0) {
    sync_all_waiting_.push_back(&op);
    if (!syncing_all_) start_sync_all();
    return;
  }
  Inode& inode = inodes_[op.request.ino];
  inode.waiting.push_back(&op);
  if (inode.waiting.size() > 1 || inode.running) return;  // the next batch takes it along
  if (syncing_all_) {
    batches_waiting_.push_back(op.request.ino);
  } else {
    start_batch(op.request.ino);
  }
}

void FileChunkStore::start_batch(std::uint64_t ino) {
  Inode& inode = inodes_.at(ino);
  inode.running = std::make_unique<SyncBatch>();
  SyncBatch& batch = *inode.running;
  batch.store = this;
  batch.ino = ino;
  batch.members = std::exchange(inode.waiting, {});
  batch.error = ledger_.take_error(ino);
  if (batch.error == 0) batch.error = std::exchange(startup_error_, 0);
  batch.chunks = ledger_.take(ino);
  batch.parts = std::vector<SyncBatch::Part>(std::min(batch.chunks.size(), kSyncFanOut));
  for (SyncBatch::Part& part : batch.parts) batch.free_parts.push_back(&part);
  continue_batch(batch);
}

void FileChunkStore::continue_batch(SyncBatch& batch) {
  while (batch.next < batch.chunks.size() && !batch.free_parts.empty())
    start_part(batch, batch.chunks[batch.next++]);
  if (batch.running == 0) sync_directories(batch);
}

void FileChunkStore::start_part(SyncBatch& batch, std::uint64_t chunk) {
  SyncBatch::Part& part = *batch.free_parts.back();
  batch.free_parts.pop_back();
  ++batch.running;
  part = {};
  part.batch = &batch;
  part.command.owner = &part;
  part.file = files_.use_if_open({batch.ino, chunk});
  if (part.file != nullptr) return part_opened(part, part.file->fd);
  // A descriptor of its own, not the cache's: a batch is not ordered with what may unlink the chunk.
  part.path = chunk_path({batch.ino, chunk});
  part.command.kind = RingCommand::Kind::open;
  part.command.fd = data_;
  part.command.path = part.path.data();
  part.command.flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW;
  part.command.done = [](RingCommand& command, int result) {
    auto& self = *static_cast<SyncBatch::Part*>(command.owner);
    if (result >= 0) self.fd = result;
    self.batch->store->part_opened(self, result);
  };
  ring_->push(part.command);
}

void FileChunkStore::part_opened(SyncBatch::Part& part, int result) {
  if (result == -EINTR || result == -EAGAIN) {
    ring_->push(part.command);
    return;
  }
  if (result == -ENOENT) return end_part(part);  // removed meanwhile: nothing to lose
  if (result < 0) return part_synced(part, result);
  part.command.kind = RingCommand::Kind::fdatasync;
  part.command.fd = result;
  part.command.done = [](RingCommand& command, int synced) {
    auto& self = *static_cast<SyncBatch::Part*>(command.owner);
    self.batch->store->part_synced(self, synced);
  };
  ring_->push(part.command);
}

void FileChunkStore::part_synced(SyncBatch::Part& part, int result) {
  if (result == -EINTR || result == -EAGAIN) {
    ring_->push(part.command);
    return;
  }
  if (result < 0) {
    if (part.batch->error == 0) part.batch->error = -result;
    spdlog::error("sync of inode {:x} failed, data may be lost: {}", part.batch->ino,
                  std::strerror(-result));
  }
  end_part(part);
}

void FileChunkStore::end_part(SyncBatch::Part& part) {
  SyncBatch& batch = *part.batch;
  if (part.file != nullptr) files_.release(*std::exchange(part.file, nullptr));
  if (part.fd >= 0) ::close(std::exchange(part.fd, -1));
  batch.free_parts.push_back(&part);
  --batch.running;
  continue_batch(batch);
}

void FileChunkStore::sync_directories(SyncBatch& batch) {
  const std::uint32_t directory = directory_of(batch.ino);
  const bool root = ledger_.root_dirty();
  if (!root && !ledger_.directory_dirty(directory)) return end_batch(batch);
  const std::uint64_t upto = ledger_.changes();
  auto error = std::make_shared<int>(0);
  helpers_->run([this, error, directory, root] { *error = sync_directory(data_, directory, root); },
                [this, &batch, error, directory, root, upto] {
                  if (*error == 0) {
                    ledger_.synced_directory(directory, upto);
                    if (root) ledger_.synced_root(upto);
                  } else {
                    if (batch.error == 0) batch.error = *error;
                    spdlog::error("sync of the directory of inode {:x} failed: {}", batch.ino,
                                  std::strerror(*error));
                  }
                  end_batch(batch);
                });
}

void FileChunkStore::end_batch(SyncBatch& batch) {
  const std::uint64_t ino = batch.ino;
  Inode& inode = inodes_.at(ino);
  for (PendingOperation* member : batch.members) complete(*member, batch.error);
  inode.running.reset();  // `batch` is gone
  if (inode.waiting.empty()) return forget_if_idle(ino);
  if (syncing_all_) {
    batches_waiting_.push_back(ino);
  } else {
    start_batch(ino);
  }
}

void FileChunkStore::start_sync_all() {
  syncing_all_ = true;
  sync_all_members_ = std::exchange(sync_all_waiting_, {});
  auto error = std::make_shared<int>(0);
  auto inodes = std::make_shared<std::vector<std::uint64_t>>(ledger_.take_all());
  const std::uint64_t upto = ledger_.changes();
  helpers_->run([this, error] { *error = ::syncfs(data_) == 0 ? 0 : errno; },
                [this, error, inodes, upto] { end_sync_all(*error, upto, *inodes); });
}

void FileChunkStore::end_sync_all(int error, std::uint64_t upto,
                                  const std::vector<std::uint64_t>& inodes) {
  syncing_all_ = false;
  if (error == 0) {
    ledger_.synced_all_directories(upto);
    if (!sync_all_members_.empty()) error = std::exchange(startup_error_, 0);
  } else {
    spdlog::error("syncfs of the data store failed, data may be lost: {}", std::strerror(error));
    for (std::uint64_t ino : inodes) ledger_.failed(ino, error);
    if (upto == 0 && sync_all_members_.empty()) startup_error_ = error;
  }
  for (PendingOperation* member : std::exchange(sync_all_members_, {})) complete(*member, error);
  const std::vector<std::uint64_t> batches = std::exchange(batches_waiting_, {});
  if (!sync_all_waiting_.empty()) start_sync_all();
  for (std::uint64_t ino : batches) {
    if (syncing_all_) {
      batches_waiting_.push_back(ino);
    } else {
      start_batch(ino);
    }
  }
  for (PendingOperation* op : std::exchange(stalled_, {})) launch(*op);
}

}  // namespace distfuse::storaged
