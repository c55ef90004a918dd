// SPDX-License-Identifier: Apache-2.0
#include "storaged/living_sessions.h"

#include <gtest/gtest.h>

namespace distfuse::storaged {
namespace {

TEST(LivingSessions, LearnsOnceAndThenRefusesWhoIsNotNamed) {
  LivingSessions living;
  EXPECT_TRUE(living.learning());
  EXPECT_TRUE(living.learn({3, 100, {90, 100}}));
  EXPECT_FALSE(living.learning());
  EXPECT_TRUE(living.lives(90));
  EXPECT_FALSE(living.lives(91));
  EXPECT_TRUE(living.lives(100));
  EXPECT_TRUE(living.lives(101)) << "began after the list was made";
}

TEST(LivingSessions, AnOlderIncarnationIsRefused) {
  LivingSessions living;
  EXPECT_TRUE(living.learn({4, 100, {90}}));
  EXPECT_FALSE(living.learn({3, 200, {91, 200}}));
  EXPECT_TRUE(living.lives(90));
  EXPECT_FALSE(living.lives(91));
  EXPECT_TRUE(living.lives(150));
  EXPECT_TRUE(living.learn({5, 300, {}}));
  EXPECT_FALSE(living.lives(90));
  EXPECT_FALSE(living.lives(150));
}

TEST(LivingSessions, WhoWasHereInAnEarlierLifeIsRemembered) {
  LivingSessions living(7);
  EXPECT_TRUE(living.learning());
  EXPECT_FALSE(living.learn({6, 100, {90}}));
  EXPECT_TRUE(living.learning()) << "nobody is served by what it says";
  EXPECT_NE(living.refusal(6).find("at least 7"), std::string::npos) << living.refusal(6);
  EXPECT_TRUE(living.learn({7, 100, {90}})) << "the same one, which went on meanwhile";
  EXPECT_FALSE(living.learn({std::uint64_t{1} << 32, 100, {90}})) << "no incarnation";
  EXPECT_TRUE(living.learn({9, 200, {}}));
  EXPECT_FALSE(living.learn({8, 300, {}}));
}

TEST(LivingSessions, AnOlderListBringsNobodyBack) {
  LivingSessions living;
  EXPECT_TRUE(living.learn({3, 100, {80, 100}}));
  EXPECT_TRUE(living.learn({3, 120, {100, 110}}));
  EXPECT_TRUE(living.learn({3, 100, {80, 100}}));  // Late.
  EXPECT_FALSE(living.lives(80));
  EXPECT_TRUE(living.lives(100));
  EXPECT_TRUE(living.lives(110));
  EXPECT_FALSE(living.lives(120));
  EXPECT_TRUE(living.learn({3, 120, {110}}));
  EXPECT_TRUE(living.learn({3, 120, {100, 110}}));
  EXPECT_FALSE(living.lives(100));
}

TEST(LivingSessions, WithoutLeasesEverybodyLives) {
  LivingSessions living;
  EXPECT_TRUE(living.learn({3, 0, {}}));
  EXPECT_FALSE(living.learning());
  EXPECT_TRUE(living.lives(1));
}

}  // namespace
}  // namespace distfuse::storaged
