// SPDX-License-Identifier: Apache-2.0
// All of lockd but its I/O: sessions, the contended path (rdma/lock/lockd.h), file locks. Events in, actions out; no fabric,
// clock or thread. The service runs it over a fabric; tests and the fuzzer run it over an array.
//
// Parties: connections, named by numbers that the service gives out; the slot table, reached by chains on the loopback
// connection; the fencer.
//
// A session's life: hello (control) → its Welcome → hello (lanes) … → Bye, or the control connection ends, or it breaks a rule.
//   Bye                 the connections are closed, its file locks freed; it has given up everything else itself.
//   lost                its connections are closed (their one-sided operations are refused from there on), then fence(), and only
//                       when fenced() comes: the lock core forgets it and its file locks are freed (fence before reclaim).
//
// Serialised by: the owner thread. Actions are performed in the order given; none calls back into the Daemon.
//
// Limits: Geometry, DaemonLimits. A session's unanswered requests (Ask, Find, Glimpse, waiting FileLocks) are at most `asks`.
// What is sent to a session and not drained: see outgoing_limit.
// Known weakness: no lease yet: a mount that stands still but is connected keeps its locks. A Bye is believed.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
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
};

struct DaemonCounters {
  std::array<std::uint64_t, DF_MSG_TYPES> received{};
  std::array<std::uint64_t, DF_MSG_TYPES> sent{};
  std::uint64_t messages = 0;  ///< Received and handled, of all types.
  std::uint64_t malformed = 0;
  std::uint64_t refused = 0;
  std::uint64_t byes = 0;
  std::uint64_t lost = 0;
};

class Daemon {
 public:
  /// The table must have been prepared (df_lockd_prepare_slot). Error: EINVAL: limits or geometry out of range; ENOMEM.
  static Result<std::unique_ptr<Daemon>> create(const DaemonOptions& options,
                                                DaemonActions& actions);
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  enum class Verdict : std::uint8_t {
    control,  ///< Accept without a region.
    lane,     ///< Accept with the table.
    refuse,  ///< Accept without a region for the answer's sake; not known here; close after a while.
    reject,  ///< Not our protocol.
  };
  struct Greeting {
    Verdict verdict = Verdict::reject;
    df_welcome welcome{};
    std::string reason;
  };
  Greeting hello(ConnectionId connection, std::span<const std::byte> data, const std::string& peer);
  /// The connection greeted last could not be accepted.
  void withdraw(ConnectionId connection);
  void message(ConnectionId connection, std::span<const std::byte> bytes);
  void connection_ended(ConnectionId connection, const std::string& reason);
  /// The session of this connection misbehaves in a way that the service saw.
  void lose_connection(ConnectionId connection, const std::string& reason);
  /// `image`: what the chain's READ brought; null without one.
  void chain_done(std::uint64_t cookie, std::uint64_t old, const void* image);
  void fenced(SessionId session);

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
  Greeting hello_lane(ConnectionId connection, const df_hello& hello);
  df_welcome welcome_of(const Session& session) const;

  void dispatch(const Session& session, const df_msg& message);
  void file_lock(const Session& session, const df_msg_file& file);
  void file_unlock(const Session& session, const df_msg_file& file);
  void file_test(const Session& session, const df_msg_file& file);
  void reply_file(const Session& session, std::uint64_t key, std::uint64_t seq, int error);
  void answer_waits(const std::vector<FileLockAnswer>& answers);
  void bye(const Session& session);
  void lose(SessionId session, const std::string& reason);
  void finish_drops();
  void end(SessionId session, bool clean);
  void send(const Session& session, const df_msg& message);

  const DaemonOptions options_;
  DaemonActions& actions_;
  SessionTable sessions_;
  FileLocks file_locks_;
  std::unique_ptr<std::byte, void (*)(void*)> memory_{nullptr, nullptr};
  df_lockd* lockd_ = nullptr;  ///< In memory_.
  std::vector<std::pair<NodeId, int>>
      drops_;  ///< Told by the lock core while it runs; handled after it.
  DaemonCounters counters_;
};

}  // namespace distfuse::lockd
