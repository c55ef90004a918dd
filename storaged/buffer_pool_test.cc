// SPDX-License-Identifier: Apache-2.0
#include "storaged/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

namespace distfuse::storaged {
namespace {

constexpr BufferPool::Classes kSmall{{{4096, 2}, {8192, 1}, {65536, 1}}};

TEST(BufferPool, TheSmallestThatFitsOrALargerOne) {
  BufferPool pool(kSmall);
  std::set<Buffer*> taken;
  for (std::size_t expected : {0U, 0U, 1U, 2U}) {
    Buffer* buffer = pool.take(100);
    ASSERT_NE(buffer, nullptr);
    EXPECT_EQ(buffer->size_class, expected);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data) % 4096, 0U);
    EXPECT_EQ(&pool.find(buffer->data), buffer);
    std::memset(buffer->data, 1, kSmall[buffer->size_class].bytes);
    EXPECT_TRUE(taken.insert(buffer).second);
  }
  EXPECT_EQ(pool.take(1), nullptr);
  EXPECT_EQ(pool.taken(), 4U);
  for (Buffer* buffer : taken) pool.release(*buffer);
  EXPECT_EQ(pool.take(65537), nullptr);
  EXPECT_EQ(pool.take(65536)->size_class, 2U);
}

TEST(BufferPoolDeathTest, ABufferGivenBackTwiceAborts) {
  BufferPool pool(kSmall);
  Buffer* buffer = pool.take(1);
  std::byte* inside = buffer->data + 1;
  EXPECT_DEATH((void)pool.find(inside), "");
  pool.release(*buffer);
  EXPECT_DEATH(pool.release(*buffer), "");
}

}  // namespace
}  // namespace distfuse::storaged
