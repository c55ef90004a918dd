// SPDX-License-Identifier: Apache-2.0
// Where a chunk lives and which operations touch the same bytes: the chunk store's pure logic.
//
//   ROOT/IDENTITY                 whose store this is
//   ROOT/data/HHH/INO.CHUNK       one sparse file a chunk; HHH = hash of the inode, 4096 directories; all numbers in hex
//   ROOT/USAGE                    bytes used at the last checkpoint, where a capacity is set
//
// All chunks of an inode are in one directory, so that removing them lists one directory and needs no index.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "storaged/data/chunk_store.h"

namespace distfuse::storaged {

inline constexpr std::uint32_t kDirectories = 4096;
inline constexpr std::uint64_t kMaxIno = (1ULL << 40) - 1;
inline constexpr std::uint64_t kMaxChunk = (1ULL << 40) - 1;
inline constexpr std::uint32_t kMinChunkSize = 4096;

struct ChunkKey {
  std::uint64_t ino = 0;
  std::uint64_t chunk = 0;
  bool operator==(const ChunkKey&) const = default;
};

struct ChunkKeyHash {
  std::size_t operator()(const ChunkKey& key) const;
};

/// A path below ROOT/data, NUL-terminated: "HHH/" + 10 digits + '.' + 10 digits.
using ChunkPath = std::array<char, 32>;

[[nodiscard]] std::uint32_t directory_of(std::uint64_t ino);
[[nodiscard]] ChunkPath directory_path(std::uint32_t directory);
[[nodiscard]] ChunkPath chunk_path(const ChunkKey& key);
/// Of a file's name without its directory; nothing for a name that chunk_path does not make.
[[nodiscard]] std::optional<ChunkKey> parse_chunk_name(std::string_view name);

/// 0, or the errno value that the operation deserves before anything is touched.
[[nodiscard]] int check(const ChunkOperation& operation);

/// The bytes of one inode that an operation touches.
struct Range {
  std::uint64_t first_chunk = 0;
  std::uint64_t last_chunk = 0;  ///< Inclusive.
  std::uint32_t begin =
      0;  ///< In the chunk, where first_chunk is last_chunk; else all of each chunk.
  std::uint32_t end = 0;
  bool changes = false;
};

[[nodiscard]] Range range_of(const ChunkOperation& operation);
[[nodiscard]] bool conflict(const Range& a, const Range& b);

}  // namespace distfuse::storaged
