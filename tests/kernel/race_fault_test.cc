// SPDX-License-Identifier: Apache-2.0
// The module's fault points (kmod/race.h): what fails once leaves nothing behind but an error, where there is one.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "tests/kernel/race_points.h"

namespace distfuse::tests {
namespace {

class Fault : public RaceTest {};

/// Of a chain in flight nobody knows whether it ran, and lockd ends a session whose connection ends: what it left in words is put right for those who wait,
/// also when the next session is asked for what the former one has cached and not swept yet.
TEST_F(Fault, AChainThatCannotBePostedOrEndsInAnError) {
  make(0, "old");
  const int a = open_file(0, O_RDWR), b = open_file(1, O_RDWR);
  for (const char* fault : {"chain_post", "chain_error"}) {
    for (const int round : {0, 1}) {
      Point point(fault, cluster().mount(0));
      const std::string bytes = std::string(fault) + std::to_string(round);
      const auto length = static_cast<long>(bytes.size());
      Call writer([&] { return pwrite(b, bytes.data(), bytes.size(), 0); });
      EXPECT_EQ(writer.end(), length);
      std::string seen(bytes.size(), 0);
      Call reader([&] { return pread(a, seen.data(), seen.size(), 0); });
      EXPECT_EQ(reader.end(), length);
      EXPECT_EQ(seen, bytes);
      EXPECT_TRUE(point.struck()) << fault;
    }
    EXPECT_TRUE(soon([&] { return session_field(cluster().mount(0), "state") == "live"; }));
  }
  EXPECT_EQ(fsync(a), 0);
  EXPECT_EQ(fsync(b), 0);
  close(a);
  close(b);
}

TEST_F(Fault, AFlushThatFailsHalfwayThroughARevoke) {
  constexpr std::size_t kBytes = 4 << 20;
  make(0, std::string(kBytes, 'o'));
  const int a = open_file(0, O_RDWR);
  ASSERT_EQ(fsync(a), 0);
  const std::string bytes(kBytes, 'n');
  ASSERT_EQ(pwrite(a, bytes.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
  Point point("write_error", cluster().mount(0));
  const int b = open_file(1, O_RDONLY);
  const std::string other = read_all(b, kBytes);
  EXPECT_TRUE(point.struck());
  EXPECT_EQ(other.size(), kBytes);
  EXPECT_EQ(read_all(a, kBytes), other) << "a page that the servers do not have is still read";
  EXPECT_EQ(fsync(a), -1);
  EXPECT_EQ(errno, EIO);
  EXPECT_EQ(fsync(a), 0) << "told once";
  close(a);
  close(b);
}

/// The daemon has done it, and its answer is gone: the next daemon is sent it again, and it takes effect once.
TEST_F(Fault, AnAnswerThatIsLost) {
  make(0, "there");
  const std::string made = path(0) + ".made";
  Point point("answer_lost", cluster().mount(0));
  Call maker([&] { return open(made.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644); });
  ASSERT_TRUE(soon([&] { return point.struck(); }));
  EXPECT_TRUE(maker.waits());
  cluster().kill_daemon("mount-0");
  cluster().restart_daemon("mount-0");
  const long fd = maker.end();
  EXPECT_GE(fd, 0);
  close(static_cast<int>(fd));
  struct stat s {};
  EXPECT_EQ(stat((path(1) + ".made").c_str(), &s), 0);
}

TEST_F(Fault, AnAllocationThatFails) {
  make(1, "there");
  struct stat s {};
  for (const char* fault : {"lock_alloc", "request_alloc"}) {
    Point point(fault, cluster().mount(0));
    EXPECT_EQ(stat(path(0).c_str(), &s), -1) << fault;
    EXPECT_EQ(errno, ENOMEM) << fault;
    EXPECT_TRUE(point.struck());
    EXPECT_EQ(stat(path(0).c_str(), &s), 0) << fault;
    EXPECT_EQ(s.st_size, 5);
    // Nothing of it is known, for the next round.
    const int b = open_file(1, O_RDWR);
    EXPECT_EQ(fchmod(b, 0600), 0);
    close(b);
  }
}

}  // namespace
}  // namespace distfuse::tests
