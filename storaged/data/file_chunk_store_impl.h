// SPDX-License-Identifier: Apache-2.0
// Of file_chunk_store.cc (operations) and file_chunk_sync.cc (syncs) only.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "storaged/data/chunk_files.h"
#include "storaged/data/dirty_ledger.h"
#include "storaged/data/file_cache.h"
#include "storaged/data/file_chunk_store.h"
#include "storaged/data/helper_pool.h"
#include "storaged/data/inode_order.h"
#include "storaged/data/ring.h"
#include "storaged/data/usage.h"
#include "storaged/identity.h"

namespace distfuse::storaged {

inline constexpr std::size_t kDirtyChunks = 65536;  // 100 bytes each: 6.5 MB
inline constexpr std::size_t kSyncFanOut =
    64;  // commands of one sync at a time: a sync of a large file leaves room in the ring
inline constexpr std::uint64_t kUsageCheckpoints = 64;  // of the capacity's worth of changes

class FileChunkStore;

/// One operation from submit to its completion.
struct PendingOperation : Ordered {
  ChunkOperation request;
  ChunkCompletion completion;
  ChunkOutcome outcome;
  FileChunkStore* store = nullptr;
  File* file = nullptr;
  RingCommand command;
  std::uint32_t done_bytes = 0;
  std::uint64_t reserved = 0;  // of the capacity
};

/// One run over an inode's dirty chunks, for all `members`.
struct SyncBatch {
  struct Part {
    RingCommand command;
    SyncBatch* batch = nullptr;
    File* file = nullptr;  // cached; else `fd` is ours
    int fd = -1;
    ChunkPath path{};
  };
  FileChunkStore* store = nullptr;
  std::uint64_t ino = 0;
  std::vector<PendingOperation*> members;
  std::vector<std::uint64_t> chunks;
  std::size_t next = 0;
  std::vector<Part> parts;  // sized once; addresses stay
  std::vector<Part*> free_parts;
  std::size_t running = 0;
  int error = 0;
};

class FileChunkStore final : public ChunkStore {
 public:
  FileChunkStore(const FileChunkStoreOptions& options, StoreClaim claim, int root, int data,
                 int event_fd, std::unique_ptr<Ring> ring, std::uint64_t checkpoint);
  ~FileChunkStore() override;
  FileChunkStore(const FileChunkStore&) = delete;
  FileChunkStore& operator=(const FileChunkStore&) = delete;

  void submit(const ChunkOperation& operation, ChunkCompletion completion) override;
  bool progress() override;
  [[nodiscard]] int event_fd() const override { return event_fd_; }
  [[nodiscard]] std::size_t in_flight() const override { return in_flight_; }
  [[nodiscard]] std::size_t max_operations() const override { return options_.max_operations; }
  [[nodiscard]] ChunkStoreStatistics statistics() const override;

  void start();  ///< The first syncfs, and the scan for the capacity.

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::uint32_t kWriteHereMax = 65536;  // a copy of some ten microseconds
  static constexpr std::chrono::milliseconds kSlowWrite{1};
  static constexpr std::chrono::seconds kSlowPause{1};

  struct Inode {
    InodeOrder order;
    std::unique_ptr<SyncBatch> running;
    std::vector<PendingOperation*> waiting;  // syncs for the next batch
    [[nodiscard]] bool idle() const { return order.empty() && !running && waiting.empty(); }
  };

  // ---- operations
  PendingOperation& allocate();
  bool run_queues();
  void launch(PendingOperation& op);
  void with_file(PendingOperation& op, bool create);
  void start_open(File& file, bool create);
  void opened(File& file, int result);
  void made_directory(File& file, int result);
  void run(PendingOperation& op);
  void run_absent(PendingOperation& op);
  [[nodiscard]] bool may_write_here(const PendingOperation& op) const;
  int write_here(PendingOperation& op);
  void transfer(PendingOperation& op);
  void transferred(PendingOperation& op, int result);
  void allocate_or_punch(PendingOperation& op);
  void seek(PendingOperation& op);
  void unlinking(PendingOperation& op);
  void stat_filesystem(PendingOperation& op);
  void took_effect(PendingOperation& op, int error);
  void complete(PendingOperation& op, int error);
  void forget_if_idle(std::uint64_t ino);

  // ---- capacity
  bool reserve(PendingOperation& op);
  void recount(File& file);
  void scan(std::uint32_t directory, unsigned attempt);
  void checkpoint_usage();

  // ---- syncs
  void sync(PendingOperation& op);
  void start_batch(std::uint64_t ino);
  void continue_batch(SyncBatch& batch);
  void start_part(SyncBatch& batch, std::uint64_t chunk);
  void part_opened(SyncBatch::Part& part, int result);
  void part_synced(SyncBatch::Part& part, int result);
  void end_part(SyncBatch::Part& part);
  void sync_directories(SyncBatch& batch);
  void end_batch(SyncBatch& batch);
  void start_sync_all();
  void end_sync_all(int error, std::uint64_t upto, const std::vector<std::uint64_t>& inodes);

  const FileChunkStoreOptions options_;
  StoreClaim claim_;
  const int root_;
  const int data_;
  const int event_fd_;
  std::size_t in_flight_ = 0;
  Clock::time_point write_here_after_;
  std::vector<std::unique_ptr<PendingOperation>> operations_;
  std::vector<PendingOperation*> free_;
  std::vector<PendingOperation*> finished_;  // completions owed
  std::vector<PendingOperation*> delivering_;
  std::vector<Ordered*> ready_;
  std::deque<PendingOperation*> stalled_;  // changes that wait for a syncfs, the ledger being full
  std::unordered_map<std::uint64_t, Inode> inodes_;
  DirtyLedger ledger_;
  FileCache files_;
  Usage usage_;
  std::uint64_t checkpointed_ = 0;
  bool checkpointing_ = false;
  bool syncing_all_ = false;
  int startup_error_ = 0;  // of the first syncfs: for the next sync, whatever its inode
  std::vector<PendingOperation*> sync_all_members_;
  std::vector<PendingOperation*> sync_all_waiting_;
  std::vector<std::uint64_t> batches_waiting_;  // inodes whose batch waits for the syncfs
  ChunkStoreStatistics statistics_;
  std::unique_ptr<Ring> ring_;
  std::unique_ptr<HelperPool> helpers_;  // last: its threads use the descriptors
};

}  // namespace distfuse::storaged
