// SPDX-License-Identifier: Apache-2.0
// What mounts of mode `kernel` (DISTFUSE_MOUNTS, three at least) ask of their client daemon and of lockd, by the module's counters in debugfs: nothing at
// all for what is cached under a held lock; one request for a create; one chain of verbs and no message for a free lock.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
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
  // The lookup brings the attributes, and the slot tells that they are still those of now.
  EXPECT_EQ(asked.at("requests"), 49);
  std::printf("49 free locks: %lld chains, %lld requests\n",
              static_cast<long long>(asked.at("chains")),
              static_cast<long long>(asked.at("requests")));
}

/// What `ls -l` does with each name.
void list_long(const std::string& folder, std::map<std::string, struct stat>& found) {
  DIR* dir = opendir(folder.c_str());
  ASSERT_NE(dir, nullptr) << std::strerror(errno);
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    std::string path = folder;
    path.append("/").append(name);
    if (name == "." || name == "..") continue;
    ASSERT_EQ(lstat(path.c_str(), &found[name]), 0) << path;
    char list[256];
    for (const char* xattr : {"system.posix_acl_access", "security.selinux"}) {
      ASSERT_EQ(lgetxattr(path.c_str(), xattr, list, sizeof list), -1);
      ASSERT_EQ(errno, ENODATA) << xattr;
    }
  }
  closedir(dir);
}

TEST_F(Cached, ALongListingIsOneStream) {
  constexpr int kFiles = 300;
  for (int i = 0; i < kFiles; ++i) {
    const int fd = open((folder_ + "/" + std::to_string(i)).c_str(), O_WRONLY | O_CREAT, 0644);
    ASSERT_EQ(write(fd, "0123456789", i % 10), i % 10);
    close(fd);
  }
  for (std::size_t mount : {1, 2}) {
    // The first listing elsewhere takes X away, the second finds locks that are free.
    const Counters before = counters(mounts_[mount]);
    std::map<std::string, struct stat> found;
    list_long(mounts_[mount] + folder_.substr(mounts_[0].size()), found);
    Counters asked = counters(mounts_[mount]);
    for (auto& [name, value] : asked) value -= before.at(name);
    EXPECT_EQ(found.size(), static_cast<std::size_t>(kFiles));
    for (const auto& [name, s] : found) EXPECT_EQ(s.st_size, std::stoi(name) % 10) << name;
    std::printf("%d names, by mount %zu: %lld requests, %lld chains, %lld messages to lockd\n",
                kFiles, mount, static_cast<long long>(asked.at("requests")),
                static_cast<long long>(asked.at("chains")),
                static_cast<long long>(asked.at("messages_sent")));
    // 64 KiB a batch, at most 200 bytes a name; the folder itself, its way, and the end of the listing.
    // What was still dirty when it was listed is asked for once more.
    EXPECT_LE(asked.at("requests"), kFiles * 200 / 65536 + 12 + (mount == 1 ? kFiles : 0));
    if (mount == 2) {
      EXPECT_LE(asked.at("messages_sent"), 2);
    }
  }
}

/// Attributes that are kept from one hold of the lock to the next must not hide what another node did in between.
TEST_F(Cached, KeptAttributesAreOfNow) {
  const std::string theirs = mounts_[1] + folder_.substr(mounts_[0].size()) + "/file";
  const std::string ours = folder_ + "/file";
  int fd = open(ours.c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(mkdir((folder_ + "/d").c_str(), 0755), 0);
  const std::map<std::string, std::function<int()>> changes = {
      {"chmod", [&] { return chmod(theirs.c_str(), random_() % 0100 + 0600); }},
      {"chown", [&] { return chown(theirs.c_str(), static_cast<uid_t>(random_() % 9), 7); }},
      {"write", [&] { return truncate(theirs.c_str(), static_cast<off_t>(random_() % 9999)); }},
      {"times",
       [&] {
         const timespec times[2] = {{1, 2}, {static_cast<time_t>(random_() % 1000), 5}};
         return utimensat(AT_FDCWD, theirs.c_str(), times, 0);
       }},
      {"link", [&] { return link(theirs.c_str(), (theirs + std::to_string(random_())).c_str()); }},
      {"xattr", [&] { return setxattr(theirs.c_str(), "user.x", "abc", random_() % 3, 0); }},
      {"back", [&] { return removexattr(theirs.c_str(), "user.x") != 0 && errno != ENODATA; }}};
  std::vector<std::string> names;
  for (const auto& [name, change] : changes) names.push_back(name);
  for (int i = 0; i < 300; ++i) {
    struct stat before {
    }, after{}, there{};
    ASSERT_EQ(stat(ours.c_str(), &before), 0);
    const std::string& name = names[random_() % names.size()];
    const bool changed = random_() % 4 != 0;
    if (changed) {
      ASSERT_EQ(changes.at(name)(), 0) << name << ": " << std::strerror(errno);
    } else {
      ASSERT_EQ(stat(theirs.c_str(), &there), 0);
    }
    char value[16];
    const ssize_t ours_has = getxattr(ours.c_str(), "user.x", value, sizeof value);
    ASSERT_EQ(stat(ours.c_str(), &after), 0);
    ASSERT_EQ(stat(theirs.c_str(), &there), 0);
    ASSERT_EQ(getxattr(theirs.c_str(), "user.x", value, sizeof value), ours_has) << name;
    for (const auto& [what, here, elsewhere] :
         {std::tuple{"mode", std::int64_t{after.st_mode}, std::int64_t{there.st_mode}},
          {"uid", after.st_uid, there.st_uid},
          {"links", static_cast<std::int64_t>(after.st_nlink),
           static_cast<std::int64_t>(there.st_nlink)},
          {"size", after.st_size, there.st_size},
          {"mtime", after.st_mtim.tv_nsec + after.st_mtim.tv_sec * 1'000'000'000,
           there.st_mtim.tv_nsec + there.st_mtim.tv_sec * 1'000'000'000},
          {"ctime", after.st_ctim.tv_nsec, there.st_ctim.tv_nsec}})
      ASSERT_EQ(here, elsewhere) << what << " after " << name << ", round " << i;
    if (name != "back" && changed) {
      ASSERT_NE(after.st_ctim.tv_nsec + after.st_ctim.tv_sec * 1'000'000'000,
                before.st_ctim.tv_nsec + before.st_ctim.tv_sec * 1'000'000'000)
          << name;
    }
  }
  close(fd);
}

/// A file that two mounts write in turn: the lock brings size and times, the rest is known.
TEST_F(Cached, AWriterThatComesBackAsksForNoAttributes) {
  constexpr int kTurns = 20;
  const std::string path = "/cached." + std::to_string(getpid()) + "/turns";
  int fds[2] = {open((mounts_[0] + path).c_str(), O_RDWR | O_CREAT, 0644), -1};
  fds[1] = open((mounts_[1] + path).c_str(), O_RDWR);
  ASSERT_GE(fds[0], 0);
  ASSERT_GE(fds[1], 0);
  const std::vector<char> page(4096, 'p');
  off_t end = 0;
  const auto turn = [&](int mount) {
    ASSERT_EQ(pwrite(fds[mount], page.data(), page.size(), end), 4096);
    end += 4096;
    struct stat s {};
    ASSERT_EQ(fstat(fds[mount], &s), 0);
    ASSERT_EQ(s.st_size, end);
  };
  for (int i = 0; i < 4; ++i) turn(i % 2);
  const Counters before = counters(mounts_[0]);
  for (int i = 0; i < 2 * kTurns; ++i) turn(i % 2);
  const Counters asked = since(before);
  EXPECT_GE(asked.at("revokes"), kTurns - 2) << "these turns were none";
  EXPECT_LE(asked.at("requests"), 2 * kTurns + 2) << "a write and a setattr a turn";
  EXPECT_GE(asked.at("attributes_kept"), kTurns - 2);
  // What the lock does not bring is asked for.
  ASSERT_EQ(fchmod(fds[1], 0600), 0);
  struct stat s {};
  ASSERT_EQ(fstat(fds[0], &s), 0);
  EXPECT_EQ(s.st_mode & 07777U, 0600U);
  turn(0);
  ASSERT_EQ(fsetxattr(fds[1], "user.turn", "1", 1, 0), 0);
  char value = 0;
  ASSERT_EQ(fgetxattr(fds[0], "user.turn", &value, 1), 1) << std::strerror(errno);
  turn(1);
  turn(0);
  ASSERT_EQ(ftruncate(fds[1], 5000), 0);
  ASSERT_EQ(fstat(fds[0], &s), 0);
  EXPECT_EQ(s.st_size, 5000);
  EXPECT_EQ(s.st_mode & 07777U, 0600U);
  close(fds[0]);
  close(fds[1]);
}

/// stat of what another node writes brings its size, and leaves the writer its lock and its dirty pages.
TEST_F(Cached, AGlimpseTakesNothingAway) {
  const std::string theirs = mounts_[1] + folder_.substr(mounts_[0].size()) + "/log";
  const int fd = open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT, 0644);
  ASSERT_GE(fd, 0);
  struct stat s {
  }, here{};
  const std::string line(100, 'x');
  ASSERT_EQ(write(fd, line.data(), line.size()), 100);
  // The name, the folder's lock; and what came before may have taught the mount that glimpses find nobody writing.
  const std::int64_t none = counters(mounts_[1]).at("glimpses");
  int lines = 1;
  for (; counters(mounts_[1]).at("glimpses") < none + 2; ++lines) {
    ASSERT_LT(lines, 40) << "no glimpse is tried";
    ASSERT_EQ(stat(theirs.c_str(), &s), 0);
    ASSERT_EQ(write(fd, line.data(), line.size()), 100);
  }
  const Counters before = counters(mounts_[0]);
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(write(fd, line.data(), line.size()), 100);
    ASSERT_EQ(stat(theirs.c_str(), &s), 0);
    ASSERT_EQ(s.st_size, ++lines * 100);
    ASSERT_EQ(fstat(fd, &here), 0);
    ASSERT_EQ(s.st_mtim.tv_nsec, here.st_mtim.tv_nsec);
    ASSERT_EQ(s.st_ctim.tv_nsec, here.st_ctim.tv_nsec);
  }
  const Counters asked = since(before);
  EXPECT_EQ(asked.at("sheds"), 0);
  EXPECT_EQ(asked.at("pages_written"), 0);
  // Who goes on looking, while nothing is written, gets the lock, and asks nobody any more.
  for (int i = 0; i < 3; ++i) ASSERT_EQ(stat(theirs.c_str(), &s), 0);
  const Counters looked = counters(mounts_[1]);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(stat(theirs.c_str(), &s), 0);
  Counters more = counters(mounts_[1]);
  for (const char* name : {"requests", "chains", "messages_sent"})
    EXPECT_EQ(more.at(name), looked.at(name)) << name;
  EXPECT_EQ(s.st_size, lines * 100);
  close(fd);
}

/// O_DIRECT: requests of 1 MiB from the caller's own pages; nothing stays in the page cache, what is there does not hide what is written.
TEST_F(Cached, DirectIo) {
  constexpr std::size_t kBytes = 4 << 20;
  const std::string here = folder_ + "/direct";
  const std::string there = mounts_[1] + folder_.substr(mounts_[0].size()) + "/direct";
  const int fd = open(here.c_str(), O_RDWR | O_CREAT | O_DIRECT, 0644);
  const int buffered = open(here.c_str(), O_RDWR);
  ASSERT_GE(fd, 0);
  ASSERT_GE(buffered, 0);
  const std::unique_ptr<char, decltype(&std::free)> memory(
      static_cast<char*>(std::aligned_alloc(4096, kBytes)), &std::free);
  std::string expected(kBytes, '\0');
  for (char& c : expected) c = static_cast<char>(random_());
  std::memcpy(memory.get(), expected.data(), kBytes);
  ASSERT_EQ(pwrite(fd, memory.get(), 4096, 0), 4096);  // the lock
  Counters before = counters(mounts_[0]);
  ASSERT_EQ(pwrite(fd, memory.get(), kBytes, 0), static_cast<ssize_t>(kBytes));
  EXPECT_EQ(since(before).at("requests"), 4);
  for (int i = 0; i < 2; ++i) {
    before = counters(mounts_[0]);
    std::memset(memory.get(), 0, kBytes);
    ASSERT_EQ(pread(fd, memory.get(), kBytes, 0), static_cast<ssize_t>(kBytes));
    EXPECT_EQ(since(before).at("requests"), 4);
    EXPECT_EQ(std::memcmp(memory.get(), expected.data(), kBytes), 0);
  }
  // Dirty pages of the range come first; an odd offset and length; the end of the file.
  ASSERT_EQ(pwrite(buffered, "dirty", 5, 10000), 5);
  expected.replace(10000, 5, "dirty");
  ASSERT_EQ(pread(fd, memory.get(), 8192, 8192), 8192);
  EXPECT_EQ(std::memcmp(memory.get(), expected.data() + 8192, 8192), 0);
  std::memcpy(memory.get(), "direct", 6);
  ASSERT_EQ(pwrite(fd, memory.get(), 6, 10002), 6);
  expected.replace(10002, 6, "direct");
  ASSERT_EQ(pwrite(fd, memory.get(), 6, kBytes - 3), 6);
  expected.replace(kBytes - 3, 6, "direct");
  std::string found(kBytes + 3, '\0');
  for (const std::string& path : {here, there}) {
    const int other = open(path.c_str(), O_RDONLY);
    ASSERT_EQ(pread(other, found.data(), found.size(), 0), static_cast<ssize_t>(expected.size()));
    EXPECT_TRUE(found == expected) << path;
    close(other);
  }
  ASSERT_EQ(pread(fd, memory.get(), 8192, kBytes), 3);
  ASSERT_EQ(pread(fd, memory.get(), 8192, kBytes + 3), 0);
  // Memory that does not begin on a page.
  ASSERT_EQ(pwrite(fd, memory.get() + 512, 1024, 512), 1024);
  ASSERT_EQ(pread(fd, memory.get() + 1024, 1024, 512), 1024);
  EXPECT_EQ(std::memcmp(memory.get() + 512, memory.get() + 1024, 512), 0);
  close(fd);
  close(buffered);
}

}  // namespace
