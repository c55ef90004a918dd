// SPDX-License-Identifier: Apache-2.0
#include "storaged/living_sessions.h"

#include <algorithm>
#include <utility>

namespace distfuse::storaged {

bool LivingSessions::learn(const rpc::Sessions& sessions) {
  if (sessions.incarnation < incarnation_) return false;
  std::unordered_set<rpc::SessionId> ids;
  const auto keep = [&](rpc::SessionId id) {
    if (lives(id)) ids.insert(id);
  };
  const bool older = sessions.high < high_;
  std::for_each(sessions.ids.begin(), sessions.ids.end(), keep);
  // An older list says nothing of those that began after it.
  if (older)
    for (const auto id : ids_)
      if (id > sessions.high) ids.insert(id);
  ids_ = std::move(ids);
  high_ = std::max(high_, sessions.high);
  incarnation_ = sessions.incarnation;
  return true;
}

}  // namespace distfuse::storaged
