// SPDX-License-Identifier: Apache-2.0
// The chunk store: what a data target keeps. The daemon sees this interface only, so that another engine can stand in for
// chunk files on a local filesystem (file_chunk_store.h).
//
// Parties: one owner thread, which makes every call; the engine, which may have threads of its own, but speaks to the owner
// only from progress(). An operation is submitted with its buffer and a completion; the completion comes exactly once, from
// progress(), and the buffer is the engine's until then.
//
// Order: operations of one inode that touch the same bytes (a truncate touches all of its chunk and those above, a removal
// everything) take effect in the order submitted; others in any order. A sync covers what had completed when it was
// submitted.
//
// Sleeping: after a submit, call progress() until it answers false, then sleep until event_fd() is readable (level).
// Errors are errno values in the outcome. An error of writeback reaches the next sync of the inode, once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "rpc/data.h"

namespace distfuse::storaged {

/// What is asked; the fields mean what they mean in rpc::DataRequest. `fence` is not the store's business: EINVAL.
struct ChunkOperation {
  rpc::DataOp op = rpc::DataOp::read;
  std::uint64_t ino = 0;
  std::uint64_t chunk = 0;
  std::uint32_t offset = 0;      ///< Bytes, within the chunk.
  std::uint32_t length = 0;      ///< Bytes.
  std::uint32_t chunk_size = 0;  ///< Bytes; a power of two, 4096 to rpc::kMaxBulk.
  std::uint32_t flags = 0;       ///< rpc::DataFlag.
  std::byte* buffer =
      nullptr;  ///< write: `length` bytes, the source; read: `length` bytes, filled with all of them;
                ///< statfs: room for an rpc::DataStatfs.
};

struct ChunkOutcome {
  int error = 0;             ///< errno, 0: success.
  std::uint32_t offset = 0;  ///< seek.
  std::uint32_t length =
      0;  ///< Bytes read (always all), written (all, or an error), of statfs's answer.
};

using ChunkCompletion = std::function<void(const ChunkOutcome&)>;

struct ChunkStoreStatistics {
  std::uint64_t operations = 0;  ///< Completed.
  std::uint64_t errors = 0;      ///< Of them, with an error other than seek's ENXIO.
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t dirty_chunks = 0;  ///< Now: written since their last sync.
  std::uint64_t open_files = 0;    ///< Now.
  std::uint64_t capacity = 0;      ///< Bytes, 0: what the filesystem has.
  std::uint64_t used = 0;          ///< Bytes; counted only where there is a capacity.
};

class ChunkStore {
 public:
  /// Waits for what runs; completions that are still owed do not come.
  virtual ~ChunkStore() = default;

  /// EBUSY comes as the outcome when more than max_operations() are not completed.
  virtual void submit(const ChunkOperation& operation, ChunkCompletion completion) = 0;
  /// Runs completions; never sleeps. Answers whether there was anything to do.
  virtual bool progress() = 0;
  [[nodiscard]] virtual int event_fd() const = 0;
  /// Operations submitted and not completed.
  [[nodiscard]] virtual std::size_t in_flight() const = 0;
  [[nodiscard]] virtual std::size_t max_operations() const = 0;
  [[nodiscard]] virtual ChunkStoreStatistics statistics() const = 0;
};

}  // namespace distfuse::storaged
