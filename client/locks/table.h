// SPDX-License-Identifier: Apache-2.0
// The lock table of mode `user`: one core state machine (rdma/lock/client.h) per inode, and the threads and connections that
// perform what the machines ask for.
//
// Parties: callers (FUSE threads), the control thread, revokers (revokers.h), lockd.
//
// Who runs a chain: the thread whose call gave it out, on a lane it borrows for that long, without the lock's mutex; what the
// control thread gives out goes to the revokers. A chain's outcome is fed to the machine under the mutex, and so on until the
// machine has no more to post. Messages are queued under the mutex: their order is the machine's.
//
// What is serialised by what: a lock's state by its mutex; shedding one lock by Shed::queued (one revoker at a time); the owner's
// functions are called without any mutex of ours. Order of mutexes: shard → lock → (credits | control queue | revokers' queue).
// A slot gate is entered before a lane is borrowed, so that nobody waits for a thaw with a lane in hand.
//
// Giving up (work_shed in table_shed.cc): sweep, sweep again what page I/O touched meanwhile, until no pin is left; close the
// gate; publish, shed, release. While a sweep runs, page I/O that the held mode covers is admitted after kPark, because the
// sweep may be waiting for its locked pages. It is parked, not admitted, while no sweep runs: then nobody waits for its pages but
// itself. Requests parked while others are admitted wait for these (kParkBehind at most): what they had to show, the sweep saw.
// No page I/O under this hold of the lock: no pages of ours are in the kernel, so only attributes are swept. This is what keeps a WRITE that
// waits for X with its page locked from stopping the revoke of an S that was taken for the attributes.
//
// Pages under S and a file open for writing never meet: an open raises page_io_needs_x and then drops S. A READ that comes in between waits
// for X, but the sweep of that drop may wait for its page; so while pages under S are being given up, READs still join under S.
//
// Recovery: the loss of the control connection or of a lane ends the session: all waits and calls give ENOTCONN.
//
// Limits: LockTableOptions. max_locks is kept by a trimmer that runs behind; a caller that makes new locks at twice the
// limit is slowed down.
//
// Known weakness: two pins of one inode by one thread hang when a revoke comes between them; callers use pin_all.
#pragma once

#include <atomic>
#include <memory>

#include "client/locks/control.h"
#include "client/locks/credits.h"
#include "client/locks/lane.h"
#include "client/locks/lock_map.h"
#include "client/locks/requests.h"
#include "client/locks/revokers.h"
#include "client/locks/slot_gates.h"

namespace distfuse::client {

class Table final : public LockTable, private Receiver {
 public:
  static Result<std::unique_ptr<LockTable>> create(const LockTableOptions& options,
                                                   CacheOwner& owner);
  ~Table() override;

  [[nodiscard]] SessionInfo session() const override;
  Result<Pin> pin(Ino ino, Mode mode, const Interrupted& interrupted) override;
  Result<std::vector<Pin>> pin_all(std::span<const Wanted> wanted,
                                   const Interrupted& interrupted) override;
  Pin try_pin(Ino ino, Mode mode) override;
  std::vector<Pin> try_pin_many(std::span<const Ino> inodes, Mode mode) override;
  Result<Pin> pin_page_io(Ino ino, Mode mode, Range range, const Interrupted& interrupted) override;
  void drop(Ino ino, Mode mode) override;
  void forget(Ino ino) override;
  Result<std::optional<ValueBlock>> glimpse(Ino ino, const Interrupted& interrupted) override;
  Status file_lock(const FileLock& lock, bool wait, const Interrupted& interrupted) override;
  Result<FileLock> file_lock_test(const FileLock& lock) override;
  void file_lock_release_owner(Ino ino, std::uint64_t owner) override;
  [[nodiscard]] LockCounters counters() const override;

  /// For the log and for tests that hang: every lock that is not quiet, one a line.
  [[nodiscard]] std::string describe();
  /// Ends the session without Bye, as if the connection had broken.
  void abandon(const std::string& reason);

 private:
  using Clock = std::chrono::steady_clock;
  using Guard = std::unique_lock<std::mutex>;

  static constexpr std::chrono::milliseconds kPark{2};
  static constexpr std::chrono::milliseconds kParkBehind{50};
  static constexpr std::chrono::milliseconds kPoll{
      50};  ///< How often a wait asks whether it was interrupted.

  Table(const LockTableOptions& options, CacheOwner& owner);
  Status open();
  void unpin(void* lock, Mode mode) override;

  // Receiver.
  bool receive(const df_msg& message) override;
  void lost(const std::string& reason) override;
  bool receive_glimpse(const df_msg& message);
  void answer_freeze(const df_msg& message);
  void answer_unknown(const df_msg& message);
  LockRef lock_of_key(df_u64 key);
  bool deliver(const df_msg& message);
  bool feed(Lock& lock, const df_msg& message, const df_value* publish);

  // Performing what a machine asks for (table_perform.cc). Called with the lock's mutex held but run().
  [[nodiscard]] bool perform(Lock& lock, const df_out& out, df_chain& chain);
  void wake(Lock& lock, unsigned bits);
  void begin_shed(Lock& lock, Mode keep);
  void settle(Lock& lock);
  void run(Lock& lock, const df_chain& first);
  void count_take(df_u32 kind, const df_out& out);
  void session_failed(const Error& error);

  // Taking (table_pin.cc).
  Result<Pin> acquire(Ino ino, Mode mode, const Range* page_io, const Interrupted& interrupted);
  Result<Pin> wait_for(Lock& lock, Guard& guard, Waiter& waiter, const Interrupted& interrupted);
  std::optional<Result<Pin>> look(Lock& lock, Guard& guard, Waiter& waiter,
                                  Clock::time_point since);
  void want(Lock& lock, Guard& guard, Waiter& waiter);
  void leave(Lock& lock, Guard& guard, Waiter& waiter);
  Mode needed(const Lock& lock, const Waiter& waiter);
  bool may_join(const Lock& lock, const Waiter& waiter);
  void admit(Lock& lock, const Waiter& waiter);
  bool may_be_guest(Lock& lock, const Waiter& waiter, Clock::time_point since);
  Pin pin_of(Lock& lock, Mode mode, bool guest = false);
  Pin finish_try(Lock& lock, Waiter& waiter);
  LockRef make(Ino ino);

  struct Attempt {
    LockRef lock;
    Waiter waiter;
    df_chain chain;
    bool posting = false;  ///< `chain` is to be posted.
    bool inside = false;   ///< Of the slot's gate.
  };
  void start_attempt(Attempt& attempt, Pin& pin);
  void drive(std::span<Attempt> attempts);
  void attempt_done(Attempt& attempt, const ChainResult& result);

  // Giving up (table_shed.cc).
  void work(RevokerJob& job);
  void work_shed(Lock& lock);
  void work_drop(LockRef& lock);
  void erase_unwanted(LockRef& lock);
  void trim();
  void start_trim();
  bool sweep(Lock& lock, Guard& guard, std::span<const Range> ranges);
  bool decide(Lock& lock, Guard& guard);
  void finish_shed(Lock& lock, Guard& guard);
  void push_drop(const LockRef& lock);
  bool drop_step(Lock& lock, Guard& guard, Mode mode);
  std::size_t drop_all();

  // Glimpses (table_requests.cc).
  struct Located {
    df_u32 slot = DF_NO_SLOT;
    df_slot image{};
  };
  Result<Located> locate(df_u64 key, df_u32 slot, const Interrupted& interrupted);
  Result<Located> find_in_bucket(df_u64 key, const Interrupted& interrupted);
  Result<ChainResult> run_read(df_u64 offset, df_u32 length, std::span<std::byte> into);
  Result<std::optional<ValueBlock>> glimpse_once(df_u64 key, df_u32 slot,
                                                 const Interrupted& interrupted);
  Result<df_msg> call(const df_msg& message, const Interrupted& interrupted = {});

  // File locks (table_requests.cc).
  [[nodiscard]] df_msg file_message(df_u32 type, const FileLock& lock) const;
  Result<df_msg> wait_for_file_lock(df_msg message, const Interrupted& interrupted);
  void note_file_owner(const FileLock& lock);

  const LockTableOptions options_;
  CacheOwner& owner_;
  std::unique_ptr<fabric::Fabric> fabric_;
  df_welcome welcome_{};
  df_table geometry_{};
  std::atomic<bool> lost_ = false;
  LockMap locks_{geometry_};
  SlotGates gates_;
  std::unique_ptr<Control> control_;
  std::unique_ptr<LanePool> lanes_;
  std::unique_ptr<Credits> ask_credits_;   ///< For locks' own Asks and Finds.
  std::unique_ptr<Credits> wait_credits_;  ///< For file locks that wait.
  std::unique_ptr<Credits> call_credits_;  ///< For what lockd answers soon.
  std::unique_ptr<Requests> requests_;
  std::unique_ptr<Revokers> revokers_;

  std::atomic<bool> trimming_ = false;
  std::atomic<std::size_t> trim_shard_ = 0;

  std::mutex file_owners_mutex_;
  std::unordered_map<Ino, std::vector<std::pair<std::uint64_t, bool>>>
      file_owners_;  ///< (owner, flock) that may hold file locks: the others need no message at close.

  struct alignas(64) Counts {
    std::atomic<std::uint64_t> free_takes = 0, asks = 0, revokes = 0, sweeps = 0, resweeps = 0,
                               glimpses = 0, finds = 0, held = 0;
  } counts_;
};

}  // namespace distfuse::client
