// SPDX-License-Identifier: Apache-2.0
// The session table: who is a member of the cluster. Pure: events in, actions out; connections are only numbers here.
//
// Parties: mounts, each with one control connection and some lanes; the service, which owns the connections; the fencer.
//
// States of a session (rdma/lock/session.h is the contract):
//   live        the control connection stands; lanes come and go; its lease is renewed.
//   fencing     lost: its connections are dropped, so that none of its one-sided operations lands any more; every storaged is
//               being told to refuse its requests (fence before reclaim).
//   waiting     lost and fenced, but its caches may still be trusted by a client that does not know yet (until free_at), or
//               the list on disk does not say yet that it is lost.
//   absent      on the list of the lockd before, not come back yet; nothing is connected.
//   reclaiming  come back in grace: re-asserts what it held, then says Reclaimed, then waits for Resume.
//   (gone)      removed; its locks are anyone's. After an orderly Bye at once: the mount promised that it holds nothing.
//
// Session ids are incarnation << 32 | counter: never reused, not by a later lockd either. Node ids, 1 to 0x7ffe, stand in slots
// as owner of X and may still stand there when their session is gone; so an id is used again only when all others are
// used up and a scan of the table has not found it (reclaim_node_ids). Hints are mod 64 and shared counts nameless: no matter.
// A session of the list keeps its node id: slots that it takes again name it.
//
// Limits: Limits below. Known weakness: a mount that leaves X words behind keeps its node id from being used again until
// somebody needs those slots.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/result.h"
#include "rdma/lock/wire.h"

namespace distfuse::lockd {

using SessionId = std::uint64_t;
using NodeId = std::uint16_t;
using ConnectionId = std::uint64_t;  ///< 0: none.

/// What a Hello must repeat to name the session (rdma/lock/wire.h): known to its client and to lockd, in no log and no status.
using SessionToken = std::array<std::uint8_t, DF_TOKEN_BYTES>;

inline constexpr NodeId kMaxNodeId = 0x7ffe;

/// Of the shell's monotonic clock.
using Milliseconds = std::uint64_t;
inline constexpr Milliseconds kNever = ~Milliseconds{0};

enum class SessionState : std::uint8_t { live, fencing, waiting, absent, reclaiming };
/// "live", as status and logs say it.
[[nodiscard]] const char* to_string(SessionState state);

/// A session as the list on disk has it.
struct ListedSession {
  SessionId id = 0;
  NodeId node = 0;
  std::uint32_t lease_ms = 0;  ///< That it was told.
  bool lost = false;           ///< Its loss had begun: it cannot come back.
  std::string name;
  SessionToken token{};
  bool operator==(const ListedSession&) const = default;
};

struct Session {
  SessionId id = 0;
  NodeId node = 0;
  SessionState state = SessionState::live;
  ConnectionId control = 0;
  std::set<ConnectionId> lanes;
  SessionToken token{};
  std::string name;  ///< What the mount calls itself.
  std::string peer;
  bool welcomed = true;            ///< False: its Welcome waits for the list on disk.
  bool listed = false;             ///< Of an earlier incarnation, and Resume has not been sent.
  bool reclaimed = false;          ///< Reclaiming: has said Reclaimed.
  Milliseconds deadline = kNever;  ///< Live, reclaiming, absent: lost unless renewed before.
  std::uint64_t lease_word = 0;    ///< As seen last.
  Milliseconds free_at = 0;        ///< Fencing, waiting: not given away before.
  bool noted = false;              ///< Lost, and the list on disk says so (or there is none).

  /// Its connections are served.
  [[nodiscard]] bool joined() const {
    return state == SessionState::live || state == SessionState::reclaiming;
  }
};

class SessionTable {
 public:
  struct Limits {
    std::size_t sessions = 4096;  ///< In any state.
    std::size_t lanes = 64;       ///< Of one session.
    NodeId node_ids = kMaxNodeId;
    std::size_t losses =
        32768;  ///< Sessions lost in one incarnation; see slot.h: their units stay in the counts.
  };

  SessionTable(std::uint32_t incarnation, Limits limits)
      : limits_(limits), next_id_(std::uint64_t{incarnation} << 32 | 1) {}

  /// A mount says hello. Error: ENOSPC: too many sessions, or too many were lost; EAGAIN: no node id left, try again after
  /// reclaim_node_ids.
  Result<const Session*> open(ConnectionId control, std::string name, std::string peer,
                              const SessionToken& token);
  /// Before the first open(), once: the sessions of the list, absent or (lost ones) fencing.
  void restore(const std::vector<ListedSession>& listed);
  /// absent → reclaiming. Error: ESTALE: no such absent session; EACCES: not its token. Nothing has changed then.
  Result<const Session*> rejoin(SessionId id, const SessionToken& token, ConnectionId control,
                                std::string peer);
  /// reclaiming → absent: the answer to its Hello could not be given.
  void leave_again(SessionId id);
  /// Error: ESTALE: no such joined session; EACCES: not its token; ENOSPC: too many lanes.
  Result<const Session*> add_lane(ConnectionId lane, SessionId id, const SessionToken& token);

  /// What a connection was, when it ended.
  struct Ended {
    enum class Was : std::uint8_t { unknown, lane, control } was = Was::unknown;
    const Session* session = nullptr;
  };
  /// A lane is taken off its session. A control connection: the caller goes on with lose().
  Ended connection_ended(ConnectionId connection);

  /// live, reclaiming, absent → fencing. Answers with the connections that the caller must drop now, before it fences.
  std::vector<ConnectionId> lose(SessionId id);
  /// Ends the session (after Bye, or after the fence). Answers with the connections that are still to be dropped.
  std::vector<ConnectionId> remove(SessionId id);

  [[nodiscard]] const Session* find(SessionId id) const;
  [[nodiscard]] Session* find(SessionId id);
  [[nodiscard]] std::map<SessionId, Session>& all() { return sessions_; }
  [[nodiscard]] const Session* find_node(NodeId node) const;
  [[nodiscard]] const Session* find_connection(ConnectionId connection) const;
  [[nodiscard]] const std::map<SessionId, Session>& all() const { return sessions_; }

  /// Node ids of gone sessions that `in_table` (indexed by node id) does not show in any slot may be used again.
  void reclaim_node_ids(const std::vector<bool>& in_table);

  [[nodiscard]] std::size_t losses() const { return losses_; }
  /// Of all sessions that were ever opened here or before.
  [[nodiscard]] SessionId highest() const { return next_id_ - 1; }

 private:
  std::vector<ConnectionId> take_connections(Session& session);

  const Limits limits_;
  SessionId next_id_;
  std::size_t losses_ = 0;
  NodeId next_node_ = 1;            ///< Never used from here on.
  std::deque<NodeId> free_nodes_;   ///< Used before, not in the table.
  std::vector<NodeId> used_nodes_;  ///< Of sessions that are gone, perhaps still in the table.
  std::map<SessionId, Session> sessions_;
  std::unordered_map<ConnectionId, SessionId> by_connection_;
  std::unordered_map<NodeId, SessionId> by_node_;
};

}  // namespace distfuse::lockd
