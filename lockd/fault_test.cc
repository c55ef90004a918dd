// SPDX-License-Identifier: Apache-2.0
// kill -9 of clients at every stage of a lock's life, of the storage target, and of lockd itself; and how the program ends.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <thread>

#include "common/admin.h"
#include "lockd/testing/test_cluster.h"

namespace distfuse::lockd::testing {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
constexpr std::uint64_t kMax = ~0ULL;
const std::uint64_t kKey = df_key_inode(42);

/// A client in a process of its own. It obeys lines: "x", "s", "u" (unpin), "d" (drop), "v N" (set), "?" (value), "h" (held),
/// "w x" (want, without waiting), "p" (pinned), "bye", "die-at KIND" (before a chain of that kind), "fl", "flw", "fu".
class Client {
 public:
  Client(const TestCluster& cluster, const std::string& name)
      : process_(Process::fork_child(
            [options = cluster.options(name)](Talk& talk) { return obey(options, talk); })) {
    if (process_.talk().hear() != "ready") throw std::runtime_error("client " + name);
  }
  std::string ask(const std::string& command, std::chrono::milliseconds timeout = 20s) {
    process_.talk().say(command);
    return process_.talk().hear(timeout);
  }
  void tell(const std::string& command) { process_.talk().say(command); }
  std::string hear(std::chrono::milliseconds timeout = 20s) {
    return process_.talk().hear(timeout);
  }
  Process& process() { return process_; }

 private:
  static std::string act(RawClient& raw, const std::string& command) {
    const auto yes = [](bool good) { return std::string(good ? "ok" : "no"); };
    if (command == "x") return yes(raw.acquire(kKey, DF_X, 15s));
    if (command == "s") return yes(raw.acquire(kKey, DF_S, 15s));
    if (command == "u") return raw.unpin(kKey), "ok";
    if (command == "d") return yes(raw.drop(kKey));
    if (command == "?") return std::to_string(raw.value(kKey));
    if (command == "h") return std::to_string(raw.held(kKey));
    if (command == "fl" || command == "flw") {
      const std::uint8_t flags = command == "flw" ? DF_FILE_WAIT : 0;
      const auto reply =
          raw.file_reply(raw.file_send(DF_MSG_FILE_LOCK, 5, 1, DF_FILE_WRITE, flags, 0, kMax), 15s);
      return reply ? std::to_string(reply->error) : "no";
    }
    if (command == "bye") return yes(raw.bye());
    if (command.starts_with("v ")) return raw.set_value(kKey, std::stoull(command.substr(2))), "ok";
    if (command.starts_with("die-at ")) {
      const auto kind = std::stoul(command.substr(7));
      raw.before_post = [kind](std::uint32_t posted) {
        if (posted == kind) ::kill(::getpid(), SIGKILL);
      };
      return "ok";
    }
    if (command.starts_with("die-after ")) {
      // Posts the chain of that kind, which takes effect at once in shared memory, and dies before it learns so.
      const auto kind = std::stoul(command.substr(10));
      raw.after_post = [kind](std::uint32_t posted) {
        if (posted == kind) ::kill(::getpid(), SIGKILL);
      };
      return "ok";
    }
    return "unknown";
  }
  static int obey(const RawClientOptions& options, Talk& talk) {
    auto client = RawClient::connect(options);
    if (!client.ok()) {
      talk.say("failed: " + client.error().message);
      return 1;
    }
    talk.say("ready");
    for (;;) {
      const auto command = talk.hear(2ms);  // In between: serves revokes.
      if (!command.empty()) talk.say(act(**client, command));
      (*client)->run_for(2ms);
    }
  }

  Process process_;
};

class FaultTest : public ::testing::Test {
 protected:
  void start(std::uint64_t slots = 1024) {
    cluster_ = std::make_unique<TestCluster>(LOCKD_PROGRAM, slots);
  }
  bool sessions(std::size_t count) {
    return cluster_->eventually([&](const json& s) { return s["sessions"].size() == count; });
  }
  std::unique_ptr<TestCluster> cluster_;
};

TEST_F(FaultTest, AKilledHolderOfXFreesItsLock) {
  start();
  Client a(*cluster_, "a"), b(*cluster_, "b");
  ASSERT_EQ(a.ask("x"), "ok");
  ASSERT_EQ(a.ask("v 7"), "ok");
  b.tell("x");
  ASSERT_TRUE(cluster_->eventually([](const json& s) { return s["waiters"] == 1; }));
  a.process().kill_hard();
  EXPECT_EQ(b.hear(), "ok");
  EXPECT_EQ(b.ask("?"), "0") << "an unpublished value must not be believed";
  EXPECT_EQ(cluster_->status()["counters"]["lost"], 1);
  EXPECT_TRUE(sessions(1));
}

TEST_F(FaultTest, AKilledSharerIsCountedOut) {
  start();
  Client a(*cluster_, "a"), b(*cluster_, "b"), c(*cluster_, "c");
  for (auto* each : {&a, &b, &c}) ASSERT_EQ(each->ask("s"), "ok");
  a.process().kill_hard();
  ASSERT_EQ(b.ask("u"), "ok");
  ASSERT_EQ(c.ask("u"), "ok");
  EXPECT_EQ(b.ask("x"), "ok");
  EXPECT_GE(cluster_->status()["counters"]["freezes"], 1);
  EXPECT_EQ(cluster_->status()["held"]["s"], 0);
}

TEST_F(FaultTest, AKilledWaiterIsPassedOver) {
  start();
  Client a(*cluster_, "a"), b(*cluster_, "b"), c(*cluster_, "c");
  ASSERT_EQ(a.ask("x"), "ok");
  b.tell("x");
  ASSERT_TRUE(cluster_->eventually([](const json& s) { return s["waiters"] == 1; }));
  c.tell("x");
  ASSERT_TRUE(cluster_->eventually([](const json& s) { return s["waiters"] == 2; }));
  b.process().kill_hard();
  ASSERT_TRUE(sessions(2));
  ASSERT_EQ(a.ask("u"), "ok");
  EXPECT_EQ(c.hear(), "ok");
}

class DieAt : public FaultTest,
              public ::testing::WithParamInterface<std::tuple<const char*, df_chain_kind>> {};

TEST_P(DieAt, TheReleaserDies) {
  const auto [when, kind] = GetParam();
  start();
  Client a(*cluster_, "a"), b(*cluster_, "b");
  ASSERT_EQ(a.ask("x"), "ok");
  ASSERT_EQ(a.ask("u"), "ok");
  ASSERT_EQ(a.ask(std::string(when) + " " + std::to_string(kind)), "ok");
  b.tell("x");  // a is revoked, begins to release, and dies there.
  EXPECT_EQ(b.hear(), "ok");
  EXPECT_EQ(a.process().wait(), 128 + SIGKILL);
}

TEST_P(DieAt, TheTakerDiesAndSomebodyElseGetsTheLock) {
  const auto [when, kind] = GetParam();
  start();
  Client a(*cluster_, "a"), b(*cluster_, "b"), c(*cluster_, "c");
  ASSERT_EQ(b.ask("s"), "ok");
  ASSERT_EQ(b.ask("u"), "ok");
  ASSERT_EQ(a.ask(std::string(when) + " " +
                  std::to_string(kind == DF_CHAIN_RELEASE ? DF_CHAIN_TAKE : kind)),
            "ok");
  a.tell("s");
  EXPECT_EQ(a.process().wait(), 128 + SIGKILL);
  EXPECT_EQ(c.ask("x"), "ok");
  ASSERT_EQ(c.ask("u"), "ok");
  EXPECT_EQ(b.ask("x"), "ok");
  EXPECT_EQ(cluster_->status()["held"]["s"], 0);
}

INSTANTIATE_TEST_SUITE_P(BeforeAndAfter, DieAt,
                         ::testing::Values(std::tuple("die-at", DF_CHAIN_RELEASE),
                                           std::tuple("die-after", DF_CHAIN_RELEASE)));

TEST_F(FaultTest, FileLocksOfTheDeadAreFree) {
  start();
  Client a(*cluster_, "a"), b(*cluster_, "b");
  ASSERT_EQ(a.ask("fl"), "0");
  EXPECT_EQ(b.ask("fl"), std::to_string(EAGAIN));
  b.tell("flw");
  std::this_thread::sleep_for(50ms);
  a.process().kill_hard();
  EXPECT_EQ(b.hear(), "0");
}

TEST_F(FaultTest, NothingIsReclaimedWhileAStoragedIsAway) {
  start();
  Client a(*cluster_, "a"), b(*cluster_, "b");
  ASSERT_EQ(a.ask("x"), "ok");
  cluster_->stop_storage();
  a.process().kill_hard();
  ASSERT_TRUE(
      cluster_->eventually([](const json& s) { return s["sessions"][0]["state"] == "fencing"; }));
  b.tell("x");
  EXPECT_EQ(b.hear(1500ms), "") << "granted before the fence";
  cluster_->start_storage();
  EXPECT_EQ(b.hear(), "ok");
  EXPECT_TRUE(sessions(1));
}

TEST_F(FaultTest, ByeLeavesNothingAndNeedsNoStorage) {
  start();
  cluster_->stop_storage();
  Client a(*cluster_, "a");
  ASSERT_EQ(a.ask("x"), "ok");
  ASSERT_EQ(a.ask("u"), "ok");
  EXPECT_EQ(a.ask("bye"), "ok");
  EXPECT_TRUE(sessions(0));
  EXPECT_EQ(cluster_->status()["held"]["x"], 0);
}

TEST_F(FaultTest, LockdKilledAndStartedAgainIsANewIncarnation) {
  start();
  EXPECT_EQ(cluster_->status()["incarnation"], 1);
  cluster_->lockd().kill_hard();
  cluster_->start_lockd();
  EXPECT_EQ(cluster_->status()["incarnation"], 2);
  Client a(*cluster_, "a");
  EXPECT_EQ(a.ask("x"), "ok");
  cluster_->lockd().send_signal(SIGTERM);
  EXPECT_EQ(cluster_->lockd().wait(), 0);
}

/// Shared with the children: who is inside, by lock; and how far each came.
struct Arena {
  static constexpr std::size_t kLocks = 4;
  std::atomic<int> inside[kLocks];  // Pid of who holds X.
  std::atomic<int> violations;
  std::atomic<std::uint64_t> turns;
};

int contend(const RawClientOptions& options, Arena& arena, std::uint64_t seed) {
  auto client = RawClient::connect(options);
  if (!client.ok()) return 1;
  std::mt19937_64 random(seed);
  for (;;) {
    const auto which = random() % Arena::kLocks;
    const auto key = df_key_inode(100 + which);
    const bool exclusive = random() % 2 == 0;
    if (!(*client)->acquire(key, exclusive ? DF_X : DF_S, 30s)) return 2;
    if (exclusive) {
      // Who was inside before must be nobody or dead.
      const int before = arena.inside[which].exchange(::getpid());
      if (before != 0 && ::kill(before, 0) == 0) ++arena.violations;
      int me = ::getpid();
      if (!arena.inside[which].compare_exchange_strong(me, 0)) ++arena.violations;
    } else if (const int writer = arena.inside[which]; writer != 0 && ::kill(writer, 0) == 0) {
      ++arena.violations;
    }
    ++arena.turns;
    (*client)->unpin(key);
    if (random() % 4 == 0) (*client)->run_for(std::chrono::milliseconds(random() % 3));
  }
}

TEST_F(FaultTest, ExclusionHoldsWhileClientsAreKilledAtRandom) {
  const char* given = std::getenv("DISTFUSE_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  std::printf("DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  start(64);
  auto* arena = static_cast<Arena*>(
      ::mmap(nullptr, sizeof(Arena), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(arena, MAP_FAILED);
  std::mt19937_64 random(seed);
  constexpr std::size_t kClients = 4, kKills = 25;
  std::vector<Process> clients;
  const auto launch = [&] {
    const auto own = random();
    return Process::fork_child(
        [&, own](Talk&) { return contend(cluster_->options("c"), *arena, own); });
  };
  for (std::size_t i = 0; i < kClients; ++i) clients.push_back(launch());
  for (std::size_t kill = 0; kill < kKills; ++kill) {
    const auto before = arena->turns.load();
    std::this_thread::sleep_for(std::chrono::milliseconds(20 + random() % 120));
    const auto victim = random() % kClients;
    clients[victim].kill_hard();
    clients[victim] = launch();
    // The others come to their turns again: nothing is stuck.
    const auto until = std::chrono::steady_clock::now() + 20s;
    while (arena->turns < before + 50 && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(1ms);
    ASSERT_GE(arena->turns, before + 50) << "stuck after kill " << kill << ", seed " << seed << "\n"
                                         << cluster_->status().dump(1);
  }
  EXPECT_EQ(arena->violations, 0);
  const auto end = cluster_->status();
  std::printf("%llu turns, %zu kills, freezes %s, repairs %s\n",
              static_cast<unsigned long long>(arena->turns.load()), kKills,
              end["counters"]["freezes"].dump().c_str(), end["counters"]["repairs"].dump().c_str());
  for (auto& client : clients) EXPECT_EQ(client.wait(0ms), -1) << "a client gave up";
  EXPECT_EQ(end["counters"]["malformed"], 0);
  EXPECT_EQ(end["counters"]["drops"], 0);
  ::munmap(arena, sizeof(Arena));
}

// ---- how the program speaks to people

int run_lockd(const std::vector<std::string>& words, std::string* said = nullptr) {
  std::vector<std::string> command{"/bin/sh", "-c", "exec 2>&1; exec \"$0\" \"$@\"", LOCKD_PROGRAM};
  command.insert(command.end(), words.begin(), words.end());
  auto process = Process::start(command);
  const auto line = process.talk().hear(10s);
  if (said != nullptr) *said = line;
  return process.wait(10s);
}

TEST_F(FaultTest, ALockdWhoseStateWasWipedEndsAndSaysWhatToDo) {
  start();
  EXPECT_EQ(cluster_->storage_says(), "lockd 1");
  cluster_->lockd().kill_hard();
  cluster_->start_lockd();
  EXPECT_EQ(cluster_->storage_says(), "lockd 2");
  cluster_->lockd().kill_hard();
  const auto state = cluster_->cluster().lockd.state_dir;
  std::filesystem::remove_all(state);
  try {
    cluster_->start_lockd();
  } catch (const std::runtime_error&) {
    // It may have ended before it said that it was ready.
  }
  EXPECT_EQ(cluster_->lockd().wait(10s), 1);
  for (const auto& words : {std::string("has seen a later incarnation of lockd than this one, 1"),
                            "write \"" + cluster_->cluster().id + " NUMBER\""})
    EXPECT_NE(cluster_->log().find(words), std::string::npos) << cluster_->log();
  // As it says.
  std::ofstream(state + "/incarnation") << cluster_->cluster().id << " 2\n";
  cluster_->start_lockd();
  EXPECT_EQ(cluster_->storage_says(), "lockd 3");
  Client a(*cluster_, "a");
  EXPECT_EQ(a.ask("x"), "ok");
}

TEST_F(FaultTest, MistakesGetOneClearMessage) {
  start();
  std::string said;
  const auto other_state = cluster_->root() + "/other.toml";
  auto other = cluster_->cluster();
  other.lockd.state_dir = cluster_->root() + "/lockd2";
  std::ofstream(other_state) << config::to_toml(other);
  EXPECT_EQ(run_lockd({"--config", other_state}, &said), 1);
  EXPECT_NE(said.find(other.lockd.listen), std::string::npos) << said;
  EXPECT_EQ(run_lockd({"--config", cluster_->config_path()}, &said), 1);
  EXPECT_NE(said.find("another lockd runs"), std::string::npos) << said;
  EXPECT_EQ(run_lockd({"--config", cluster_->root() + "/none.toml"}, &said), 1);
  EXPECT_NE(said.find("none.toml"), std::string::npos) << said;
  EXPECT_NE(run_lockd({"--config", other_state, "--frobnicate"}, &said), 0);
  EXPECT_NE(run_lockd({"--config", other_state, "--log-level", "loud"}, &said), 0);
  EXPECT_NE(said.find("loud"), std::string::npos) << said;
  EXPECT_EQ(run_lockd({"--version"}, &said), 0);
  EXPECT_TRUE(said.starts_with("distfuse-lockd ")) << said;
  EXPECT_EQ(run_lockd({"--help"}, &said), 0);
}

}  // namespace
}  // namespace distfuse::lockd::testing
