// SPDX-License-Identifier: Apache-2.0
#include "client/storage/stripe.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <string>

namespace distfuse::client {
namespace {

TEST(Split, CutsAtChunkBoundaries) {
  const Layout layout{100, 1, 3};
  std::vector<Piece> pieces;
  split(layout, 150, 200, pieces);
  const std::vector<Piece> expected{{2, 1, 50, 50, 0}, {0, 2, 0, 100, 50}, {1, 3, 0, 50, 150}};
  EXPECT_EQ(pieces, expected);
  split(layout, 100, 100, pieces);
  EXPECT_EQ(pieces, (std::vector<Piece>{{2, 1, 0, 100, 0}}));
  split(layout, 7, 0, pieces);
  EXPECT_TRUE(pieces.empty());
}

TEST(Split, CoversEveryByteOnceAndAlwaysAtTheSamePlace) {
  const char* given = std::getenv("DISTFUSE_SEED");
  const std::uint64_t seed = given != nullptr ? std::stoull(given) : std::random_device{}();
  SCOPED_TRACE("DISTFUSE_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 500; ++round) {
    const Layout layout{static_cast<std::uint32_t>(1 + random() % 50),
                        static_cast<std::uint32_t>(random() % 5),
                        static_cast<std::uint32_t>(1 + random() % 5)};
    const std::uint64_t offset = random() % 300;
    const std::uint64_t length = random() % 300;
    std::vector<Piece> pieces;
    split(layout, offset, length, pieces);
    std::uint64_t next = 0;
    for (const Piece& piece : pieces) {
      ASSERT_EQ(piece.position, next);
      ASSERT_GT(piece.length, 0U);
      ASSERT_EQ(piece.chunk * layout.chunk_size + piece.offset, offset + piece.position);
      ASSERT_LE(piece.offset + piece.length, layout.chunk_size);
      ASSERT_EQ(piece.target, (layout.first_target + piece.chunk) % layout.targets);
      next += piece.length;
    }
    ASSERT_EQ(next, length);
  }
}

/// Chunks as they are at the targets: what a truncate at each of them leaves.
TEST(Cut, LeavesExactlyWhatLiesBelowTheSize) {
  for (std::uint32_t targets = 1; targets <= 4; ++targets) {
    for (std::uint64_t size = 0; size <= 90; ++size) {
      const Layout layout{10, 2 % targets, targets};
      std::map<std::uint64_t, std::uint32_t> chunks;  // chunk → bytes
      for (std::uint64_t chunk = 0; chunk < 9; ++chunk) chunks[chunk] = 10;
      const std::vector<Piece> pieces = cut(layout, size);
      ASSERT_EQ(pieces.size(), targets);
      for (const Piece& piece : pieces) {
        for (auto& [chunk, bytes] : chunks) {
          if (target_of(layout, chunk) != piece.target) continue;
          if (chunk == piece.chunk) bytes = std::min(bytes, piece.offset);
          if (chunk > piece.chunk) bytes = 0;
        }
      }
      std::uint64_t left = 0;
      for (const auto& [chunk, bytes] : chunks) left += bytes;
      ASSERT_EQ(left, size) << targets << " targets";
    }
  }
}

TEST(TargetsOf, NamesEachOnce) {
  const Layout layout{10, 1, 3};
  EXPECT_TRUE(targets_of(layout, 0).empty());
  EXPECT_EQ(targets_of(layout, 10), (std::vector<std::uint32_t>{1}));
  EXPECT_EQ(targets_of(layout, 11), (std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(targets_of(layout, 1000), (std::vector<std::uint32_t>{1, 2, 0}));
}

}  // namespace
}  // namespace distfuse::client
