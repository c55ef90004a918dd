// SPDX-License-Identifier: Apache-2.0
#include "storaged/data/file_chunk_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "storaged/data/file_chunk_store_impl.h"

namespace distfuse::storaged {

using rpc::DataOp;

FileChunkStore::FileChunkStore(const FileChunkStoreOptions& options, StoreClaim claim, int root,
                               int data, int event_fd, std::unique_ptr<Ring> ring,
                               std::uint64_t checkpoint)
    : options_(options),
      claim_(std::move(claim)),
      root_(root),
      data_(data),
      event_fd_(event_fd),
      files_(options.open_files),
      usage_(options.capacity, checkpoint),
      checkpointed_(checkpoint),
      ring_(std::move(ring)),
      helpers_(std::make_unique<HelperPool>(options.helper_threads, event_fd)) {}

FileChunkStore::~FileChunkStore() {
  helpers_.reset();
  ring_->drain();
  for (auto& [ino, inode] : inodes_) {
    if (!inode.running) continue;
    for (SyncBatch::Part& part : inode.running->parts) {
      if (part.fd >= 0) ::close(part.fd);
    }
  }
  if (usage_.limited()) checkpoint_usage();
  ring_.reset();
  ::close(event_fd_);
  ::close(data_);
  ::close(root_);
}

ChunkStoreStatistics FileChunkStore::statistics() const {
  ChunkStoreStatistics statistics = statistics_;
  statistics.dirty_chunks = ledger_.chunks();
  statistics.open_files = files_.size();
  statistics.capacity = usage_.capacity();
  statistics.used = usage_.limited() ? usage_.used() : 0;
  return statistics;
}

PendingOperation& FileChunkStore::allocate() {
  if (free_.empty()) {
    operations_.push_back(std::make_unique<PendingOperation>());
    free_.push_back(operations_.back().get());
  }
  PendingOperation& op = *free_.back();
  free_.pop_back();
  op.outcome = {};
  op.store = this;
  op.file = nullptr;
  op.done_bytes = 0;
  op.reserved = 0;
  return op;
}

void FileChunkStore::submit(const ChunkOperation& operation, ChunkCompletion completion) {
  PendingOperation& op = allocate();
  op.request = operation;
  op.completion = std::move(completion);
  int error = check(operation);
  if (++in_flight_ > options_.max_operations) error = EBUSY;
  if (error != 0) return complete(op, error);
  if (operation.op == DataOp::statfs) return stat_filesystem(op);
  if (operation.op == DataOp::sync) return sync(op);
  op.range = range_of(operation);
  if (inodes_[operation.ino].order.enter(op)) launch(op);
}

bool FileChunkStore::run_queues() {
  bool any = ring_->progress();
  any = helpers_->progress() || any;
  while (!finished_.empty()) {
    any = true;
    delivering_.swap(finished_);
    for (PendingOperation* op : delivering_) {
      const ChunkCompletion completion = std::move(op->completion);
      const ChunkOutcome outcome = op->outcome;
      op->completion = nullptr;
      --in_flight_;
      free_.push_back(op);
      completion(outcome);
    }
    delivering_.clear();
  }
  return any;
}

bool FileChunkStore::progress() {
  if (run_queues()) return true;
  // The counter is reset before the queues are looked at for the last time: what comes later makes it readable again.
  std::uint64_t count = 0;
  if (::read(event_fd_, &count, sizeof count) < 0) return false;
  return run_queues();
}

void FileChunkStore::launch(PendingOperation& op) {
  if (op.range.changes && ledger_.chunks() >= 2 * kDirtyChunks && syncing_all_) {
    stalled_.push_back(&op);
    return;
  }
  switch (op.request.op) {
    case DataOp::write:
    case DataOp::allocate:
      return with_file(op, true);
    case DataOp::read:
    case DataOp::punch:
    case DataOp::seek:
      return with_file(op, false);
    default:
      return unlinking(op);
  }
}

// ---- the chunk's file

void FileChunkStore::with_file(PendingOperation& op, bool create) {
  File& file = files_.use({op.request.ino, op.request.chunk});
  op.file = &file;
  if (file.state == File::State::open) return run(op);
  if (file.state == File::State::absent && !create) return run_absent(op);
  file.waiters.push_back(&op);
  if (file.state != File::State::opening) start_open(file, create);
}

void FileChunkStore::start_open(File& file, bool create) {
  file.state = File::State::opening;
  file.creating = create;
  file.command = {};
  file.command.kind = RingCommand::Kind::open;
  file.command.fd = data_;
  file.command.path = file.path.data();
  file.command.flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0);
  file.command.owner = this;
  file.command.done = [](RingCommand& command, int result) {
    auto& target =
        *reinterpret_cast<File*>(reinterpret_cast<char*>(&command) - offsetof(File, command));
    static_cast<FileChunkStore*>(command.owner)->opened(target, result);
  };
  ring_->push(file.command);
}

namespace {
bool creates(const PendingOperation& op) {
  return op.request.op == DataOp::write || op.request.op == DataOp::allocate;
}
}  // namespace

void FileChunkStore::opened(File& file, int result) {
  if (result == -EINTR || result == -EAGAIN) return start_open(file, file.creating);
  if (result == -ENOENT && file.creating) {  // no directory yet
    file.path = directory_path(directory_of(file.key.ino));
    file.command.kind = RingCommand::Kind::mkdir;
    file.command.done = [](RingCommand& command, int made) {
      auto& target =
          *reinterpret_cast<File*>(reinterpret_cast<char*>(&command) - offsetof(File, command));
      static_cast<FileChunkStore*>(command.owner)->made_directory(target, made);
    };
    ring_->push(file.command);
    return;
  }
  if (result == -ENOENT) {
    if (std::any_of(file.waiters.begin(), file.waiters.end(),
                    [](auto* op) { return creates(*op); }))
      return start_open(file, true);
    file.state = File::State::absent;
  } else if (result < 0) {
    file.state = File::State::closed;
    spdlog::error("chunk {} cannot be opened: {}", file.path.data(), std::strerror(-result));
  } else {
    file.state = File::State::open;
    file.fd = result;
    struct stat status {};
    const bool may_be_new = ::fstat(result, &status) != 0 || status.st_size == 0;
    if (file.creating && may_be_new) ledger_.changed_directory(directory_of(file.key.ino));
    file.bytes = static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  const File::State found = file.state;  // the end of one waiter may let another begin a new open
  for (PendingOperation* op : std::exchange(file.waiters, {})) {
    if (found == File::State::open) {
      run(*op);
    } else if (found == File::State::absent) {
      run_absent(*op);
    } else {
      took_effect(*op, -result);
    }
  }
}

void FileChunkStore::made_directory(File& file, int result) {
  file.path = chunk_path(file.key);
  if (result == 0) ledger_.changed_root();
  if (result == 0 || result == -EEXIST || result == -EINTR || result == -EAGAIN)
    return start_open(file, true);
  spdlog::error("directory of chunk {} cannot be made: {}", file.path.data(),
                std::strerror(-result));
  file.state = File::State::closed;
  for (PendingOperation* op : std::exchange(file.waiters, {})) took_effect(*op, -result);
}

// ---- reads, writes, space

void FileChunkStore::run(PendingOperation& op) {
  switch (op.request.op) {
    case DataOp::write:
      if (op.request.length != 0 && usage_.limited() && !reserve(op))
        return took_effect(op, ENOSPC);
      return transfer(op);
    case DataOp::read:
      return transfer(op);
    case DataOp::seek:
      return seek(op);
    case DataOp::allocate:
      if (usage_.limited() && !reserve(op)) return took_effect(op, ENOSPC);
      return allocate_or_punch(op);
    default:
      return allocate_or_punch(op);
  }
}

void FileChunkStore::run_absent(PendingOperation& op) {
  switch (op.request.op) {
    case DataOp::read:
      if (op.request.length != 0) std::memset(op.request.buffer, 0, op.request.length);
      op.outcome.length = op.request.length;
      return took_effect(op, 0);
    case DataOp::seek:
      op.outcome.offset = op.request.offset;
      return took_effect(op, (op.request.flags & rpc::kSeekHole) != 0 ? 0 : ENXIO);
    default:
      return took_effect(op, 0);  // punch
  }
}

/// Many filesystems cannot say that a buffered write would block, so the ring hands each to a kernel thread: two context switches around a
/// copy of microseconds. A small write that nobody would wait behind, neither an operation nor a sync, is done on the spot. One that
/// does block (throttled, a cold page) holds up this thread once; then the ring has them all for kSlowPause.
bool FileChunkStore::may_write_here(const PendingOperation& op) const {
  return op.request.op == DataOp::write && op.request.length <= kWriteHereMax && in_flight_ == 1 &&
         !syncing_all_ && Clock::now() >= write_here_after_;
}

/// As the ring: bytes, or -errno.
int FileChunkStore::write_here(PendingOperation& op) {
  const auto begin = Clock::now();
  const ssize_t done =
      ::pwrite(op.file->fd, op.request.buffer + op.done_bytes, op.request.length - op.done_bytes,
               static_cast<off_t>(op.request.offset + op.done_bytes));
  const int result = done < 0 ? -errno : static_cast<int>(done);
  const auto end = Clock::now();
  if (end - begin > kSlowWrite) write_here_after_ = end + kSlowPause;
  return result;
}

void FileChunkStore::transfer(PendingOperation& op) {
  if (op.done_bytes == op.request.length) {
    op.outcome.length = op.request.length;
    return took_effect(op, 0);
  }
  if (may_write_here(op)) return transferred(op, write_here(op));
  op.command = {};
  op.command.kind =
      op.request.op == DataOp::write ? RingCommand::Kind::write : RingCommand::Kind::read;
  op.command.fd = op.file->fd;
  op.command.offset = op.request.offset + op.done_bytes;
  op.command.length = op.request.length - op.done_bytes;
  op.command.buffer = op.request.buffer + op.done_bytes;
  op.command.owner = &op;
  op.command.done = [](RingCommand& command, int result) {
    auto& self = *static_cast<PendingOperation*>(command.owner);
    self.store->transferred(self, result);
  };
  ring_->push(op.command);
}

void FileChunkStore::transferred(PendingOperation& op, int result) {
  if (result == -EINTR || result == -EAGAIN) return transfer(op);
  if (result < 0) return took_effect(op, -result);
  if (result == 0) {
    if (op.request.op == DataOp::write) return took_effect(op, EIO);  // no filesystem does that
    std::memset(op.request.buffer + op.done_bytes, 0, op.request.length - op.done_bytes);
    op.done_bytes = op.request.length;
  } else {
    op.done_bytes += static_cast<std::uint32_t>(result);
  }
  transfer(op);  // a short write goes on, until the kernel says why
}

void FileChunkStore::allocate_or_punch(PendingOperation& op) {
  op.command = {};
  op.command.kind = RingCommand::Kind::fallocate;
  op.command.fd = op.file->fd;
  op.command.flags =
      op.request.op == DataOp::punch ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : 0;
  op.command.offset = op.request.offset;
  op.command.length = op.request.length;
  op.command.owner = &op;
  op.command.done = [](RingCommand& command, int result) {
    auto& self = *static_cast<PendingOperation*>(command.owner);
    if (result == -EINTR || result == -EAGAIN) return self.store->allocate_or_punch(self);
    self.store->took_effect(self, -result);
  };
  ring_->push(op.command);
}

void FileChunkStore::seek(PendingOperation& op) {
  auto outcome = std::make_shared<ChunkFilesOutcome>();
  helpers_->run(
      [&op, outcome, fd = op.file->fd] {
        *outcome = seek_chunk(fd, op.request.offset, op.request.chunk_size,
                              (op.request.flags & rpc::kSeekHole) != 0);
      },
      [this, &op, outcome] {
        op.outcome.offset = outcome->offset;
        took_effect(op, outcome->error);
      });
}

/// truncate and remove.
void FileChunkStore::unlinking(PendingOperation& op) {
  const bool all = op.request.op == DataOp::remove;
  const ChunkKey key{op.request.ino, all ? 0 : op.request.chunk};
  const bool keeps_first = !all && op.request.offset != 0;
  const std::uint64_t first_gone = keeps_first ? key.chunk + 1 : key.chunk;
  // No operation of these chunks runs. A descriptor that a sync still uses goes when that is over.
  files_.detach(key.ino, first_gone);
  auto outcome = std::make_shared<ChunkFilesOutcome>();
  helpers_->run(
      [this, &op, outcome, key, all] {
        *outcome =
            all ? remove_chunks(data_, key.ino) : truncate_chunks(data_, key, op.request.offset);
      },
      [this, &op, outcome, key, keeps_first, first_gone] {
        if (outcome->error == 0) ledger_.removed(key.ino, first_gone);
        if (outcome->unlinked) ledger_.changed_directory(directory_of(key.ino));
        if (keeps_first) ledger_.wrote(key);
        if (usage_.limited())
          usage_.add(directory_of(key.ino), -static_cast<std::int64_t>(outcome->freed));
        File* file = files_.find(key);
        if (file != nullptr && file->state == File::State::open) file->bytes = bytes_of(file->fd);
        if (outcome->error != 0) {
          spdlog::error("chunks of inode {:x} cannot be removed: {}", key.ino,
                        std::strerror(outcome->error));
        }
        took_effect(op, outcome->error);
      });
}

void FileChunkStore::stat_filesystem(PendingOperation& op) {
  auto error = std::make_shared<int>(0);
  auto answer = std::make_shared<rpc::DataStatfs>();
  helpers_->run(
      [this, error, answer] { *error = storaged::stat_filesystem(data_, *answer); },
      [this, &op, error, answer] {
        if (usage_.limited() && answer->block_size != 0) {
          answer->blocks = std::min(answer->blocks, usage_.capacity() / answer->block_size);
          const std::uint64_t available = usage_.available() / answer->block_size;
          answer->blocks_free = std::min({answer->blocks_free, available, answer->blocks});
          answer->blocks_available =
              std::min({answer->blocks_available, available, answer->blocks});
        }
        std::memcpy(op.request.buffer, answer.get(), sizeof *answer);
        op.outcome.length = sizeof *answer;
        complete(op, *error);
      });
}

// ---- the end of an operation

void FileChunkStore::took_effect(PendingOperation& op, int error) {
  const std::uint64_t ino = op.request.ino;
  if (op.file != nullptr) {
    const bool changed = op.range.changes && op.file->state == File::State::open;
    if (changed) {
      ledger_.wrote(op.file->key);
      if (usage_.limited()) recount(*op.file);
      if (ledger_.chunks() >= kDirtyChunks && !syncing_all_) start_sync_all();
    }
    files_.release(*op.file);
    op.file = nullptr;
  }
  if (op.reserved != 0) usage_.release(std::exchange(op.reserved, 0));
  std::vector<Ordered*> ready = std::move(ready_);
  ready.clear();
  inodes_.at(ino).order.leave(op, ready);
  if (error == 0 && op.request.op == DataOp::write && (op.request.flags & rpc::kWriteSync) != 0) {
    sync(op);
  } else {
    complete(op, error);
    forget_if_idle(ino);
  }
  for (Ordered* next : ready) launch(static_cast<PendingOperation&>(*next));
  ready_ = std::move(ready);
}

void FileChunkStore::complete(PendingOperation& op, int error) {
  op.outcome.error = error;
  if (error != 0) op.outcome.length = 0;
  ++statistics_.operations;
  if (error != 0 && !(op.request.op == DataOp::seek && error == ENXIO)) ++statistics_.errors;
  if (op.request.op == DataOp::read) statistics_.bytes_read += op.outcome.length;
  if (op.request.op == DataOp::write) statistics_.bytes_written += op.outcome.length;
  finished_.push_back(&op);
}

void FileChunkStore::forget_if_idle(std::uint64_t ino) {
  auto found = inodes_.find(ino);
  if (found != inodes_.end() && found->second.idle()) inodes_.erase(found);
}

}  // namespace distfuse::storaged
