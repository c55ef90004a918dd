// SPDX-License-Identifier: Apache-2.0
// kill -9 of daemons under load, through real mounts, with an oracle that knows what was answered and what fsync promised.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <new>
#include <random>
#include <thread>

#include "tests/cluster.h"
#include "tests/fence.h"

namespace distfuse::tests {
namespace {

using std::chrono::milliseconds;

std::string block_of(std::uint64_t number, std::size_t length) {
  std::string block;
  while (block.size() < length) block += std::to_string(number) + ".";
  block.resize(length);
  return block;
}

constexpr std::size_t kBlocks = 200;
constexpr std::size_t kBlock = 70000;

/// What a load has done, in memory that it shares with the test.
struct LoadState {
  std::atomic<bool> stop;
  std::atomic<std::uint64_t> operations;
  std::atomic<int> failures;
  std::uint64_t names;
  std::uint64_t written[kBlocks];
};

/// Writes numbered blocks to a file of its own, fsyncs now and then, makes, renames and removes names; knows what must hold. It is a
/// process of its own, so that no program that the test starts inherits, and closes, a file of a mount whose daemon is away.
class Load {
 public:
  Load(std::string folder, std::uint64_t seed) : folder_(std::move(folder)), random_(seed) {
    void* memory =
        mmap(nullptr, sizeof(LoadState), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    state_ = new (memory) LoadState{};
    child_ = fork();
    if (child_ == 0) {
      work();
      _exit(0);
    }
  }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  ~Load() {
    if (child_ > 0) stop();
    munmap(state_, sizeof(LoadState));
  }

  void stop() {
    state_->stop = true;
    int status = -1;
    EXPECT_EQ(waitpid(child_, &status, 0), child_);
    EXPECT_EQ(status, 0);
    child_ = -1;
  }
  [[nodiscard]] std::uint64_t operations() const { return state_->operations; }
  [[nodiscard]] int failures() const { return state_->failures; }

  /// Every block, and exactly the names that were answered, through any mount.
  void verify(const std::string& folder) const {
    const int fd = open((folder + "/data").c_str(), O_RDONLY);
    ASSERT_GE(fd, 0) << std::strerror(errno);
    for (std::size_t i = 0; i < kBlocks; ++i) {
      std::string got(kBlock, 0);
      const ssize_t n = pread(fd, got.data(), kBlock, static_cast<off_t>(i * kBlock));
      if (state_->written[i] == 0) continue;
      ASSERT_EQ(n, static_cast<ssize_t>(kBlock)) << "block " << i;
      ASSERT_EQ(got, block_of(state_->written[i], kBlock)) << "block " << i;
    }
    close(fd);
    for (std::uint64_t i = 0; i < state_->names; ++i) {
      struct stat s {};
      const bool there = stat((folder + "/name" + std::to_string(i)).c_str(), &s) == 0;
      EXPECT_EQ(there, i % 3 != 2) << "name" << i;
    }
  }

 private:
  void expect(bool good, const char* what) {
    if (good) return;
    ++state_->failures;
    std::fprintf(stderr, "load: %s: %s\n", what, std::strerror(errno));
  }

  void work() {
    expect(mkdir(folder_.c_str(), 0755) == 0, "mkdir");
    const int fd = open((folder_ + "/data").c_str(), O_RDWR | O_CREAT, 0644);
    expect(fd >= 0, "open");
    while (!state_->stop) {
      const std::uint64_t done = state_->operations;
      const std::size_t i = random_() % kBlocks;
      const std::string block = block_of(1 + done, kBlock);
      expect(pwrite(fd, block.data(), kBlock, static_cast<off_t>(i * kBlock)) ==
                 static_cast<ssize_t>(kBlock),
             "write");
      state_->written[i] = 1 + done;
      if (done % 16 == 15) expect(fsync(fd) == 0, "fsync");
      if (done % 4 == 3) make_name();
      ++state_->operations;
    }
    expect(close(fd) == 0, "close");
  }

  /// Of three names one is left as made, one renamed, one removed. A retry that ran twice would say EEXIST or ENOENT.
  void make_name() {
    const std::uint64_t n = state_->names;
    const std::string path = folder_ + "/name" + std::to_string(n);
    const std::string made = n % 3 == 1 ? path + ".first" : path;
    const int fd = open(made.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
    expect(fd >= 0, "exclusive create");
    close(fd);
    if (n % 3 == 1) expect(rename(made.c_str(), path.c_str()) == 0, "rename");
    if (n % 3 == 2) expect(unlink(path.c_str()) == 0, "unlink");
    ++state_->names;
  }

  std::string folder_;
  std::mt19937_64 random_;
  LoadState* state_ = nullptr;
  pid_t child_ = -1;
};

void wait_for_progress(const Load& load, std::uint64_t operations) {
  const auto wanted = load.operations() + operations;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (load.operations() < wanted) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "the load stands still";
    std::this_thread::sleep_for(milliseconds(5));
  }
}

class StoragedKill : public testing::TestWithParam<const char*> {};

TEST_P(StoragedKill, ALoadSeesOnlyAPause) {
  std::mt19937_64 random(test_seed("storaged kill"));
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log("storaged|rpc: (meta|data) target|connection|retr|unreachable|purge");
  Load one(cluster.mount(0) + "/one", random());
  Load two(cluster.mount(1) + "/two", random());
  for (int round = 0; round < 4; ++round) {
    wait_for_progress(one, 10 + random() % 60);
    cluster.kill_daemon(GetParam());
    std::this_thread::sleep_for(milliseconds(random() % 500));
    cluster.restart_daemon(GetParam());
  }
  wait_for_progress(one, 20);
  wait_for_progress(two, 20);
  one.stop();
  two.stop();
  EXPECT_EQ(one.failures() + two.failures(), 0);
  one.verify(cluster.mount(1) + "/one");
  two.verify(cluster.mount(0) + "/two");
}
INSTANTIATE_TEST_SUITE_P(Roles, StoragedKill, testing::Values("storaged-0", "storaged-1"));

TEST(ClientKill, ItsLocksAreFreedAndOthersGoOn) {
  if (in_kernel()) GTEST_SKIP() << "its session is the kernel's: KernelClientKill";
  Cluster cluster({.mounts = 3, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log("session|fence|lost|connection|mount-0");
  // The victim holds X on a file, S on a folder and another file, an fcntl lock and a flock.
  const std::string victim = cluster.mount(0);
  ASSERT_EQ(mkdir((victim + "/folder").c_str(), 0755), 0);
  { std::ofstream(victim + "/folder/read") << "shared"; }
  { std::ifstream(cluster.mount(1) + "/folder/read") >> std::ws; }
  { std::ifstream(victim + "/folder/read") >> std::ws; }
  const int fd = open((victim + "/folder/written").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(write(fd, "promised", 8), 8);
  ASSERT_EQ(fsync(fd), 0);
  struct flock range {};
  range.l_type = F_WRLCK;
  ASSERT_EQ(fcntl(fd, F_SETLK, &range), 0) << std::strerror(errno);
  ASSERT_EQ(flock(fd, LOCK_EX), 0) << std::strerror(errno);

  cluster.kill_daemon("mount-0");
  const auto killed = std::chrono::steady_clock::now();
  for (int m = 1; m < 3; ++m) {
    const std::string& mount = cluster.mount(static_cast<std::size_t>(m));
    const int other = open((mount + "/folder/written").c_str(), O_RDWR);
    ASSERT_GE(other, 0) << std::strerror(errno);
    char text[16] = {};
    EXPECT_EQ(pread(other, text, sizeof(text), 0), 8);
    EXPECT_STREQ(text, m == 1 ? "promised" : "replaced");
    ASSERT_EQ(fcntl(other, F_SETLKW, &range), 0) << std::strerror(errno);
    ASSERT_EQ(flock(other, LOCK_EX), 0) << std::strerror(errno);
    ASSERT_EQ(pwrite(other, "replaced", 8, 0), 8);
    { std::ofstream(mount + "/folder/read") << "changed" << m; }
    ASSERT_EQ(rename((mount + "/folder/read").c_str(), (mount + "/folder/read2").c_str()), 0);
    ASSERT_EQ(rename((mount + "/folder/read2").c_str(), (mount + "/folder/read").c_str()), 0);
    close(other);
  }
  const auto took =
      std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - killed);
  std::printf("two mounts took all over within %lld ms\n", static_cast<long long>(took.count()));
  close(fd);
  EXPECT_EQ(umount2(victim.c_str(), MNT_DETACH), 0);
}

TEST(KernelClientKill, ItsLocksStayAndOthersWaitForWhatIsDirtyAlone) {
  if (!in_kernel()) GTEST_SKIP() << "the session is the client's: ClientKill";
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  const std::string victim = cluster.mount(0), other = cluster.mount(1);
  { std::ofstream(victim + "/clean") << "clean"; }
  const int fd = open((victim + "/written").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(write(fd, "promised", 8), 8);
  struct flock range {};
  range.l_type = F_WRLCK;
  ASSERT_EQ(fcntl(fd, F_SETLK, &range), 0) << std::strerror(errno);
  ASSERT_EQ(flock(fd, LOCK_EX), 0) << std::strerror(errno);
  { std::ifstream(other + "/clean") >> std::ws; }

  cluster.kill_daemon("mount-0");
  // What is clean here and there is used by everybody, the victim too; what is dirty waits.
  std::string word;
  EXPECT_TRUE(std::ifstream(other + "/clean") >> word);
  EXPECT_EQ(word, "clean");
  char text[9] = {};
  EXPECT_EQ(pread(fd, text, 8, 0), 8);
  EXPECT_EQ(pwrite(fd, "replaced", 8, 0), 8);
  std::atomic<bool> had = false;
  std::thread reader([&] {
    const int at = open((other + "/written").c_str(), O_RDWR | O_CLOEXEC);
    char got[9] = {};
    EXPECT_EQ(pread(at, got, 8, 0), 8);
    EXPECT_STREQ(got, "replaced");
    had = true;
    EXPECT_EQ(fcntl(at, F_SETLK, &range), -1) << "the session and its locks are still there";
    EXPECT_EQ(flock(at, LOCK_EX | LOCK_NB), -1);
    close(at);
  });
  std::this_thread::sleep_for(milliseconds(500));
  EXPECT_FALSE(had) << "another mount read over dirty data";
  cluster.restart_daemon("mount-0");
  reader.join();
  EXPECT_EQ(fsync(fd), 0);
  EXPECT_EQ(cluster.session_states("mount-0"), "live");
  close(fd);
}

/// Mounts in a process of its own (mode `user`: there the process is the session), takes shared locks and exclusive ones, and is killed with them.
class ShortLivedMount {
 public:
  ShortLivedMount(const Cluster& cluster, std::string mountpoint)
      : mountpoint_(std::move(mountpoint)) {
    mkdir(mountpoint_.c_str(), 0755);
    pid_ = fork();
    if (pid_ == 0) {
      const std::string binary = program("distfuse");
      const std::string config = cluster.root() + "/cluster.toml";
      const std::string log = cluster.root() + "/run/short-lived.log";
      execl(binary.c_str(), "distfuse", "mount", "--foreground", "--config", config.c_str(),
            "--coherence", "user", "--log-file", log.c_str(), mountpoint_.c_str(), nullptr);
      _exit(127);
    }
    struct stat s {};
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (stat((mountpoint_ + "/hot").c_str(), &s) != 0 &&
           std::chrono::steady_clock::now() < deadline)
      usleep(1000);
  }
  ShortLivedMount(const ShortLivedMount&) = delete;
  ShortLivedMount& operator=(const ShortLivedMount&) = delete;
  ~ShortLivedMount() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    umount2(mountpoint_.c_str(), MNT_DETACH);
  }

 private:
  std::string mountpoint_;
  pid_t pid_ = -1;
};

TEST(ClientKill, MountsThatJoinDuringARepairTakePart) {
  Cluster cluster({.mounts = 2, .storageds = 1});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log("session|fence|lost|connection|short-lived");
  { std::ofstream(cluster.mount(0) + "/hot") << "0"; }
  std::atomic<bool> stop = false;
  std::atomic<int> turns[2] = {0, 0};
  std::vector<std::thread> threads;
  for (std::size_t m = 0; m < 2; ++m) {
    threads.emplace_back([&, m] {
      const std::string path = cluster.mount(m) + "/hot";
      while (!stop) {
        const int fd = open(path.c_str(), O_RDWR);
        if (fd < 0 || pwrite(fd, "1", 1, 0) != 1) break;
        close(fd);
        ++turns[m];
      }
    });
  }
  // Each death leaves counts that the next taker of X has repaired, while the next mount joins.
  TemporaryFolder folder;
  for (int round = 0; round < 12; ++round) {
    const ShortLivedMount mount(cluster, folder.path() + "/m" + std::to_string(round));
    const int before[2] = {turns[0], turns[1]};
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while ((turns[0] < before[0] + 5 || turns[1] < before[1] + 5) &&
           std::chrono::steady_clock::now() < deadline)
      usleep(1000);
    EXPECT_GE(turns[0], before[0] + 5) << "round " << round << ": mount 0 hangs";
    EXPECT_GE(turns[1], before[1] + 5) << "round " << round << ": mount 1 hangs";
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

TEST(SessionFence, AMountThatStillTrustsGoesOnWithANewSession) {
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log("session|fence|lost|connection|refused|requests fail");
  const std::string path = cluster.mount(0) + "/file";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(write(fd, "promised", 8), 8);
  ASSERT_EQ(fsync(fd), 0);
  const std::uint64_t session = session_of(cluster, "mount-0");
  ASSERT_NE(session, 0U);
  ASSERT_NO_FATAL_FAILURE(fence_everywhere(cluster, session));
  const auto began = std::chrono::steady_clock::now();
  // May run twice, or has changed nothing: the application sees a pause.
  EXPECT_EQ(pwrite(fd, "replaced", 8, 0), 8) << std::strerror(errno);
  const int synced = fsync(fd);
  EXPECT_TRUE(synced == 0 || errno == EIO) << std::strerror(errno);
  EXPECT_EQ(fsync(fd), 0) << "told once: " << std::strerror(errno);
  const int made = open((path + "2").c_str(), O_RDWR | O_CREAT | O_EXCL, 0644);
  EXPECT_GE(made, 0) << std::strerror(errno);
  EXPECT_EQ(close(made), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(5));
  char text[9] = {};
  const int other = open((cluster.mount(1) + "/file").c_str(), O_RDONLY);
  EXPECT_EQ(pread(other, text, 8, 0), 8);
  // The write of a kernel mount was cached: fsync has told of its loss.
  EXPECT_STREQ(text, in_kernel() && synced != 0 ? "promised" : "replaced");
  close(other);
  close(fd);
  const std::string log = cluster.log("mount-0");
  const std::string lost = "the session is lost";
  std::size_t losses = 0;
  for (std::size_t at = log.find(lost); at != std::string::npos; at = log.find(lost, at + 1))
    ++losses;
  EXPECT_EQ(losses, 1U) << log;
}

/// Pages, size and times are refused at different moments; all of it is one error for each open file, at fsync, msync or close.
TEST(KernelSessionFence, EachOpenFileIsToldOnce) {
  if (!in_kernel()) GTEST_SKIP() << "what is dirty is the client's: SessionFence";
  constexpr std::size_t kBytes = 8 << 20;
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log("session|fence|lost|connection|refused|requests fail");
  const std::string path = cluster.mount(0) + "/file";
  const int writer = open(path.c_str(), O_RDWR | O_CREAT, 0644);
  const int synced = open(path.c_str(), O_RDWR);
  const int closed = open(path.c_str(), O_RDWR);
  ASSERT_GE(std::min({writer, synced, closed}), 0);
  ASSERT_EQ(ftruncate(writer, 4096), 0);
  ASSERT_EQ(fsync(writer), 0);
  char* map =
      static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writer, 0));
  ASSERT_NE(map, MAP_FAILED);
  map[0] = 'm';
  const std::string bytes(kBytes, 'w');
  ASSERT_EQ(pwrite(writer, bytes.data(), kBytes, 4096), static_cast<ssize_t>(kBytes));
  const std::uint64_t session = session_of(cluster, "mount-0");
  ASSERT_NE(session, 0U);
  ASSERT_NO_FATAL_FAILURE(fence_everywhere(cluster, session));
  const auto tell = [](const char* what, int result) {
    EXPECT_TRUE(result == 0 || errno == EIO) << what << ": " << std::strerror(errno);
    return result == 0 ? 0 : 1;
  };
  EXPECT_EQ(tell("fsync", fsync(writer)), 1);
  EXPECT_EQ(tell("close", close(closed)), 1);
  EXPECT_EQ(tell("fsync", fsync(synced)), 1);
  int again = 0;
  for (int round = 0; round < 3; ++round) {
    again += tell("msync", msync(map, 4096, MS_SYNC));
    again += tell("fsync", fsync(writer)) + tell("fsync", fsync(synced));
    usleep(200000);
  }
  // Nor is it told to calls that look at the same mapping's errors for other reasons.
  again += tell("ftruncate", ftruncate(synced, 8192));
  again += tell("punch", fallocate(synced, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
  EXPECT_EQ(again, 0);
  EXPECT_EQ(pwrite(writer, "after", 5, 0), 5);
  EXPECT_EQ(fsync(writer), 0);
  char text[6] = {};
  const int other = open((cluster.mount(1) + "/file").c_str(), O_RDONLY);
  EXPECT_EQ(pread(other, text, 5, 0), 5);
  EXPECT_STREQ(text, "after");
  struct stat s {};
  EXPECT_EQ(fstat(other, &s), 0);
  EXPECT_EQ(s.st_size, 8192);
  close(other);
  munmap(map, 4096);
  EXPECT_EQ(tell("close", close(synced)) + tell("close", close(writer)), 0);
}

/// Both the kernel (a page that was stored to through a mapping is refused) and the daemon (size and times that the server never got) know
/// of the loss, and neither knows whom the other has told: each open file is told, by both at most (docs/faults.md).
TEST(SessionFence, AWriterThroughAMappingIsToldTwiceAtMost) {
  if (in_kernel()) GTEST_SKIP() << "a client that stands still loses nothing: KernelSessionFence";
  constexpr auto kLease = std::chrono::milliseconds(2000);
  Cluster cluster({.mounts = 2, .storageds = 1, .lease = kLease});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log("session|fence|lost|connection|refused|requests fail|no sign of lockd");
  const std::string path = cluster.mount(0) + "/file";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0644);
  const int idle = open(path.c_str(), O_RDWR);
  ASSERT_GE(std::min(fd, idle), 0);
  ASSERT_EQ(ftruncate(fd, 4096), 0);
  ASSERT_EQ(fsync(fd), 0);
  char* map = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(map, MAP_FAILED);
  ASSERT_EQ(pwrite(fd, "grown", 5, 4096), 5);
  map[0] = 'm';
  cluster.signal_daemon("mount-0", SIGSTOP);
  char byte = 0;
  const int other = open((cluster.mount(1) + "/file").c_str(), O_RDONLY);
  EXPECT_EQ(pread(other, &byte, 1, 0), 1) << "once the other is fenced";
  close(other);
  cluster.signal_daemon("mount-0", SIGCONT);
  unsigned told = 0;
  std::string trace;
  const auto call = [&](const char* name, int result) {
    told += result != 0 ? 1 : 0;
    trace += std::string(name) + ": " + (result == 0 ? "0" : std::strerror(errno)) + "; ";
    EXPECT_TRUE(result == 0 || errno == EIO) << trace;
  };
  call("msync", msync(map, 4096, MS_SYNC));
  EXPECT_EQ(told, 1U) << trace;
  call("fsync", fsync(fd));
  EXPECT_LE(told, 2U) << trace;
  call("idle fsync", fsync(idle));
  EXPECT_GE(told, 2U) << "each open file: " << trace;
  call("idle fsync", fsync(idle));
  told = 0;
  for (const int file : {fd, idle}) {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    call("fsync", fsync(file));
    call("close", close(file));
  }
  EXPECT_EQ(told, 0U) << trace;
  munmap(map, 4096);
}

TEST(ClientKill, UnderContentionNobodyElseLosesAnything) {
  if (in_kernel()) GTEST_SKIP() << "its session is the kernel's: KernelClientKill";
  std::mt19937_64 random(test_seed("client kill"));
  Cluster cluster({.mounts = 3, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log("session|fence|lost|connection|mount-2");
  // All three append to one log; the third is killed in the middle.
  const auto appender = [&](std::size_t m, std::atomic<bool>& stop, std::atomic<int>& written) {
    const int fd = open((cluster.mount(m) + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    while (!stop) {
      const std::string record =
          block_of(m * 1000000 + static_cast<std::size_t>(written), 499) + "\n";
      if (write(fd, record.data(), record.size()) != static_cast<ssize_t>(record.size())) break;
      ++written;
    }
    close(fd);
  };
  std::atomic<bool> stop = false;
  std::atomic<int> written[3] = {0, 0, 0};
  std::vector<std::thread> threads;
  for (std::size_t m = 0; m < 3; ++m)
    threads.emplace_back(appender, m, std::ref(stop), std::ref(written[m]));
  std::this_thread::sleep_for(milliseconds(300 + random() % 500));
  cluster.kill_daemon("mount-2");
  const int before = written[0];
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (written[0] < before + 50 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(milliseconds(10));
  EXPECT_GE(written[0], before + 50) << "mount 0 does not go on";
  stop = true;
  for (std::thread& thread : threads) thread.join();
  std::ifstream log(cluster.mount(1) + "/log");
  int seen[3] = {0, 0, 0};
  for (std::string line; std::getline(log, line);) {
    const std::size_t number = std::strtoull(line.c_str(), nullptr, 10);
    const std::size_t m = number / 1000000;
    // The victim's last record may have reached storage without its size: others then write over it, whole.
    ASSERT_EQ(line, block_of(number, 499));
    ASSERT_LT(m, 3U);
    ++seen[m];
  }
  EXPECT_EQ(seen[0], written[0]);
  EXPECT_EQ(seen[1], written[1]);
  EXPECT_EQ(umount2(cluster.mount(2).c_str(), MNT_DETACH), 0);
}

}  // namespace
}  // namespace distfuse::tests
