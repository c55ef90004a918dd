// SPDX-License-Identifier: Apache-2.0
// The Daemon's leases, losses, and the grace period after a restart; rdma/lock/session.h.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>

#include "lockd/daemon.h"

namespace distfuse::lockd {

// ---- leases

void Daemon::begin_lease(Session& session) {
  if (options_.lease_ms == 0) return;
  session.lease_word = actions_.lease_word(session.node);
  session.deadline = now_ + options_.lease_ms;
}

void Daemon::look_at_lease(Session& session) {
  const auto word = actions_.lease_word(session.node);
  if (word == session.lease_word) return;
  session.lease_word = word;
  session.deadline = now_ + options_.lease_ms;
}

void Daemon::look_at_leases() {
  next_look_ = now_ + std::max<Milliseconds>(options_.lease_ms / 8, 1);
  std::vector<SessionId> expired;
  for (auto& [id, session] : sessions_.all()) {
    if (!session.joined() || session.deadline == kNever) continue;
    look_at_lease(session);
    if (session.deadline <= now_) expired.push_back(id);
  }
  for (const auto id : expired)
    lose(id, fmt::format("it did not renew its lease of {} ms", options_.lease_ms), Loss::expired);
}

void Daemon::tick() {
  if (options_.lease_ms != 0 && now_ >= next_look_) look_at_leases();
  const std::vector<SessionId> lost(lost_.begin(), lost_.end());
  for (const auto id : lost) end_if_free(id);
  check_grace();
}

Milliseconds Daemon::wake_at() const {
  auto at = kNever;
  if (options_.lease_ms != 0 && sessions_.all().size() > lost_.size()) at = next_look_;
  for (const auto id : lost_) {
    const auto* session = sessions_.find(id);
    if (session->state == SessionState::waiting && session->noted)
      at = std::min(at, session->free_at);
  }
  if (phase_ == Phase::grace) at = std::min(at, grace_until_);
  return at;
}

// ---- loss

void Daemon::record(SessionChange::Kind kind, const Session& session) {
  actions_.record(
      {kind, {session.id, session.node, options_.lease_ms, false, session.name, session.token}});
}

void Daemon::connection_ended(ConnectionId connection, const std::string& reason, bool by_peer) {
  const auto ended = sessions_.connection_ended(connection);
  if (ended.was == SessionTable::Ended::Was::control)
    lose(ended.session->id, "its control connection ended: " + reason,
         by_peer ? Loss::by_peer : Loss::other);
}

void Daemon::lose_connection(ConnectionId connection, const std::string& reason) {
  if (const auto* session = sessions_.find_connection(connection))
    lose(session->id, reason, Loss::other);
}

void Daemon::lose(SessionId id, const std::string& reason, Loss loss) {
  auto* session = sessions_.find(id);
  if (session == nullptr || lost_.contains(id)) return;
  spdlog::warn("session {:#x} ({}, node {}, {}) is lost: {}", id, session->name, session->node,
               session->peer.empty() ? "not connected" : session->peer, reason);
  ++counters_.lost;
  counters_.expired += loss == Loss::expired ? 1 : 0;
  const bool was_joined = session->joined();
  for (const auto connection : sessions_.lose(id)) actions_.close(connection);
  lost_.insert(id);
  session->free_at = 0;
  if (session->welcomed && session->deadline != kNever && loss != Loss::by_peer) {
    // A renewal may have landed since the last look; after the closing none can.
    if (was_joined) look_at_lease(*session);
    session->free_at = session->deadline;
  }
  session->noted = options_.lease_ms == 0 && !session->listed;
  // Noted first: a later lockd must not take back whom a storaged refuses already.
  if (session->noted)
    actions_.fence(id);
  else
    record(SessionChange::Kind::lost, *session);
}

void Daemon::fenced(SessionId id) {
  auto* session = sessions_.find(id);
  if (session == nullptr || session->state != SessionState::fencing)
    std::abort();  // Asked once, answered once.
  session->state = SessionState::waiting;
  end_if_free(id);
}

void Daemon::end_if_free(SessionId id) {
  const auto* session = sessions_.find(id);
  if (session == nullptr || session->state != SessionState::waiting) return;
  if (!session->noted || now_ < session->free_at) return;
  spdlog::info("session {:#x} ({}, node {}) is gone, its locks are free", id, session->name,
               session->node);
  end(id, false);
}

/// Its connections are closed before its locks are anybody's.
void Daemon::end(SessionId id, bool clean) {
  const auto* session = sessions_.find(id);
  const auto node = session->node;
  if (options_.lease_ms != 0 || session->listed) record(SessionChange::Kind::end, *session);
  for (const auto connection : sessions_.remove(id)) actions_.close(connection);
  lost_.erase(id);
  df_lockd_session_gone(lockd_, node, clean ? 1 : 0);
  std::vector<FileLockAnswer> answers;
  file_locks_.release_session(id, answers);
  answer_waits(answers);
  finish_drops();
  check_grace();
}

void Daemon::finish_drops() {
  while (!drops_.empty()) {
    const auto [node, reason] = drops_.back();
    drops_.pop_back();
    if (const auto* session = sessions_.find_node(node))
      lose(session->id, std::string("it broke the lock protocol: ") + df_drop_text(reason),
           Loss::other);
  }
}

// ---- restart

void Daemon::recover(const std::vector<ListedSession>& listed) {
  if (listed.empty()) return;
  df_lockd_grace(lockd_, 1);
  sessions_.restore(listed);
  Milliseconds longest = 0;
  for (const auto& known : listed) {
    auto& session = *sessions_.find(known.id);
    session.deadline = session.free_at = now_ + known.lease_ms;
    longest = std::max<Milliseconds>(longest, known.lease_ms);
  }
  grace_until_ = now_ + longest + longest / 5;
  phase_ = Phase::grace;
  spdlog::info("{} sessions are on the list: grace for {} ms", listed.size(), grace_until_ - now_);
  for (const auto& known : listed) {
    if (known.lost) {
      sessions_.find(known.id)->noted = true;
      lost_.insert(known.id);
      actions_.fence(known.id);
    } else if (options_.lease_ms == 0) {
      lose(known.id, "there are no leases any more, so it cannot come back", Loss::other);
    }
  }
  check_grace();
}

Milliseconds Daemon::grace_left() const {
  return phase_ == Phase::grace && grace_until_ > now_ ? grace_until_ - now_ : 0;
}

void Daemon::reclaimed(const Session& session) {
  if (session.state != SessionState::reclaiming || session.reclaimed)
    return lose(session.id, "it said Reclaimed with nothing to reclaim", Loss::other);
  spdlog::info("session {:#x} ({}, node {}) is back", session.id, session.name, session.node);
  ++counters_.reclaimed;
  sessions_.find(session.id)->reclaimed = true;
  check_grace();
}

void Daemon::check_grace() {
  if (phase_ == Phase::grace) {
    const auto& all = std::as_const(sessions_).all();
    const bool waits = std::any_of(all.begin(), all.end(), [](const auto& each) {
      const Session& session = each.second;
      return session.state == SessionState::absent ||
             (session.state == SessionState::reclaiming && !session.reclaimed);
    });
    if (waits && now_ < grace_until_) return;
    phase_ = Phase::resuming;
    lose_absentees();
  }
  if (phase_ != Phase::resuming) return;
  const bool fencing = std::any_of(lost_.begin(), lost_.end(),
                                   [&](SessionId id) { return sessions_.find(id)->listed; });
  if (!fencing) resume();
}

void Daemon::lose_absentees() {
  std::vector<SessionId> absentees;
  for (const auto& [id, session] : std::as_const(sessions_).all())
    if (session.state == SessionState::absent ||
        (session.state == SessionState::reclaiming && !session.reclaimed))
      absentees.push_back(id);
  for (const auto id : absentees) lose(id, "it did not reclaim its locks in grace", Loss::other);
}

void Daemon::resume() {
  phase_ = Phase::normal;
  df_lockd_grace(lockd_, 0);
  std::size_t resumed = 0;
  for (auto& [id, session] : sessions_.all()) {
    session.listed = false;
    if (session.state != SessionState::reclaiming) continue;
    session.state = SessionState::live;
    ++resumed;
    df_msg message;
    df_msg_init(&message, DF_MSG_RESUME, 0, 0, 0);
    send(session, message);
  }
  spdlog::info("grace is over: {} sessions go on", resumed);
}

LiveSessions Daemon::live_sessions() const {
  LiveSessions live;
  live.incarnation = options_.incarnation;
  if (options_.lease_ms == 0) return live;
  live.high = sessions_.highest();
  // Like a Fence: nobody is refused by it before the disk says that the session is lost.
  for (const auto& [id, session] : sessions_.all())
    if (!session.noted) live.ids.push_back(id);
  return live;
}

}  // namespace distfuse::lockd
