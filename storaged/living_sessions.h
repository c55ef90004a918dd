// SPDX-License-Identifier: Apache-2.0
// Which sessions live, as lockd says; rdma/lock/session.h. Pure; one for each role, its owner thread's.
//
// Until the first list has come nobody is believed: a storaged that was away cannot know which fences it missed. Then those above
// `high`, which began after the list was made, and those on it live; fences (kept elsewhere) are asked as well.
//
// Order: lists of one incarnation may overtake each other on two connections. Up to the highest `high` seen, who was once not on a list
// never comes back; so an old list takes nothing back.
//
// Limits: kMaxSessions. Known weakness: the incarnation is not kept over a restart; two lockds with one state_dir cannot run.
#pragma once

#include <cstdint>
#include <unordered_set>

#include "rpc/server.h"

namespace distfuse::storaged {

class LivingSessions {
 public:
  [[nodiscard]] bool learning() const { return incarnation_ == 0; }
  [[nodiscard]] std::uint64_t incarnation() const { return incarnation_; }
  /// False: it is over. While learning: true, for nobody is served then.
  [[nodiscard]] bool lives(rpc::SessionId session) const {
    return session > high_ || ids_.contains(session);
  }
  /// False: of an incarnation that is over.
  bool learn(const rpc::Sessions& sessions);

 private:
  std::uint64_t incarnation_ = 0;
  rpc::SessionId high_ = 0;
  std::unordered_set<rpc::SessionId> ids_;  ///< Up to high_.
};

}  // namespace distfuse::storaged
