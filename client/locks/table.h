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
// Of a lock that is forfeited nobody is admitted: page I/O that comes before the gate closes fails (EIO), for the sweep may wait for its pages.
// One that is forfeited behind the closed gate is swept once more: the sweep may have kept what S covers.
//
// Lease (session_keeper.h): a lock is used only while the session is trusted. Without trust pins wait, tries fail, and what the kernel has is
// swept (recovery.cc), because the kernel would go on serving it by itself.
//
// Recovery: when the control connection or a lane ends, the locks are detached (cached use goes on while trusted; what would post or send
// waits), the keeper connects again, and all that is held is taken again in the new table (recovery.cc). What was asked of lockd is
// asked again. A session that is lost ends this object's life: all waits and calls give ENOTCONN.
//
// Limits: LockTableOptions. max_locks is kept by a trimmer that runs behind; a caller that makes new locks at twice the
// limit is slowed down.
//
// Known weakness: two pins of one inode by one thread hang when a revoke comes between them; callers use pin_all.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <thread>

#include "client/locks/credits.h"
#include "client/locks/granted.h"
#include "client/locks/hold_timer.h"
#include "client/locks/link.h"
#include "client/locks/lock_map.h"
#include "client/locks/revokers.h"
#include "client/locks/session_keeper.h"

namespace distfuse::client {

/// How much longer a call waits for lockd than the session: its machine gives up first, and tells better what happened.
inline constexpr std::chrono::milliseconds kGiveUpLate{1000};

class Table final : public LockTable, public LinkUser, public SessionUser {
 public:
  static Result<std::unique_ptr<LockTable>> create(const LockTableOptions& options,
                                                   CacheOwner& owner);
  ~Table() override;

  [[nodiscard]] SessionInfo session() const override;
  [[nodiscard]] std::uint64_t trust_left() const override { return keeper_->trust_left(); }
  void fenced() override {
    if (!fenced_.exchange(true)) keeper_->fenced();
  }
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
  /// As if the daemon stood still, as far as its lease is concerned.
  void pause_lease(bool on) { keeper_->pause(on); }
  void withhold_renewals(bool on) { keeper_->withhold(on); }

 private:
  using Clock = std::chrono::steady_clock;
  using Guard = std::unique_lock<std::mutex>;

  static constexpr std::chrono::milliseconds kPark{2};
  static constexpr std::chrono::milliseconds kParkBehind{50};
  static constexpr std::chrono::milliseconds kTrustPoll{10};
  static constexpr std::chrono::milliseconds kPoll{
      50};  ///< How often a wait asks whether it was interrupted.

  Table(const LockTableOptions& options, CacheOwner& owner);
  Status open();
  void unpin(void* lock, Mode mode) override;

  // LinkUser.
  bool receive(Link& link, const df_msg& message) override;
  void answer_freeze(Link& link, const df_msg& message) override;
  void link_ended(Link& link, const std::string& reason) override;
  bool receive_glimpse(Link& link, const df_msg& message);
  LockRef lock_of_key(df_u64 key);
  bool deliver(Link& link, const df_msg& message);
  bool feed(Link& link, Lock& lock, const df_msg& message, const df_value* publish);
  bool feed_now(Lock& lock, const df_msg& message, const df_value* publish);
  bool hold_back(Lock& lock, const df_msg& message);
  bool hand_over(Lock& lock);
  void hold_ended(Lock& lock);

  // SessionUser, and what follows from it (recovery.cc).
  void session_suspect() override;
  void session_trusted() override {}
  void session_lost(const std::string& reason) override;
  void session_detach(std::uint32_t epoch) override;
  void session_connected(std::unique_ptr<Control> control) override;
  void session_reassert() override;
  void session_resume() override;
  void session_reclaimed() override;
  LinkRef make_link(std::unique_ptr<Control> control, std::uint32_t epoch);
  void reassert_all(const LinkRef& link);
  void reassert_some(Link& link, std::span<LockRef> locks);
  bool begin_reassert(Link& link, Lock& lock, Due& due);
  void reassert_busy(Link& link);
  bool reassert_file_locks(Link& link);
  void sweep_suspect();

  /// The present link if it has this epoch; else null.
  [[nodiscard]] LinkRef link_of(std::uint32_t epoch) const;
  /// The link, once lockd takes requests. Error: ENOTCONN, EIO (given up), EINTR.
  Result<LinkRef> live_link(const Interrupted& interrupted);
  void reap_links(bool all);

  // Performing what a machine asks for (table_perform.cc). Called with the lock's mutex held but run().
  [[nodiscard]] bool perform(Lock& lock, const df_out& out, Due& due);
  void wake(Lock& lock, unsigned bits);
  void begin_shed(Lock& lock, Mode keep);
  void settle(Lock& lock);
  void run(Lock& lock, const Due& first);
  void run_later(Lock& lock, const Due& due);
  void count_take(df_u32 kind, const df_out& out);
  void link_failed(Link& link, const Error& error);

  // Taking (table_pin.cc).
  /// When a thread began to wait: the clock is read once, by the first who asks.
  class Since {
   public:
    Clock::time_point time() {
      if (!time_) time_ = Clock::now();
      return *time_;
    }

   private:
    std::optional<Clock::time_point> time_;
  };
  Result<Pin> acquire(Ino ino, Mode mode, const Range* page_io, const Interrupted& interrupted);
  Result<Pin> wait_for(Lock& lock, Guard& guard, Waiter& waiter, bool trusted,
                       const Interrupted& interrupted);
  std::optional<Result<Pin>> look(Lock& lock, Guard& guard, Waiter& waiter, Since& since);
  void want(Lock& lock, Guard& guard, Waiter& waiter);
  void wait_for_trust(Lock& lock, Guard& guard, Waiter& waiter);
  void give_back(Lock& lock, Guard& guard, Waiter& waiter);
  void leave(Lock& lock, Guard& guard, Waiter& waiter);
  Mode needed(const Lock& lock, const Waiter& waiter);
  bool may_join(const Lock& lock, const Waiter& waiter);
  static bool is_forfeited(const Lock& lock, const Waiter& waiter);
  void admit(Lock& lock, const Waiter& waiter);
  bool may_be_guest(Lock& lock, const Waiter& waiter, Since& waits_since);
  Pin pin_of(Lock& lock, Mode mode, bool guest = false);
  Pin finish_try(Lock& lock, Waiter& waiter);
  LockRef make(Ino ino);

  struct Attempt {
    LockRef lock;
    Waiter waiter;
    Due due;
    bool posting = false;  ///< `due` is to be posted.
    bool inside = false;   ///< Of the slot's gate.
  };
  void start_attempt(Attempt& attempt, Pin& pin);
  void drive(std::span<Attempt> attempts);
  void attempt_done(Link& link, Attempt& attempt, const ChainResult& result);

  // Giving up (table_shed.cc).
  void work(RevokerJob& job);
  void work_shed(Lock& lock);
  void work_drop(LockRef& lock);
  void erase_unwanted(LockRef& lock);
  void trim();
  void start_trim();
  bool sweep(Lock& lock, Guard& guard, std::span<const Range> ranges);
  bool decide(Lock& lock, Guard& guard);
  bool drain(Lock& lock, Guard& guard);
  bool finish_shed(Lock& lock, Guard& guard);
  void push_drop(const LockRef& lock);
  bool drop_step(Lock& lock, Guard& guard, Mode mode);
  std::size_t drop_all();

  // Glimpses (table_requests.cc).
  struct Located {
    df_u32 slot = DF_NO_SLOT;
    df_slot image{};
  };
  Result<Located> locate(Link& link, df_u64 key, df_u32 slot, const Interrupted& interrupted);
  Result<Located> find_in_bucket(Link& link, df_u64 key, const Interrupted& interrupted);
  Status run_read(Link& link, df_u64 offset, df_u32 length, std::span<std::byte> into);
  Result<std::optional<ValueBlock>> glimpse_once(df_u64 key, df_u32 slot,
                                                 const Interrupted& interrupted);
  Result<df_msg> call(const df_msg& message, const Interrupted& interrupted = {});
  Result<df_msg> call_over(Link& link, const df_msg& message, const Interrupted& interrupted);

  // File locks (table_requests.cc).
  [[nodiscard]] df_msg file_message(df_u32 type, const FileLock& lock) const;
  Result<df_msg> wait_for_file_lock(df_msg message, const Interrupted& interrupted);
  void note_file_owner(const FileLock& lock);

  const LockTableOptions options_;
  CacheOwner& owner_;
  std::unique_ptr<fabric::Fabric> fabric_;
  df_hello lane_hello_{};
  df_welcome welcome_{};  ///< The first.
  std::deque<df_table>
      geometries_;  ///< Of each incarnation; the keeper's thread adds. Locks point here.
  std::atomic<bool> lost_ = false;
  std::atomic<bool> fenced_ = false;  ///< A storaged has said so.
  std::atomic<bool> live_ = false;    ///< lockd takes requests, locks are attached.
  LockMap locks_;
  GrantedLocks granted_;
  mutable std::mutex link_mutex_;
  LinkRef link_;  ///< Null: none now. Protected by link_mutex_.
  std::vector<LinkRef>
      retired_;  ///< Protected by link_mutex_; destroyed by the keeper's thread when nobody uses them any more.
  std::unique_ptr<Credits> ask_credits_;   ///< For locks' own Asks and Finds.
  std::unique_ptr<Credits> wait_credits_;  ///< For file locks that wait.
  std::unique_ptr<Credits> call_credits_;  ///< For what lockd answers soon.
  std::unique_ptr<Revokers> revokers_;
  std::unique_ptr<HoldTimer> holds_;

  std::thread reasserter_;                    ///< Of the keeper's thread.
  std::atomic<std::size_t> to_reassert_ = 0;  ///< Begun and not had yet, in this epoch.
  std::mutex busy_mutex_;
  std::vector<LockRef> busy_;  ///< To be begun again. Protected by busy_mutex_.
  std::atomic<std::uint64_t> forfeited_ = 0;
  std::thread sweeper_;  ///< Of the keeper's thread.
  std::atomic<bool> sweeping_ = false;
  std::atomic<bool> ending_ = false;

  std::atomic<bool> trimming_ = false;
  std::atomic<std::size_t> trim_shard_ = 0;

  std::mutex file_owners_mutex_;
  std::unordered_map<Ino, std::vector<std::pair<std::uint64_t, bool>>>
      file_owners_;  ///< (owner, flock) that may hold file locks: the others need no message at close.

  struct alignas(64) Counts {
    std::atomic<std::uint64_t> free_takes = 0, asks = 0, revokes = 0, sweeps = 0, resweeps = 0,
                               glimpses = 0, finds = 0, held = 0;
  } counts_;

  std::unique_ptr<SessionKeeper> keeper_;  ///< The last: its thread uses all of the above.
};

}  // namespace distfuse::client
