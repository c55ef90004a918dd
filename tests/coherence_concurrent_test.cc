// SPDX-License-Identifier: Apache-2.0
// What must hold while processes work on several mounts at the same time: records appended whole and once, one winner of an
// exclusive create, names that change at once, locks that exclude, stores seen by loads. With several guests (DISTFUSE_TEST_NODES) the
// mounts are spread over them.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "tests/cluster.h"
#include "tests/far/calls.h"

namespace distfuse::tests {
namespace {

using far::chmod;
using far::close;
using far::fcntl;
using far::flock;
using far::fstat;
using far::ftruncate;
using far::link;
using far::mkdir;
using far::open;
using far::pread;
using far::pwrite;
using far::read;
using far::read_file;
using far::removexattr;
using far::rename;
using far::setxattr;
using far::stat;
using far::unlink;
using far::write;
using far::write_file;

/// Runs body(i) in n processes; each must end with 0.
void in_processes(int n, const std::function<int(int)>& body) {
  std::vector<pid_t> children;
  for (int i = 0; i < n; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) _exit(body(i));
    children.push_back(child);
  }
  for (int i = 0; i < n; ++i) {
    int status = -1;
    ASSERT_EQ(waitpid(children[static_cast<std::size_t>(i)], &status, 0),
              children[static_cast<std::size_t>(i)]);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "process " << i << " ended with " << status;
  }
}

/// A child's failed expectation: says it and ends the child.
void must(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "child %d: %s: %s\n", getpid(), what, std::strerror(errno));
  _exit(1);
}

class Concurrent : public testing::Test {
 protected:
  static void SetUpTestSuite() { cluster_ = new Cluster({.mounts = 3, .storageds = 2}); }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  void SetUp() override { ASSERT_TRUE(cluster_->ok()); }
  static std::string on(int i, const std::string& name) {
    return cluster_->mount(static_cast<std::size_t>(i)) + "/" + name;
  }
  static Cluster* cluster_;
};
Cluster* Concurrent::cluster_ = nullptr;

TEST_F(Concurrent, AppendsAreWholeAndOnce) {
  constexpr int kWriters = 6;
  constexpr int kRecords = 150;
  in_processes(kWriters, [](int w) {
    const int fd = open(on(w, "log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    must(fd >= 0, "open");
    for (int r = 0; r < kRecords; ++r) {
      // Records of different lengths that name their writer in every byte.
      std::string record = "[" + std::to_string(w) + ":" + std::to_string(r) + ":";
      record += std::string(static_cast<std::size_t>(1 + (r * 37 + w * 11) % 3000),
                            static_cast<char>('a' + w)) +
                "]\n";
      must(write(fd, record.data(), record.size()) == static_cast<ssize_t>(record.size()),
           "append");
    }
    return close(fd);
  });
  for (int m = 0; m < 3; ++m) {
    const auto text = read_file(on(m, "log"));
    ASSERT_TRUE(text) << std::strerror(errno);
    std::istringstream log(*text);
    std::set<std::string> seen;
    std::map<int, int> next;
    for (std::string line; std::getline(log, line);) {
      int w = -1, r = -1, at = 0;
      ASSERT_EQ(std::sscanf(line.c_str(), "[%d:%d:%n", &w, &r, &at), 2) << line.substr(0, 60);
      const std::string rest = line.substr(static_cast<std::size_t>(at));
      ASSERT_EQ(rest, std::string(static_cast<std::size_t>(1 + (r * 37 + w * 11) % 3000),
                                  static_cast<char>('a' + w)) +
                          "]");
      ASSERT_EQ(r, next[w]++) << "writer " << w << " out of order";
      ASSERT_TRUE(seen.insert(line).second);
    }
    EXPECT_EQ(seen.size(), static_cast<std::size_t>(kWriters * kRecords));
  }
}

TEST_F(Concurrent, ExclusiveCreateHasOneWinner) {
  constexpr int kNames = 60;
  ASSERT_EQ(mkdir(on(0, "excl").c_str(), 0755), 0);
  in_processes(6, [](int p) {
    int won = 0;
    for (int i = 0; i < kNames; ++i) {
      const std::string name = "excl/" + std::to_string(i);
      const int fd = open(on(p, name).c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
      must(fd >= 0 || errno == EEXIST, "exclusive create");
      if (fd < 0) continue;
      ++won;
      must(write(fd, &p, sizeof(p)) == sizeof(p), "write");
      close(fd);
    }
    must(write_file(on(p, "won." + std::to_string(p)), std::to_string(won)), "tell");
    return 0;
  });
  int total = 0;
  for (int p = 0; p < 6; ++p) {
    const auto won = read_file(on(p + 1, "won." + std::to_string(p)));
    ASSERT_TRUE(won && !won->empty()) << std::strerror(errno);
    total += std::stoi(*won);
  }
  EXPECT_EQ(total, kNames);
}

TEST_F(Concurrent, RenameOverIsSeenAtOnceAndWhole) {
  constexpr int kRounds = 120;
  ASSERT_TRUE(write_file(on(0, "current"), std::string(2000, 'A')));
  in_processes(3, [](int p) {
    if (p == 0) {
      for (int i = 0; i < kRounds; ++i) {
        const std::string fresh = on(0, "fresh");
        must(write_file(fresh, std::string(2000 + static_cast<std::size_t>(i),
                                           static_cast<char>('A' + i % 26))),
             "write the fresh one");
        must(rename(fresh.c_str(), on(0, "current").c_str()) == 0, "rename");
      }
      must(write_file(on(0, "done"), "x"), "tell");
      return 0;
    }
    struct stat done {};
    std::size_t last = 0;
    while (stat(on(p, "done").c_str(), &done) != 0) {
      const int fd = open(on(p, "current").c_str(), O_RDONLY);
      must(fd >= 0, "the name is never absent");
      char buffer[4096];
      const ssize_t n = read(fd, buffer, sizeof(buffer));
      must(n >= 2000, "the file is never short");
      must(static_cast<std::size_t>(n) >= last, "never an older file");
      for (ssize_t i = 1; i < n; ++i) must(buffer[i] == buffer[0], "never a mixture");
      last = static_cast<std::size_t>(n);
      close(fd);
    }
    return 0;
  });
}

void count_under_lock(const std::string& name, int rounds,
                      const std::function<void(int fd, bool lock)>& lock) {
  const int fd = open(name.c_str(), O_RDWR | O_CREAT, 0644);
  must(fd >= 0, "open");
  for (int i = 0; i < rounds; ++i) {
    lock(fd, true);
    long value = 0;
    const ssize_t n = pread(fd, &value, sizeof(value), 0);
    must(n == 0 || n == sizeof(value), "read");
    ++value;
    must(pwrite(fd, &value, sizeof(value), 0) == sizeof(value), "write");
    lock(fd, false);
  }
  close(fd);
}

long counter(const std::string& path) {
  long value = -1;
  const int fd = open(path.c_str(), O_RDONLY);
  EXPECT_EQ(pread(fd, &value, sizeof(value), 0), static_cast<ssize_t>(sizeof(value)));
  close(fd);
  return value;
}

TEST_F(Concurrent, FcntlLocksExclude) {
  in_processes(6, [](int p) {
    count_under_lock(on(p, "fcntl"), 60, [](int fd, bool take) {
      struct flock range {};
      range.l_type = take ? F_WRLCK : F_UNLCK;
      range.l_whence = SEEK_SET;
      range.l_len = 8;
      must(fcntl(fd, F_SETLKW, &range) == 0, "fcntl lock");
    });
    return 0;
  });
  EXPECT_EQ(counter(on(1, "fcntl")), 6 * 60);
}

TEST_F(Concurrent, FlockExcludes) {
  in_processes(6, [](int p) {
    count_under_lock(on(p, "flock"), 60, [](int fd, bool take) {
      must(flock(fd, take ? LOCK_EX : LOCK_UN) == 0, "flock");
    });
    return 0;
  });
  EXPECT_EQ(counter(on(2, "flock")), 6 * 60);
}

TEST_F(Concurrent, FcntlRangesAreSeenAcrossMountsAndFreedByDeath) {
  const int a = open(on(0, "ranges").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_GE(a, 0);
  int hold[2];
  ASSERT_EQ(pipe(hold), 0);
  const pid_t child = fork();
  if (child == 0) {
    const int fd = open(on(1, "ranges").c_str(), O_RDWR);
    struct flock range {};
    range.l_type = F_WRLCK;
    range.l_whence = SEEK_SET;
    range.l_start = 100;
    range.l_len = 50;
    must(fd >= 0 && fcntl(fd, F_SETLK, &range) == 0, "lock");
    must(write(hold[1], "x", 1) == 1, "pipe");
    pause();
    _exit(0);
  }
  char x = 0;
  ASSERT_EQ(read(hold[0], &x, 1), 1);
  struct flock test {};
  test.l_type = F_WRLCK;
  test.l_whence = SEEK_SET;
  test.l_start = 0;
  test.l_len = 200;
  ASSERT_EQ(fcntl(a, F_GETLK, &test), 0);
  EXPECT_EQ(test.l_type, F_WRLCK);
  EXPECT_EQ(test.l_start, 100);
  EXPECT_EQ(test.l_len, 50);
  test = {};
  test.l_type = F_WRLCK;
  test.l_start = 120;
  test.l_len = 1;
  EXPECT_EQ(fcntl(a, F_SETLK, &test), -1);
  EXPECT_TRUE(errno == EAGAIN || errno == EACCES);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(fcntl(a, F_SETLKW, &test), 0) << std::strerror(errno);
  for (const int fd : {a, hold[0], hold[1]}) close(fd);
}

TEST_F(Concurrent, AChangeOfMetadataHidesNoWrite) {
  // What is written and not yet at the server must be seen by others also after the server has changed the inode.
  const std::pair<const char*, std::function<int(const std::string&)>> changes[] = {
      {"setxattr", [](const std::string& f) { return setxattr(f.c_str(), "user.a", "b", 1, 0); }},
      {"removexattr",
       [](const std::string& f) {
         return setxattr(f.c_str(), "user.a", "b", 1, 0) | removexattr(f.c_str(), "user.a");
       }},
      {"link", [](const std::string& f) { return link(f.c_str(), (f + ".2").c_str()); }},
      {"unlink",
       [](const std::string& f) {
         return link(f.c_str(), (f + ".2").c_str()) | unlink((f + ".2").c_str());
       }},
      {"rename",
       [](const std::string& f) {
         return rename(f.c_str(), (f + ".2").c_str()) | rename((f + ".2").c_str(), f.c_str());
       }},
      {"chmod", [](const std::string& f) { return chmod(f.c_str(), 0640); }},
  };
  for (const auto& [what, change] : changes) {
    const std::string name = std::string("changed.") + what;
    const int fd = open(on(0, name).c_str(), O_RDWR | O_CREAT, 0644);
    ASSERT_EQ(write(fd, "0123456789", 10), 10) << what;
    ASSERT_EQ(change(on(0, name)), 0) << what << ": " << std::strerror(errno);
    struct stat seen {};
    ASSERT_EQ(stat(on(1, name).c_str(), &seen), 0) << what;
    EXPECT_EQ(seen.st_size, 10) << what;
    ASSERT_EQ(write(fd, "0123456789", 10), 10) << what;
    const int other = open(on(2, name).c_str(), O_RDONLY);
    char text[32] = {};
    EXPECT_EQ(read(other, text, sizeof(text)), 20) << what;
    EXPECT_STREQ(text, "01234567890123456789") << what;
    close(other);
    close(fd);
  }
}

TEST_F(Concurrent, MappedStoresAreSeenByMappedLoads) {
  constexpr int kTurns = 60;
  const int fd = open(on(0, "mapped").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_EQ(ftruncate(fd, 8192), 0);
  close(fd);
  // Two processes pass a number to and fro through two words of a shared mapping, each on a mount of its own.
  in_processes(2, [](int p) {
    const int file = open(on(p, "mapped").c_str(), O_RDWR);
    must(file >= 0, "open");
    far::Mapping map;
    must(map.map(file, 8192), "mmap");
    const std::size_t mine = p == 0 ? 0 : 4096;
    const std::size_t other = p == 0 ? 4096 : 0;
    for (long turn = 1; turn <= kTurns; ++turn) {
      if (p == 0) must(map.store_word(mine, turn), "store");
      const time_t end = time(nullptr) + 60;
      for (std::optional<std::int64_t> seen; (seen = map.load_word(other)) < turn;)
        must(seen && time(nullptr) < end, "the other's store is not seen");
      if (p == 1) must(map.store_word(mine, turn), "store");
    }
    must(map.unmap() == 0, "munmap");
    return close(file);
  });
}

TEST_F(Concurrent, NegativeLookupsEndWithACreate) {
  struct stat s {};
  for (int i = 0; i < 50; ++i) {
    const std::string name = "negative" + std::to_string(i);
    for (int m = 0; m < 3; ++m) ASSERT_EQ(stat(on(m, name).c_str(), &s), -1);
    ASSERT_TRUE(write_file(on(i, name), "here"));
    for (int m = 0; m < 3; ++m)
      ASSERT_EQ(stat(on(m, name).c_str(), &s), 0) << name << " on mount " << m;
    ASSERT_EQ(s.st_size, 4);
    ASSERT_EQ(unlink(on(i + 1, name).c_str()), 0);
    for (int m = 0; m < 3; ++m)
      ASSERT_EQ(stat(on(m, name).c_str(), &s), -1) << name << " on mount " << m;
  }
}

TEST_F(Concurrent, OpenUnlinkedFileLivesUntilTheLastCloseAnywhere) {
  const int writer = open(on(0, "ghost").c_str(), O_RDWR | O_CREAT, 0644);
  const int reader = open(on(1, "ghost").c_str(), O_RDONLY);
  ASSERT_GE(writer, 0);
  ASSERT_GE(reader, 0);
  ASSERT_EQ(pwrite(writer, "alive", 5, 0), 5);
  ASSERT_EQ(unlink(on(2, "ghost").c_str()), 0);
  close(writer);
  char buffer[8] = {};
  EXPECT_EQ(pread(reader, buffer, sizeof(buffer), 0), 5);
  EXPECT_STREQ(buffer, "alive");
  struct stat s {};
  EXPECT_EQ(fstat(reader, &s), 0);
  EXPECT_EQ(s.st_nlink, 0U);
  close(reader);
}

TEST_F(Concurrent, DisjointWritersShareAFile) {
  constexpr int kBlocks = 96;
  constexpr std::size_t kBlock = 12000;  // no multiple of a page: neighbours share pages
  in_processes(4, [](int p) {
    const int fd = open(on(p, "shared").c_str(), O_RDWR | O_CREAT, 0644);
    must(fd >= 0, "open");
    for (int b = p; b < kBlocks; b += 4) {
      const std::string block(kBlock, static_cast<char>('a' + b % 26));
      must(pwrite(fd, block.data(), kBlock,
                  static_cast<off_t>(static_cast<std::size_t>(b) * kBlock)) == kBlock,
           "write");
    }
    return close(fd);
  });
  for (int m = 0; m < 3; ++m) {
    const int fd = open(on(m, "shared").c_str(), O_RDONLY);
    for (int b = 0; b < kBlocks; ++b) {
      std::string block(kBlock, 0);
      ASSERT_EQ(
          pread(fd, block.data(), kBlock, static_cast<off_t>(static_cast<std::size_t>(b) * kBlock)),
          static_cast<ssize_t>(kBlock));
      ASSERT_EQ(block, std::string(kBlock, static_cast<char>('a' + b % 26)))
          << "block " << b << " on mount " << m;
    }
    close(fd);
  }
}

TEST_F(Concurrent, ManyProcessesMakeAndRemoveNamesInOneFolder) {
  ASSERT_EQ(mkdir(on(0, "busy").c_str(), 0755), 0);
  in_processes(6, [](int p) {
    for (int i = 0; i < 80; ++i) {
      const std::string name = "busy/" + std::to_string(p) + "." + std::to_string(i);
      const int fd = open(on(p, name).c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
      must(fd >= 0, "create");
      close(fd);
      if (i % 2 == 1) must(unlink(on(p + 1, name).c_str()) == 0, "unlink on another mount");
      if (i % 4 == 0)
        must(rename(on(p + 2, name).c_str(), on(p + 2, name + ".r").c_str()) == 0,
             "rename on a third mount");
    }
    return 0;
  });
  for (int m = 0; m < 3; ++m) {
    const auto names = far::list(on(m, "busy"));
    ASSERT_TRUE(names) << std::strerror(errno);
    EXPECT_EQ(names->size(), 6U * 40U);
  }
}

}  // namespace
}  // namespace distfuse::tests
