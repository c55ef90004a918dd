// SPDX-License-Identifier: Apache-2.0
#include "lockd/state_dir.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "common/testing/temporary_directory.h"

namespace distfuse::lockd {
namespace {

const std::string kCluster(32, 'a');

class StateDirTest : public ::testing::Test {
 protected:
  const TemporaryDirectory disk_;
  const std::string& root_ = disk_.path();
  const std::string dir_ = root_ + "/deep/state";
};

TEST_F(StateDirTest, EveryStartRaisesTheNumber) {
  for (std::uint32_t expected = 1; expected <= 3; ++expected) {
    const auto state = StateDir::open(dir_, kCluster);
    ASSERT_TRUE(state.ok()) << state.error().message;
    EXPECT_EQ(state->incarnation(), expected);
  }
}

TEST_F(StateDirTest, OnlyOneLockdAtATime) {
  const auto first = StateDir::open(dir_, kCluster);
  ASSERT_TRUE(first.ok());
  const auto second = StateDir::open(dir_, kCluster);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, EBUSY);
}

TEST_F(StateDirTest, AnotherClustersIsRefused) {
  ASSERT_TRUE(StateDir::open(dir_, kCluster).ok());
  const auto other = StateDir::open(dir_, std::string(32, 'b'));
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().code, EXDEV);
}

TEST_F(StateDirTest, ADamagedFileIsRefused) {
  std::filesystem::create_directories(dir_);
  for (const std::string text :
       {"", "x", "7\n", " 7\n", "aaa 7", "aaa 7x\n", "aaa 0\n", "aaa -1\n", "aaa 99999999999\n"}) {
    std::ofstream(dir_ + "/incarnation") << text;
    const auto state = StateDir::open(dir_, kCluster);
    ASSERT_FALSE(state.ok()) << text;
    EXPECT_NE(state.error().code, EBUSY) << text;
  }
}

TEST_F(StateDirTest, AnUnusablePathIsRefused) {
  std::ofstream(root_ + "/file") << "x";
  const auto state = StateDir::open(root_ + "/file/state", kCluster);
  ASSERT_FALSE(state.ok());
  EXPECT_NE(state.error().message.find("state_dir"), std::string::npos);
}

}  // namespace
}  // namespace distfuse::lockd
