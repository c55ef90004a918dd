// SPDX-License-Identifier: Apache-2.0
// Which sessions live, as lockd says; rdma/lock/session.h. Pure; one for each role, its owner thread's.
//
// Until the first list has come nobody is believed: a storaged that was away cannot know which fences it missed. Then those above
// `high`, which began after the list was made, and those on it live; fences (kept elsewhere) are asked as well.
//
// Order: lists of one incarnation may overtake each other on two connections. Up to the highest `high` seen, who was once not on a list
// never comes back; so an old list takes nothing back.
//
// Incarnations of lockd only rise, or session ids would be used again: those of sessions that were fenced, that had replies recorded. So a storaged
// remembers over its own restart which was here: the role meta the latest (MetadataStore), the role data that of the latest session which it has fenced.
// An earlier one is over, or its state_dir was lost: it is refused, and ends.
//
// Limits: kMaxSessions. Known weakness: a data target that has fenced nobody since the latest incarnation began, and restarts, takes an earlier one's
// list; the meta target does not.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>

#include "rpc/server.h"

namespace distfuse::storaged {

class LivingSessions {
 public:
  /// `seen`: the latest incarnation that was here in an earlier life.
  explicit LivingSessions(std::uint64_t seen = 0) : seen_(seen) {}
  [[nodiscard]] bool learning() const { return incarnation_ == 0; }
  [[nodiscard]] std::uint64_t incarnation() const { return incarnation_; }
  /// False: it is over. While learning: true, for nobody is served then.
  [[nodiscard]] bool lives(rpc::SessionId session) const {
    return session > high_ || ids_.contains(session);
  }
  /// Whether it is of an incarnation that is over, or of none (they have 32 bits).
  [[nodiscard]] bool over(const rpc::Sessions& sessions) const {
    return sessions.incarnation < seen_ || sessions.incarnation > 0xffffffff;
  }
  /// False: over(). Nothing is learned.
  bool learn(const rpc::Sessions& sessions);
  /// What an operator must know when lockd is refused.
  [[nodiscard]] std::string refusal(std::uint64_t incarnation) const;

 private:
  std::uint64_t seen_ = 0;  ///< At least incarnation_.
  std::uint64_t incarnation_ = 0;
  rpc::SessionId high_ = 0;
  std::unordered_set<rpc::SessionId> ids_;  ///< Up to high_.
};

}  // namespace distfuse::storaged
