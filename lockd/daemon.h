// SPDX-License-Identifier: Apache-2.0
// All of lockd but its I/O: sessions, the contended path (rdma/lock/lockd.h), file locks. Events in, actions out; no fabric,
// clock or thread. The service runs it over a fabric; tests and the fuzzer run it over an array.
//
// Parties: connections, named by numbers that the service gives out; the slot table, reached by chains on the loopback
// connection; the fencer; the list of sessions on disk. rdma/lock/session.h is the contract of leases, loss and restart.
//
// A session's life: hello (control) → on the list → its Welcome → hello (lanes) … → Bye, or it is lost: its control connection
// ends, its lease runs out, it breaks a rule.
//   Bye         the connections are closed, its file locks freed; it has given up everything else itself.
//   lost        its connections are closed (their one-sided operations are refused from there on), record() notes the loss, and only
//               when it is on disk fence(). The lock core forgets it and its file locks are freed when fenced() has come, and the lease's
//               deadline has passed unless the peer itself ended the connection: nobody may trust what somebody else may change.
//
// Phases
//   normal      from the start when the list has no session.
//   grace       sessions of the list come back, re-assert and say Reclaimed; others are told to come again. Ends when all have, at
//               the latest after one lease + 20 %. Then who has not said Reclaimed is lost.
//   resuming    until the last of them is gone. Then Resume to everyone, and normal.
//   In grace and resuming nothing new is given: Ask and Glimpse are answered BUSY, file locks EAGAIN but for those that are reclaimed.
//
// Without a lease (lease_ms 0) a session lives as long as its control connection, nothing is listed, and none survives lockd.
//
// Serialised by: the owner thread. Actions are performed in the order given; none calls back into the Daemon. at(now) comes before
// every event whose time differs from the one before; tick() at wake_at() at the latest, and more often does no harm.
//
// Limits: Geometry, DaemonLimits. A session's unanswered requests (Ask, Find, Glimpse, waiting FileLocks) are at most `asks`.
// What is sent to a session and not drained: see outgoing_limit.
// Known weakness: a Bye is believed. A client can write another's lease word, as it can any slot: sessions trust each other that far.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"
#include "lockd/file_locks.h"
#include "lockd/sessions.h"
#include "rdma/lock/lockd.h"
#include "rdma/lock/slot.h"
#include "rdma/lock/wire.h"

namespace distfuse::lockd {

using ClusterId = std::array<std::uint8_t, DF_CLUSTER_ID_BYTES>;

/// 32 hex digits. Error: EINVAL.
[[nodiscard]] Result<ClusterId> parse_cluster_id(const std::string& text);

struct DaemonLimits {
  SessionTable::Limits sessions;
  FileLockLimits file_locks;
  std::uint32_t asks = 1024;      ///< Unanswered requests of one session.
  std::uint32_t waiters = 65536;  ///< Ask, Find, Glimpse of all sessions.
  std::uint32_t objects =
      8192;  ///< Slots contended at once. A bit per node id each: 8192 × 4 KiB = 32 MiB.

  /// Messages to one session that its connection has not taken: an answer per request; per contended slot a Revoke of each
  /// mode, a Freeze, a Thaw and a Glimpse. A session beyond it does not drain.
  [[nodiscard]] std::size_t outgoing() const { return asks + std::size_t{8} * objects; }
};

struct DaemonOptions {
  std::uint32_t incarnation = 1;
  ClusterId cluster{};
  df_table table{};
  DaemonLimits limits;
  std::uint32_t lease_ms = 0;  ///< 0: none.
};

/// Who may still write: for storageds.
struct LiveSessions {
  std::uint64_t incarnation = 0;
  SessionId high = 0;  ///< Sessions above it began later: accepted unless fenced. 0: so are all.
  std::vector<SessionId> ids;  ///< Up to `high`; all others up to it are refused.
};

/// A line of the list of sessions on disk.
struct SessionChange {
  enum class Kind : std::uint8_t { begin, lost, end } kind = Kind::begin;
  ListedSession session;  ///< lost, end: its id.
};

/// The lease words in the region: one of 8 bytes per node id, behind the slots.
[[nodiscard]] inline std::uint64_t lease_words_offset(const df_table& table) {
  return df_table_bytes(&table);
}
[[nodiscard]] inline std::uint64_t region_bytes(const df_table& table) {
  return lease_words_offset(table) + std::uint64_t{kMaxNodeId + 1} * sizeof(std::uint64_t);
}

enum class Verdict : std::uint8_t {
  control,  ///< Accept without a region.
  lane,     ///< Accept with the table.
  later,    ///< Keep the request: greet() follows, or close().
  refuse,   ///< Accept without a region for the answer's sake; not known here; close after a while.
  reject,   ///< Not our protocol.
};
struct Greeting {
  Verdict verdict = Verdict::reject;
  df_welcome welcome{};
  std::string reason;
};

class DaemonActions {
 public:
  virtual ~DaemonActions() = default;
  /// On the loopback, in order; answered by chain_done.
  virtual void post(std::uint64_t cookie, const df_chain& chain) = 0;
  virtual void send(ConnectionId connection, std::span<const std::byte> message) = 0;
  /// At once: no operation and no event of it after this.
  virtual void close(ConnectionId connection) = 0;
  /// Answered by fenced(), however long it takes.
  virtual void fence(SessionId session) = 0;
  /// Which node ids stand as owner in the table (indexed by node id, 0x8000 long).
  virtual std::vector<bool> owners_in_table() = 0;
  /// Another one each time, not all zero, that nobody can guess.
  virtual SessionToken new_token() = 0;

  // With a lease only:
  /// On the list of sessions, in the order given. `begin` and `lost` are answered by recorded() when they are durable.
  virtual void record(const SessionChange& change) { (void)change; }
  /// The answer to a Hello that was Verdict::later: control or refuse.
  virtual void greet(ConnectionId connection, const Greeting& greeting) {
    (void)connection, (void)greeting;
  }
  /// As it is now.
  virtual std::uint64_t lease_word(NodeId node) {
    (void)node;
    return 0;
  }
};

struct DaemonCounters {
  std::array<std::uint64_t, DF_MSG_TYPES> received{};
  std::array<std::uint64_t, DF_MSG_TYPES> sent{};
  std::uint64_t messages = 0;  ///< Received and handled, of all types.
  std::uint64_t malformed = 0;
  std::uint64_t refused = 0;
  std::uint64_t byes = 0;
  std::uint64_t lost = 0;
  std::uint64_t expired = 0;    ///< Of the lost: their lease ran out.
  std::uint64_t reclaimed = 0;  ///< Sessions that came back and re-asserted everything.
};

class Daemon {
 public:
  /// The table must have been prepared (df_lockd_prepare_slot). Error: EINVAL: limits or geometry out of range; ENOMEM.
  static Result<std::unique_ptr<Daemon>> create(const DaemonOptions& options,
                                                DaemonActions& actions);
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  using Verdict = lockd::Verdict;
  using Greeting = lockd::Greeting;
  /// The time of the events that follow; never goes back.
  void at(Milliseconds now) { now_ = now; }
  /// Before the first hello: the sessions of the list on disk. None: no grace.
  void recover(const std::vector<ListedSession>& listed);
  /// Looks at leases and deadlines.
  void tick();
  /// When tick() is due; kNever.
  [[nodiscard]] Milliseconds wake_at() const;

  Greeting hello(ConnectionId connection, std::span<const std::byte> data, const std::string& peer);
  /// A connection that was greeted could not be accepted.
  void withdraw(ConnectionId connection);
  void message(ConnectionId connection, std::span<const std::byte> bytes);
  /// `by_peer`: the peer ended it itself (closed it, or its kernel did when it died), so it trusts nothing any more. False: the
  /// network, or unknown.
  void connection_ended(ConnectionId connection, const std::string& reason, bool by_peer = false);
  /// The session of this connection misbehaves in a way that the service saw.
  void lose_connection(ConnectionId connection, const std::string& reason);
  /// `image`: what the chain's READ brought; null without one.
  void chain_done(std::uint64_t cookie, std::uint64_t old, const void* image);
  void fenced(SessionId session);
  /// record() is done. `durable` false, of begin alone: it cannot be noted, and the mount is told to come again.
  void recorded(SessionChange::Kind kind, SessionId session, bool durable);

  enum class Phase : std::uint8_t { normal, grace, resuming };
  [[nodiscard]] Phase phase() const { return phase_; }
  /// Of grace; 0 in other phases.
  [[nodiscard]] Milliseconds grace_left() const;
  [[nodiscard]] Milliseconds now() const { return now_; }
  [[nodiscard]] LiveSessions live_sessions() const;

  [[nodiscard]] const SessionTable& sessions() const { return sessions_; }
  [[nodiscard]] const FileLocks& file_locks() const { return file_locks_; }
  [[nodiscard]] const DaemonCounters& counters() const { return counters_; }
  [[nodiscard]] df_lockd_counters lock_counters() const;
  [[nodiscard]] std::uint32_t requests(const Session& session) const;
  /// Node ids that wait for the slot, in order, the first 16; how many wait in all. 0x7fff: a Find.
  [[nodiscard]] std::pair<std::vector<std::uint32_t>, std::uint32_t> waiters(
      std::uint32_t slot) const;
  [[nodiscard]] const DaemonOptions& options() const { return options_; }

 private:
  Daemon(const DaemonOptions& options, DaemonActions& actions)
      : options_(options),
        actions_(actions),
        sessions_(options.incarnation, options.limits.sessions),
        file_locks_(options.limits.file_locks) {}
  Status init();

  Greeting refuse(df_refusal refusal, std::string reason);
  Greeting hello_control(ConnectionId connection, const df_hello& hello, const std::string& peer);
  Greeting hello_again(ConnectionId connection, const df_hello& hello, const std::string& peer);
  Greeting hello_lane(ConnectionId connection, const df_hello& hello);
  df_welcome welcome_of(const Session& session) const;

  void dispatch(const Session& session, const df_msg& message);
  void file_lock(const Session& session, const df_msg_file& file);
  void file_unlock(const Session& session, const df_msg_file& file);
  void file_test(const Session& session, const df_msg_file& file);
  void reply_file(const Session& session, std::uint64_t key, std::uint64_t seq, int error);
  void answer_waits(const std::vector<FileLockAnswer>& answers);
  void bye(const Session& session);
  bool defer_in_grace(const Session& session, const df_msg& message);
  void send(const Session& session, const df_msg& message);

  // recovery.cc
  enum class Loss : std::uint8_t { by_peer, expired, other };
  void lose(SessionId session, const std::string& reason, Loss loss);
  void finish_drops();
  void end(SessionId session, bool clean);
  void end_if_free(SessionId session);
  void record(SessionChange::Kind kind, const Session& session);
  void look_at_lease(Session& session);
  void look_at_leases();
  void begin_lease(Session& session);
  void reclaimed(const Session& session);
  void check_grace();
  void lose_absentees();
  void resume();

  const DaemonOptions options_;
  DaemonActions& actions_;
  SessionTable sessions_;
  FileLocks file_locks_;
  std::unique_ptr<std::byte, void (*)(void*)> memory_{nullptr, nullptr};
  df_lockd* lockd_ = nullptr;  ///< In memory_.
  std::vector<std::pair<NodeId, int>>
      drops_;  ///< Told by the lock core while it runs; handled after it.
  DaemonCounters counters_;
  Milliseconds now_ = 0;
  Milliseconds next_look_ = 0;  ///< At the lease words.
  Phase phase_ = Phase::normal;
  Milliseconds grace_until_ = 0;
  std::set<SessionId> lost_;  ///< Fencing and waiting.
};

}  // namespace distfuse::lockd
