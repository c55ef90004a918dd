// SPDX-License-Identifier: Apache-2.0
#include "client/cache/entry_cache.h"

#include <gtest/gtest.h>

namespace distfuse::client {
namespace {

constexpr EntryCache::Entry kFile{7, 0100000};
constexpr EntryCache::Entry kOther{8, 0100000};
constexpr EntryCache::Entry kNone{};

TEST(EntryCache, KnowsWhatItWasTold) {
  EntryCache cache;
  EXPECT_FALSE(cache.find(1, "a"));
  const auto began = cache.sequence(1);
  cache.fetched(1, "a", kFile, began);
  cache.fetched(1, "b", kNone, began);
  EXPECT_EQ(cache.find(1, "a"), kFile);
  EXPECT_EQ(cache.find(1, "b"), kNone);
  EXPECT_FALSE(cache.find(1, "c"));
  EXPECT_FALSE(cache.find(2, "a"));
  cache.forget(1);
  EXPECT_FALSE(cache.find(1, "a"));
  EXPECT_EQ(cache.size(), 0U);
}

TEST(EntryCache, AnAnswerThatAChangeOvertookIsDropped) {
  EntryCache cache;
  const auto began = cache.sequence(1);
  cache.changed(1, "a", kFile);
  cache.fetched(1, "a", kNone, began);
  EXPECT_EQ(cache.find(1, "a"), kFile);
  const auto again = cache.sequence(1);
  cache.forget(1);  // the lock was given up and taken again
  cache.fetched(1, "a", kFile, again);
  EXPECT_FALSE(cache.find(1, "a"));
}

TEST(EntryCache, ACompleteDirectoryAnswersForEveryName) {
  EntryCache cache;
  cache.created(1);
  EXPECT_EQ(cache.find(1, "a"), kNone);
  cache.changed(1, "a", kFile);
  EXPECT_EQ(cache.find(1, "a"), kFile);
  EXPECT_EQ(cache.find(1, "b"), kNone);
  const auto began = cache.sequence(2);
  cache.fetched(2, "x", kOther, began);
  cache.complete(2, began);
  EXPECT_EQ(cache.find(2, "y"), kNone);
}

TEST(EntryCache, AListingThatWasOvertakenIsNotComplete) {
  EntryCache cache;
  const auto began = cache.sequence(1);
  cache.fetched(1, "a", kFile, began);
  cache.changed(1, "b", kOther);
  cache.complete(1, began);
  EXPECT_FALSE(cache.find(1, "c"));
}

TEST(EntryCache, TheDirectoryUsedLeastRecentlyGoesFirst) {
  EntryCache cache(4);
  cache.changed(1, "a", kFile);
  cache.changed(1, "b", kFile);
  cache.changed(2, "a", kFile);
  cache.changed(2, "b", kFile);
  EXPECT_TRUE(cache.find(1, "a"));  // 2 is now the older one
  cache.changed(3, "a", kFile);
  EXPECT_TRUE(cache.find(1, "b"));
  EXPECT_FALSE(cache.find(2, "a"));
  EXPECT_TRUE(cache.find(3, "a"));
  EXPECT_LE(cache.size(), 4U);
}

TEST(EntryCache, ADirectoryLargerThanTheCacheIsNeverBelievedComplete) {
  EntryCache cache(3);
  const auto began = cache.sequence(1);
  for (const char* name : {"a", "b", "c", "d"}) cache.fetched(1, name, kFile, began);
  cache.complete(1, began);
  EXPECT_TRUE(cache.find(1, "a"));
  EXPECT_FALSE(cache.find(1, "d"));  // it exists: unknown, not absent
  EXPECT_EQ(cache.size(), 3U);
  EntryCache small(2);
  small.created(5);
  for (const char* name : {"a", "b", "c"}) small.changed(5, name, kFile);
  EXPECT_FALSE(small.find(5, "c"));
}

}  // namespace
}  // namespace distfuse::client
