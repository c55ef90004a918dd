// SPDX-License-Identifier: Apache-2.0
#include "storaged/meta/orphan_list.h"

#include <iterator>

namespace distfuse::storaged {

Status OrphanList::load() {
  std::optional<Error> damage;
  DISTFUSE_TRY(
      database_.scan(Family::orphans, {}, {}, [&](std::string_view key, std::string_view value) {
        const auto since = decode_number(value);
        if (!since || key.size() != 8) {
          damage = database_.corrupt(Family::orphans, key);
          return false;
        }
        add(key_number(key), {static_cast<std::int64_t>(*since)});
        return true;
      }));
  if (damage) return *damage;
  return {};
}

std::vector<rpc::Ino> OrphanList::due(rpc::Timestamp now, std::chrono::nanoseconds grace,
                                      std::size_t limit) const {
  // Unsigned: a stored time may be anything, and the distance of two times needs 64 bits.
  const auto is_due = [&](std::int64_t since) {
    const auto a = static_cast<std::uint64_t>(now.ns);
    const auto b = static_cast<std::uint64_t>(since);
    return (since <= now.ns ? a - b : b - a) >= static_cast<std::uint64_t>(grace.count());
  };
  std::vector<rpc::Ino> inodes;
  for (auto each = by_time_.begin(); each != by_time_.end() && inodes.size() < limit; ++each) {
    if (each->first > now.ns || !is_due(each->first)) break;
    inodes.push_back(each->second);
  }
  // Those of the future stand at the end, the farthest last.
  for (auto each = by_time_.rbegin(); each != by_time_.rend() && inodes.size() < limit; ++each) {
    if (each->first <= now.ns || !is_due(each->first)) break;
    inodes.push_back(each->second);
  }
  return inodes;
}

void OrphanList::committed(const Transaction& transaction) {
  for (const auto ino : transaction.orphans_removed()) remove(ino);
  for (const auto& [ino, since] : transaction.orphans_added()) add(ino, since);
}

void OrphanList::add(rpc::Ino ino, rpc::Timestamp since) {
  since_[ino] = since.ns;
  by_time_.emplace(since.ns, ino);
}

void OrphanList::remove(rpc::Ino ino) {
  const auto found = since_.find(ino);
  if (found == since_.end()) return;
  by_time_.erase({found->second, ino});
  since_.erase(found);
}

}  // namespace distfuse::storaged
