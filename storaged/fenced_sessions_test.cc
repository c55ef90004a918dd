// SPDX-License-Identifier: Apache-2.0
#include "storaged/fenced_sessions.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

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

TEST_F(FencedSessionsTest, SomethingElseIsRefused) {
  std::ofstream(directory_ + "/FENCED") << "this is not a list of sessions at all\n";
  auto sessions = FencedSessions::open(directory_);
  ASSERT_FALSE(sessions);
  EXPECT_EQ(sessions.error().code, EINVAL);
  EXPECT_NE(sessions.error().message.find(directory_), std::string::npos);
}

}  // namespace
}  // namespace distfuse::storaged
