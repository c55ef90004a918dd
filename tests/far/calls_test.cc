// SPDX-License-Identifier: Apache-2.0
// Calls through a hand give what the plain calls give, on one machine: DISTFUSE_TEST_RSH starts the hand here.
#include "tests/far/calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "tests/far/hand.h"

namespace distfuse::tests::far {
namespace {

class Calls : public testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/distfuse-far-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    here_ = folder;
    there_ = "other:" + here_;
  }
  void TearDown() override { std::filesystem::remove_all(here_); }
  [[nodiscard]] int make(const std::string& name, int flags = 0) const {
    return open((there_ + "/" + name).c_str(), O_RDWR | O_CREAT | flags, 0644);
  }

  std::string here_;   ///< The folder by its plain path.
  std::string there_;  ///< By a hand.
};

TEST_F(Calls, DataIsThatOfThePlainFile) {
  const int fd = make("file");
  ASSERT_TRUE(is_far(fd)) << std::strerror(errno);
  // Longer than one message, so that it goes ahead in pieces, and is one write() all the same.
  std::string bytes(3 * kMaxCall + 17, 'x');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i % 251);
  ASSERT_EQ(pwrite(fd, bytes.data(), bytes.size(), 5), static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(read_file(here_ + "/file"), std::string(5, '\0') + bytes);
  std::string got(bytes.size() + 100, 'y');
  ASSERT_EQ(pread(fd, got.data(), got.size(), 5), static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(got.substr(0, bytes.size()), bytes);
  EXPECT_EQ(got.substr(bytes.size()), std::string(100, 'y')) << "no more than was read";
  EXPECT_EQ(lseek(fd, 0, SEEK_END), static_cast<off_t>(bytes.size() + 5));
  ASSERT_EQ(ftruncate(fd, 9000), 0);
  off_t from = 5;
  off_t to = 20000;
  EXPECT_EQ(copy_file_range(fd, &from, fd, &to, 100, 0), 100);
  EXPECT_EQ(to, 20100);
  struct ::stat plain {
  }, far_one{};
  ASSERT_EQ(::stat((here_ + "/file").c_str(), &plain), 0);
  ASSERT_EQ(fstat(fd, &far_one), 0);
  EXPECT_EQ(std::memcmp(&plain, &far_one, sizeof(plain)), 0);
  EXPECT_EQ(plain.st_size, 20100);
  EXPECT_EQ(close(fd), 0);
  EXPECT_EQ(close(fd), -1);
  EXPECT_EQ(errno, EBADF);
}

TEST_F(Calls, NamesAreThoseOfThePlainFolder) {
  const auto there = [&](const char* name) { return there_ + "/" + name; };
  ASSERT_EQ(mkdir(there("d").c_str(), 0750), 0);
  EXPECT_EQ(mkdir(there("d").c_str(), 0750), -1);
  EXPECT_EQ(errno, EEXIST);
  ASSERT_TRUE(write_file(there("a"), "text"));
  ASSERT_EQ(symlink("somewhere/else", there("s").c_str()), 0);
  ASSERT_EQ(link(there("a").c_str(), there("b").c_str()), 0);
  ASSERT_EQ(rename(there("a").c_str(), there("c").c_str()), 0);
  EXPECT_EQ(renameat2(AT_FDCWD, there("c").c_str(), AT_FDCWD, there("b").c_str(), RENAME_NOREPLACE),
            -1);
  EXPECT_EQ(errno, EEXIST);
  EXPECT_EQ(link(there("b").c_str(), (here_ + "/x").c_str()), -1);
  EXPECT_EQ(errno, EXDEV) << "on two machines";
  EXPECT_EQ(std::filesystem::read_symlink(here_ + "/s"), "somewhere/else");
  EXPECT_EQ(chmod(there("b").c_str(), 0600), 0);
  const auto names = list(there_);
  ASSERT_TRUE(names);
  EXPECT_THAT(*names, testing::UnorderedElementsAre("b", "c", "d", "s"));
  EXPECT_EQ(unlink(there("d").c_str()), -1);
  EXPECT_EQ(errno, EISDIR);
  EXPECT_EQ(rmdir(there("d").c_str()), 0);
  EXPECT_FALSE(list(there("d")));
  EXPECT_EQ(errno, ENOENT);
}

TEST_F(Calls, AMappingIsShared) {
  const int fd = make("mapped");
  ASSERT_EQ(ftruncate(fd, 8192), 0);
  const int plain = ::open((here_ + "/mapped").c_str(), O_RDWR);
  Mapping one, other;
  ASSERT_TRUE(one.map(fd, 8192));
  ASSERT_TRUE(other.map(plain, 8192));
  ASSERT_TRUE(one.store(10, "stored", 6));
  ASSERT_TRUE(other.store_word(4096, -7));
  char text[6];
  ASSERT_TRUE(other.load(10, text, sizeof(text)));
  EXPECT_EQ(std::string(text, 6), "stored");
  EXPECT_EQ(one.load_word(4096), -7);
  EXPECT_FALSE(one.load(8190, text, sizeof(text))) << "beyond its end";
  EXPECT_EQ(one.unmap(), 0);
  close(fd);
  ::close(plain);
}

TEST_F(Calls, LocksAndDescriptorsAreOfAProcess) {
  const int fd = make("locked");
  struct ::flock range {};
  range.l_type = F_WRLCK;
  range.l_len = 10;
  int told[2];
  ASSERT_EQ(pipe(told), 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    // The parent's descriptor is not the child's; its own lock ends with it.
    const bool refused = pread(fd, &byte, 1, 0) == -1 && errno == EBADF;
    const bool locked = fcntl(make("locked"), F_SETLK, &range) == 0;
    byte = refused && locked ? 'y' : 'n';
    if (::write(told[1], &byte, 1) == 1) pause();
    _exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(told[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  EXPECT_EQ(fcntl(fd, F_SETLK, &range), -1) << "the child has it";
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(fcntl(fd, F_SETLKW, &range), 0) << std::strerror(errno);
  EXPECT_EQ(close(fd), 0);
  ::close(told[0]);
  ::close(told[1]);
}

TEST_F(Calls, AHandThatIsLostIsAnError) {
  // A descriptor that only the hand's own input has: the hand ends, as if its guest had.
  const std::string lost = "lost:" + here_;
  const int fd = open((lost + "/file").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_TRUE(is_far(fd));
  ASSERT_EQ(call_on("lost", {Kind::close, {STDIN_FILENO}, {}, {}, {}}).result, 0);
  EXPECT_EQ(fsync(fd), -1);
  EXPECT_EQ(errno, EHOSTDOWN);
  EXPECT_EQ(open((lost + "/file").c_str(), O_RDWR), -1);
  EXPECT_EQ(errno, EHOSTDOWN) << "and stays one";
}

}  // namespace
}  // namespace distfuse::tests::far
