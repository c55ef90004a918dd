// SPDX-License-Identifier: Apache-2.0
// A process that waits for another node leaves when it is killed, whatever it waits in; another signal changes nothing but a wait for an
// fcntl or flock lock. The other node is a client that holds the locks and stands still (SIGSTOP), so nothing else ends the wait.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "tests/cluster.h"

namespace distfuse::tests {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kBlocked{400};  ///< Who is still there after this waits for the other node.
constexpr milliseconds kPromptly{
    3000};  ///< Generous: the other node stands still for as long as the test wants.

/// What mount 1 has open: a file and a folder whose locks mount 0 has taken since.
struct Opened {
  int file = -1;
  int append = -1;
  int folder = -1;
};

struct Operation {
  const char* name;
  std::function<bool(const Opened&)> run;  ///< In a child; true: it did what it should.
  bool of_folder = false;                  ///< Only the folder's lock is in the way.
};

void PrintTo(const Operation& operation, std::ostream* out) {
  *out << operation.name;
}

bool fcntl_lock(int fd, int command, short type) {
  struct flock range {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  return fcntl(fd, command, &range) == 0;
}

bool read_file(const Opened& opened) {
  char text[8] = {};
  return pread(opened.file, text, 3, 0) == 3 && std::strcmp(text, "new") == 0;
}

bool read_mapping(const Opened& opened) {
  const void* map = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, opened.file, 0);
  return map != MAP_FAILED && std::memcmp(map, "new", 3) == 0;
}

bool stat_file(const Opened& opened) {
  struct stat s {};
  return fstat(opened.file, &s) == 0 && s.st_size == 3;
}

bool list_folder(const Opened& opened) {
  const int fd = openat(opened.folder, ".", O_RDONLY | O_DIRECTORY);
  DIR* folder = fd < 0 ? nullptr : fdopendir(fd);
  int entries = 0;
  while (folder != nullptr && readdir(folder) != nullptr) ++entries;
  return entries == 4;
}

const Operation kFileOperations[] = {
    {"read", read_file},
    {"read_mapping", read_mapping},
    {"stat", stat_file},
    {"write", [](const Opened& o) { return pwrite(o.file, "new", 3, 0) == 3; }},
    {"append", [](const Opened& o) { return write(o.append, "x", 1) == 1; }},
    {"truncate", [](const Opened& o) { return ftruncate(o.file, 3) == 0; }},
    {"chmod", [](const Opened& o) { return fchmod(o.file, 0600) == 0; }},
    {"lookup", [](const Opened& o) { return faccessat(o.folder, "file", R_OK, 0) == 0; }},
    {"open", [](const Opened& o) { return openat(o.folder, "file", O_RDWR) >= 0; }},
    {"create",
     [](const Opened& o) { return openat(o.folder, "made", O_WRONLY | O_CREAT, 0644) >= 0; }, true},
    {"rename",
     [](const Opened& o) { return renameat(o.folder, "other", o.folder, "renamed") == 0; }, true},
    {"unlink", [](const Opened& o) { return unlinkat(o.folder, "other", 0) == 0; }, true},
    {"readdir", list_folder, true},
};

const Operation kLockOperations[] = {
    {"fcntl", [](const Opened& o) { return fcntl_lock(o.file, F_SETLKW, F_WRLCK); }},
    {"flock", [](const Opened& o) { return flock(o.file, LOCK_EX) == 0; }},
};

class Interrupt : public testing::TestWithParam<Operation> {
 protected:
  static void SetUpTestSuite() { cluster_ = new Cluster({.mounts = 2, .storageds = 1}); }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }

  void SetUp() override {
    ASSERT_TRUE(cluster_->ok());
    static int round = 0;
    const std::string name = "/folder" + std::to_string(round++);
    holder_ = cluster_->mount(0) + name;
    ASSERT_EQ(mkdir(holder_.c_str(), 0755), 0);
    write_there("file", "old");
    opened_.folder = open((cluster_->mount(1) + name).c_str(), O_RDONLY | O_DIRECTORY);
    opened_.file = openat(opened_.folder, "file", O_RDWR);
    opened_.append = openat(opened_.folder, "file", O_WRONLY | O_APPEND);
    ASSERT_GE(opened_.file, 0);
    ASSERT_GE(opened_.append, 0);
    daemon_ = cluster_->pid("mount-0");
    ASSERT_GT(daemon_, 1);
  }

  void TearDown() override {
    go_on();
    for (const int fd : {opened_.file, opened_.append, opened_.folder, held_}) {
      if (fd >= 0) close(fd);
    }
  }

  void write_there(const char* name, const char* text) const {
    const int fd = open((holder_ + "/" + name).c_str(), O_RDWR | O_CREAT, 0644);
    ASSERT_GE(fd, 0) << std::strerror(errno);
    ASSERT_EQ(write(fd, text, std::strlen(text)), static_cast<ssize_t>(std::strlen(text)));
    ASSERT_EQ(close(fd), 0);
  }

  /// Mount 0 takes X of the file and of the folder, and both whole-file locks when told; then it stands still.
  void stand_still(bool with_file_locks) {
    write_there("other", "");
    write_there("file", "new");
    if (with_file_locks) {
      held_ = open((holder_ + "/file").c_str(), O_RDWR);
      ASSERT_GE(held_, 0);
      ASSERT_TRUE(fcntl_lock(held_, F_SETLK, F_WRLCK));
      ASSERT_EQ(flock(held_, LOCK_EX), 0);
      return;
    }
    ASSERT_EQ(kill(daemon_, SIGSTOP), 0);
    stopped_ = true;
    const auto deadline = steady_clock::now() + std::chrono::seconds(10);
    while (!every_thread_stands_still() && steady_clock::now() < deadline) usleep(1000);
    ASSERT_TRUE(every_thread_stands_still());
  }

  [[nodiscard]] bool every_thread_stands_still() const {
    namespace fs = std::filesystem;
    for (const auto& task : fs::directory_iterator("/proc/" + std::to_string(daemon_) + "/task")) {
      std::ifstream file(task.path() / "stat");
      const std::string stat((std::istreambuf_iterator<char>(file)), {});
      const auto end = stat.rfind(')');
      if (end == std::string::npos || stat[end + 2] != 'T') return false;
    }
    return true;
  }

  /// In mode `kernel` a folder has nothing that must be written back: it is given up although its client stands still.
  bool needs_nobody() const {
    if (!GetParam().of_folder || !in_kernel()) return false;
    const pid_t child = fork();
    if (child == 0) _exit(GetParam().run(opened_) ? 0 : 1);
    int status = 0;
    EXPECT_TRUE(wait_for_end(child, kPromptly, status)) << "waits for a client that stands still";
    EXPECT_EQ(status, 0);
    return true;
  }

  void go_on() {
    if (stopped_) kill(daemon_, SIGCONT);
    stopped_ = false;
  }

  static bool wait_for_end(pid_t child, milliseconds timeout, int& status) {
    for (const auto end = steady_clock::now() + timeout; steady_clock::now() < end;) {
      if (waitpid(child, &status, WNOHANG) == child) return true;
      std::this_thread::sleep_for(milliseconds(2));
    }
    return false;
  }

  /// A child that waits in the operation; it must not hold the whole-file locks itself.
  pid_t start(const std::function<bool()>& operation) const {
    const pid_t child = fork();
    if (child == 0) {
      if (held_ >= 0) close(held_);
      _exit(operation() ? 0 : 1);
    }
    int status = 0;
    const bool ended = wait_for_end(child, kBlocked, status);
    EXPECT_FALSE(ended) << "did not wait: status " << status;
    return ended ? -1 : child;
  }

  void kill_and_expect_end(pid_t child) const {
    ASSERT_GT(child, 1);
    const auto killed = steady_clock::now();
    kill(child, SIGKILL);
    int status = 0;
    const bool ended = wait_for_end(child, kPromptly, status);
    const auto took = std::chrono::duration_cast<milliseconds>(steady_clock::now() - killed);
    EXPECT_TRUE(ended) << "still waits after " << took.count() << " ms";
    if (ended) {
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
      std::printf("ended after %lld ms\n", static_cast<long long>(took.count()));
      return;
    }
    kill(daemon_, SIGCONT);
    waitpid(child, nullptr, 0);
  }

  static Cluster* cluster_;
  std::string holder_;
  Opened opened_;
  int held_ = -1;
  pid_t daemon_ = -1;
  bool stopped_ = false;
};
Cluster* Interrupt::cluster_ = nullptr;

std::string name_of(const testing::TestParamInfo<Operation>& info) {
  return info.param.name;
}

class InFileOperation : public Interrupt {};

TEST_P(InFileOperation, AKilledProcessLeaves) {
  stand_still(false);
  if (needs_nobody()) return;
  const pid_t child = start([this] { return GetParam().run(opened_); });
  kill_and_expect_end(child);
  go_on();
  // What was given up can be had again, by both.
  const pid_t again = fork();
  if (again == 0) _exit(GetParam().run(opened_) ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(again, &status, 0), again);
  EXPECT_EQ(status, 0);
  write_there("after", "after");
}

TEST_P(InFileOperation, AHandledSignalChangesNothing) {
  stand_still(false);
  if (needs_nobody()) return;
  const pid_t child = start([this] {
    struct sigaction action {};
    action.sa_handler = [](int) {};  // without SA_RESTART
    sigaction(SIGALRM, &action, nullptr);
    const itimerval every{{0, 20000}, {0, 20000}};
    setitimer(ITIMER_REAL, &every, nullptr);
    return GetParam().run(opened_);
  });
  go_on();
  ASSERT_GT(child, 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

INSTANTIATE_TEST_SUITE_P(Operations, InFileOperation, testing::ValuesIn(kFileOperations), name_of);

class InLockOperation : public Interrupt {
 protected:
  /// The next in line gets it: the one that left is not in its way.
  void expect_free_after_holder() {
    close(held_);
    held_ = -1;
    int status = -1;
    const pid_t next = fork();
    if (next == 0) _exit(GetParam().run(opened_) ? 0 : 1);
    const bool ended = wait_for_end(next, kPromptly, status);
    EXPECT_TRUE(ended && status == 0) << "the next in line does not get it: " << status;
    if (ended) return;
    kill(next, SIGKILL);
    waitpid(next, nullptr, 0);
  }
};

TEST_P(InLockOperation, AKilledProcessLeaves) {
  stand_still(true);
  kill_and_expect_end(start([this] { return GetParam().run(opened_); }));
  expect_free_after_holder();
}

TEST_P(InLockOperation, AHandledSignalEndsTheWait) {
  stand_still(true);
  const pid_t child = start([this] {
    struct sigaction action {};
    action.sa_handler = [](int) {};  // without SA_RESTART
    sigaction(SIGALRM, &action, nullptr);
    return !GetParam().run(opened_) && errno == EINTR;
  });
  ASSERT_GT(child, 1);
  kill(child, SIGALRM);
  int status = -1;
  const bool ended = wait_for_end(child, kPromptly, status);
  EXPECT_TRUE(ended && status == 0) << status;
  if (!ended) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  expect_free_after_holder();
}

INSTANTIATE_TEST_SUITE_P(Operations, InLockOperation, testing::ValuesIn(kLockOperations), name_of);

}  // namespace
}  // namespace distfuse::tests
