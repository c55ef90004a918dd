// SPDX-License-Identifier: Apache-2.0
// Mounts of mode `kernel` whose client daemon dies, is replaced, or is never followed by another: kmod/uapi.h, states of a connection. In a guest; each
// test takes the mounts of one cluster as it finds them, and leaves them served.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <new>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "tests/cluster.h"
#include "tests/load.h"

namespace distfuse::tests {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr auto kLong = std::chrono::seconds(30);  ///< On a busy machine nothing takes that long.
constexpr unsigned kGiveUp = 4;                   ///< Seconds, of the mount that is given up.

milliseconds since(steady_clock::time_point began) {
  return std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);
}

bool soon(const std::function<bool()>& condition, milliseconds most = kLong) {
  for (const auto deadline = steady_clock::now() + most; steady_clock::now() < deadline;) {
    if (condition()) return true;
    usleep(2000);
  }
  return condition();
}

/// The mount's folder in debugfs; nothing is asked of the mount.
std::string debug_folder(const std::string& mount) {
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string id, parent, device, root, at;
    fields >> id >> parent >> device >> root >> at;
    if (at == mount) return "/sys/kernel/debug/distfuse/" + device;
  }
  ADD_FAILURE() << mount << " is not mounted";
  return "";
}

std::uint64_t counter(const std::string& mount, const std::string& wanted) {
  std::ifstream file(debug_folder(mount) + "/counters");
  std::string name;
  for (std::uint64_t value = 0; file >> name >> value;)
    if (name == wanted) return value;
  ADD_FAILURE() << "no counter " << wanted;
  return 0;
}

/// Requests in this state ("sent", "pending").
int requests(const std::string& mount, const std::string& state) {
  std::ifstream file(debug_folder(mount) + "/requests");
  int count = 0;
  for (std::string line; std::getline(file, line);)
    if (line.find(" " + state + " ") != std::string::npos) ++count;
  return count;
}

bool runs(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  return std::getline(file, text) && text.find(") Z") == std::string::npos;
}

/// A call in a process of its own, which may wait, and its errno.
class Call {
 public:
  explicit Call(const std::function<int()>& call) : pid_(fork()), began_(steady_clock::now()) {
    if (pid_ == 0) _exit(call() == 0 ? 0 : errno);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  /// errno; -1: it waits for longer than `most`.
  int end(milliseconds most = kLong) {
    int status = 0;
    if (!soon([&] { return waitpid(pid_, &status, WNOHANG) == pid_; }, most)) return -1;
    pid_ = 0;
    took_ = since(began_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  bool waits(milliseconds time) {
    int status = 0;
    if (!soon([&] { return waitpid(pid_, &status, WNOHANG) == pid_; }, time)) return true;
    pid_ = 0;
    return false;
  }
  [[nodiscard]] milliseconds took() const { return took_; }

 private:
  pid_t pid_;
  steady_clock::time_point began_;
  milliseconds took_{};
};

int make_file(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
  return fd < 0 ? -1 : close(fd);
}

/// A process that makes, moves and removes names, none of which may be done twice, or not at all.
class Names {
 public:
  Names(std::string folder, std::uint64_t seed) : folder_(std::move(folder)), random_(seed) {
    state_ = new (mmap(nullptr, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                       -1, 0)) State{};
    pid_ = fork();
    if (pid_ == 0) {
      work();
      _exit(0);
    }
  }
  Names(const Names&) = delete;
  Names& operator=(const Names&) = delete;
  ~Names() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  [[nodiscard]] std::uint64_t rounds() const { return state_->rounds; }
  void stop_and_verify(const std::string& folder) {
    state_->stop = true;
    ASSERT_TRUE(soon([&] { return waitpid(pid_, nullptr, WNOHANG) == pid_; })) << "it hangs";
    pid_ = 0;
    EXPECT_EQ(state_->failures, 0);
    std::set<std::string> there;
    for (const auto& entry : fs::directory_iterator(folder)) there.insert(entry.path().filename());
    const auto has = [&](const char* what, std::uint64_t n) {
      return there.count(what + std::to_string(n)) != 0;
    };
    for (std::uint64_t n = 0; n < state_->rounds; ++n) {
      EXPECT_FALSE(has("made", n)) << n;
      EXPECT_TRUE(has("moved", n) && has("linked", n)) << n;
      EXPECT_FALSE(has("removed", n)) << n;
      EXPECT_EQ(has("folder", n), n % 2 == 0) << n;
      struct stat s {};
      if (n % 8 != 0) continue;
      ASSERT_EQ(stat((folder + "/moved" + std::to_string(n)).c_str(), &s), 0) << n;
      EXPECT_EQ(s.st_nlink, 2U) << n;
      EXPECT_EQ(s.st_size, static_cast<off_t>(n % 5000 + 1)) << n;
    }
    std::printf("%llu rounds of names\n", static_cast<unsigned long long>(state_->rounds.load()));
  }

 private:
  struct State {
    std::atomic<bool> stop;
    std::atomic<std::uint64_t> rounds;
    std::atomic<int> failures;
  };
  void expect(bool good, const char* what) {
    if (good) return;
    ++state_->failures;
    std::fprintf(stderr, "names: round %llu: %s: %s\n",
                 static_cast<unsigned long long>(state_->rounds), what, std::strerror(errno));
  }
  [[nodiscard]] std::string path(const char* what) const {
    return folder_ + "/" + what + std::to_string(state_->rounds);
  }
  void round() {
    const std::uint64_t n = state_->rounds;
    const std::string text(n % 5000 + 1, 'x');
    const int fd = open(path("made").c_str(), O_RDWR | O_CREAT | O_EXCL, 0644);
    expect(fd >= 0, "exclusive create");
    expect(write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()), "write");
    if (random_() % 4 == 0) expect(fsync(fd) == 0, "fsync");
    expect(close(fd) == 0, "close");
    expect(link(path("made").c_str(), path("linked").c_str()) == 0, "link");
    expect(rename(path("made").c_str(), path("moved").c_str()) == 0, "rename");
    expect(symlink("nowhere", path("removed").c_str()) == 0, "symlink");
    expect(unlink(path("removed").c_str()) == 0, "unlink");
    expect(mkdir(path("folder").c_str(), 0755) == 0, "mkdir");
    if (n % 2 == 1) expect(rmdir(path("folder").c_str()) == 0, "rmdir");
    ++state_->rounds;
  }
  void work() {
    expect(mkdir(folder_.c_str(), 0755) == 0, "mkdir");
    while (!state_->stop && state_->failures == 0) round();
  }

  std::string folder_;
  std::mt19937_64 random_;
  State* state_;
  pid_t pid_;
};

class Daemon : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster_ = std::make_unique<Cluster>(ClusterOptions{.mounts = 2, .storageds = 2});
    cluster_->expect_log("connection|session|rpc: |storaged|mount");
  }
  static void TearDownTestSuite() { cluster_.reset(); }
  void SetUp() override { ASSERT_TRUE(cluster_ && cluster_->ok()); }

  static const std::string& mount(std::size_t i) { return cluster_->mount(i); }
  static void kill_and_attach() {
    cluster_->kill_daemon("mount-0");
    cluster_->restart_daemon("mount-0");
  }
  static std::uint64_t replayed() {
    const nlohmann::json status = cluster_->status();
    for (const auto& daemon : status["daemons"])
      if (daemon["name"] == "storaged-0") {
        std::smatch found;
        const std::string text = daemon["status"].dump();
        if (std::regex_search(text, found, std::regex("\"replayed\":([0-9]+)")))
          return std::stoull(found[1]);
      }
    ADD_FAILURE() << status.dump(2);
    return 0;
  }
  /// Does it while the storaged with role meta stands still, and kills the daemon when its request has been done and before it can say so.
  static int done_and_not_answered(const std::function<int()>& call) {
    cluster_->signal_daemon("storaged-0", SIGSTOP);
    Call one(call);
    EXPECT_TRUE(soon([] { return requests(mount(0), "sent") != 0; }));
    std::this_thread::sleep_for(milliseconds(150));  // it is with the storaged's kernel
    cluster_->signal_daemon("mount-0", SIGSTOP);
    cluster_->signal_daemon("storaged-0", SIGCONT);
    std::this_thread::sleep_for(milliseconds(250));
    cluster_->kill_daemon("mount-0");
    EXPECT_TRUE(one.waits(milliseconds(100)));
    cluster_->restart_daemon("mount-0");
    return one.end();
  }

  static std::unique_ptr<Cluster> cluster_;
};
std::unique_ptr<Cluster> Daemon::cluster_;

TEST_F(Daemon, WhatWasDoneAndNotAnsweredIsDoneOnce) {
  const std::string folder = mount(0) + "/once";
  ASSERT_EQ(mkdir(folder.c_str(), 0755), 0);
  const std::string a = folder + "/a", b = folder + "/b", c = folder + "/c";
  const std::uint64_t before = replayed();
  EXPECT_EQ(done_and_not_answered([&] { return make_file(a); }), 0) << "EEXIST: done twice";
  EXPECT_EQ(done_and_not_answered([&] { return rename(a.c_str(), b.c_str()); }), 0);
  EXPECT_EQ(done_and_not_answered([&] { return mkdir(c.c_str(), 0755); }), 0);
  EXPECT_EQ(done_and_not_answered([&] { return rmdir(c.c_str()); }), 0);
  EXPECT_EQ(done_and_not_answered([&] { return unlink(b.c_str()); }), 0);
  EXPECT_TRUE(fs::is_empty(mount(1) + "/once"));
  EXPECT_GE(replayed() - before, 2U) << "the daemon died too early or too late";
}

TEST_F(Daemon, KilledAgainAndAgainUnderALoad) {
  const auto seed = test_seed("daemon");
  std::mt19937_64 random(seed);
  Names one(mount(0) + "/names0", random()), two(mount(0) + "/names1", random()),
      other(mount(1) + "/names2", random());
  Load load(cluster_->mounts(), "load", seed);
  ASSERT_TRUE(load.progress({0, 1}, 20, kLong)) << "the load does not begin";
  const std::uint64_t resent = counter(mount(0), "requests_resent");
  constexpr int kKills = 3;
  for (int i = 0; i < kKills; ++i) {
    const auto rounds = one.rounds();
    ASSERT_TRUE(load.progress({0}, 5 + random() % 20, kLong)) << "round " << i;
    ASSERT_TRUE(soon([&] { return one.rounds() > rounds; })) << "round " << i;
    cluster_->kill_daemon("mount-0");
    std::this_thread::sleep_for(milliseconds(random() % 300));
    cluster_->restart_daemon("mount-0");
  }
  ASSERT_TRUE(load.progress({0, 1}, 20, kLong)) << "it does not go on";
  std::printf(
      "%d daemons, %llu requests sent again, longest call %lld ms; on the other mount %lld ms\n",
      kKills, static_cast<unsigned long long>(counter(mount(0), "requests_resent") - resent),
      static_cast<long long>(load.longest(0).count()),
      static_cast<long long>(load.longest(1).count()));
  EXPECT_GT(counter(mount(0), "requests_resent"), resent);
  EXPECT_EQ(load.stop(kLong), "");
  for (const std::size_t writer : {0, 1})
    EXPECT_EQ(load.errors(writer), 0U) << load.describe_errors(writer);
  for (const auto& violation : load.violations()) ADD_FAILURE() << violation;
  for (const auto& at : cluster_->mounts()) {
    const auto verdict = load.verify(at);
    EXPECT_EQ(verdict.lost, 0U) << at;
    for (const auto& wrong : verdict.wrong) ADD_FAILURE() << at << ": " << wrong;
  }
  one.stop_and_verify(mount(1) + "/names0");
  two.stop_and_verify(mount(1) + "/names1");
  other.stop_and_verify(mount(0) + "/names2");
}

TEST_F(Daemon, AnUpgradeIsAHandOver) {
  const auto seed = test_seed("upgrade");
  Names names(mount(0) + "/upgrade", seed);
  Load load(cluster_->mounts(), "upgraded", seed);
  ASSERT_TRUE(load.progress({0, 1}, 20, kLong)) << "the load does not begin";
  const std::uint64_t resent = counter(mount(0), "requests_resent");
  const int held = open((mount(0) + "/held").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  ASSERT_EQ(flock(held, LOCK_EX), 0);
  load.reset_waits();
  for (int i = 0; i < 2; ++i) {
    const pid_t former = cluster_->pid("mount-0");
    const auto began = steady_clock::now();
    cluster_->restart_daemon("mount-0");
    std::printf("handed over in %lld ms\n", static_cast<long long>(since(began).count()));
    EXPECT_NE(cluster_->pid("mount-0"), former);
    EXPECT_FALSE(runs(former)) << "the former daemon is still there";
    ASSERT_TRUE(load.progress({0}, 20, kLong)) << "it does not go on";
  }
  std::printf("longest call %lld ms\n", static_cast<long long>(load.longest(0).count()));
  EXPECT_EQ(counter(mount(0), "requests_resent"), resent) << "the former one did not answer all";
  EXPECT_EQ(load.stop(kLong), "");
  EXPECT_EQ(load.errors(0), 0U) << load.describe_errors(0);
  for (const auto& wrong : load.verify(mount(1)).wrong) ADD_FAILURE() << wrong;
  names.stop_and_verify(mount(1) + "/upgrade");
  Call contender([&] {
    const int fd = open((mount(1) + "/held").c_str(), O_RDWR);
    return flock(fd, LOCK_EX | LOCK_NB);
  });
  EXPECT_EQ(contender.end(), EWOULDBLOCK) << "the session and its locks are the module's";
  close(held);
}

TEST_F(Daemon, OneThatStandsStillIsReplaced) {
  const pid_t former = cluster_->pid("mount-0");
  const std::string path = mount(0) + "/stopped";
  cluster_->signal_daemon("mount-0", SIGSTOP);
  Call one([&] { return make_file(path); });
  ASSERT_TRUE(
      soon([&] { return requests(mount(0), "pending") + requests(mount(0), "sent") != 0; }));
  cluster_->restart_daemon("mount-0");
  EXPECT_EQ(one.end(), 0);
  EXPECT_FALSE(runs(former));
  EXPECT_EQ(unlink(path.c_str()), 0);
}

/// A mount beside those of the cluster, with a client of its own that is given up soon.
class Extra {
 public:
  explicit Extra(const Cluster& cluster) : root_(cluster.root()), path_(folder_.path() + "/extra") {
    std::stringstream text;
    text << std::ifstream(root_ + "/cluster.toml").rdbuf();
    std::ofstream(config()) << std::regex_replace(text.str(), std::regex("give_up_s = [0-9]+"),
                                                  "give_up_s = " + std::to_string(kGiveUp));
    fs::create_directory(path_);
    mount();
  }
  Extra(const Extra&) = delete;
  Extra& operator=(const Extra&) = delete;
  ~Extra() {
    if (pid_ > 0) signal(SIGKILL);
    umount2(path_.c_str(), MNT_FORCE);
    umount2(path_.c_str(), MNT_DETACH);
  }
  void mount() {
    const auto done = run(command({}));
    ASSERT_EQ(done.exit_code, 0) << done.output;
    find();
  }
  CommandResult attach() {
    auto done = run(command({"--attach"}));
    if (done.exit_code == 0) find();
    return done;
  }
  void signal(int which) const { kill(pid_, which); }
  void unmount() {
    // EINVAL: a forced unmount was the last one, for who waited had left by then.
    EXPECT_TRUE(soon([&] { return umount2(path_.c_str(), 0) == 0 || errno == EINVAL; }))
        << std::strerror(errno);
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  [[nodiscard]] std::string config() const { return folder_.path() + "/cluster.toml"; }
  [[nodiscard]] std::vector<std::string> command(const std::vector<std::string>& more) const {
    std::vector<std::string> words{"distfuse",    "mount",  "--config",   config(),
                                   "--coherence", "kernel", "--log-file", folder_.path() + "/log"};
    words.insert(words.end(), more.begin(), more.end());
    words.push_back(path_);
    return words;
  }
  /// The last one that says that it serves.
  void find() {
    std::ifstream log(folder_.path() + "/log");
    const std::regex pattern(R"(client\[([0-9]+)\].* is served by client)");
    std::smatch found;
    for (std::string line; std::getline(log, line);)
      if (std::regex_search(line, found, pattern)) pid_ = std::stoi(found[1]);
    ASSERT_GT(pid_, 1);
  }

  TemporaryFolder folder_;
  std::string root_, path_;
  pid_t pid_ = 0;
};

/// Processes that wait for all that one can wait for, on a mount whose daemon does not answer.
class Waiters {
 public:
  explicit Waiters(const std::string& path) : dirty_(path + "/dirty") {
    add("create", [path] { return make_file(path + "/new"); });
    add("stat", [path] {
      struct stat s {};
      return stat((path + "/unknown").c_str(), &s);
    });
    add("fsync", [this] {
      const int fd = open(dirty_.c_str(), O_RDWR);
      return fd < 0 || write(fd, "y", 1) != 1 || fsync(fd) != 0 ? -1 : 0;
    });
    add("statfs", [path] {
      struct statfs s {};
      return statfs(path.c_str(), &s);
    });
  }
  /// Each ends with an error that says that nobody is there.
  void expect_errors(milliseconds least, milliseconds most) {
    for (auto& [name, call] : calls_) {
      const int error = call->end(most);
      EXPECT_TRUE(error == ENOTCONN || error == EIO) << name << ": " << std::strerror(error);
      EXPECT_GE(call->took(), least) << name;
      EXPECT_LE(call->took(), most) << name;
    }
  }

 private:
  void add(const char* name, const std::function<int()>& call) {
    calls_[name] = std::make_unique<Call>(call);
  }
  std::string dirty_;
  std::map<std::string, std::unique_ptr<Call>> calls_;
};

TEST_F(Daemon, NobodyComes) {
  Extra extra(*cluster_);
  ASSERT_EQ(make_file(extra.path() + "/dirty"), 0);
  ASSERT_EQ(::access((mount(1) + "/dirty").c_str(), F_OK), 0);
  extra.signal(SIGKILL);
  const auto died = steady_clock::now();
  {
    Waiters waiters(extra.path());
    waiters.expect_errors(milliseconds(kGiveUp * 700), milliseconds(kGiveUp * 1000 + 6000));
  }
  EXPECT_GE(since(died), milliseconds(kGiveUp * 900));
  Call late([&] { return make_file(extra.path() + "/late"); });
  EXPECT_EQ(late.end(), ENOTCONN);
  EXPECT_LT(late.took(), milliseconds(1000));
  const auto refused = extra.attach();
  EXPECT_NE(refused.exit_code, 0);
  EXPECT_NE(refused.output.find("given up"), std::string::npos) << refused.output;
  // Others have what was asked of it.
  EXPECT_EQ(make_file(mount(1) + "/new"), 0);
  EXPECT_EQ(unlink((mount(1) + "/dirty").c_str()), 0);
  extra.unmount();
  extra.mount();
  EXPECT_EQ(unlink((extra.path() + "/new").c_str()), 0);
  extra.unmount();
}

TEST_F(Daemon, AForcedUnmountEndsWhoWaits) {
  Extra extra(*cluster_);
  for (const bool forced : {true, false}) {
    ASSERT_EQ(make_file(extra.path() + "/dirty"), 0);
    extra.signal(forced ? SIGSTOP : SIGKILL);
    Waiters waiters(extra.path());
    // And one that waits for a cluster lock, and whoever holds it does not give it.
    Call held([&] {
      const int fd = open((extra.path() + "/held").c_str(), O_RDWR);
      return fd < 0 ? -1 : flock(fd, LOCK_EX);
    });
    ASSERT_TRUE(soon(
        [&] { return requests(extra.path(), "sent") + requests(extra.path(), "pending") >= 2; }));
    EXPECT_TRUE(held.waits(milliseconds(100)));
    const auto began = steady_clock::now();
    if (forced)
      umount2(extra.path().c_str(), MNT_FORCE);  // EBUSY, while they are inside
    else
      std::ofstream(debug_folder(extra.path()) + "/abort") << "1";
    waiters.expect_errors(milliseconds(0), milliseconds(4000));
    const int error = held.end();
    EXPECT_TRUE(error == ENOTCONN || error == EIO) << std::strerror(error);
    EXPECT_LT(since(began), milliseconds(kGiveUp * 1000 - 500)) << "they were given up";
    extra.signal(SIGCONT);
    extra.unmount();
    EXPECT_EQ(unlink((mount(0) + "/dirty").c_str()), 0);
    if (forced) extra.mount();
  }
}

TEST_F(Daemon, IsRefusedWhereItCannotServe) {
  Extra extra(*cluster_);
  TemporaryFolder folder;
  const auto attach = [&](const std::string& config, const std::string& path) {
    return run({"distfuse", "mount", "--attach", "--config", config, path});
  };
  const std::string config = cluster_->root() + "/cluster.toml", other = folder.path() + "/c.toml";
  std::stringstream text;
  text << std::ifstream(config).rdbuf();
  std::ofstream(other) << std::regex_replace(text.str(), std::regex("(id = ['\"])[0-9a-f]{8}"),
                                             "$01deadbeef");
  auto refused = attach(other, extra.path());
  EXPECT_NE(refused.exit_code, 0);
  EXPECT_NE(refused.output.find("another cluster's"), std::string::npos) << refused.output;
  refused = attach(config, folder.path());
  EXPECT_NE(refused.output.find("is not mounted"), std::string::npos) << refused.output;
  refused = attach(config, "/proc");
  EXPECT_NE(refused.output.find("of type proc"), std::string::npos) << refused.output;
  // Nobody was sent away for that.
  EXPECT_EQ(make_file(extra.path() + "/still"), 0);
  EXPECT_EQ(unlink((extra.path() + "/still").c_str()), 0);
  extra.unmount();
}

}  // namespace
}  // namespace distfuse::tests
