// SPDX-License-Identifier: Apache-2.0
#include "client/storage/stripe.h"

#include <algorithm>

namespace distfuse::client {

std::uint32_t target_of(const Layout& layout, std::uint64_t chunk) {
  return static_cast<std::uint32_t>((layout.first_target + chunk) % layout.targets);
}

void split(const Layout& layout, std::uint64_t offset, std::uint64_t length,
           std::vector<Piece>& pieces) {
  pieces.clear();
  std::uint64_t position = 0;
  while (position < length) {
    const std::uint64_t at = offset + position;
    const std::uint64_t chunk = at / layout.chunk_size;
    const auto within = static_cast<std::uint32_t>(at % layout.chunk_size);
    const auto part = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(layout.chunk_size - within, length - position));
    pieces.push_back({target_of(layout, chunk), chunk, within, part, position});
    position += part;
  }
}

std::vector<Piece> cut(const Layout& layout, std::uint64_t size) {
  const std::uint64_t first = size / layout.chunk_size;
  const auto within = static_cast<std::uint32_t>(size % layout.chunk_size);
  std::vector<Piece> pieces;
  pieces.reserve(layout.targets);
  for (std::uint32_t i = 0; i < layout.targets; ++i) {
    pieces.push_back({target_of(layout, first + i), first + i, i == 0 ? within : 0, 0, 0});
  }
  return pieces;
}

std::vector<std::uint32_t> targets_of(const Layout& layout, std::uint64_t size) {
  const std::uint64_t chunks = size / layout.chunk_size + (size % layout.chunk_size != 0 ? 1 : 0);
  std::vector<std::uint32_t> targets;
  for (std::uint64_t chunk = 0; chunk < std::min<std::uint64_t>(chunks, layout.targets); ++chunk) {
    targets.push_back(target_of(layout, chunk));
  }
  return targets;
}

}  // namespace distfuse::client
