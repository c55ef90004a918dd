// SPDX-License-Identifier: Apache-2.0
#include "storaged/identity.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/testing/temporary_directory.h"

namespace distfuse::storaged {
namespace {

const Identity kIdentity{"0123456789abcdef0123456789abcdef", "meta", 1};

class IdentityTest : public testing::Test {
 protected:
  [[nodiscard]] std::string store() const { return root_ + "/store"; }
  const TemporaryDirectory disk_;
  const std::string& root_ = disk_.path();
};

TEST_F(IdentityTest, FirstTakeCreatesAndLaterOnesVerify) {
  { ASSERT_TRUE(StoreClaim::take(store(), kIdentity).ok()); }
  EXPECT_TRUE(std::filesystem::exists(store() + "/IDENTITY"));
  EXPECT_FALSE(std::filesystem::exists(store() + "/IDENTITY.new"));
  EXPECT_TRUE(StoreClaim::take(store(), kIdentity).ok());
}

TEST_F(IdentityTest, RefusesOtherClusterRoleAndVersion) {
  { ASSERT_TRUE(StoreClaim::take(store(), kIdentity).ok()); }
  for (const Identity& other :
       {Identity{"ffffffffffffffffffffffffffffffff", "meta", 1},
        Identity{kIdentity.cluster_id, "data", 1}, Identity{kIdentity.cluster_id, "meta", 2}}) {
    const auto claim = StoreClaim::take(store(), other);
    ASSERT_FALSE(claim.ok());
    EXPECT_EQ(claim.error().code, EINVAL);
    EXPECT_NE(claim.error().message.find(store()), std::string::npos);
  }
}

TEST_F(IdentityTest, OneProcessAtATime) {
  const auto first = StoreClaim::take(store(), kIdentity);
  ASSERT_TRUE(first.ok());
  const auto second = StoreClaim::take(store(), kIdentity);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, EBUSY);
}

TEST_F(IdentityTest, RefusesADirectoryOfSomethingElse) {
  std::filesystem::create_directory(store());
  std::ofstream(store() + "/precious") << "data";
  const auto claim = StoreClaim::take(store(), kIdentity);
  ASSERT_FALSE(claim.ok());
  EXPECT_EQ(claim.error().code, EINVAL);
  EXPECT_FALSE(std::filesystem::exists(store() + "/IDENTITY"));
}

TEST_F(IdentityTest, ATornFirstTakeIsRepeated) {
  std::filesystem::create_directory(store());
  std::ofstream(store() + "/IDENTITY.new") << "distfuse st";
  EXPECT_TRUE(StoreClaim::take(store(), kIdentity).ok());
}

TEST_F(IdentityTest, RefusesAMangledIdentity) {
  for (const char* text :
       {"", "distfuse store\n", "hello\n",
        "distfuse store\ncluster 0123\nrole meta\nversion 1\nmore\n",
        "distfuse store\ncluster 0123456789abcdef0123456789abcdef\nrole meta\nversion 1"}) {
    std::filesystem::create_directory(store());
    std::ofstream(store() + "/IDENTITY", std::ios::trunc) << text;
    const auto claim = StoreClaim::take(store(), kIdentity);
    ASSERT_FALSE(claim.ok()) << text;
    EXPECT_EQ(claim.error().code, EINVAL);
  }
}

TEST_F(IdentityTest, AMissingParentIsSaid) {
  const auto claim = StoreClaim::take(root_ + "/none/store", kIdentity);
  ASSERT_FALSE(claim.ok());
  EXPECT_EQ(claim.error().code, ENOENT);
}

}  // namespace
}  // namespace distfuse::storaged
