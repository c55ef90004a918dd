// SPDX-License-Identifier: Apache-2.0
// What mounts of mode `kernel` (DISTFUSE_MOUNTS, three at least) ask of their client daemon and of lockd, by the module's counters in debugfs: nothing at
// all for what is cached under a held lock; one request for a create; one chain of verbs and no message for a free lock.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace {

using Counters = std::map<std::string, std::int64_t>;

std::vector<std::string> mounts() {
  const char* given = std::getenv("DISTFUSE_MOUNTS");
  std::istringstream words(given != nullptr ? given : "");
  std::vector<std::string> result;
  for (std::string word; words >> word;) result.push_back(word);
  return result;
}

std::string debug_folder(const std::string& mount) {
  struct stat s {};
  EXPECT_EQ(stat(mount.c_str(), &s), 0) << mount;
  return "/sys/kernel/debug/distfuse/" + std::to_string(major(s.st_dev)) + ":" +
         std::to_string(minor(s.st_dev));
}

Counters counters(const std::string& mount) {
  std::ifstream file(debug_folder(mount) + "/counters");
  EXPECT_TRUE(file) << debug_folder(mount) << ": is debugfs mounted?";
  Counters result;
  std::string name;
  for (std::int64_t value = 0; file >> name >> value;) result[name] = value;
  return result;
}

class Cached : public testing::Test {
 protected:
  void SetUp() override {
    mounts_ = mounts();
    ASSERT_GE(mounts_.size(), 3U) << "DISTFUSE_MOUNTS names the mounts";
    folder_ = mounts_[0] + "/cached." + std::to_string(getpid());
    ASSERT_EQ(mkdir(folder_.c_str(), 0755), 0) << std::strerror(errno);
  }
  void TearDown() override { (void)std::system(("rm -rf " + folder_).c_str()); }

  /// What the first mount asked for since `before`.
  Counters since(const Counters& before) const {
    Counters now = counters(mounts_[0]);
    for (auto& [name, value] : now) value -= before.at(name);
    return now;
  }
  static void expect_silence(const Counters& asked) {
    for (const char* name :
         {"requests", "chains", "messages_sent", "messages_received", "pins_waited"})
      EXPECT_EQ(asked.at(name), 0) << name;
  }

  std::vector<std::string> mounts_;
  std::string folder_;
  std::mt19937 random_{1};
};

constexpr std::size_t kSize = 1 << 20;
constexpr int kRounds = 2000;

TEST_F(Cached, ReadsAndWrites) {
  const int fd = open((folder_ + "/data").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_GE(fd, 0);
  std::vector<char> bytes(kSize, 'a'), page(4096);
  ASSERT_EQ(pwrite(fd, bytes.data(), kSize, 0), static_cast<ssize_t>(kSize));
  ASSERT_EQ(fsync(fd), 0);
  ASSERT_EQ(pread(fd, bytes.data(), kSize, 0), static_cast<ssize_t>(kSize));
  const Counters before = counters(mounts_[0]);
  for (int i = 0; i < kRounds; ++i) {
    const auto at = static_cast<off_t>(random_() % (kSize / 4096) * 4096);
    ASSERT_EQ(pwrite(fd, page.data(), page.size(), at), 4096);
    ASSERT_EQ(pread(fd, page.data(), page.size(), at), 4096);
  }
  const Counters asked = since(before);
  expect_silence(asked);
  EXPECT_GE(asked.at("pins"), 2 * kRounds) << "these accesses did not take the lock";
  close(fd);
}

TEST_F(Cached, Mappings) {
  const int fd = open((folder_ + "/mapped").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(ftruncate(fd, kSize), 0);
  auto* map = static_cast<char*>(mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(map, MAP_FAILED);
  for (std::size_t at = 0; at < kSize; at += 4096) map[at] = 1;
  const Counters before = counters(mounts_[0]);
  std::uint64_t sum = 0;
  for (int i = 0; i < kRounds; ++i) {
    map[random_() % kSize] = static_cast<char>(i);
    sum += static_cast<unsigned char>(map[random_() % kSize]);
  }
  expect_silence(since(before));
  EXPECT_NE(sum, 0U);
  munmap(map, kSize);
  close(fd);
}

TEST_F(Cached, NamesAndAttributes) {
  for (int i = 0; i < 50; ++i)
    close(open((folder_ + "/" + std::to_string(i)).c_str(), O_WRONLY | O_CREAT, 0644));
  const auto look = [&] {
    struct stat s {};
    for (int i = 0; i < 50; ++i) {
      ASSERT_EQ(stat((folder_ + "/" + std::to_string(i)).c_str(), &s), 0);
      ASSERT_EQ(access((folder_ + "/" + std::to_string(i)).c_str(), R_OK), 0);
      ASSERT_EQ(stat((folder_ + "/none" + std::to_string(i)).c_str(), &s), -1);
      ASSERT_EQ(errno, ENOENT);
    }
  };
  look();
  const Counters before = counters(mounts_[0]);
  for (int i = 0; i < 20; ++i) look();
  expect_silence(since(before));
}

TEST_F(Cached, ACreateIsOneRequest) {
  // The first makes X of the folder ours.
  close(open((folder_ + "/first").c_str(), O_WRONLY | O_CREAT, 0644));
  const Counters before = counters(mounts_[0]);
  for (int i = 0; i < 100; ++i) {
    const int fd =
        open((folder_ + "/new" + std::to_string(i)).c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
    ASSERT_GE(fd, 0);
    close(fd);
  }
  const Counters asked = since(before);
  EXPECT_EQ(asked.at("requests"), 100);
  // The new inode's lock: its slot is found, claimed and taken.
  EXPECT_LE(asked.at("chains"), 300);
  EXPECT_EQ(asked.at("messages_sent"), 0);
}

TEST_F(Cached, AFreeLockIsAskedOfNobody) {
  // The first makes the files (X), the second looks at them (both have S then): the third's S is free.
  const auto at = [&](std::size_t mount, int i) {
    return mounts_[mount] + folder_.substr(mounts_[0].size()) + "/" + std::to_string(i);
  };
  struct stat s {};
  for (int i = 0; i < 50; ++i) close(open(at(0, i).c_str(), O_WRONLY | O_CREAT, 0644));
  for (int i = 0; i < 50; ++i) ASSERT_EQ(stat(at(1, i).c_str(), &s), 0);
  ASSERT_EQ(stat(at(2, 0).c_str(), &s), 0);
  const Counters before = counters(mounts_[2]);
  for (int i = 1; i < 50; ++i) ASSERT_EQ(stat(at(2, i).c_str(), &s), 0);
  Counters asked = counters(mounts_[2]);
  for (auto& [name, value] : asked) value -= before.at(name);
  EXPECT_EQ(asked.at("messages_sent"), 0);
  EXPECT_EQ(asked.at("takes"), 49);
  // The bucket is read, then the slot is taken; no more of this slot afterwards.
  EXPECT_LE(asked.at("chains"), 2 * 49);
  std::printf("49 free locks: %lld chains, %lld requests\n",
              static_cast<long long>(asked.at("chains")),
              static_cast<long long>(asked.at("requests")));
}

}  // namespace
