// SPDX-License-Identifier: Apache-2.0
#include "common/replace_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <iterator>

#include "common/testing/temporary_directory.h"

namespace distfuse {
namespace {

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(ReplaceFile, WritesAndReplacesWhole) {
  const TemporaryDirectory directory;
  const auto path = directory.path() + "/file";
  ASSERT_TRUE(replace_file(path, "one, which is longer\n", 0600).ok());
  EXPECT_EQ(content(path), "one, which is longer\n");
  struct stat attributes {};
  ASSERT_EQ(::stat(path.c_str(), &attributes), 0);
  EXPECT_EQ(attributes.st_mode & 0777U, 0600U);
  ASSERT_TRUE(replace_file(path, "two\n").ok());
  EXPECT_EQ(content(path), "two\n");
  EXPECT_FALSE(std::filesystem::exists(path + ".new"));
}

TEST(ReplaceFile, AFailureNamesThePathAndLeavesTheOldFile) {
  const TemporaryDirectory directory;
  const auto missing = replace_file(directory.path() + "/none/file", "x");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ENOENT);
  EXPECT_NE(missing.error().message.find("/none/file.new"), std::string::npos);

  const auto path = directory.path() + "/folder";
  std::filesystem::create_directories(path + "/inside");
  EXPECT_FALSE(replace_file(path, "x").ok());
  EXPECT_TRUE(std::filesystem::exists(path + "/inside"));
  EXPECT_FALSE(std::filesystem::exists(path + ".new"));
}

}  // namespace
}  // namespace distfuse
