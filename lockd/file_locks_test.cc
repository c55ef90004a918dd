// SPDX-License-Identifier: Apache-2.0
#include "lockd/file_locks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <deque>
#include <functional>
#include <limits>
#include <random>

namespace distfuse::lockd {
namespace {

constexpr std::uint64_t kEnd = std::numeric_limits<std::uint64_t>::max();
using Answers = std::vector<FileLockAnswer>;
constexpr auto kRead = FileLockType::read;
constexpr auto kWrite = FileLockType::write;

FileLockRequest make(SessionId session, std::uint64_t owner, FileLockType type, std::uint64_t start,
                     std::uint64_t end, std::uint64_t request = 0, Ino ino = 1) {
  return {{ino, false}, {session, owner}, type, start, end, static_cast<std::int32_t>(owner),
          request};
}

FileLockRequest make_flock(SessionId session, std::uint64_t owner, FileLockType type,
                           std::uint64_t request = 0) {
  return {{1, true}, {session, owner}, type, 0, 0, 0, request};
}

class FileLocksTest : public ::testing::Test {
 protected:
  int lock(const FileLockRequest& request, bool wait = false) {
    return locks_.lock(request, wait, answers_);
  }
  Answers take_answers() { return std::exchange(answers_, {}); }

  FileLocks locks_;
  Answers answers_;
};

TEST_F(FileLocksTest, SplitsMergesAndReplaces) {
  EXPECT_EQ(lock(make(1, 1, kWrite, 0, 99)), 0);
  EXPECT_EQ(locks_.counts().locks, 1U);
  EXPECT_EQ(lock(make(1, 1, kRead, 40, 59)), 0);  // Downgrade in the middle: three intervals.
  EXPECT_EQ(locks_.counts().locks, 3U);
  EXPECT_EQ(lock(make(2, 1, kRead, 45, 50)), 0);
  EXPECT_EQ(lock(make(2, 1, kRead, 39, 50)), EAGAIN);
  EXPECT_EQ(lock(make(1, 1, kWrite, 30, 70)),
            EAGAIN);  // The upgrade is stopped by the other reader.
  EXPECT_EQ(locks_.unlock(make(2, 1, kRead, 0, kEnd), answers_), 0);
  EXPECT_EQ(lock(make(1, 1, kWrite, 30, 70)), 0);
  EXPECT_EQ(locks_.counts().locks, 1U);
  EXPECT_EQ(locks_.unlock(make(1, 1, kRead, 10, kEnd), answers_), 0);
  EXPECT_EQ(lock(make(2, 1, kWrite, 10, kEnd)), 0);
  EXPECT_EQ(lock(make(2, 1, kWrite, 9, 9)), EAGAIN);
}

TEST_F(FileLocksTest, TestNamesTheConflict) {
  ASSERT_EQ(lock(make(1, 7, kRead, 100, 199)), 0);
  EXPECT_FALSE(locks_.test(make(2, 1, kRead, 0, kEnd)));
  EXPECT_FALSE(locks_.test(make(1, 7, kWrite, 0, kEnd)));
  EXPECT_FALSE(locks_.test(make(2, 1, kWrite, 0, 99)));
  const auto conflict = locks_.test(make(2, 1, kWrite, 150, 150));
  ASSERT_TRUE(conflict);
  EXPECT_EQ(conflict->start, 100U);
  EXPECT_EQ(conflict->end, 199U);
  EXPECT_EQ(conflict->pid, 7);
  EXPECT_EQ(conflict->type, kRead);
  EXPECT_EQ(conflict->owner, (FileLockOwner{1, 7}));
}

TEST_F(FileLocksTest, WaitersAreWokenInOrderWhenCompatible) {
  ASSERT_EQ(lock(make(1, 1, kWrite, 0, 9)), 0);
  EXPECT_EQ(lock(make(2, 1, kRead, 0, 4, 21), true), FileLocks::kWaiting);
  EXPECT_EQ(lock(make(3, 1, kWrite, 0, 9, 31), true), FileLocks::kWaiting);
  EXPECT_EQ(lock(make(4, 1, kRead, 5, 9, 41), true), FileLocks::kWaiting);
  EXPECT_EQ(locks_.unlock(make(1, 1, kRead, 0, 4), answers_), 0);
  EXPECT_EQ(take_answers(), (Answers{{2, 21, 0, 1}}));
  EXPECT_EQ(locks_.unlock(make(1, 1, kRead, 5, 9), answers_), 0);
  EXPECT_EQ(take_answers(), (Answers{{4, 41, 0, 1}}));
  locks_.release_owner({1, false}, {2, 1}, answers_);
  EXPECT_TRUE(take_answers().empty());
  locks_.release_owner({1, false}, {4, 1}, answers_);
  EXPECT_EQ(take_answers(), (Answers{{3, 31, 0, 1}}));
}

TEST_F(FileLocksTest, DeadlockAcrossInodesIsRefused) {
  ASSERT_EQ(lock(make(1, 1, kWrite, 0, 0, 0, 100)), 0);
  ASSERT_EQ(lock(make(2, 1, kWrite, 0, 0, 0, 200)), 0);
  ASSERT_EQ(lock(make(3, 1, kWrite, 0, 0, 0, 300)), 0);
  EXPECT_EQ(lock(make(1, 1, kWrite, 0, 0, 1, 200), true), FileLocks::kWaiting);
  EXPECT_EQ(lock(make(2, 1, kWrite, 0, 0, 1, 300), true), FileLocks::kWaiting);
  EXPECT_EQ(lock(make(3, 1, kWrite, 0, 0, 1, 100), true), EDEADLK);
  EXPECT_EQ(lock(make(3, 1, kWrite, 0, 0, 1, 100), false), EAGAIN);
  EXPECT_TRUE(locks_.cancel(1, 1, answers_));
  EXPECT_EQ(take_answers(), (Answers{{1, 1, EINTR, 200}}));
  EXPECT_EQ(lock(make(3, 1, kWrite, 0, 0, 1, 100), true), FileLocks::kWaiting);
  EXPECT_FALSE(locks_.cancel(1, 1, answers_));
}

TEST_F(FileLocksTest, FlockIsApartAndConverts) {
  ASSERT_EQ(lock(make(1, 1, kWrite, 0, kEnd)), 0);
  EXPECT_EQ(lock(make_flock(2, 1, kRead)), 0);
  EXPECT_EQ(lock(make_flock(3, 1, kRead)), 0);
  EXPECT_EQ(lock(make_flock(2, 1, kWrite, 5), true), FileLocks::kWaiting);  // The old lock is gone.
  EXPECT_EQ(lock(make_flock(3, 1, kRead)), 0);
  EXPECT_EQ(locks_.unlock(make_flock(3, 1, kRead), answers_), 0);
  EXPECT_EQ(take_answers(), (Answers{{2, 5, 0, 1}}));
  EXPECT_EQ(lock(make_flock(3, 1, kRead)), EAGAIN);
}

TEST_F(FileLocksTest, SessionTakesItsLocksAndWaitsAlong) {
  ASSERT_EQ(lock(make(1, 1, kWrite, 0, 9)), 0);
  ASSERT_EQ(lock(make(1, 2, kWrite, 20, 29)), 0);
  ASSERT_EQ(lock(make(1, 2, kWrite, 0, 9, 4), true), FileLocks::kWaiting);
  ASSERT_EQ(lock(make(2, 1, kWrite, 0, 29, 5), true), FileLocks::kWaiting);
  ASSERT_EQ(lock(make_flock(1, 1, kWrite)), 0);
  locks_.release_session(1, answers_);
  EXPECT_EQ(take_answers(), (Answers{{2, 5, 0, 1}}));
  EXPECT_EQ(locks_.session_locks(1), 0U);
  locks_.release_session(2, answers_);
  EXPECT_EQ(locks_.counts().locks, 0U);
  EXPECT_EQ(locks_.counts().waiters, 0U);
  EXPECT_EQ(locks_.counts().spaces, 0U);
}

TEST(FileLocksLimits, RefusedWithENOLCKAndOthersGoOn) {
  FileLocks locks(
      {.locks_per_session = 6, .locks_total = 9, .waiters_per_session = 1, .waiters_total = 2});
  Answers answers;
  int error = 0;
  for (std::uint64_t at = 0; error == 0; at += 10)
    error = locks.lock(make(1, 1, kWrite, at, at + 2), false, answers);
  EXPECT_EQ(error, ENOLCK);
  EXPECT_EQ(locks.session_locks(1), 5U);
  EXPECT_EQ(locks.unlock(make(1, 1, kWrite, 1, 1), answers), 0);  // A split: the last one.
  EXPECT_EQ(locks.unlock(make(1, 1, kWrite, 11, 11), answers), ENOLCK);
  EXPECT_EQ(locks.unlock(make(1, 1, kWrite, 10, 11), answers), 0);
  EXPECT_EQ(locks.lock(make(2, 1, kWrite, 100, 100), false, answers), 0);
  EXPECT_EQ(locks.lock(make(3, 1, kWrite, 200, 200), false, answers), 0);
  EXPECT_EQ(locks.lock(make(4, 1, kWrite, 300, 300), false, answers), ENOLCK) << "8 of 9 in all";
}

TEST(FileLocksLimits, WaitersAreBounded) {
  FileLocks locks({.waiters_per_session = 1, .waiters_total = 2});
  Answers answers;
  ASSERT_EQ(locks.lock(make(9, 1, kWrite, 0, 9), false, answers), 0);
  EXPECT_EQ(locks.lock(make(1, 1, kWrite, 0, 9, 1), true, answers), FileLocks::kWaiting);
  EXPECT_EQ(locks.lock(make(1, 2, kWrite, 0, 9, 2), true, answers), ENOLCK);
  EXPECT_EQ(locks.lock(make(2, 1, kWrite, 0, 9, 1), true, answers), FileLocks::kWaiting);
  EXPECT_EQ(locks.lock(make(3, 1, kWrite, 0, 9, 1), true, answers), ENOLCK);
  EXPECT_EQ(locks.lock(make(3, 1, kWrite, 20, 29, 1), true, answers), 0);
  EXPECT_TRUE(locks.cancel(1, 1, answers));
  EXPECT_EQ(locks.lock(make(3, 1, kWrite, 0, 9, 1), true, answers), FileLocks::kWaiting);
}

TEST(FileLocksLimits, AGrantBeyondTheLimitSaysSo) {
  FileLocks locks({.locks_per_session = 2});
  Answers answers;
  ASSERT_EQ(locks.lock(make(9, 1, kWrite, 0, 9), false, answers), 0);
  ASSERT_EQ(locks.lock(make(1, 1, kWrite, 5, 5, 1), true, answers), FileLocks::kWaiting);
  ASSERT_EQ(locks.lock(make(1, 1, kWrite, 20, 20), false, answers), 0);
  ASSERT_EQ(locks.unlock(make(9, 1, kWrite, 0, 9), answers), 0);
  EXPECT_EQ(answers, (Answers{{1, 1, ENOLCK, 1}}));
  EXPECT_EQ(locks.lock(make(2, 1, kWrite, 0, 9), false, answers), 0);
}

// ---- The same events to a naive model: an array of cells per owner. The last cell stands for
// everything from kCells-1 on.

constexpr std::size_t kCells = 20;
using Cells = std::array<char, kCells>;  // 0, 'r', 'w'

struct Model {
  struct Wait {
    FileLockRequest request;
  };
  struct Space {
    std::map<FileLockOwner, Cells> cells;
    std::deque<FileLockRequest> waiting;
  };
  std::map<FileLockSpace, Space> spaces;

  static std::size_t last(const FileLockRequest& request) {
    return std::min<std::uint64_t>(request.end, kCells - 1);
  }
  static bool conflicts(const Cells& cells, const FileLockRequest& request) {
    for (std::size_t i = request.start; i <= last(request); ++i)
      if (cells[i] == 'w' || (cells[i] == 'r' && request.type == kWrite)) return true;
    return false;
  }
  std::set<FileLockOwner> blockers(const FileLockRequest& request) {
    std::set<FileLockOwner> found;
    for (const auto& [owner, cells] : spaces[request.space].cells)
      if (owner != request.owner && conflicts(cells, request)) found.insert(owner);
    return found;
  }
  void set(const FileLockRequest& request, char value) {
    auto& cells = spaces[request.space].cells.try_emplace(request.owner, Cells{}).first->second;
    for (std::size_t i = request.start; i <= last(request); ++i) cells[i] = value;
  }
  void grant(const FileLockRequest& request) { set(request, request.type == kWrite ? 'w' : 'r'); }

  bool reaches(const FileLockRequest& from, FileLockOwner target, std::set<FileLockOwner>& seen) {
    for (const auto& owner : blockers(from)) {
      if (owner == target) return true;
      if (!seen.insert(owner).second) continue;
      for (auto& [key, space] : spaces)
        for (const auto& waiter : space.waiting)
          if (!key.flock && waiter.owner == owner && reaches(waiter, target, seen)) return true;
    }
    return false;
  }
  void wake(FileLockSpace key, Answers& answers) {
    auto& waiting = spaces[key].waiting;
    for (bool again = true; again;) {
      again = false;
      for (std::size_t i = 0; i < waiting.size();) {
        if (!blockers(waiting[i]).empty()) {
          ++i;
          continue;
        }
        const auto request = waiting[i];
        waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i));
        grant(request);
        answers.push_back({request.owner.session, request.request, 0, key.ino});
        again = true;
      }
    }
  }
  int lock(FileLockRequest request, bool wait, Answers& answers) {
    if (request.space.flock) {
      request.start = 0;
      request.end = kEnd;
      auto& cells = spaces[request.space].cells.try_emplace(request.owner, Cells{}).first->second;
      if (cells[0] == (request.type == kWrite ? 'w' : 'r')) return 0;
      if (cells[0] != 0) {
        set(request, 0);
        wake(request.space, answers);
      }
    }
    if (blockers(request).empty()) {
      grant(request);
      wake(request.space, answers);
      return 0;
    }
    if (!wait) return EAGAIN;
    std::set<FileLockOwner> seen;
    if (!request.space.flock && reaches(request, request.owner, seen)) return EDEADLK;
    spaces[request.space].waiting.push_back(request);
    return FileLocks::kWaiting;
  }
  void unlock(FileLockRequest request, Answers& answers) {
    if (request.space.flock) {
      request.start = 0;
      request.end = kEnd;
    }
    set(request, 0);
    wake(request.space, answers);
  }
  bool cancel(SessionId session, std::uint64_t request, Answers& answers) {
    for (auto& [key, space] : spaces) {
      const auto erased = std::erase_if(space.waiting, [&](const FileLockRequest& waiter) {
        return waiter.owner.session == session && waiter.request == request;
      });
      if (erased == 0) continue;
      answers.push_back({session, request, EINTR, key.ino});
      return true;
    }
    return false;
  }
  void release_session(SessionId session, Answers& answers) {
    for (auto& [key, space] : spaces) {
      std::erase_if(space.waiting,
                    [&](const auto& waiter) { return waiter.owner.session == session; });
      std::erase_if(space.cells, [&](const auto& held) { return held.first.session == session; });
      wake(key, answers);
    }
  }
  // Runs of equal cells are the intervals.
  static void each_run(const Cells& cells,
                       const std::function<void(std::size_t, std::size_t, char)>& call) {
    for (std::size_t i = 0; i < kCells;) {
      std::size_t end = i;
      while (end + 1 < kCells && cells[end + 1] == cells[i]) ++end;
      if (cells[i] != 0) call(i, end, cells[i]);
      i = end + 1;
    }
  }
  std::size_t locks() const {
    std::size_t n = 0;
    for (const auto& [key, space] : spaces)
      for (const auto& [owner, cells] : space.cells)
        each_run(cells, [&](auto, auto, auto) { ++n; });
    return n;
  }
  std::size_t waiters() const {
    std::size_t n = 0;
    for (const auto& [key, space] : spaces) n += space.waiting.size();
    return n;
  }
  std::optional<FileLockConflict> test(FileLockRequest request) {
    if (request.space.flock) {
      request.start = 0;
      request.end = kEnd;
    }
    std::optional<FileLockConflict> lowest;
    for (const auto& held : spaces[request.space].cells) {
      const FileLockOwner& owner = held.first;
      if (owner == request.owner) continue;
      each_run(held.second, [&](std::size_t start, std::size_t end, char type) {
        if (end < request.start || start > last(request)) return;
        if (type == 'r' && request.type == kRead) return;
        if (lowest && lowest->start <= start) return;
        lowest = {owner, type == 'w' ? kWrite : kRead, start, end == kCells - 1 ? kEnd : end, 0};
      });
    }
    return lowest;
  }
};

std::uint64_t seed_of_run() {
  const char* given = std::getenv("DISTFUSE_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
}

class Differential {
 public:
  explicit Differential(std::uint64_t seed) : random_(seed) {}

  void step() {
    const auto request = any_request();
    Answers real, naive;
    const auto what = pick(100);
    if (what < 55) {
      const bool wait = pick(2) == 0;
      const int expected = model_.lock(request, wait, naive);
      ASSERT_EQ(locks_.lock(request, wait, real), expected);
      ++outcomes_[expected];
    } else if (what < 85) {
      model_.unlock(request, naive);
      ASSERT_EQ(locks_.unlock(request, real), 0);
    } else if (what < 92) {
      const auto name = pick(next_request_ + 1);
      ASSERT_EQ(locks_.cancel(request.owner.session, name, real),
                model_.cancel(request.owner.session, name, naive));
    } else if (what < 97) {
      auto all = request;
      all.start = 0;
      all.end = kEnd;
      model_.unlock(all, naive);
      locks_.release_owner(request.space, request.owner, real);
    } else if (pick(8) == 0) {
      model_.release_session(request.owner.session, naive);
      locks_.release_session(request.owner.session, real);
    }
    woken_ += naive.size();
    ASSERT_EQ(real, naive);
    compare();
  }

  std::map<int, int> outcomes_;
  std::size_t woken_ = 0;

 private:
  std::uint64_t pick(std::uint64_t n) {
    return std::uniform_int_distribution<std::uint64_t>(0, n - 1)(random_);
  }

  FileLockRequest any_request() {
    const auto start = pick(kCells);
    const auto end = start == kCells - 1 || pick(6) == 0 ? kEnd : start + pick(kCells - 1 - start);
    return {{1 + pick(3), pick(5) == 0},
            {1 + pick(3), 1 + pick(3)},
            pick(2) == 0 ? kRead : kWrite,
            start,
            end,
            0,
            next_request_++};
  }
  void compare() {
    ASSERT_EQ(locks_.counts().locks, model_.locks());
    ASSERT_EQ(locks_.counts().waiters, model_.waiters());
    auto asked = any_request();
    if (pick(2) == 0) asked.owner = {77, 77};
    const auto real = locks_.test(asked);
    const auto naive = model_.test(asked);
    ASSERT_EQ(real.has_value(), naive.has_value());
    if (!real) return;
    ASSERT_EQ(real->owner, naive->owner);
    ASSERT_EQ(real->start, naive->start);
    ASSERT_EQ(real->end, naive->end);
    ASSERT_EQ(real->type, naive->type);
  }

  std::mt19937_64 random_;
  FileLocks locks_;
  Model model_;
  std::uint64_t next_request_ = 1;
};

TEST(FileLocksDifferential, AgreesWithANaiveModel) {
  const auto seed = seed_of_run();
  std::printf("DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::map<int, int> outcomes;
  std::size_t woken = 0;
  for (std::uint64_t round = 0; round < 60; ++round) {
    Differential run(seed + round);
    for (int i = 0; i < 800; ++i) {
      run.step();
      if (HasFatalFailure()) FAIL() << "seed " << seed << " round " << round << " step " << i;
    }
    for (const auto& [outcome, n] : run.outcomes_) outcomes[outcome] += n;
    woken += run.woken_;
  }
  // The run must have seen each outcome often, or it proves nothing.
  EXPECT_GT(outcomes[0], 100);
  EXPECT_GT(outcomes[EAGAIN], 100);
  EXPECT_GT(outcomes[EDEADLK], 100);
  EXPECT_GT(outcomes[FileLocks::kWaiting], 100);
  EXPECT_GT(woken, 100U);
}

}  // namespace
}  // namespace distfuse::lockd
