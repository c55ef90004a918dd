// SPDX-License-Identifier: Apache-2.0
// The blocking calls on chunk files, for helper threads. `data` is a descriptor of ROOT/data. Nothing here has state.
#pragma once

#include <cstdint>

#include "rpc/data.h"
#include "storaged/data/chunk_layout.h"

namespace distfuse::storaged {

struct ChunkFilesOutcome {
  int error = 0;             ///< errno.
  std::uint64_t freed = 0;   ///< Bytes of disk given back.
  bool unlinked = false;     ///< The directory was changed.
  std::uint32_t offset = 0;  ///< seek.
};

/// Cuts `key` to `offset` bytes and unlinks the inode's chunks above it; offset 0 unlinks `key` as well.
[[nodiscard]] ChunkFilesOutcome truncate_chunks(int data, const ChunkKey& key,
                                                std::uint32_t offset);
/// Unlinks every chunk of the inode.
[[nodiscard]] ChunkFilesOutcome remove_chunks(int data, std::uint64_t ino);
/// lseek of an open chunk; ENXIO: none before `chunk_size`.
[[nodiscard]] ChunkFilesOutcome seek_chunk(int file, std::uint32_t offset, std::uint32_t chunk_size,
                                           bool hole);
/// fsync of ROOT/data/HHH and, if `and_data`, of ROOT/data. A directory that is not there is durable.
[[nodiscard]] int sync_directory(int data, std::uint32_t directory, bool and_data);
/// Bytes of disk under ROOT/data/HHH.
[[nodiscard]] std::uint64_t bytes_in_directory(int data, std::uint32_t directory);
[[nodiscard]] int stat_filesystem(int data, rpc::DataStatfs& answer);
/// Bytes of disk of an open file; 0 when it cannot be asked.
[[nodiscard]] std::uint64_t bytes_of(int file);

}  // namespace distfuse::storaged
