// SPDX-License-Identifier: Apache-2.0
// Cluster-wide fcntl byte-range locks and flock: the pure core (events in, actions out; no I/O,
// clock or thread).
//
// Parties: owners, each (session, owner number of that mount); lockd's service, which feeds
// requests and sends the answers. Events: lock, unlock, test, cancel, release_owner,
// release_session. Actions: an immediate result, and FileLockAnswers for waiters that an event
// completed, in the order granted.
//
// States: an inode has two independent spaces, fcntl and flock. A space holds, per owner, disjoint
// intervals (neighbours of one type merged), and the waiters in order of arrival. Everything is
// serialised by the one owner thread.
//
// Rules: fcntl requests replace what the same owner holds in their range (split, merge, upgrade,
// downgrade), whole or not at all. flock covers the file; a conversion drops the old lock first, as
// Linux does, so it may be lost to a waiter. A request is granted when it conflicts with nothing
// held; waiters are looked at in order of arrival, and later requests that are compatible pass
// them. A wait that would close a cycle of fcntl owners, across inodes, is refused: EDEADLK. flock
// is never checked for cycles, as on Linux.
//
// Recovery: a session that ends takes its locks and waiters with it; nothing is kept over a restart
// of lockd. Limits: FileLockLimits; beyond them ENOLCK. Known weakness: readers that keep coming
// can starve a writer (as on Linux); an owner with several threads that wait counts as one node of
// the graph, so EDEADLK can come where a thread could still go on.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

namespace distfuse::lockd {

using Ino = std::uint64_t;
using SessionId = std::uint64_t;

enum class FileLockType : std::uint8_t { read, write };

struct FileLockOwner {
  SessionId session = 0;
  std::uint64_t owner = 0;
  auto operator<=>(const FileLockOwner&) const = default;
};

struct FileLockSpace {
  Ino ino = 0;
  bool flock = false;
  auto operator<=>(const FileLockSpace&) const = default;
};

struct FileLockRequest {
  FileLockSpace space;
  FileLockOwner owner;
  FileLockType type = FileLockType::read;
  std::uint64_t start = 0;
  std::uint64_t end = 0;      ///< Inclusive. flock: start and end are ignored.
  std::int32_t pid = 0;       ///< For F_GETLK of others.
  std::uint64_t request = 0;  ///< Names the wait; unique among the session's waits.
};

/// What F_GETLK tells about a conflicting lock.
struct FileLockConflict {
  FileLockOwner owner;
  FileLockType type = FileLockType::read;
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::int32_t pid = 0;
};

/// A wait that is over: `error` 0 (granted), EINTR (cancelled) or ENOLCK (granted, but over the
/// limits now: not held).
struct FileLockAnswer {
  SessionId session = 0;
  std::uint64_t request = 0;
  int error = 0;
  Ino ino = 0;
  bool operator==(const FileLockAnswer&) const = default;
};

/// About 100 bytes an interval and 150 a waiter: at most 1 Mi × 100 B + 64 Ki × 150 B ≈ 115 MB.
struct FileLockLimits {
  std::size_t locks_per_session = 65536;
  std::size_t locks_total = std::size_t{1} << 20;
  std::size_t waiters_per_session = 4096;
  std::size_t waiters_total = 65536;
  std::size_t search_steps =
      200000;  ///< Owners looked at in one search for a cycle; beyond: ENOLCK (some 20 ms).
};

struct FileLockCounts {
  std::size_t locks = 0;
  std::size_t waiters = 0;
  std::size_t spaces = 0;
};

class FileLocks {
 public:
  explicit FileLocks(FileLockLimits limits = {}) : limits_(limits) {}

  static constexpr int kWaiting = -1;

  /// 0: held. With `wait`, kWaiting: an answer follows. EAGAIN: conflict; EDEADLK; ENOLCK; EINVAL:
  /// empty range, or a wait of that name exists.
  [[nodiscard]] int lock(const FileLockRequest& request, bool wait,
                         std::vector<FileLockAnswer>& answers);
  /// Type, pid and request do not matter. 0; ENOLCK: a split beyond the limits; EINVAL: empty
  /// range.
  [[nodiscard]] int unlock(const FileLockRequest& request, std::vector<FileLockAnswer>& answers);
  /// The conflicting lock with the lowest start, if any.
  [[nodiscard]] std::optional<FileLockConflict> test(const FileLockRequest& request) const;
  /// Whether such a wait existed; its EINTR is among the answers.
  bool cancel(SessionId session, std::uint64_t request, std::vector<FileLockAnswer>& answers);
  /// Drops all that the owner holds in the space (waits stay: they are cancelled by name).
  void release_owner(FileLockSpace space, FileLockOwner owner,
                     std::vector<FileLockAnswer>& answers);
  /// Drops all locks and waits of the session; its own waits get no answer.
  void release_session(SessionId session, std::vector<FileLockAnswer>& answers);

  [[nodiscard]] FileLockCounts counts() const;
  [[nodiscard]] std::size_t session_locks(SessionId session) const;
  [[nodiscard]] std::size_t session_waits(SessionId session) const;

 private:
  struct Interval {
    std::uint64_t end;
    FileLockType type;
    std::int32_t pid;
  };
  using Intervals = std::map<std::uint64_t, Interval>;  ///< By start; disjoint.
  struct Waiter {
    FileLockRequest request;
    FileLockOwner blocker;  ///< One of the owners in conflict: nothing to look at until this one's
                            ///< intervals change.
  };
  struct Space {
    std::map<FileLockOwner, Intervals> held;  ///< No empty Intervals.
    std::list<Waiter> waiting;                ///< In order of arrival.
  };
  struct SpaceHash {
    std::size_t operator()(const FileLockSpace& space) const {
      return std::hash<std::uint64_t>{}(space.ino * 2 + (space.flock ? 1 : 0));
    }
  };
  struct Session {
    std::size_t locks = 0;
    std::map<FileLockSpace, std::size_t>
        spaces;  ///< Intervals and waits of the session there; none is 0.
    std::map<std::uint64_t, FileLockSpace> waits;  ///< By request.
  };
  enum class Search { free, cycle, too_long };

  static const FileLockOwner* conflict(const Space& space, const FileLockRequest& request);
  static const Intervals::value_type* conflict_with(const Intervals& held,
                                                    const FileLockRequest& request);
  [[nodiscard]] bool has_room(const FileLockRequest& request, std::size_t more) const;
  void replace(const FileLockRequest& request, bool insert);
  void count(FileLockOwner owner, FileLockSpace space, std::ptrdiff_t locks, std::ptrdiff_t waits);
  void clear(FileLockSpace space, FileLockOwner owner);
  void forget_if_empty(FileLockSpace space);
  int start_wait(const FileLockRequest& request, FileLockOwner blocker);
  void end_wait(Space& space, std::list<Waiter>::iterator waiter);
  void wake(FileLockSpace key, std::set<FileLockOwner> changed,
            std::vector<FileLockAnswer>& answers);
  int take_flock(const FileLockRequest& request, bool wait, std::vector<FileLockAnswer>& answers);
  int take(const FileLockRequest& request, bool wait, std::vector<FileLockAnswer>& answers);
  [[nodiscard]] Search find_cycle(const FileLockRequest& request) const;

  const FileLockLimits limits_;
  std::unordered_map<FileLockSpace, Space, SpaceHash> spaces_;  ///< No empty Space between events.
  std::map<SessionId, Session> sessions_;
  std::multimap<FileLockOwner, const FileLockRequest*>
      waiting_owners_;  ///< fcntl only: the graph's edges start here.
  std::size_t locks_ = 0;
  std::size_t waiters_ = 0;
};

}  // namespace distfuse::lockd
