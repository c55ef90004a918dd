// SPDX-License-Identifier: Apache-2.0
// Each row of the fault table, under a write load with an oracle on three mounts.
#include "tests/fault_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>
#include <regex>
#include <sstream>
#include <thread>

#include "tests/far/calls.h"

namespace distfuse::tests {
namespace {

using far::close;
using far::fcntl;
using far::flock;
using far::fsync;
using far::open;
using far::pwrite;

using std::chrono::milliseconds;

constexpr milliseconds kLease{3000};

constexpr const char* kExpectedInLogs =
    "session|fence|lost|connection|lockd|storaged|retr|unreachable|mount|rpc: (meta|data) "
    "target|inode";

/// A call that was under way, one after it; what is at the mount point while it is made anew.
const auto kNoClient = testing::AnyOf(ECONNABORTED, ENOTCONN, ENOENT);

class FaultTable : public testing::TestWithParam<Fault> {
 protected:
  void expect_waits(const Load& load, milliseconds away) {
    const auto& fault = GetParam();
    milliseconds most{kSlack +
                      milliseconds(static_cast<int>(fault.leases * double(kLease.count())))};
    if (fault.away) most += away;
    for (const auto writer : others_) {
      std::printf("writer %zu: longest call %ld ms\n", writer, long(load.longest(writer).count()));
      EXPECT_LE(load.longest(writer), most) << "writer " << writer;
    }
  }

  void expect_told(const Load& load) {
    const auto& fault = GetParam();
    if (fault.roles != 0) return expect_told_of_machine(load);
    for (const auto writer : others_)
      EXPECT_EQ(load.errors(writer), 0U)
          << "writer " << writer << ": " << load.describe_errors(writer);
    if (fault.hit < 0) return;
    const auto hit = static_cast<std::size_t>(fault.hit);
    std::printf("the writer that was hit: %s\n", load.describe_errors(hit).c_str());
    for (std::size_t op = 0; op < kLoadOps; ++op) {
      if (load.errors(hit, static_cast<LoadOp>(op)) == 0) continue;
      EXPECT_THAT(load.state(hit).last_errno[op].load(), fault.told == Told::once
                                                             ? testing::Matcher<int>(EIO)
                                                             : testing::Matcher<int>(kNoClient));
    }
    if (fault.told != Told::once) return;
    // One of each file at most, and one call that was under way.
    EXPECT_LE(load.errors(hit, LoadOp::fsync) + load.errors(hit, LoadOp::close), kLoadFiles)
        << load.describe_errors(hit);
    EXPECT_LE(load.errors(hit), kLoadFiles + 1) << load.describe_errors(hit);
  }

  void expect_told_of_machine(const Load& load) {
    std::uint32_t told = 0;
    for (const auto writer : others_) {
      const auto errors = load.errors(writer, LoadOp::fsync) + load.errors(writer, LoadOp::close);
      std::printf("writer %zu: %s\n", writer, load.describe_errors(writer).c_str());
      EXPECT_EQ(load.errors(writer), errors) << "neither fsync nor close";
      EXPECT_LE(errors, GetParam().roles * kLoadFiles);
      for (const auto op : {LoadOp::fsync, LoadOp::close})
        EXPECT_THAT(load.state(writer).last_errno[static_cast<std::size_t>(op)].load(),
                    testing::AnyOf(0, EIO));
      told += errors;
    }
    // Of a data target alone the load may have synced everything a moment before; Unsynced has not.
    if (GetParam().roles > 1) {
      EXPECT_GE(told, 1U) << "nobody is told";
    }
  }

  void expect_kept(const Load& load, const std::string& mount) {
    const auto verdict = load.verify(mount);
    std::printf("%llu records, %llu lost of which no fsync or close had said that they are kept\n",
                static_cast<unsigned long long>(verdict.records),
                static_cast<unsigned long long>(verdict.lost));
    for (const auto& wrong : verdict.wrong) ADD_FAILURE() << mount << ": " << wrong;
    if (!GetParam().may_lose) {
      EXPECT_EQ(verdict.lost, 0U);
    }
  }

  std::vector<std::size_t> others_;
};

/// A file with bytes on every data target that no fsync has answered for, whatever the load has just synced. Not where the meta target dies: a daemon that the
/// test starts closes its copy at exec, and that close waits for the meta target.
class Unsynced {
 public:
  explicit Unsynced(const std::string& mount)
      : fd_(open((mount + "/unsynced").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    const std::string bytes(kBytes, 'u');
    EXPECT_EQ(pwrite(fd_, bytes.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
    // Answered by the storageds, and not durable: what is dirty in the kernel yet cannot be lost by their machines.
    const unsigned all =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    EXPECT_EQ(sync_file_range(fd_, 0, 0, all), 0) << std::strerror(errno);
  }
  Unsynced(const Unsynced&) = delete;
  Unsynced& operator=(const Unsynced&) = delete;
  ~Unsynced() { close(fd_); }
  void expect_told_once() const {
    EXPECT_TRUE(fsync(fd_) != 0 && errno == EIO) << "it is not told";
    EXPECT_EQ(fsync(fd_), 0) << "it is told again";
  }

 private:
  static constexpr std::size_t kBytes = 16 << 20;  // 4 chunks on each of two targets, or more
  int fd_;
};

/// A page that was stored to through a mapping, and is dirty in the kernel of a mount that is about to lose its session.
class DirtyPage {
 public:
  explicit DirtyPage(const std::string& mount)
      : fd_(open((mount + "/stored").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    const std::string page(4096, 's');
    EXPECT_EQ(pwrite(fd_, page.data(), page.size(), 0), static_cast<ssize_t>(page.size()));
    EXPECT_EQ(fsync(fd_), 0) << std::strerror(errno);
    EXPECT_TRUE(map_.map(fd_, page.size()) && map_.store(0, "stored", 6)) << std::strerror(errno);
  }
  DirtyPage(const DirtyPage&) = delete;
  DirtyPage& operator=(const DirtyPage&) = delete;
  ~DirtyPage() {
    EXPECT_EQ(map_.unmap(), 0) << std::strerror(errno);
    close(fd_);
  }
  void expect_told() const {
    EXPECT_TRUE(fsync(fd_) != 0 && errno == EIO) << "it is not told";
    // By the kernel, and in mode `user` by the client as well (docs/faults.md).
    if (fsync(fd_) != 0) {
      EXPECT_EQ(fsync(fd_), 0) << "it is told a third time";
    }
  }

 private:
  int fd_;
  far::Mapping map_;
};

/// Whether the session of the mount that is hit is gone before the last step.
bool ends_session(const Fault& fault) {
  return std::any_of(fault.steps.begin(), fault.steps.end(), [](const FaultStep& step) {
    return step.what == FaultStep::seen && *step.state == 0;
  });
}

TEST_P(FaultTable, HoldsUnderALoad) {
  const auto& fault = GetParam();
  const auto seed = test_seed(fault.name);
  Cluster cluster({.mounts = 3, .storageds = 2, .lease = kLease});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log(kExpectedInLogs);
  for (std::size_t i = 0; i < 3; ++i)
    if (static_cast<int>(i) != fault.hit) others_.push_back(i);
  Load load(cluster.mounts(), "load", seed);
  ASSERT_TRUE(load.progress({0, 1, 2}, 150, std::chrono::seconds(30))) << "the load does not begin";

  std::optional<Unsynced> unsynced;
  if (fault.roles == 1) unsynced.emplace(cluster.mount(0));
  std::optional<DirtyPage> dirty;
  // Not of a client that is stopped or killed here: what the test starts would wait for it.
  if (fault.hit > 0 && ends_session(fault))
    dirty.emplace(cluster.mount(static_cast<std::size_t>(fault.hit)));
  const auto away = inject(cluster, load, fault);
  EXPECT_TRUE(load.progress(others_, 100, std::chrono::seconds(40))) << "the others do not go on";
  expect_waits(load, away);
  // The one that was hit goes on as well: on the same mount, or on the mount that was made anew.
  EXPECT_TRUE(load.progress({0, 1, 2}, 100, std::chrono::seconds(40)))
      << "the one hit does not go on";

  EXPECT_EQ(load.stop(std::chrono::seconds(30)), "");
  for (const auto& violation : load.violations()) ADD_FAILURE() << violation;
  expect_told(load);
  if (unsynced) unsynced->expect_told_once();
  if (dirty) dirty->expect_told();
  for (const auto& mount : cluster.mounts()) expect_kept(load, mount);
  for (const auto* mount : {"mount-0", "mount-1", "mount-2"})
    EXPECT_EQ(cluster.session_states(mount), "live") << mount;
}
INSTANTIATE_TEST_SUITE_P(Rows, FaultTable, testing::ValuesIn(faults_of_mode()),
                         [](const auto& row) { return std::string(row.param.name); });

/// A file with bytes 0 to 99 locked by fcntl, and another with flock. The descriptors are not inherited: see load.h.
struct LockedFiles {
  explicit LockedFiles(const std::string& mount)
      : ranges(open((mount + "/ranges").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)),
        whole(open((mount + "/whole").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {}
  LockedFiles(const LockedFiles&) = delete;
  LockedFiles& operator=(const LockedFiles&) = delete;
  ~LockedFiles() {
    close(ranges);
    close(whole);
  }
  [[nodiscard]] int lock_range(int command, short type, off_t start) const {
    struct flock range {};
    range.l_type = type;
    range.l_start = start;
    range.l_len = 100;
    return fcntl(ranges, command, &range) == 0 ? 0 : errno;
  }
  [[nodiscard]] int lock_whole(int operation) const {
    return flock(whole, operation) == 0 ? 0 : errno;
  }

  int ranges;
  int whole;
};

TEST(FileLocks, StandThroughARestartOfLockd) {
  Cluster cluster({.mounts = 2, .storageds = 1, .lease = kLease});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log(kExpectedInLogs);
  const LockedFiles holder(cluster.mount(0));
  const LockedFiles other(cluster.mount(1));
  ASSERT_EQ(holder.lock_range(F_SETLK, F_WRLCK, 0), 0);
  ASSERT_EQ(holder.lock_whole(LOCK_EX), 0);
  cluster.kill_daemon("lockd");
  cluster.restart_daemon("lockd");
  EXPECT_EQ(other.lock_range(F_SETLKW, F_WRLCK, 100), 0);
  EXPECT_EQ(other.lock_range(F_SETLK, F_WRLCK, 0), EAGAIN);
  EXPECT_EQ(other.lock_whole(LOCK_EX | LOCK_NB), EAGAIN);
  EXPECT_EQ(holder.lock_range(F_SETLK, F_UNLCK, 0), 0);
  EXPECT_EQ(holder.lock_whole(LOCK_UN), 0);
  EXPECT_EQ(other.lock_range(F_SETLKW, F_WRLCK, 0), 0);
  EXPECT_EQ(other.lock_whole(LOCK_EX), 0);
}

TEST(FileLocks, OfAClientThatStandsStillAreFreeAfterItsLease) {
  if (in_kernel()) GTEST_SKIP() << "the session is the kernel's, which does not stand still";
  Cluster cluster({.mounts = 2, .storageds = 1, .lease = kLease});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log(kExpectedInLogs);
  const LockedFiles holder(cluster.mount(0));
  const LockedFiles other(cluster.mount(1));
  ASSERT_EQ(holder.lock_range(F_SETLK, F_WRLCK, 0), 0);
  ASSERT_EQ(holder.lock_whole(LOCK_EX), 0);
  cluster.signal_daemon("mount-0", SIGSTOP);
  const auto began = std::chrono::steady_clock::now();
  EXPECT_EQ(other.lock_range(F_SETLKW, F_WRLCK, 0), 0);
  EXPECT_EQ(other.lock_whole(LOCK_EX), 0);
  const auto took = std::chrono::steady_clock::now() - began;
  cluster.signal_daemon("mount-0", SIGCONT);
  EXPECT_GE(took, kLease / 2) << "before the holder can have stopped trusting them";
  EXPECT_LE(took, kLease + kSlack);
  // In its new session it is one among others.
  EXPECT_EQ(holder.lock_range(F_SETLK, F_WRLCK, 0), EAGAIN);
  EXPECT_EQ(other.lock_range(F_SETLK, F_UNLCK, 0), 0);
  EXPECT_EQ(holder.lock_range(F_SETLKW, F_WRLCK, 0), 0);
}

constexpr unsigned kGiveUp = 3;  ///< Seconds.

/// The cluster's file with this line in its section [client].
void give_up_after(Cluster& cluster, unsigned seconds) {
  cluster.down();
  const auto path = cluster.root() + "/cluster.toml";
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  std::ofstream(path) << std::regex_replace(text.str(), std::regex("give_up_s = [0-9]+"),
                                            "give_up_s = " + std::to_string(seconds));
  cluster.up();
}

TEST(LockdGone, CallsFailAfterGiveUpAndGoOnWhenItIsBack) {
  const auto seed = test_seed("lockd gone");
  Cluster cluster({.mounts = 2, .storageds = 2, .lease = kLease});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log(kExpectedInLogs);
  give_up_after(cluster, kGiveUp);
  ASSERT_TRUE(cluster.ok());
  Load load(cluster.mounts(), "load", seed);
  ASSERT_TRUE(load.progress({0, 1}, 150, std::chrono::seconds(30))) << "the load does not begin";
  for (const std::size_t writer : {0, 1}) load.state(writer).may_lose = true;

  load.reset_waits();
  cluster.kill_daemon("lockd");
  constexpr auto kMost = std::chrono::seconds(kGiveUp) + kSlack;
  const auto deadline = std::chrono::steady_clock::now() + kMost;
  const auto told = [&] { return load.errors(0) != 0 && load.errors(1) != 0; };
  while (!told() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(milliseconds(50));
  EXPECT_TRUE(told()) << "they are told nothing";
  for (const std::size_t writer : {0, 1}) EXPECT_LE(load.longest(writer), kMost) << writer;
  cluster.restart_daemon("lockd");
  EXPECT_TRUE(load.progress({0, 1}, 100, std::chrono::seconds(40))) << "it does not go on";
  EXPECT_EQ(load.stop(std::chrono::seconds(30)), "");
  for (const auto& violation : load.violations()) ADD_FAILURE() << violation;
  for (const std::size_t writer : {0, 1}) {
    std::printf("writer %zu: %s\n", writer, load.describe_errors(writer).c_str());
    for (std::size_t op = 0; op < kLoadOps; ++op)
      EXPECT_THAT(load.state(writer).last_errno[op].load(), testing::AnyOf(0, EIO));
  }
  for (const auto& mount : cluster.mounts())
    for (const auto& wrong : load.verify(mount).wrong) ADD_FAILURE() << mount << ": " << wrong;
}

/// Asked for by name, and last: its guest does not come back (tests/kernel/suite guest).
TEST(GuestDies, DISABLED_ItsSessionIsFencedAndTheOthersGoOn) {
  const auto seed = test_seed("guest dies");
  ASSERT_GT(far::nodes().size(), 2U) << "needs three guests (DISTFUSE_TEST_NODES)";
  Cluster cluster({.mounts = 3, .storageds = 2, .lease = kLease});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log(kExpectedInLogs);
  Load load(cluster.mounts(), "load", seed);
  ASSERT_TRUE(load.progress({0, 1, 2}, 150, std::chrono::seconds(60))) << "the load does not begin";
  load.state(2).may_lose = true;
  load.state(2).unmounted = true;
  load.reset_waits();

  cluster.kill_guest("mount-2");
  const auto fenced = std::chrono::steady_clock::now() + kLease + kSlack;
  while (!cluster.session_states("mount-2").empty() && std::chrono::steady_clock::now() < fenced)
    std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(cluster.session_states("mount-2"), "") << "its session stays";
  EXPECT_TRUE(load.progress({0, 1}, 200, std::chrono::seconds(40))) << "the others do not go on";
  for (const std::size_t writer : {0, 1}) {
    EXPECT_LE(load.longest(writer), kLease + kSlack) << writer;
    EXPECT_EQ(load.errors(writer), 0U) << load.describe_errors(writer);
  }
  load.kill(2);
  EXPECT_EQ(load.stop(std::chrono::seconds(30)), "");
  for (const auto& violation : load.violations()) ADD_FAILURE() << violation;
  for (const std::size_t i : {0, 1})
    for (const auto& wrong : load.verify(cluster.mount(i)).wrong)
      ADD_FAILURE() << i << ": " << wrong;
}

TEST(FaultPage, HasTheTableThatIsAsserted) {
  std::ifstream file(FAULTS_PAGE);
  std::stringstream text;
  text << file.rdbuf();
  for (const auto* faults : {&fault_table(), &network_fault_table()})
    EXPECT_NE(text.str().find(fault_table_markdown(*faults)), std::string::npos)
        << "docs/faults.md must have:\n"
        << fault_table_markdown(*faults);
}

}  // namespace
}  // namespace distfuse::tests
