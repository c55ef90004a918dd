// SPDX-License-Identifier: Apache-2.0
#include "client/kernel/unsynced_inodes.h"

#include <gtest/gtest.h>

namespace distfuse::client::kernel {
namespace {

TEST(UnsyncedInodes, KeepsWhatIsNotSyncedAndForgetsTheRest) {
  UnsyncedInodes inodes;
  EXPECT_EQ(inodes.find(7), nullptr);
  inodes.get(7)->changed(0, 1);
  inodes.settle(7);
  ASSERT_NE(inodes.find(7), nullptr);
  const auto mark = Unsynced::mark();
  inodes.find(7)->synced(0, 1, mark);
  EXPECT_FALSE(inodes.find(7)->take_loss());
  inodes.settle(7);
  EXPECT_EQ(inodes.find(7), nullptr);
}

TEST(UnsyncedInodes, OneThatSomebodyIsChangingStays) {
  UnsyncedInodes inodes;
  const auto held = inodes.get(7);
  inodes.settle(7);
  held->changed(0, 1);
  ASSERT_NE(inodes.find(7), nullptr);
  inodes.find(7)->synced(0, 2, Unsynced::mark());
  EXPECT_TRUE(inodes.find(7)->take_loss());
}

TEST(UnsyncedInodes, AFullShardForgetsWhatWasChangedLongestAgo) {
  UnsyncedInodes inodes;
  const auto nth = [](std::size_t i) { return 5 + i * UnsyncedInodes::kShards; };
  for (std::size_t i = 0; i < UnsyncedInodes::kPerShard; ++i) (void)inodes.get(nth(i));
  (void)inodes.get(nth(0));  // changed again
  (void)inodes.get(nth(UnsyncedInodes::kPerShard));
  EXPECT_NE(inodes.find(nth(0)), nullptr);
  EXPECT_EQ(inodes.find(nth(1)), nullptr);
  EXPECT_NE(inodes.find(nth(2)), nullptr);
  (void)inodes.get(6);  // another shard
  EXPECT_NE(inodes.find(nth(2)), nullptr);
}

}  // namespace
}  // namespace distfuse::client::kernel
