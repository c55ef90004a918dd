// SPDX-License-Identifier: Apache-2.0
#include "storaged/living_sessions.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace distfuse::storaged {

bool LivingSessions::learn(const rpc::Sessions& sessions) {
  if (over(sessions)) return false;
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
  seen_ = incarnation_ = sessions.incarnation;
  return true;
}

std::string LivingSessions::refusal(std::uint64_t incarnation) const {
  return fmt::format(
      "lockd of incarnation {} is refused: {} was here. If lockd's state_dir was lost or is an old "
      "copy, write a number of at least {} into its file `incarnation` and start lockd again",
      incarnation, seen_, seen_);
}

}  // namespace distfuse::storaged
