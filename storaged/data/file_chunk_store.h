// SPDX-License-Identifier: Apache-2.0
// The chunk store on a local filesystem: one sparse file a chunk (chunk_layout.h), read and written with io_uring.
//
// What is serialised by what: operations of one inode by InodeOrder, where they touch the same bytes; syncs of one inode by
// each other (those that come while one runs are answered together by the next); everything in memory by the owner thread.
//
// Durability: a chunk written is fdatasync'ed, and its directory fsync'ed where a file was made or unlinked, before the
// inode's sync is answered. What a killed predecessor left unsynced is unknown: a syncfs runs from the start, and the first
// syncs wait for it. sync of ino 0 is one syncfs. When more than kDirtyChunks chunks are dirty a syncfs runs on its own; above
// twice that, writes wait for it.
//
// Recovery: none is needed. A write not answered may be there, in part or not at all. Directories are made when first used.
//
// Limits: max_operations operations, ring_entries of them in the kernel, open_files descriptors. A write that finds no room
// fails with ENOSPC, alone.
//
// Known weakness: an error of the kernel's own writeback is lost when the chunk's descriptor was evicted and the kernel then
// evicted the inode as well before the next sync.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"
#include "storaged/data/chunk_store.h"

namespace distfuse::storaged {

struct FileChunkStoreOptions {
  std::string directory;              ///< Made if its parent is there.
  std::string cluster_id;             ///< 32 hex digits; a store of another cluster is refused.
  std::uint64_t capacity = 0;         ///< Bytes of disk; 0: what the filesystem has.
  std::size_t max_operations = 1024;  ///< Not completed.
  unsigned ring_entries = 256;        ///< Commands in the kernel.
  std::size_t open_files =
      2048;  ///< Descriptors kept; max_operations and 64 a sync may be in use beyond it.
  unsigned helper_threads = 4;
};

/// Opens or makes the store. Error: as StoreClaim::take; EACCES, EROFS, ENOSPC …; EPERM, ENOSYS: no io_uring. Each message
/// names the directory or says what to do.
[[nodiscard]] Result<std::unique_ptr<ChunkStore>> open_file_chunk_store(
    const FileChunkStoreOptions& options);

}  // namespace distfuse::storaged
