// SPDX-License-Identifier: Apache-2.0
#include "lockd/sessions.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <utility>

namespace distfuse::lockd {

const char* to_string(SessionState state) {
  switch (state) {
    case SessionState::live:
      return "live";
    case SessionState::fencing:
      return "fencing";
    case SessionState::waiting:
      return "waiting";
    case SessionState::absent:
      return "absent";
    case SessionState::reclaiming:
      return "reclaiming";
  }
  std::abort();
}

namespace {

/// Empty: it is the session's. A session without a token (session_log.h) is nobody's.
std::optional<Error> wrong_token(const Session& session, const SessionToken& token) {
  if (df_token_equal(session.token.data(), token.data()) != 0 && session.token != SessionToken{})
    return {};
  return Error{EACCES, fmt::format("it names session {:#x} of {} and has not its token", session.id,
                                   session.name)};
}

}  // namespace

void SessionTable::restore(const std::vector<ListedSession>& listed) {
  for (const auto& known : listed) {
    Session session;
    session.id = known.id;
    session.node = known.node;
    session.state = known.lost ? SessionState::fencing : SessionState::absent;
    session.token = known.token;
    session.name = known.name;
    session.listed = true;
    by_node_.emplace(known.node, known.id);
    sessions_.emplace(known.id, std::move(session));
  }
  // The table is new: every node id that no session has is free at once.
  NodeId highest = 0;
  for (const auto& known : listed) highest = std::max(highest, known.node);
  for (; next_node_ <= highest; ++next_node_)
    if (!by_node_.contains(next_node_)) free_nodes_.push_back(next_node_);
}

Result<const Session*> SessionTable::rejoin(SessionId id, const SessionToken& token,
                                            ConnectionId control, std::string peer) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || it->second.state != SessionState::absent)
    return Error{ESTALE, fmt::format("session {:#x} is not awaited here", id)};
  if (const auto wrong = wrong_token(it->second, token)) return *wrong;
  auto& session = it->second;
  session.state = SessionState::reclaiming;
  session.control = control;
  session.peer = std::move(peer);
  by_connection_.emplace(control, id);
  return &session;
}

void SessionTable::leave_again(SessionId id) {
  auto& session = sessions_.at(id);
  (void)take_connections(session);
  session.state = SessionState::absent;
}

Result<const Session*> SessionTable::open(ConnectionId control, std::string name, std::string peer,
                                          const SessionToken& token) {
  if (sessions_.size() >= limits_.sessions)
    return Error{ENOSPC, fmt::format("lockd has {} sessions already, its limit", sessions_.size())};
  if (losses_ >= limits_.losses)
    return Error{
        ENOSPC,
        fmt::format("{} sessions were lost since lockd started, its limit; restart it", losses_)};
  NodeId node = 0;
  if (next_node_ <= limits_.node_ids) {
    node = next_node_++;
  } else if (!free_nodes_.empty()) {
    node = free_nodes_.front();
    free_nodes_.pop_front();
  } else {
    return Error{EAGAIN, "no node id left: slots still name sessions that are gone"};
  }
  Session session;
  session.id = next_id_++;
  session.node = node;
  session.control = control;
  session.token = token;
  session.name = std::move(name);
  session.peer = std::move(peer);
  by_connection_.emplace(control, session.id);
  by_node_.emplace(node, session.id);
  return &sessions_.emplace(session.id, std::move(session)).first->second;
}

Result<const Session*> SessionTable::add_lane(ConnectionId lane, SessionId id,
                                              const SessionToken& token) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || !it->second.joined())
    return Error{ESTALE, fmt::format("session {:#x} is not known here", id)};
  if (const auto wrong = wrong_token(it->second, token)) return *wrong;
  if (it->second.lanes.size() >= limits_.lanes)
    return Error{ENOSPC,
                 fmt::format("session {:#x} has {} lanes already, the limit", id, limits_.lanes)};
  it->second.lanes.insert(lane);
  by_connection_.emplace(lane, id);
  return &it->second;
}

SessionTable::Ended SessionTable::connection_ended(ConnectionId connection) {
  const auto it = by_connection_.find(connection);
  if (it == by_connection_.end()) return {};
  auto& session = sessions_.at(it->second);
  by_connection_.erase(it);
  if (session.control != connection) {
    session.lanes.erase(connection);
    return {Ended::Was::lane, &session};
  }
  session.control = 0;
  return {Ended::Was::control, &session};
}

std::vector<ConnectionId> SessionTable::take_connections(Session& session) {
  std::vector<ConnectionId> taken(session.lanes.begin(), session.lanes.end());
  if (session.control != 0) taken.push_back(session.control);
  session.lanes.clear();
  session.control = 0;
  for (const auto connection : taken) by_connection_.erase(connection);
  return taken;
}

std::vector<ConnectionId> SessionTable::lose(SessionId id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return {};
  if (!it->second.joined() && it->second.state != SessionState::absent) return {};
  losses_ += it->second.joined() ? 1 : 0;  // An absent one left nothing in this table.
  it->second.state = SessionState::fencing;
  return take_connections(it->second);
}

std::vector<ConnectionId> SessionTable::remove(SessionId id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return {};
  auto connections = take_connections(it->second);
  by_node_.erase(it->second.node);
  used_nodes_.push_back(it->second.node);
  sessions_.erase(it);
  return connections;
}

Session* SessionTable::find(SessionId id) {
  const auto it = sessions_.find(id);
  return it == sessions_.end() ? nullptr : &it->second;
}

const Session* SessionTable::find(SessionId id) const {
  const auto it = sessions_.find(id);
  return it == sessions_.end() ? nullptr : &it->second;
}

const Session* SessionTable::find_node(NodeId node) const {
  const auto it = by_node_.find(node);
  return it == by_node_.end() ? nullptr : find(it->second);
}

const Session* SessionTable::find_connection(ConnectionId connection) const {
  const auto it = by_connection_.find(connection);
  return it == by_connection_.end() ? nullptr : find(it->second);
}

void SessionTable::reclaim_node_ids(const std::vector<bool>& in_table) {
  std::erase_if(used_nodes_, [&](NodeId node) {
    if (in_table.at(node)) return false;
    free_nodes_.push_back(node);
    return true;
  });
}

}  // namespace distfuse::lockd
