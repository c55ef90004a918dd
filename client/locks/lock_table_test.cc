// SPDX-License-Identifier: Apache-2.0
#include "client/locks/lock_table.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "client/locks/table.h"
#include "client/locks/testing/cluster.h"

namespace distfuse::client {
namespace {

using namespace std::chrono_literals;
using testing::Cluster;

/// Counts what it is asked; what a test wants to happen inside is set as a function.
class CountingOwner : public CacheOwner {
 public:
  void invalidate_kernel(Ino ino, std::span<const Range> ranges) override {
    ++(ranges.empty() ? sweeps : resweeps);
    if (on_sweep) on_sweep(ino);
  }
  void invalidate_attributes(Ino /*ino*/) override { ++attribute_sweeps; }
  void shed(Ino /*ino*/, Mode keep) override { ++(keep == Mode::none ? sheds : downgrades); }
  std::optional<ValueBlock> publish(Ino /*ino*/) override {
    const std::lock_guard lock(mutex);
    return block;
  }
  void session_lost(const std::string& /*reason*/) override { ++losses; }
  Mode keep_allowed(Ino /*ino*/, Mode asked) override { return may_keep ? asked : Mode::none; }

  void set_block(std::optional<ValueBlock> value) {
    const std::lock_guard lock(mutex);
    block = value;
  }

  std::atomic<int> sweeps = 0, resweeps = 0, attribute_sweeps = 0, sheds = 0, downgrades = 0,
                   losses = 0;
  std::atomic<bool> may_keep = true;
  std::function<void(Ino)> on_sweep;

 private:
  std::mutex mutex;
  std::optional<ValueBlock> block;
};

class LockTableTest : public ::testing::Test {
 protected:
  /// False after ten seconds.
  static bool eventually(const std::function<bool()>& good) {
    for (int i = 0; i < 1000; ++i) {
      if (good()) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }

  Cluster cluster_;
  CountingOwner owner_a_, owner_b_;
  std::unique_ptr<LockTable> a_ = cluster_.table("a", owner_a_);
  std::unique_ptr<LockTable> b_ = cluster_.table("b", owner_b_);
};

TEST_F(LockTableTest, FreeLockIsTakenOnceAndKept) {
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(a_->pin(7, Mode::s).ok());
  const auto counters = a_->counters();
  EXPECT_EQ(counters.free_takes, 1u);
  EXPECT_EQ(counters.hits, 9u);
  EXPECT_EQ(counters.asks, 0u);
  EXPECT_EQ(counters.held, 1u);
  ASSERT_TRUE(a_->pin(7, Mode::x).ok());  // A lone S becomes X by one CAS.
  EXPECT_EQ(a_->counters().free_takes, 2u);
  EXPECT_EQ(a_->counters().asks, 0u);
  EXPECT_NE(a_->session().session, b_->session().session);
  EXPECT_NE(a_->session().node_id, b_->session().node_id);
}

TEST_F(LockTableTest, SharersDoNotMeet) {
  auto first = a_->pin(7, Mode::s);
  auto second = b_->pin(7, Mode::s);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(a_->counters().asks + b_->counters().asks, 0u);
  EXPECT_EQ(a_->counters().revokes, 0u);
}

TEST_F(LockTableTest, WriterHandsOverWithoutPagesByAttributesOnly) {
  ASSERT_TRUE(a_->pin(7, Mode::x).ok());
  ASSERT_TRUE(b_->pin(7, Mode::x).ok());
  EXPECT_EQ(owner_a_.sheds, 1);
  EXPECT_EQ(owner_a_.attribute_sweeps, 1);
  EXPECT_EQ(owner_a_.sweeps, 0);
  EXPECT_EQ(a_->counters().held, 0u);
}

TEST_F(LockTableTest, WriterHandsOverItsPages) {
  ASSERT_TRUE(a_->pin_page_io(7, Mode::x, {0, 4096}).ok());
  ASSERT_TRUE(b_->pin(7, Mode::x).ok());
  EXPECT_EQ(owner_a_.sheds, 1);
  EXPECT_EQ(owner_a_.sweeps, 1);
  EXPECT_EQ(owner_a_.attribute_sweeps, 0);
}

TEST_F(LockTableTest, ReaderLeavesTheWriterItsPages) {
  ASSERT_TRUE(a_->pin_page_io(7, Mode::x, {0, 4096}).ok());
  ASSERT_TRUE(b_->pin(7, Mode::s).ok());
  EXPECT_EQ(owner_a_.downgrades, 1);
  EXPECT_EQ(owner_a_.sweeps, 0);
  const auto hits = a_->counters().hits;
  ASSERT_TRUE(a_->pin(7, Mode::s).ok());
  EXPECT_EQ(a_->counters().hits, hits + 1);
  EXPECT_EQ(a_->counters().held, 1u);
}

TEST_F(LockTableTest, OwnerMayRefuseToKeep) {
  owner_a_.may_keep = false;
  ASSERT_TRUE(a_->pin_page_io(7, Mode::x, {0, 4096}).ok());
  ASSERT_TRUE(b_->pin(7, Mode::s).ok());
  EXPECT_EQ(owner_a_.sheds, 1);
  EXPECT_EQ(owner_a_.sweeps, 1);
  EXPECT_EQ(a_->counters().held, 0u);
}

TEST_F(LockTableTest, RevokeWaitsForPins) {
  auto pin = a_->pin(7, Mode::x);
  ASSERT_TRUE(pin.ok());
  auto other = std::async(std::launch::async, [&] { return b_->pin(7, Mode::x).ok(); });
  EXPECT_EQ(other.wait_for(200ms), std::future_status::timeout);
  EXPECT_EQ(owner_a_.sheds, 0);
  pin->release();
  EXPECT_TRUE(other.get());
}

TEST_F(LockTableTest, SweepThatWaitsForPageIoIsServed) {
  ASSERT_TRUE(a_->pin_page_io(7, Mode::x, {0, 4096}).ok());
  // The sweep meets a page that is locked by a READ, which has yet to ask for its pin.
  std::atomic<int> served = 0;
  owner_a_.on_sweep = [&](Ino ino) {
    if (served++ == 0) {
      std::thread reader([&] { EXPECT_TRUE(a_->pin_page_io(ino, Mode::s, {4096, 4096}).ok()); });
      reader.join();
    }
  };
  ASSERT_TRUE(b_->pin(7, Mode::x).ok());
  EXPECT_EQ(owner_a_.sweeps, 1);
  EXPECT_EQ(owner_a_.resweeps, 1);
  EXPECT_EQ(a_->counters().resweeps, 1u);
}

TEST_F(LockTableTest, ParkedPageIoGoesOnWhenTheLockIsBack) {
  auto pin = a_->pin(7, Mode::x);  // Keeps the revoke waiting, with no sweep running.
  ASSERT_TRUE(pin.ok());
  std::promise<void> taken, let_go;
  std::thread other([&] {
    auto theirs = b_->pin(7, Mode::x);
    EXPECT_TRUE(theirs.ok());
    taken.set_value();
    let_go.get_future().wait();
  });
  ASSERT_TRUE(eventually([&] { return owner_a_.attribute_sweeps == 1; }));
  auto reader = std::async(std::launch::async, [&] {
    return a_->pin_page_io(7, Mode::s, {0, 4096}).ok();
  });
  EXPECT_EQ(reader.wait_for(100ms), std::future_status::timeout);
  pin->release();
  taken.get_future().wait();
  EXPECT_EQ(reader.wait_for(100ms), std::future_status::timeout);
  let_go.set_value();
  EXPECT_TRUE(reader.get());
  other.join();
  EXPECT_EQ(a_->counters().resweeps, 0u);
}

TEST_F(LockTableTest, InterruptedWaitLeaksNothing) {
  auto pin = a_->pin(7, Mode::x);
  ASSERT_TRUE(pin.ok());
  const auto failed = b_->pin(7, Mode::x, [] { return true; });
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().code, EINTR);
  pin->release();
  // Nobody waits any more: A has it still, and both can have it in turn.
  const auto revokes = a_->counters().revokes;
  ASSERT_TRUE(a_->pin(7, Mode::x).ok());
  ASSERT_TRUE(b_->pin(7, Mode::x).ok());
  ASSERT_TRUE(a_->pin(7, Mode::x).ok());
  EXPECT_LE(revokes, 1u);
}

TEST_F(LockTableTest, UpgradersBothSucceedInTurn) {
  std::atomic<int> done = 0;
  const auto upgrade = [&](LockTable& table) {
    for (int i = 0; i < 50; ++i) {
      ASSERT_TRUE(table.pin(7, Mode::s).ok());
      ASSERT_TRUE(table.pin(7, Mode::x).ok());
    }
    ++done;
  };
  std::thread first([&] { upgrade(*a_); });
  std::thread second([&] { upgrade(*b_); });
  first.join();
  second.join();
  EXPECT_EQ(done, 2);
}

TEST_F(LockTableTest, ReadersAndWritersOfOneMountDoNotStarve) {
  auto other = b_->pin(7, Mode::s);
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(a_->pin(7, Mode::s).ok());
  auto writer = std::async(std::launch::async, [&] { return a_->pin(7, Mode::x).ok(); });
  EXPECT_EQ(writer.wait_for(50ms), std::future_status::timeout);
  // While X is waited for, S is still ours.
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(a_->pin(7, Mode::s).ok());
  std::atomic<bool> stop = false;
  std::thread readers([&] {
    while (!stop) (void)a_->pin(7, Mode::s).ok();
  });
  other->release();
  EXPECT_EQ(writer.wait_for(5s), std::future_status::ready);
  stop = true;
  readers.join();
  EXPECT_TRUE(writer.get());
}

TEST_F(LockTableTest, TryNeverAsks) {
  auto pin = a_->pin(7, Mode::x);
  ASSERT_TRUE(pin.ok());
  EXPECT_FALSE(b_->try_pin(7, Mode::s));
  EXPECT_TRUE(b_->try_pin(8, Mode::x));
  EXPECT_EQ(b_->counters().asks, 0u);
  EXPECT_EQ(a_->counters().revokes, 0u);
  pin->release();
  EXPECT_FALSE(b_->try_pin(7, Mode::s));  // Held without a pin: a revoke would be needed.
}

TEST_F(LockTableTest, ManyAreTriedTogether) {
  std::vector<Ino> inodes;
  for (Ino ino = 100; ino < 400; ++ino) inodes.push_back(ino);
  const std::vector<Wanted> taken{{150, Mode::x}, {151, Mode::x}};
  auto others = b_->pin_all(taken);
  ASSERT_TRUE(others.ok());
  auto pins = a_->try_pin_many(inodes, Mode::s);
  ASSERT_EQ(pins.size(), inodes.size());
  for (std::size_t i = 0; i < pins.size(); ++i) {
    EXPECT_EQ(static_cast<bool>(pins[i]), inodes[i] != 150 && inodes[i] != 151) << inodes[i];
  }
  EXPECT_EQ(a_->counters().free_takes, 298u);
  EXPECT_EQ(a_->counters().asks, 0u);
  const auto again = a_->try_pin_many(inodes, Mode::s);
  EXPECT_EQ(a_->counters().hits, 298u);
}

TEST_F(LockTableTest, PinAllMergesAndKeepsTheOrderOfTheCaller) {
  const std::vector<Wanted> wanted{{9, Mode::s}, {5, Mode::s}, {9, Mode::x}};
  auto pins = a_->pin_all(wanted);
  ASSERT_TRUE(pins.ok());
  EXPECT_EQ((*pins)[0].mode(), Mode::x);
  EXPECT_EQ((*pins)[1].mode(), Mode::s);
  EXPECT_FALSE((*pins)[2]);
}

TEST_F(LockTableTest, PinAllDoesNotDeadlock) {
  const auto work = [](LockTable& table, unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < 150; ++i) {
      std::vector<Wanted> wanted;
      for (int n = 0; n < 3; ++n) {
        wanted.push_back({1 + random() % 5, random() % 3 == 0 ? Mode::s : Mode::x});
      }
      ASSERT_TRUE(table.pin_all(wanted).ok());
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] { work(i % 2 == 0 ? *a_ : *b_, i); });
  }
  for (auto& thread : threads) thread.join();
}

TEST_F(LockTableTest, DropReturnsWhenItIsGone) {
  ASSERT_TRUE(a_->pin_page_io(7, Mode::s, {0, 4096}).ok());
  a_->drop(7, Mode::s);
  EXPECT_EQ(owner_a_.sheds, 1);
  EXPECT_EQ(owner_a_.sweeps, 1);
  EXPECT_EQ(a_->counters().held, 0u);
  ASSERT_TRUE(a_->pin(7, Mode::x).ok());
  a_->drop(7, Mode::s);  // X is more than asked for.
  EXPECT_EQ(a_->counters().held, 1u);
  a_->drop(7, Mode::x);
  EXPECT_EQ(a_->counters().held, 0u);
  a_->drop(12345, Mode::x);
}

TEST_F(LockTableTest, ForgottenLocksGo) {
  ASSERT_TRUE(a_->pin(7, Mode::s).ok());
  a_->forget(7);
  EXPECT_TRUE(eventually([&] { return a_->counters().held == 0; }));
  EXPECT_EQ(owner_a_.sheds, 1);
}

TEST_F(LockTableTest, IdleLocksAreBounded) {
  auto options = cluster_.options("small");
  options.max_locks = 64;
  CountingOwner owner;
  auto small = cluster_.table(options, owner);
  auto pinned = small->pin(1, Mode::x);
  ASSERT_TRUE(pinned.ok());
  for (Ino ino = 2; ino < 1000; ++ino) ASSERT_TRUE(small->pin(ino, Mode::s).ok());
  EXPECT_TRUE(eventually([&] { return small->counters().held <= 64; }));
  EXPECT_GE(small->counters().held, 1u);
  EXPECT_TRUE(b_->try_pin(500, Mode::s));
  EXPECT_FALSE(b_->try_pin(1, Mode::s));
}

TEST_F(LockTableTest, GlimpseBringsWhatTheWriterHas) {
  auto nothing = b_->glimpse(7);
  ASSERT_TRUE(nothing.ok());
  EXPECT_FALSE(nothing->has_value());
  auto pin = a_->pin(7, Mode::x);
  ASSERT_TRUE(pin.ok());
  nothing = b_->glimpse(7);
  ASSERT_TRUE(nothing.ok());
  EXPECT_FALSE(nothing->has_value());
  for (std::uint64_t size = 1; size < 20; ++size) {
    owner_a_.set_block(ValueBlock{size, -5, 6});
    const auto seen = b_->glimpse(7);
    ASSERT_TRUE(seen.ok());
    ASSERT_TRUE(seen->has_value());
    EXPECT_EQ((*seen)->size, size);
    EXPECT_EQ((*seen)->mtime_ns, -5);
  }
  EXPECT_EQ(a_->counters().revokes, 0u);
  EXPECT_EQ(owner_a_.sheds, 0);
  const auto own = a_->glimpse(7);
  ASSERT_TRUE(own.ok());
  ASSERT_TRUE(own->has_value());  // What this mount itself has not told the server.
  EXPECT_EQ((*own)->size, 19u);
}

LockTable::FileLock file_lock(std::uint64_t owner, std::int16_t type, std::uint64_t start,
                              std::uint64_t end) {
  return {7, owner, false, type, start, end, 42};
}

TEST_F(LockTableTest, FileLocksConflictAcrossMounts) {
  ASSERT_TRUE(a_->file_lock(file_lock(1, F_WRLCK, 0, 9), false).ok());
  const auto refused = b_->file_lock(file_lock(1, F_RDLCK, 5, 20), false);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, EAGAIN);
  auto test = b_->file_lock_test(file_lock(1, F_RDLCK, 5, 20));
  ASSERT_TRUE(test.ok());
  EXPECT_EQ(test->type, F_WRLCK);
  EXPECT_EQ(test->start, 0u);
  EXPECT_EQ(test->end, 9u);
  EXPECT_EQ(test->pid, 42);
  auto waiter = std::async(std::launch::async,
                           [&] { return b_->file_lock(file_lock(1, F_RDLCK, 5, 20), true).ok(); });
  EXPECT_EQ(waiter.wait_for(100ms), std::future_status::timeout);
  a_->file_lock_release_owner(7, 1);
  EXPECT_TRUE(waiter.get());
  test = a_->file_lock_test(file_lock(2, F_WRLCK, 0, 4));
  ASSERT_TRUE(test.ok());
  EXPECT_EQ(test->type, F_UNLCK);
  ASSERT_TRUE(b_->file_lock(file_lock(1, F_UNLCK, 0, ~0ull), false).ok());
  ASSERT_TRUE(a_->file_lock({7, 3, true, F_WRLCK, 0, 0, 1}, false).ok());
  EXPECT_EQ(b_->file_lock({7, 3, true, F_RDLCK, 0, 0, 1}, false).error().code, EAGAIN);
}

TEST_F(LockTableTest, FileLockWaitsEndByInterruptAndDeadlock) {
  ASSERT_TRUE(a_->file_lock(file_lock(1, F_WRLCK, 0, 9), false).ok());
  EXPECT_EQ(b_->file_lock(file_lock(1, F_WRLCK, 0, 9), true, [] { return true; }).error().code,
            EINTR);
  ASSERT_TRUE(b_->file_lock(file_lock(1, F_WRLCK, 10, 19), false).ok());
  // Whoever closes the cycle is told; which of the two that is depends on who was first.
  std::atomic<int> deadlocks = 0;
  const auto wait_for_other = [&](LockTable& table, std::uint64_t start) {
    while (deadlocks == 0) {
      const auto status = table.file_lock(file_lock(1, F_WRLCK, start, start + 9), true,
                                          [&] { return deadlocks != 0; });
      ASSERT_FALSE(status.ok());
      if (status.error().code == EDEADLK) ++deadlocks;
    }
  };
  std::thread waiter([&] { wait_for_other(*b_, 0); });
  wait_for_other(*a_, 10);
  waiter.join();
  EXPECT_EQ(deadlocks, 1);
}

TEST_F(LockTableTest, LostLockdEndsEveryWait) {
  auto pin = a_->pin(7, Mode::x);
  ASSERT_TRUE(pin.ok());
  auto waiter = std::async(std::launch::async, [&] {
    const auto result = b_->pin(7, Mode::x);
    return result.ok() ? 0 : result.error().code;
  });
  ASSERT_TRUE(a_->file_lock(file_lock(1, F_WRLCK, 0, 9), false).ok());
  auto file_waiter = std::async(std::launch::async, [&] {
    const auto result = b_->file_lock(file_lock(1, F_WRLCK, 0, 9), true);
    return result.ok() ? 0 : result.error().code;
  });
  EXPECT_EQ(waiter.wait_for(100ms), std::future_status::timeout);
  cluster_.stop();
  EXPECT_EQ(waiter.get(), ENOTCONN);
  EXPECT_EQ(file_waiter.get(), ENOTCONN);
  EXPECT_TRUE(eventually([&] { return owner_a_.losses == 1 && owner_b_.losses == 1; }));
  EXPECT_EQ(a_->pin(7, Mode::s).error().code, ENOTCONN);
  EXPECT_EQ(a_->pin(9999, Mode::s).error().code, ENOTCONN);
  EXPECT_FALSE(a_->try_pin(7, Mode::s));
  EXPECT_FALSE(a_->try_pin(9998, Mode::s));
  EXPECT_EQ(a_->glimpse(9997).error().code, ENOTCONN);
  a_->drop(7, Mode::x);
  a_->forget(7);
  EXPECT_EQ(a_->counters().held, 0u);
  pin->release();
  EXPECT_EQ(owner_a_.sheds, 0);
  EXPECT_EQ(owner_a_.losses, 1);
}

TEST_F(LockTableTest, LocksOfALostSessionGoToTheOthers) {
  auto pin = a_->pin(7, Mode::x);
  auto shared = a_->pin(8, Mode::s);
  ASSERT_TRUE(pin.ok() && shared.ok());
  dynamic_cast<Table&>(*a_).abandon("the test says so");
  EXPECT_TRUE(b_->pin(7, Mode::x).ok());
  EXPECT_TRUE(b_->pin(8, Mode::x).ok());
  EXPECT_EQ(cluster_.fenced(), 1u);
  EXPECT_TRUE(eventually([&] { return owner_a_.losses == 1; }));
}

TEST_F(LockTableTest, OrderlyEndNeedsNoFence) {
  ASSERT_TRUE(a_->pin_page_io(7, Mode::x, {0, 1}).ok());
  ASSERT_TRUE(a_->pin(8, Mode::s).ok());
  a_.reset();
  EXPECT_EQ(owner_a_.sheds, 2);
  EXPECT_EQ(owner_a_.losses, 0);
  EXPECT_TRUE(b_->try_pin(7, Mode::x));
  EXPECT_TRUE(b_->try_pin(8, Mode::x));
  EXPECT_EQ(cluster_.fenced(), 0u);
}

TEST_F(LockTableTest, WrongClusterAndUnreachableAreTold) {
  auto options = cluster_.options("c");
  options.cluster_id = "ffffffffffffffffffffffffffffffff";
  auto refused = LockTable::create(options, owner_a_);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, EINVAL);
  options.cluster_id = "nonsense";
  EXPECT_EQ(LockTable::create(options, owner_a_).error().code, EINVAL);
  options = cluster_.options("c");
  options.lockd = "127.0.0.1:1";
  EXPECT_EQ(LockTable::create(options, owner_a_).error().code, ECONNREFUSED);
}

}  // namespace
}  // namespace distfuse::client
