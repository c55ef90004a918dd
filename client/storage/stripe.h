// SPDX-License-Identifier: Apache-2.0
// Where the bytes of a file lie: chunk c on target (first_target + c) mod targets. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "rpc/metadata.h"

namespace distfuse::client {

struct Layout {
  std::uint32_t chunk_size = rpc::kDefaultChunkSize;
  std::uint32_t first_target = 0;
  std::uint32_t targets = 1;
};

/// A part of a byte range that lies in one chunk.
struct Piece {
  std::uint32_t target = 0;
  std::uint64_t chunk = 0;
  std::uint32_t offset = 0;    ///< Within the chunk.
  std::uint32_t length = 0;    ///< Bytes, at most chunk_size - offset.
  std::uint64_t position = 0;  ///< Of the piece's first byte in the range.
  bool operator==(const Piece&) const = default;
};

[[nodiscard]] std::uint32_t target_of(const Layout& layout, std::uint64_t chunk);

/// The pieces of [offset, offset + length), in order. `pieces` is overwritten (and keeps its memory).
void split(const Layout& layout, std::uint64_t offset, std::uint64_t length,
           std::vector<Piece>& pieces);

/// How to cut a file to `size`: one piece per target, `offset` bytes of `chunk` stay and every later chunk on that target goes.
/// A target all of whose chunks stay below `size` has none beyond and is named all the same: it may hold chunks past it.
[[nodiscard]] std::vector<Piece> cut(const Layout& layout, std::uint64_t size);

/// The targets that the first `size` bytes touch, each once.
[[nodiscard]] std::vector<std::uint32_t> targets_of(const Layout& layout, std::uint64_t size);

}  // namespace distfuse::client
