// SPDX-License-Identifier: Apache-2.0
#include "client/cache/inode_table.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace distfuse::client {
namespace {

TEST(InodeTable, AnInodeLivesAsLongAsTheKernelKnowsIt) {
  InodeTable table;
  InodeRef inode = table.get(9);
  EXPECT_EQ(table.find(9), inode);
  table.add_lookup(*inode);
  table.add_lookup(*inode);
  EXPECT_TRUE(table.known_to_kernel(9));
  EXPECT_FALSE(table.forget(*inode, 1));
  table.reap(std::move(inode));
  EXPECT_NE(table.find(9), nullptr);
  inode = table.find(9);
  EXPECT_TRUE(table.forget(*inode, 1));
  EXPECT_FALSE(table.known_to_kernel(9));
  table.reap(std::move(inode));
  EXPECT_EQ(table.find(9), nullptr);
}

TEST(InodeTable, WhatIsUsedOrHoldsSomethingIsNotReaped) {
  InodeTable table;
  InodeRef other = table.get(1);
  table.reap(table.find(1));
  EXPECT_EQ(table.find(1), other) << "another thread uses it";
  other->opens = 1;
  table.reap(std::move(other));
  ASSERT_NE(table.find(1), nullptr);
  table.find(1)->opens = 0;
  table.find(1)->attributes.store({});
  table.reap(table.find(1));
  ASSERT_NE(table.find(1), nullptr) << "its lock is held: its shed reaps it";
  table.find(1)->attributes.drop();
  table.reap(table.find(1));
  EXPECT_EQ(table.find(1), nullptr);
}

TEST(InodeTable, WhatNobodyReapedGoesWithTheSweep) {
  InodeTable table;
  for (rpc::Ino ino = 1; ino <= 1000; ++ino) (void)table.get(ino);
  const InodeRef used = table.get(1);
  table.get(2)->registered = true;
  table.add_lookup(*table.get(3));
  table.reap_some(InodeTable::kShards / 2);
  EXPECT_GT(table.size(), 400U);
  table.reap_some(InodeTable::kShards / 2);
  EXPECT_EQ(table.size(), 3U);
}

TEST(InodeTable, ThreadsNeverSeeTwoInodesOfOneNumber) {
  InodeTable table;
  constexpr int kThreads = 4;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&table] {
      for (int i = 0; i < 20000; ++i) {
        InodeRef mine = table.get(3);
        {
          const std::lock_guard lock(mine->state);
          ++mine->opens;
        }
        ASSERT_EQ(table.find(3), mine);
        {
          const std::lock_guard lock(mine->state);
          --mine->opens;
        }
        table.reap(std::move(mine));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  table.reap(table.get(3));
  EXPECT_EQ(table.size(), 0U);
}

}  // namespace
}  // namespace distfuse::client
