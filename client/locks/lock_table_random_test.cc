// SPDX-License-Identifier: Apache-2.0
// Random work of several mounts on a few inodes, against an oracle, with the kernel's waits (testing/kernel.h). A hang is
// found by a watchdog, which prints all locks and aborts. DISTFUSE_SEED replays the operations (not the threads' timing).
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "client/locks/table.h"
#include "client/locks/testing/cluster.h"
#include "client/locks/testing/kernel.h"

namespace distfuse::client::testing {
namespace {

using namespace std::chrono_literals;

std::uint64_t seed_of_run() {
  const char* given = std::getenv("DISTFUSE_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  std::fprintf(stderr, "DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

std::chrono::milliseconds duration_of_run() {
  const char* given = std::getenv("DISTFUSE_SECONDS");
  return given != nullptr ? std::chrono::seconds(std::atoi(given)) : 4000ms;
}

struct World {
  explicit World(unsigned mounts, std::size_t max_locks = 1000, std::uint32_t lease_ms = 0)
      : cluster(64, lease_ms) {
    for (unsigned i = 0; i < mounts; ++i) {
      owners.push_back(std::make_unique<Mount>(i, truth));
      auto options = cluster.options("mount" + std::to_string(i));
      options.max_locks = max_locks;
      options.lanes = 4;
      options.give_up = std::chrono::seconds(60);
      options.revokers = 2;
      tables.push_back(cluster.table(options, *owners.back()));
      owners.back()->use(*tables.back());
    }
  }
  ~World() { tables.clear(); }

  [[noreturn]] void hang(const char* what) {
    std::fprintf(stderr, "HANG: %s\n%s\n", what, cluster.status().c_str());
    for (std::size_t i = 0; i < tables.size(); ++i) {
      std::fprintf(stderr, "%s%s", owners[i]->describe().c_str(),
                   dynamic_cast<Table&>(*tables[i]).describe().c_str());
    }
    std::abort();
  }

  Cluster cluster;
  Truth truth;
  std::vector<std::unique_ptr<Mount>> owners;
  std::vector<std::unique_ptr<LockTable>> tables;
};

/// One thread of applications on one mount.
class Worker {
 public:
  Worker(World& world, unsigned mount, std::uint64_t seed)
      : mount_(*world.owners[mount]), table_(*world.tables[mount]), random_(seed) {}

  void run(const std::atomic<bool>& stop) {
    while (!stop && !mount_.lost) {
      step();
      ++operations;
    }
    for (Ino ino = 1; ino <= kInodes; ++ino) {
      for (; opens_[ino - 1] > 0; --opens_[ino - 1]) mount_.close_for_writing(ino);
    }
    ended = true;
  }

  std::atomic<std::uint64_t> operations = 0;
  std::atomic<bool> ended = false;

 private:
  std::uint64_t pick(std::uint64_t n) { return random_() % n; }

  void step() {
    const Ino ino = 1 + pick(kInodes);
    const std::size_t page = pick(kPages);
    Interrupted interrupted;
    if (pick(20) == 0) interrupted = [] { return true; };
    switch (pick(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
        mount_.read(ino, page, interrupted);
        return;
      case 4:
      case 5:
        if (opens_[ino - 1]++ == 0) mount_.open_for_writing(ino);
        mount_.write(ino, page, 1 + pick(kPages - page), interrupted);
        if (--opens_[ino - 1] == 0) mount_.close_for_writing(ino);
        return;
      case 6:
      case 7:
        if (opens_[ino - 1] > 0)
          mount_.store(ino, page);  // A mapping exists when its open has returned.
        return;
      case 8:
      case 9:
        mount_.stat(ino, interrupted);
        return;
      case 10:
        mount_.grow(ino, interrupted);
        return;
      case 11:
        mount_.rename(ino, 1 + pick(kInodes), interrupted);
        return;
      case 12:
        mount_.readdirplus();
        return;
      case 13:
        mount_.stat_by_glimpse(ino);
        return;
      case 14:
        if (opens_[ino - 1] == 0 && pick(2) == 0) {
          mount_.open_for_writing(ino);
          ++opens_[ino - 1];
        } else if (opens_[ino - 1] > 0) {
          mount_.close_for_writing(ino);
          --opens_[ino - 1];
        }
        return;
      default:
        if (pick(4) == 0) table_.forget(ino);
        if (pick(8) == 0) table_.drop(ino, pick(2) == 0 ? Mode::s : Mode::x);
        return;
    }
  }

  Mount& mount_;
  LockTable& table_;
  std::mt19937_64 random_;
  std::array<int, kInodes> opens_{};
};

struct Load {
  unsigned mounts, threads;
};

class LockTableRandomTest : public ::testing::TestWithParam<Load> {};

void watch(World& world, const std::vector<std::unique_ptr<Worker>>& workers,
           std::chrono::milliseconds duration, std::atomic<bool>& stop,
           const std::function<void()>& halfway = {}) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::uint64_t> last(workers.size(), 0);
  std::vector<int> stuck(workers.size(), 0);
  bool half = false;
  while (true) {
    std::this_thread::sleep_for(250ms);
    const auto elapsed = std::chrono::steady_clock::now() - begin;
    if (!half && halfway && elapsed > duration / 2) {
      half = true;
      halfway();
    }
    if (elapsed > duration) stop = true;
    bool all_ended = true;
    for (std::size_t i = 0; i < workers.size(); ++i) {
      const auto now = workers[i]->operations.load();
      all_ended &= workers[i]->ended.load();
      stuck[i] = now == last[i] && !workers[i]->ended ? stuck[i] + 1 : 0;
      last[i] = now;
      if (stuck[i] > 4 * 20) world.hang("a worker has not moved for 20 s");
    }
    if (all_ended) return;
  }
}

/// `disturb`: runs beside the load until `stop`.
void run_load(World& world, unsigned mounts, unsigned threads, std::uint64_t seed,
              const std::function<void(const std::atomic<bool>& stop)>& disturb = {}) {
  std::vector<std::unique_ptr<Worker>> workers;
  for (unsigned i = 0; i < mounts * threads; ++i) {
    workers.push_back(std::make_unique<Worker>(world, i % mounts, seed + i));
  }
  std::atomic<bool> stop = false;
  std::vector<std::thread> running;
  for (auto& worker : workers) running.emplace_back([&] { worker->run(stop); });
  if (disturb) running.emplace_back([&] { disturb(stop); });
  watch(world, workers, duration_of_run(), stop);
  for (auto& thread : running) thread.join();
  std::uint64_t operations = 0;
  for (auto& worker : workers) operations += worker->operations;
  LockCounters sum;
  for (auto& table : world.tables) {
    const auto counters = table->counters();
    sum.hits += counters.hits;
    sum.asks += counters.asks;
    sum.revokes += counters.revokes;
    sum.resweeps += counters.resweeps;
    sum.finds += counters.finds;
  }
  std::fprintf(
      stderr, "%llu operations, %llu hits, %llu asks, %llu revokes, %llu resweeps, %llu finds\n",
      static_cast<unsigned long long>(operations), static_cast<unsigned long long>(sum.hits),
      static_cast<unsigned long long>(sum.asks), static_cast<unsigned long long>(sum.revokes),
      static_cast<unsigned long long>(sum.resweeps), static_cast<unsigned long long>(sum.finds));
  EXPECT_GT(operations, 100u);
  for (auto& mount : world.owners) EXPECT_FALSE(mount->lost);
  for (std::size_t i = 0; i < kInodes; ++i) {
    for (auto& page : world.truth.pages[i]) EXPECT_LE(page.done, page.written);
  }
  // Orderly ends bring everything to storage.
  for (auto& table : world.tables) {
    for (int i = 0; i < 1000 && table->session().state != "live"; ++i)
      std::this_thread::sleep_for(10ms);
    EXPECT_EQ(table->session().forfeited, 0u);
  }
  world.tables.clear();
  for (std::size_t i = 0; i < kInodes; ++i) {
    for (auto& page : world.truth.pages[i]) EXPECT_EQ(page.stored, page.written);
    EXPECT_EQ(world.truth.sizes[i].stored, world.truth.sizes[i].written);
  }
}

TEST_P(LockTableRandomTest, MountsAgree) {
  const auto seed = seed_of_run();
  const auto [mounts, threads] = GetParam();
  World world(mounts);
  run_load(world, mounts, threads, seed);
}

/// Nobody loses a byte, nor a lock, whenever lockd ends.
TEST_P(LockTableRandomTest, MountsAgreeOverRestartsOfLockd) {
  const auto seed = seed_of_run();
  const auto [mounts, threads] = GetParam();
  World world(mounts, 1000, 2000);
  unsigned restarts = 0;
  run_load(world, mounts, threads, seed, [&](const std::atomic<bool>& stop) {
    std::mt19937_64 random(seed);
    while (!stop) {
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 600));
      world.cluster.stop();
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 300));
      world.cluster.start();
      ++restarts;
      if (random() % 4 == 0) continue;  // Perhaps in the middle of the re-assertion.
      const auto live = [](const auto& table) { return table->session().state == "live"; };
      while (!stop && !std::ranges::all_of(world.tables, live)) std::this_thread::sleep_for(5ms);
    }
  });
  EXPECT_GT(restarts, 2u);
  EXPECT_EQ(world.cluster.fenced(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Loads, LockTableRandomTest,
                         ::testing::Values(Load{2, 1}, Load{2, 4}, Load{3, 4}),
                         [](const auto& tested) {
                           return std::to_string(tested.param.mounts) + "x" +
                                  std::to_string(tested.param.threads);
                         });

class NoCache final : public CacheOwner {
 public:
  void invalidate_kernel(Ino /*ino*/, std::span<const Range> /*ranges*/) override {}
  void shed(Ino /*ino*/, Mode /*keep*/) override {}
  std::optional<ValueBlock> publish(Ino /*ino*/) override { return {}; }
  void session_lost(const std::string& /*reason*/) override { lost = true; }
  std::atomic<bool> lost = false;
};

/// Finds by lockd, slots that get another key, victims that are revoked for their slot.
TEST(LockTableFullTest, MoreInodesThanSlots) {
  constexpr unsigned kMany = 400;
  const auto seed = seed_of_run();
  const Cluster cluster(64);  // And 16 for the overflow.
  NoCache owners[2];
  std::unique_ptr<LockTable> tables[2];
  for (unsigned i = 0; i < 2; ++i) {
    auto options = cluster.options("mount" + std::to_string(i));
    options.max_locks = 60;
    tables[i] = cluster.table(options, owners[i]);
  }
  std::array<std::atomic<int>, kMany> holders{};
  std::vector<std::atomic<std::uint64_t>> progress(6);
  std::atomic<bool> stop = false;
  std::vector<std::thread> running;
  for (unsigned i = 0; i < progress.size(); ++i) {
    running.emplace_back([&, i] {
      std::mt19937_64 random(seed + i);
      const int mount = 1 + static_cast<int>(i % 2);
      while (!stop) {
        const std::size_t which = random() % kMany;
        auto pin = tables[i % 2]->pin(1 + which, Mode::x);
        ASSERT_TRUE(pin.ok()) << pin.error().message;
        const int before = holders[which].exchange(mount);
        EXPECT_TRUE(before == 0 || before == mount);
        std::this_thread::yield();
        holders[which] = 0;
        ++progress[i];
      }
    });
  }
  std::vector<std::uint64_t> last(progress.size());
  for (int second = 0; second < 3; ++second) {
    for (std::size_t i = 0; i < progress.size(); ++i) last[i] = progress[i];
    for (int tries = 0; tries < 20; ++tries) {
      std::this_thread::sleep_for(1s);
      bool all = true;
      for (std::size_t i = 0; i < progress.size(); ++i) all &= progress[i] > last[i];
      if (all) break;
      if (tries < 19) continue;
      for (auto& table : tables)
        std::fputs(dynamic_cast<Table&>(*table).describe().c_str(), stderr);
      std::abort();
    }
  }
  stop = true;
  for (auto& thread : running) thread.join();
  EXPECT_GT(tables[0]->counters().finds, 0u);
  EXPECT_FALSE(owners[0].lost || owners[1].lost);
}

TEST(LockTableLossTest, OthersGoOnWhenOneIsLost) {
  const auto seed = seed_of_run();
  World world(3);
  std::vector<std::unique_ptr<Worker>> workers;
  // What the lost mount had not brought to storage is gone, so here the survivors only must not hang.
  std::vector<std::thread> running;
  std::atomic<bool> stop = false;
  std::atomic<std::uint64_t> after = 0;
  std::vector<std::atomic<std::uint64_t>> progress(9);
  std::atomic<bool> lost = false;
  for (unsigned i = 0; i < 9; ++i) {
    running.emplace_back([&, i] {
      std::mt19937_64 random(seed + i);
      LockTable& table = *world.tables[i % 3];
      while (!stop) {
        const Mode mode = random() % 2 == 0 ? Mode::s : Mode::x;
        auto pin = table.pin(1 + random() % kInodes, mode);
        if (!pin) {
          EXPECT_EQ(pin.error().code, ENOTCONN);
          EXPECT_EQ(i % 3, 0u);
          return;
        }
        ++progress[i];
        if (lost) ++after;
      }
    });
  }
  std::this_thread::sleep_for(500ms);
  dynamic_cast<Table&>(*world.tables[0]).abandon("the test says so");
  lost = true;
  std::this_thread::sleep_for(500ms);
  std::vector<std::uint64_t> before(9);
  for (unsigned i = 0; i < 9; ++i) before[i] = progress[i];
  for (int tries = 0; tries < 80; ++tries) {
    std::this_thread::sleep_for(250ms);
    bool all = true;
    for (unsigned i = 0; i < 9; ++i) all &= i % 3 == 0 || progress[i] > before[i];
    if (all) break;
    if (tries == 79) world.hang("a survivor does not get its locks");
  }
  stop = true;
  for (auto& thread : running) thread.join();
  EXPECT_GT(after, 0u);
  EXPECT_TRUE(world.owners[0]->lost);
  EXPECT_EQ(world.cluster.fenced(), 1u);
}

}  // namespace
}  // namespace distfuse::client::testing
