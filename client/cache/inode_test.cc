// SPDX-License-Identifier: Apache-2.0
#include "client/cache/inode.h"

#include <gtest/gtest.h>

namespace distfuse::client {
namespace {

using Set = rpc::SetAttributes;

rpc::Attributes server_says(std::uint64_t size, std::int64_t time) {
  rpc::Attributes attributes;
  attributes.ino = 5;
  attributes.mode = 0100644;
  attributes.nlink = 1;
  attributes.size = size;
  attributes.mtime.ns = attributes.ctime.ns = time;
  return attributes;
}

TEST(AttributeCache, AFetchThatAChangeOvertookIsNotStored) {
  AttributeCache cache;
  const auto began = cache.sequence();
  cache.invalidate();
  EXPECT_FALSE(cache.store_fetched(server_says(1, 1), began));
  EXPECT_FALSE(cache.valid());
  EXPECT_TRUE(cache.store_fetched(server_says(2, 2), cache.sequence()));
  EXPECT_EQ(cache.get().size, 2U);
  EXPECT_TRUE(cache.store_fetched(server_says(1, 1), began)) << "what is there is newer";
  EXPECT_EQ(cache.get().size, 2U);
}

TEST(AttributeCache, WritesAreDirtyUntilTheServerHasThem) {
  AttributeCache cache;
  cache.store(server_says(10, 1));
  EXPECT_FALSE(cache.begin_flush());
  cache.wrote(5, {100});
  EXPECT_EQ(cache.dirty(), AttributeCache::kMtime | AttributeCache::kCtime);
  cache.wrote(30, {200});
  EXPECT_EQ(cache.get().size, 30U);
  const auto flush = cache.begin_flush();
  ASSERT_TRUE(flush);
  EXPECT_EQ(flush->request.ino, 5U);
  EXPECT_EQ(flush->request.fields, Set::kSize | Set::kGrowOnly | Set::kMtime | Set::kCtime);
  EXPECT_EQ(flush->request.values.size, 30U);
  cache.end_flush(*flush, server_says(30, 200));
  EXPECT_EQ(cache.dirty(), 0U);
  EXPECT_TRUE(cache.changed_here());
  EXPECT_FALSE(cache.begin_flush());
}

TEST(AttributeCache, AWriteDuringAFlushStaysDirty) {
  AttributeCache cache;
  cache.store(server_says(10, 1));
  cache.wrote(20, {100});
  const auto flush = cache.begin_flush();
  ASSERT_TRUE(flush);
  cache.wrote(40, {200});
  cache.end_flush(*flush, server_says(20, 100));
  EXPECT_EQ(cache.get().size, 40U);
  const auto again = cache.begin_flush();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->request.values.size, 40U);
  EXPECT_EQ(again->request.values.mtime.ns, 200);
}

TEST(AttributeCache, AnAnswerOfTheServerDoesNotUndoWhatIsDirty) {
  AttributeCache cache;
  cache.store(server_says(10, 1));
  cache.wrote(20, {100});
  rpc::Attributes linked = server_says(10, 50);
  linked.nlink = 2;
  cache.store(linked);
  EXPECT_EQ(cache.get().nlink, 2U);
  EXPECT_EQ(cache.get().size, 20U);
  EXPECT_EQ(cache.get().mtime.ns, 100);
  EXPECT_EQ(cache.get().ctime.ns, 100);
}

TEST(AttributeCache, DirtyValuesSurviveInvalidation) {
  AttributeCache cache;
  cache.store(server_says(10, 1));
  cache.wrote(20, {100});
  cache.invalidate();
  EXPECT_TRUE(cache.store_fetched(server_says(10, 50), cache.sequence()));
  EXPECT_EQ(cache.get().size, 20U);
}

TEST(AttributeCache, TruncateIsTheLastWordOnTheSize) {
  AttributeCache cache;
  cache.store(server_says(10, 1));
  cache.wrote(20, {100});
  const auto began = cache.sequence();
  cache.invalidate();  // something unrelated in between
  cache.end_setattr(server_says(3, 150), began, true);
  EXPECT_EQ(cache.get().size, 3U);
  EXPECT_EQ(cache.dirty() & AttributeCache::kSize, 0U);
}

TEST(AttributeCache, SetTimesReplaceDirtyOnes) {
  AttributeCache cache;
  cache.store(server_says(10, 1));
  cache.wrote(10, {100});
  cache.end_setattr(server_says(10, 42), cache.sequence(), false);
  EXPECT_EQ(cache.get().mtime.ns, 42);
  EXPECT_EQ(cache.dirty(), 0U);
}

TEST(AttributeCache, NothingIsLeftWhenTheLockGoes) {
  AttributeCache cache;
  cache.store(server_says(10, 1));
  cache.wrote(20, {100});
  const auto began = cache.sequence();
  cache.drop();
  EXPECT_FALSE(cache.valid());
  EXPECT_FALSE(cache.changed_here());
  EXPECT_FALSE(cache.begin_flush());
  EXPECT_FALSE(cache.store_fetched(server_says(10, 1), began));
}

TEST(ErrorSequence, EachHandleSeesAnErrorOnce) {
  ErrorSequence errors;
  std::uint64_t first = errors.now();
  std::uint64_t second = errors.now();
  errors.record(ENOSPC);
  EXPECT_EQ(errors.check_and_advance(first), ENOSPC);
  EXPECT_EQ(errors.check_and_advance(first), 0);
  EXPECT_EQ(errors.check_and_advance(second), ENOSPC);
  std::uint64_t opened_later = errors.now();
  EXPECT_EQ(errors.check_and_advance(opened_later), 0);
}

}  // namespace
}  // namespace distfuse::client
