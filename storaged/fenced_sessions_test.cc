// SPDX-License-Identifier: Apache-2.0
#include "storaged/fenced_sessions.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "common/testing/temporary_directory.h"

namespace distfuse::storaged {
namespace {

class FencedSessionsTest : public ::testing::Test {
 protected:
  std::unique_ptr<FencedSessions> open() {
    auto sessions = FencedSessions::open(directory_);
    EXPECT_TRUE(sessions) << (sessions ? "" : sessions.error().message);
    return std::move(*sessions);
  }
  const TemporaryDirectory disk_;
  const std::string& directory_ = disk_.path();
};

TEST_F(FencedSessionsTest, WhatIsPersistedIsFoundAgain) {
  {
    auto sessions = open();
    for (std::uint64_t session : {5ULL, 0xffffffffffffffffULL, 5ULL}) {
      sessions->add(session);
      EXPECT_TRUE(sessions->persist(session).ok());
    }
    sessions->add(6);  // not persisted: lockd got no answer
  }
  auto sessions = open();
  EXPECT_EQ(sessions->size(), 2U);
  EXPECT_FALSE(sessions->contains(0)) << "lockd and the storageds";
  EXPECT_TRUE(sessions->contains(5));
  EXPECT_TRUE(sessions->contains(0xffffffffffffffffULL));
  EXPECT_FALSE(sessions->contains(6));
}

TEST_F(FencedSessionsTest, AnUnfinishedLineIsOverwritten) {
  EXPECT_TRUE(open()->persist(1).ok());
  std::ofstream(directory_ + "/FENCED", std::ios::app) << "00000";
  EXPECT_TRUE(open()->persist(2).ok());
  auto sessions = open();
  EXPECT_EQ(sessions->size(), 2U);
  EXPECT_TRUE(sessions->contains(2));
}

class FencedBelowTest : public FencedSessionsTest {
 protected:
  static constexpr std::uint64_t kLife = 1ULL << 32;  ///< Ids of one life of lockd.
  static void fence(FencedSessions& sessions, std::uint64_t session) {
    sessions.add(session);
    ASSERT_TRUE(sessions.persist(session).ok());
  }
  static void cover(FencedSessions& sessions, std::uint64_t high,
                    const std::vector<std::uint64_t>& living) {
    const auto below = sessions.cover(high, living);
    ASSERT_TRUE(below);
    ASSERT_TRUE(sessions.compact(*below).ok());
  }
  [[nodiscard]] std::uintmax_t bytes() const {
    return std::filesystem::file_size(directory_ + "/FENCED") +
           std::filesystem::file_size(directory_ + "/FENCED_BELOW");
  }
};

TEST_F(FencedBelowTest, LivesOfLockdDoNotAddUpAndNobodyIsTakenBack) {
  // In each life of lockd sessions 1 to 400 begin; 7 lives on into the next one, all others are fenced.
  for (std::uint64_t life = 1; life <= 20; ++life) {
    auto sessions = open();
    const std::vector<std::uint64_t> living{(life - 1) * kLife + 7, life * kLife + 7,
                                            life * kLife + 8};
    for (std::uint64_t i = 1; i <= 400; ++i)
      if (i != 7 && i != 8) fence(*sessions, life * kLife + i);
    cover(*sessions, life * kLife + 400, living);
    EXPECT_FALSE(sessions->contains(life * kLife + 8));
    fence(*sessions, (life - 1) * kLife + 7);
    fence(*sessions, life * kLife + 8);
    EXPECT_LT(bytes(), 10 * FencedBelow::kLine) << "life " << life;
  }
  auto sessions = open();
  for (std::uint64_t life = 1; life <= 20; ++life)
    for (std::uint64_t i = 1; i <= 400; ++i)
      EXPECT_EQ(sessions->contains(life * kLife + i), life < 20 || i != 7) << life << " " << i;
  EXPECT_FALSE(sessions->contains(20 * kLife + 401)) << "began after the list";
}

TEST_F(FencedBelowTest, AnOlderListOrOneOfALockdWithoutLeasesTakesNothingBack) {
  {
    auto sessions = open();
    for (std::uint64_t session : {1, 2, 3}) fence(*sessions, session);
    cover(*sessions, 10, {4, 5});
    EXPECT_FALSE(sessions->cover(0, {}));
    EXPECT_FALSE(sessions->cover(9, std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6}));
    cover(*sessions, 11, {1, 2, 3, 4, 6});  // 5 has ended; the others cannot live again
  }
  auto sessions = open();
  for (std::uint64_t session : {1, 2, 3, 5, 6, 7, 11}) EXPECT_TRUE(sessions->contains(session));
  for (std::uint64_t session : {0, 4, 12}) EXPECT_FALSE(sessions->contains(session)) << session;
}

TEST_F(FencedBelowTest, ACrashBetweenTheTwoFilesLosesNothing) {
  fence(*open(), 3);
  std::filesystem::copy(directory_ + "/FENCED", directory_ + "/old");
  {
    auto sessions = open();
    fence(*sessions, 4);
    cover(*sessions, 10, {5});
  }
  std::filesystem::rename(directory_ + "/old", directory_ + "/FENCED");
  {
    auto sessions = open();
    EXPECT_TRUE(sessions->contains(3));
    EXPECT_TRUE(sessions->contains(4));
    EXPECT_FALSE(sessions->contains(5));
    fence(*sessions, 5);  // While the two say the same of others.
  }
  EXPECT_TRUE(open()->contains(5));
}

TEST_F(FencedBelowTest, AFenceThatComesBeforeTheFilesAreWrittenStays) {
  {
    auto sessions = open();
    const auto below = sessions->cover(10, std::vector<std::uint64_t>{5});
    ASSERT_TRUE(below);
    fence(*sessions, 5);
    fence(*sessions, 11);
    ASSERT_TRUE(sessions->compact(*below).ok());
    fence(*sessions, 12);
  }
  auto sessions = open();
  for (std::uint64_t session : {5, 11, 12}) EXPECT_TRUE(sessions->contains(session));
}

TEST_F(FencedBelowTest, SomethingElseIsRefused) {
  std::ofstream(directory_ + "/FENCED_BELOW") << "0000000000000010\n00000";
  auto sessions = FencedSessions::open(directory_);
  ASSERT_FALSE(sessions);
  EXPECT_EQ(sessions.error().code, EINVAL);
}

TEST_F(FencedSessionsTest, SomethingElseIsRefused) {
  std::ofstream(directory_ + "/FENCED") << "this is not a list of sessions at all\n";
  auto sessions = FencedSessions::open(directory_);
  ASSERT_FALSE(sessions);
  EXPECT_EQ(sessions.error().code, EINVAL);
  EXPECT_NE(sessions.error().message.find(directory_), std::string::npos);
}

TEST_F(FencedBelowTest, TheLatestLifeOfLockdIsKnownByItsSessions) {
  {
    auto sessions = open();
    EXPECT_EQ(sessions->incarnation(), 0U);
    fence(*sessions, 3 * kLife + 1);
    fence(*sessions, 2 * kLife + 9);
  }
  {
    auto sessions = open();
    EXPECT_EQ(sessions->incarnation(), 3U);
    cover(*sessions, 5 * kLife, {4 * kLife + 1});
  }
  EXPECT_EQ(open()->incarnation(), 5U);
}

}  // namespace
}  // namespace distfuse::storaged
