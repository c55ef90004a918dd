// SPDX-License-Identifier: Apache-2.0
// Leases and lockd's restart, as the mounts' lock tables see them: real service, real tables, in one process.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <mutex>
#include <thread>

#include "client/locks/table.h"
#include "client/locks/testing/cluster.h"
#include "lockd/testing/raw_client.h"

namespace distfuse::client {
namespace {

using namespace std::chrono_literals;
using testing::Cluster;

class Owner final : public CacheOwner {
 public:
  void invalidate_kernel(Ino /*ino*/, std::span<const Range> /*ranges*/) override { ++sweeps; }
  void invalidate_attributes(Ino /*ino*/) override { ++attribute_sweeps; }
  void shed(Ino /*ino*/, Mode /*keep*/) override { ++sheds; }
  void forfeit(Ino /*ino*/) override { ++forfeits; }
  std::optional<ValueBlock> publish(Ino /*ino*/) override { return {}; }
  void session_lost(const std::string& /*reason*/) override { ++losses; }
  std::atomic<int> sweeps = 0, attribute_sweeps = 0, sheds = 0, forfeits = 0, losses = 0;
};

LockTable::FileLock file_lock(Ino ino, std::uint64_t owner, std::int16_t type) {
  return {ino, owner, false, type, 0, 99, 1};
}

class RecoveryTest : public ::testing::Test {
 protected:
  static bool eventually(const std::function<bool()>& good) {
    for (int i = 0; i < 1500; ++i) {
      if (good()) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }
  static bool is(LockTable& table, const char* state) { return table.session().state == state; }
  static Table& inside(LockTable& table) { return dynamic_cast<Table&>(table); }

  static constexpr std::uint32_t kLease = 1200;
  Cluster cluster_{4096, kLease};
  Owner owner_a_, owner_b_;
  std::unique_ptr<LockTable> a_ = cluster_.table("a", owner_a_);
  std::unique_ptr<LockTable> b_ = cluster_.table("b", owner_b_);
};

TEST_F(RecoveryTest, RenewalsKeepTheSession) {
  ASSERT_TRUE(a_->pin(7, Mode::x).ok());
  std::this_thread::sleep_for(3 * std::chrono::milliseconds(kLease));
  EXPECT_TRUE(is(*a_, "live"));
  EXPECT_GT(a_->trust_left(), 0u);
  EXPECT_LE(a_->trust_left(), kLease * 7 / 10);
  EXPECT_EQ(a_->session().lease_ms, kLease);
  EXPECT_EQ(a_->counters().held, 1u);
  EXPECT_EQ(owner_a_.attribute_sweeps, 0);
}

TEST_F(RecoveryTest, ARestartOfLockdTakesNothingAway) {
  const auto before = a_->session();
  auto pinned = a_->pin(7, Mode::x);
  ASSERT_TRUE(pinned.ok());
  for (Ino ino = 100; ino < 400; ++ino)
    ASSERT_TRUE(a_->pin(ino, ino % 2 == 0 ? Mode::s : Mode::x).ok());
  for (Ino ino = 100; ino < 400; ino += 2) ASSERT_TRUE(b_->pin(ino, Mode::s).ok());
  ASSERT_TRUE(a_->file_lock(file_lock(7, 1, F_WRLCK), false).ok());
  auto waiter = std::async(std::launch::async, [&] { return b_->pin(7, Mode::s).ok(); });
  auto file_waiter = std::async(std::launch::async,
                                [&] { return b_->file_lock(file_lock(7, 2, F_WRLCK), true).ok(); });
  std::this_thread::sleep_for(50ms);
  cluster_.stop();
  ASSERT_TRUE(eventually([&] { return is(*a_, "connecting"); }));
  EXPECT_TRUE(a_->pin(101, Mode::x).ok()) << "what is held is used while it is trusted";
  auto fresh = std::async(std::launch::async, [&] { return a_->pin(5000, Mode::x).ok(); });
  cluster_.start();
  ASSERT_TRUE(eventually([&] { return is(*a_, "live") && is(*b_, "live"); }));
  const auto after = a_->session();
  EXPECT_EQ(after.session, before.session);
  EXPECT_EQ(after.node_id, before.node_id);
  EXPECT_GT(after.incarnation, before.incarnation);
  EXPECT_EQ(after.reconnects, 1u);
  EXPECT_EQ(after.forfeited, 0u);
  EXPECT_EQ(after.file_locks, 1u);
  EXPECT_TRUE(fresh.get());
  EXPECT_GE(a_->counters().held, 301u);
  EXPECT_EQ(owner_a_.losses + owner_b_.losses, 0);
  EXPECT_EQ(waiter.wait_for(50ms), std::future_status::timeout) << "7 is still pinned";
  pinned->release();
  EXPECT_TRUE(waiter.get());
  EXPECT_EQ(file_waiter.wait_for(50ms), std::future_status::timeout);
  ASSERT_TRUE(a_->file_lock(file_lock(7, 1, F_UNLCK), false).ok());
  EXPECT_TRUE(file_waiter.get());
  for (Ino ino = 100; ino < 110; ++ino) EXPECT_TRUE(b_->pin(ino, Mode::x).ok()) << ino;
}

TEST_F(RecoveryTest, OneRestartAfterTheOther) {
  for (Ino ino = 1; ino <= 200; ++ino) ASSERT_TRUE(a_->pin(ino, Mode::x).ok());
  for (int round = 0; round < 4; ++round) {
    cluster_.stop();
    cluster_.start();
    if (round % 2 == 0) continue;  // Perhaps in the middle of the re-assertion.
    ASSERT_TRUE(eventually([&] { return is(*a_, "live") && is(*b_, "live"); }));
  }
  EXPECT_EQ(a_->counters().held, 200u);
  EXPECT_TRUE(b_->pin(3, Mode::x).ok());
  EXPECT_EQ(owner_a_.losses + owner_b_.losses + owner_a_.forfeits, 0);
}

TEST_F(RecoveryTest, WithoutRenewalLocksAreNotUsed) {
  ASSERT_TRUE(a_->pin(7, Mode::s).ok());
  ASSERT_TRUE(a_->pin_page_io(8, Mode::s, {0, 4096}).ok());
  inside(*a_).withhold_renewals(true);
  ASSERT_TRUE(eventually([&] { return a_->trust_left() == 0; }));
  EXPECT_FALSE(a_->try_pin(7, Mode::s));
  EXPECT_EQ(a_->pin(7, Mode::s, [] { return true; }).error().code, EINTR);
  EXPECT_TRUE(eventually([&] { return owner_a_.attribute_sweeps == 2 && owner_a_.sweeps == 1; }))
      << "the kernel would go on serving what it has";
  auto waiter = std::async(std::launch::async, [&] { return a_->pin(7, Mode::s).ok(); });
  EXPECT_EQ(waiter.wait_for(50ms), std::future_status::timeout);
  inside(*a_).withhold_renewals(false);
  EXPECT_TRUE(waiter.get());
  EXPECT_EQ(a_->counters().held, 2u);
  EXPECT_EQ(owner_a_.losses, 0);
}

TEST_F(RecoveryTest, WhoStandsStillPastTheLeaseIsLostAndTheOthersGoOn) {
  auto pinned = a_->pin(7, Mode::x);
  ASSERT_TRUE(pinned.ok());
  ASSERT_TRUE(a_->file_lock(file_lock(7, 1, F_WRLCK), false).ok());
  inside(*a_).pause_lease(true);
  EXPECT_TRUE(b_->pin(7, Mode::x).ok());
  EXPECT_EQ(a_->trust_left(), 0u) << "b has it, so a does not believe that it has";
  EXPECT_TRUE(b_->file_lock(file_lock(7, 2, F_WRLCK), true).ok());
  EXPECT_EQ(cluster_.fenced(), 1u);
  auto waiter = std::async(std::launch::async, [&] { return a_->pin(7, Mode::s).error().code; });
  inside(*a_).pause_lease(false);
  EXPECT_EQ(waiter.get(), ENOTCONN);
  EXPECT_TRUE(eventually([&] { return owner_a_.losses == 1; }));
  EXPECT_TRUE(is(*a_, "lost"));
  EXPECT_EQ(a_->session().file_locks, 0u);
  pinned->release();
  a_.reset();
  a_ = cluster_.table("a again", owner_a_);
  EXPECT_TRUE(a_->pin(7, Mode::s).ok());
}

TEST_F(RecoveryTest, FencedAtAStoragedIsLostAtOnceAlthoughItIsTrusted) {
  ASSERT_TRUE(a_->pin(7, Mode::x).ok());
  auto pinned = b_->pin(8, Mode::x);
  ASSERT_TRUE(pinned.ok());
  auto waiter = std::async(std::launch::async, [&] { return a_->pin(8, Mode::x).error().code; });
  std::this_thread::sleep_for(50ms);
  ASSERT_GT(a_->trust_left(), 0u);
  a_->fenced();
  a_->fenced();
  EXPECT_EQ(waiter.get(), ENOTCONN);
  EXPECT_TRUE(eventually([&] { return owner_a_.losses == 1; }));
  EXPECT_EQ(a_->trust_left(), 0u);
  EXPECT_TRUE(is(*a_, "lost"));
  EXPECT_TRUE(b_->pin(7, Mode::x).ok());
  EXPECT_EQ(owner_a_.losses, 1);
}

TEST_F(RecoveryTest, LockdThatStaysAwayEndsTheSession) {
  ASSERT_TRUE(a_->pin(7, Mode::s).ok());
  auto waiter = std::async(std::launch::async, [&] {
    const auto pin = a_->pin(8, Mode::s);
    return pin.ok() ? 0 : pin.error().code;
  });
  cluster_.stop();
  EXPECT_TRUE(a_->pin(7, Mode::s).ok()) << "while it is trusted";
  ASSERT_TRUE(eventually([&] { return owner_a_.losses == 1 && owner_b_.losses == 1; }));
  const int code = waiter.get();
  EXPECT_TRUE(code == 0 || code == ENOTCONN) << code;
  EXPECT_EQ(a_->pin(7, Mode::s).error().code, ENOTCONN);
}

/// Pages of which one is stored to through a mapping again and again: each sweep of the whole file finds it dirty and waits for its writeback,
/// and for a READ that has the next page locked.
class MappingOwner final : public CacheOwner {
 public:
  void invalidate_kernel(Ino ino, std::span<const Range> ranges) override {
    if (ino != mapped || !ranges.empty()) return;
    const auto page_io = [&](Mode mode, Range range) {
      const auto give_up = std::chrono::steady_clock::now() + 8s;
      const auto pin = table->pin_page_io(
          ino, mode, range, [=] { return std::chrono::steady_clock::now() > give_up; });
      return pin.ok() ? 0 : pin.error().code;
    };
    auto read = std::async(std::launch::async, [&] { return page_io(Mode::s, {4096, 4096}); });
    const int written = page_io(Mode::x, {0, 4096});
    const int was_read = read.get();
    const std::lock_guard lock(mutex);
    writes.push_back(written);
    reads.push_back(was_read);
  }
  void invalidate_attributes(Ino /*ino*/) override {}
  void shed(Ino ino, Mode /*keep*/) override { sheds += ino == mapped ? 1 : 0; }
  void forfeit(Ino ino) override {
    EXPECT_EQ(ino, mapped);
    ++forfeits;
  }
  std::optional<ValueBlock> publish(Ino /*ino*/) override { return {}; }
  void session_lost(const std::string& /*reason*/) override { ++losses; }
  [[nodiscard]] std::size_t failed(const std::vector<int>& codes) {
    const std::lock_guard lock(mutex);
    return static_cast<std::size_t>(std::ranges::count(codes, EIO));
  }

  LockTable* table = nullptr;
  Ino mapped = 0;
  std::mutex mutex;
  std::vector<int> reads, writes;  ///< 0 or errno.
  std::atomic<int> sheds = 0, forfeits = 0, losses = 0;
};

/// Lies after a restart: comes back in its own session, and takes what it never had.
class Liar {
 public:
  explicit Liar(const Cluster& cluster) { connect(cluster, 0, {}); }
  /// Once lockd has restarted.
  void take_first(const Cluster& cluster, Ino ino) {
    connect(cluster, client_->welcome().session, client_->token());
    ASSERT_TRUE(client_->reassert(df_key_inode(ino), DF_X));
    client_->reclaimed();
    thread_ = std::thread([this, ino] {
      client_->run_until([this] { return told_.load(); }, 20s);
      client_->unpin(df_key_inode(ino));
      client_->run_until([this] { return over_.load(); }, 20s);
    });
  }
  void give_up() { told_ = true; }
  ~Liar() {
    told_ = over_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  void connect(const Cluster& cluster, std::uint64_t session, const lockd::SessionToken& token) {
    lockd::testing::RawClientOptions options;
    options.lockd = cluster.options("liar").lockd;
    options.cluster_id = Cluster::kId;
    options.name = "liar";
    options.session = session;
    options.token = token;
    auto client = lockd::testing::RawClient::connect(options);
    ASSERT_TRUE(client.ok()) << client.error().message;
    client_ = std::move(*client);
    client_->renew_lease();
  }
  std::unique_ptr<lockd::testing::RawClient> client_;
  std::atomic<bool> told_ = false, over_ = false;
  std::thread thread_;
};

TEST(ForfeitTest, PageIoThatTheSweepWaitsForFails) {
  constexpr std::uint32_t kLease = 1400;
  constexpr Ino kMapped = 7;
  Cluster cluster(4096, kLease);
  MappingOwner owner;
  auto table = cluster.table("honest", owner);
  owner.table = table.get();
  owner.mapped = kMapped;
  ASSERT_TRUE(table->pin_page_io(kMapped, Mode::x, {0, 8192}).ok());
  for (Ino ino = 100; ino < 200; ++ino)
    ASSERT_TRUE(table->pin_page_io(ino, Mode::x, {0, 4096}).ok());
  const auto before = table->session().session;
  Liar liar(cluster);
  auto& inside = dynamic_cast<Table&>(*table);
  inside.pause_lease(true);
  cluster.stop();
  std::this_thread::sleep_for(1500ms);
  cluster.start();
  liar.take_first(cluster, kMapped);
  inside.pause_lease(false);
  const auto give_up = std::chrono::steady_clock::now() + 15s;
  while (owner.forfeits == 0 && owner.losses == 0 && std::chrono::steady_clock::now() < give_up)
    std::this_thread::sleep_for(5ms);
  ASSERT_EQ(owner.forfeits, 1) << inside.describe();
  EXPECT_EQ(owner.failed(owner.writes), 1u) << "the writeback that the sweep waited for";
  EXPECT_EQ(owner.failed(owner.reads), 1u);
  EXPECT_EQ(std::ranges::count(owner.writes, EINTR) + std::ranges::count(owner.reads, EINTR), 0);
  EXPECT_EQ(owner.sheds, 0) << "nothing of it is written";
  while (table->session().state != "live" && std::chrono::steady_clock::now() < give_up)
    std::this_thread::sleep_for(5ms);
  const auto after = table->session();
  EXPECT_EQ(after.state, "live");
  EXPECT_EQ(after.session, before);
  EXPECT_EQ(after.forfeited, 1u);
  EXPECT_EQ(table->counters().held, 100u);
  for (Ino ino = 100; ino < 200; ++ino)
    EXPECT_TRUE(table->pin_page_io(ino, Mode::x, {0, 4096}).ok()) << ino;
  auto again = std::async(std::launch::async, [&] {
    return table->pin_page_io(kMapped, Mode::x, {0, 4096}).ok();
  });
  EXPECT_EQ(again.wait_for(100ms), std::future_status::timeout) << "the liar has it";
  liar.give_up();
  EXPECT_TRUE(again.get());
  EXPECT_EQ(owner.failed(owner.writes), 1u) << "told once";
  EXPECT_EQ(owner.losses, 0);
}

/// Keeps S when it is asked for it, and takes its time over the writeback behind the closed gate.
class KeepingOwner final : public CacheOwner {
 public:
  void invalidate_kernel(Ino /*ino*/, std::span<const Range> ranges) override {
    cached = cached && !ranges.empty();
    ++sweeps;
  }
  void invalidate_attributes(Ino /*ino*/) override { ++attribute_sweeps; }
  void shed(Ino /*ino*/, Mode keep) override {
    if (keep == Mode::s) {
      ++kept;
      go_on.get_future().wait();
    }
  }
  void forfeit(Ino /*ino*/) override { ++forfeits; }
  std::optional<ValueBlock> publish(Ino /*ino*/) override { return {}; }
  void session_lost(const std::string& /*reason*/) override { ++losses; }

  std::promise<void> go_on;
  std::atomic<bool> cached = true;  ///< The kernel has pages.
  std::atomic<int> sweeps = 0, attribute_sweeps = 0, kept = 0, forfeits = 0, losses = 0;
};

/// What is kept under S, forfeited before the writeback behind the closed gate has ended (true) or after it (false).
class ForfeitKeptTest : public ::testing::TestWithParam<bool> {};

TEST_P(ForfeitKeptTest, NothingStaysCached) {
  constexpr std::uint32_t kLease = 1400;
  constexpr Ino kKept = 7;
  const auto soon = [](const std::function<bool()>& good) {
    for (int i = 0; i < 3000 && !good(); ++i) std::this_thread::sleep_for(5ms);
    return good();
  };
  Cluster cluster(4096, kLease);
  KeepingOwner owner;
  Owner other_owner;
  auto table = cluster.table("honest", owner);
  auto other = cluster.table("other", other_owner);
  auto& inside = dynamic_cast<Table&>(*table);
  ASSERT_TRUE(table->pin_page_io(kKept, Mode::x, {0, 4096}).ok());
  auto wants = std::async(std::launch::async, [&] { return other->pin(kKept, Mode::s).ok(); });
  ASSERT_TRUE(soon([&] { return owner.kept == 1; })) << inside.describe();
  ASSERT_TRUE(owner.cached) << "S covers it";
  Liar liar(cluster);
  inside.pause_lease(true);
  cluster.stop();
  std::this_thread::sleep_for(1500ms);
  if (!GetParam()) owner.go_on.set_value();
  cluster.start();
  liar.take_first(cluster, kKept);
  inside.pause_lease(false);
  ASSERT_TRUE(soon([&] { return table->session().forfeited == 1 || owner.losses != 0; }))
      << inside.describe();
  if (GetParam()) owner.go_on.set_value();
  EXPECT_TRUE(soon([&] { return owner.forfeits == 1; })) << inside.describe();
  EXPECT_FALSE(owner.cached) << "nothing vouches for it any more";
  ASSERT_TRUE(soon([&] { return table->session().state == "live"; }));
  liar.give_up();
  EXPECT_TRUE(wants.get());
  // Its next hold is as good as any.
  EXPECT_TRUE(table->pin_page_io(kKept, Mode::x, {0, 4096}).ok());
  table->drop(kKept, Mode::x);
  EXPECT_EQ(owner.forfeits, 1);
  EXPECT_EQ(owner.losses, 0);
}

INSTANTIATE_TEST_SUITE_P(Closed, ForfeitKeptTest, ::testing::Bool(), [](const auto& tested) {
  return tested.param ? "DuringTheShed" : "AfterTheShed";
});

TEST(RecoveryScaleTest, ManyLocksAreTakenAgainSoon) {
  constexpr Ino kMany = 20000;
  Cluster cluster(65536, 4000);
  Owner owner;
  auto table = cluster.table("many", owner);
  for (Ino ino = 1; ino <= kMany; ++ino) ASSERT_TRUE(table->pin(ino, Mode::x).ok());
  cluster.stop();
  cluster.start();
  const auto began = std::chrono::steady_clock::now();
  while (table->session().state != "live" || table->session().reconnects == 0)
    std::this_thread::sleep_for(1ms);
  const auto took = std::chrono::steady_clock::now() - began;
  std::fprintf(
      stderr, "%llu locks in %lld ms\n", static_cast<unsigned long long>(kMany),
      static_cast<long long>(std::chrono::duration_cast<std::chrono::milliseconds>(took).count()));
  EXPECT_LT(took, 4s);
  EXPECT_EQ(table->counters().held, kMany);
  EXPECT_EQ(table->session().forfeited, 0u);
}

/// A table so full that thousands of keys lie in its overflow area: those cost a Find each, which nothing else bounds in grace.
TEST(RecoveryScaleTest, AHundredThousandLocksOfAFullTableKeepTheBoundsOfMessages) {
  constexpr Ino kMany = 100000;
  constexpr std::uint32_t kLease = 10000;
  Cluster cluster(131072, kLease);
  Owner owner;
  LockTableOptions options = cluster.options("many");
  options.max_locks = 2 * kMany;
  auto table = cluster.table(options, owner);
  for (Ino ino = 1; ino <= kMany; ++ino) ASSERT_TRUE(table->pin(ino, Mode::x).ok());
  const auto before = table->session();
  const auto counted = table->counters();
  ASSERT_EQ(counted.held, kMany);
  cluster.stop();
  cluster.start();
  const auto began = std::chrono::steady_clock::now();
  while (table->session().state != "live" || table->session().reconnects == 0) {
    ASSERT_LT(std::chrono::steady_clock::now() - began, 30s);
    std::this_thread::sleep_for(1ms);
  }
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - began);
  const auto after = table->session();
  const auto finds = table->counters().finds - counted.finds;
  std::fprintf(stderr, "%llu locks in %lld ms, %llu Finds\n",
               static_cast<unsigned long long>(kMany), static_cast<long long>(took.count()),
               static_cast<unsigned long long>(finds));
  EXPECT_LT(took, std::chrono::milliseconds(kLease)) << "grace is this long and a fifth";
  EXPECT_EQ(after.session, before.session) << "lockd drops who asks too much";
  EXPECT_EQ(after.reconnects, 1u);
  EXPECT_EQ(after.forfeited, 0u);
  EXPECT_EQ(table->counters().held, kMany);
  EXPECT_EQ(table->counters().asks, counted.asks) << "a re-assertion never asks";
  EXPECT_GT(finds, 1000u) << "the table is not full";
  EXPECT_LT(finds, kMany / 4) << "chains do the work";
  EXPECT_EQ(cluster.fenced(), 0u);
  EXPECT_EQ(owner.losses, 0);
}

}  // namespace
}  // namespace distfuse::client
