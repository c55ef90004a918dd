// SPDX-License-Identifier: Apache-2.0
// One lock of this mount: the core's state machine and who waits for it here.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "client/locks/lock_table.h"
#include "rdma/lock/client.h"
#include "rdma/lock/hold.h"

namespace distfuse::client {

static_assert(static_cast<int>(Mode::none) == DF_NL && static_cast<int>(Mode::is) == DF_IS &&
              static_cast<int>(Mode::ix) == DF_IX && static_cast<int>(Mode::s) == DF_S &&
              static_cast<int>(Mode::x) == DF_X);

constexpr df_u32 to_core(Mode mode) {
  return static_cast<df_u32>(mode);
}
constexpr Mode from_core(df_u32 mode) {
  return static_cast<Mode>(mode);
}

/// A call that waits for a lock, on its thread's stack.
struct Waiter {
  enum class State : std::uint8_t {
    waiting,
    granted,
    would_block,
    again,  ///< Granted what it does not want any more.
    busy,
    lost
  };
  Mode mode = Mode::none;     ///< Asked for.
  Mode granted = Mode::none;  ///< Of the pin: x instead of s when the owner said so.
  bool try_only = false;
  const Range* page_io = nullptr;
  State state = State::waiting;
};

/// A shed in progress. States: sweeping (a revoker is inside of the owner's invalidate_*), draining (nobody works on it; the
/// last unpin goes on), closed (gate closed: the owner's shed, then the RELEASE chain).
struct Shed {
  using Clock = std::chrono::steady_clock;
  bool active = false;
  bool queued = false;   ///< At the revokers, or being worked on.
  bool decided = false;  ///< `keep` is what the owner allowed.
  bool swept = false;    ///< The sweep of everything is done (or not needed).
  bool sweeping = false;
  bool pages =
      false;  ///< Begun with pages under S: nobody has the file open for writing, an open may be on its way.
  Mode keep = Mode::none;
  unsigned guests = 0;  ///< Pins among the core's that were admitted meanwhile.
  std::vector<Range>
      admitted;  ///< Their ranges, not swept since. ≤ FUSE requests in flight (max_background, threads).
  Clock::time_point sweep_since;
  Clock::time_point admit_until;  ///< Page I/O that was parked before this is admitted.
};

struct Lock : std::enable_shared_from_this<Lock> {
  Lock(Ino number, const df_table& table, std::uint32_t its_epoch, bool detached)
      : ino(number), epoch(its_epoch) {
    df_lock_init(&core, &table, df_key_inode(number));
    if (detached) df_lock_detach(&core);
  }

  const Ino ino;
  std::mutex mutex;                 ///< Protects all below.
  std::condition_variable changed;  ///< Anything that a waiter, dropper or parked request looks at.
  std::uint32_t epoch;              ///< Of the link that its chains and messages go over.
  df_lock core;
  std::vector<Waiter*> waiters;  ///< ≤ threads of the daemon.
  Shed shed;
  std::uint64_t holds =
      0;  ///< Raised whenever something was given up: what was published before is of an older hold.
  bool page_io =
      false;  ///< Page I/O was admitted under this hold: the kernel may have pages that we vouch for.
  df_hold hold{};
  std::vector<df_msg>
      held_back;  ///< Revokes that wait for the hold time; ≤ what lockd has unanswered for a slot.
  std::uint64_t hits = 0;
  bool credit = false;    ///< Counted among the requests that lockd allows to be unanswered.
  bool counted = false;   ///< Counted as held.
  bool recent = false;    ///< Used since the trimmer came by last.
  bool unwanted = false;  ///< To be taken out of the map when it has been given up.
  bool forfeited =
      false;  ///< Not had again after lockd's restart: what is below must be forgotten, not written.
  bool dropping = false;  ///< At the revokers, to be dropped in the background.

  [[nodiscard]] bool covers(Mode mode) const { return df_covers(core.held, to_core(mode)) != 0; }
};

using LockRef = std::shared_ptr<Lock>;

}  // namespace distfuse::client
