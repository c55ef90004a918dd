// SPDX-License-Identifier: Apache-2.0
#include "client/cache/unsynced.h"

#include <gtest/gtest.h>

namespace distfuse::client {
namespace {

constexpr std::uint64_t kMonday = 71, kTuesday = 35;  // boots: no order
constexpr std::uint32_t kMeta = Unsynced::kMetadataTarget;

TEST(Unsynced, ASyncInTheSameBootMakesItClean) {
  Unsynced file;
  file.changed(0, kMonday);
  file.changed(3, kMonday);
  file.changed(3, kMonday);
  EXPECT_EQ(file.targets(), 2U);
  const std::uint64_t mark = Unsynced::mark();
  file.synced(0, kMonday, mark);
  file.synced(1, kTuesday, mark);  // has nothing of it
  EXPECT_EQ(file.targets(), 1U);
  file.synced(3, kMonday, mark);
  EXPECT_EQ(file.targets(), 0U);
  file.synced(3, kTuesday, Unsynced::mark());
  EXPECT_FALSE(file.take_loss());
}

TEST(Unsynced, ASyncInAnotherBootTellsOnce) {
  Unsynced file;
  file.changed(0, kMonday);
  const std::uint64_t mark = Unsynced::mark();
  file.synced(0, kTuesday, mark);
  EXPECT_TRUE(file.take_loss());
  EXPECT_FALSE(file.take_loss());
  file.synced(0, kTuesday, Unsynced::mark());
  EXPECT_FALSE(file.take_loss());
  EXPECT_EQ(file.targets(), 0U);
}

TEST(Unsynced, AChangeInAnotherBootTellsToo) {
  Unsynced file;
  file.changed(0, kMonday);
  file.changed(0, kTuesday);
  file.synced(0, kTuesday, Unsynced::mark());
  EXPECT_TRUE(file.take_loss());
  EXPECT_EQ(file.targets(), 0U);
}

TEST(Unsynced, WhatWasChangedWhileTheSyncRanStaysUnsynced) {
  Unsynced file;
  file.changed(0, kMonday);
  const std::uint64_t mark = Unsynced::mark();
  file.changed(0, kMonday);
  file.synced(0, kMonday, mark);
  EXPECT_EQ(file.targets(), 1U);
  file.synced(0, kTuesday, Unsynced::mark());
  EXPECT_TRUE(file.take_loss());
}

TEST(Unsynced, ASyncOfBeforeTheRestartSaysNothingOfWhatCameAfter) {
  Unsynced file;
  const std::uint64_t mark = Unsynced::mark();
  file.changed(0, kTuesday);
  file.synced(0, kMonday, mark);  // answered on Monday, noted late
  EXPECT_FALSE(file.take_loss());
  EXPECT_EQ(file.targets(), 1U);
}

TEST(Unsynced, MetadataThatAnotherInodesSyncMadeDurableIsNotLost) {
  SyncHistory history;
  Unsynced one, other;
  one.changed(kMeta, kMonday, &history);
  other.changed(kMeta, kMonday, &history);
  history.synced(kMonday, Unsynced::mark());  // of `one`
  other.changed(kMeta, kTuesday, &history);
  EXPECT_FALSE(other.take_loss());
  one.synced(kMeta, kTuesday, Unsynced::mark(), &history);
  EXPECT_FALSE(one.take_loss());

  one.changed(kMeta, kTuesday, &history);
  one.synced(kMeta, kMonday, Unsynced::mark(), &history);
  EXPECT_TRUE(one.take_loss());
}

TEST(SyncHistory, ForgetsTheOldestBoot) {
  SyncHistory history;
  for (std::uint64_t boot = 1; boot <= 9; ++boot) history.synced(boot, 100 * boot);
  history.synced(9, 5);  // overtaken
  EXPECT_FALSE(history.covers(1, 1));
  EXPECT_TRUE(history.covers(2, 200));
  EXPECT_FALSE(history.covers(2, 201));
  EXPECT_TRUE(history.covers(9, 900));
}

}  // namespace
}  // namespace distfuse::client
