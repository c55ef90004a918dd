// SPDX-License-Identifier: Apache-2.0
#include "client/locks/granted.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace distfuse::client {
namespace {

df_msg lock(df_u64 owner, df_u64 start, df_u64 end, df_u8 type, bool flock = false) {
  df_msg message;
  df_msg_init(&message, type == DF_FILE_NONE ? DF_MSG_FILE_UNLOCK : DF_MSG_FILE_LOCK, 0,
              df_key_inode(7), 0);
  message.file.owner = owner;
  message.file.start = start;
  message.file.end = end;
  message.file.type = type;
  message.file.flags = flock ? DF_FILE_FLOCK : 0;
  return message;
}

TEST(GrantedLocks, AnUnlockInTheMiddleLeavesBothSides) {
  GrantedLocks granted;
  granted.note(lock(1, 0, ~df_u64{0}, DF_FILE_WRITE));
  granted.note(lock(1, 10, 19, DF_FILE_NONE));
  const auto all = granted.all();
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[0].file.end, 9U);
  EXPECT_EQ(all[1].file.start, 20U);
  EXPECT_EQ(all[1].file.end, ~df_u64{0});
  granted.note(lock(1, 0, ~df_u64{0}, DF_FILE_NONE));
  EXPECT_EQ(granted.size(), 0U);
}

TEST(GrantedLocks, FlockAndFcntlOfOneOwnerAreApart) {
  GrantedLocks granted;
  granted.note(lock(1, 0, 9, DF_FILE_WRITE));
  granted.note(lock(1, 0, ~df_u64{0}, DF_FILE_READ, true));
  granted.note(lock(1, 0, ~df_u64{0}, DF_FILE_NONE));
  ASSERT_EQ(granted.size(), 1U);
  EXPECT_EQ(granted.all()[0].file.flags, DF_FILE_FLOCK);
  EXPECT_EQ(granted.clear(), 1U);
}

TEST(GrantedLocks, RandomLocksAgreeWithOneByteAtATime) {
  const char* given = std::getenv("DISTFUSE_SEED");
  const auto seed = given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  std::fprintf(stderr, "DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  constexpr std::size_t kBytes = 24;
  GrantedLocks granted;
  std::array<df_u8, kBytes> bytes{};
  bytes.fill(DF_FILE_NONE);
  for (int i = 0; i < 20000; ++i) {
    const df_u64 start = random() % kBytes;
    const df_u64 end = start + random() % (kBytes - start);
    const auto type = static_cast<df_u8>(random() % 3);
    granted.note(lock(1, start, end, type));
    for (df_u64 b = start; b <= end; ++b) bytes[b] = type;
    std::array<df_u8, kBytes> seen{};
    seen.fill(DF_FILE_NONE);
    for (const auto& message : granted.all()) {
      for (df_u64 b = message.file.start; b <= message.file.end; ++b) {
        ASSERT_EQ(seen[b], DF_FILE_NONE) << "two ranges meet";
        seen[b] = message.file.type;
      }
    }
    ASSERT_EQ(seen, bytes);
  }
}

}  // namespace
}  // namespace distfuse::client
