// SPDX-License-Identifier: Apache-2.0
#include "client/cache/unsynced.h"

#include <algorithm>

namespace distfuse::client {

void SyncHistory::synced(std::uint64_t boot, std::uint64_t mark) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(boots_.begin(), boots_.end(),
                                  [&](const auto& known) { return known.first == boot; });
  if (found != boots_.end()) {
    found->second = std::max(found->second, mark);
    return;
  }
  if (boots_.size() == kBoots) boots_.erase(boots_.begin());
  boots_.emplace_back(boot, mark);
}

bool SyncHistory::covers(std::uint64_t boot, std::uint64_t change) const {
  const std::lock_guard lock(mutex_);
  return std::any_of(boots_.begin(), boots_.end(), [&](const auto& known) {
    return known.first == boot && change <= known.second;
  });
}

void Unsynced::changed(std::uint32_t target, std::uint64_t boot, const SyncHistory* history) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t change = next();
  for (Entry& entry : entries_) {
    if (entry.target != target) continue;
    if (entry.boot != boot) {
      const bool durable = history != nullptr && history->covers(entry.boot, entry.last);
      if (!durable) lost_ = true;
      entry = {target, boot, change, change};
    }
    entry.last = change;
    return;
  }
  entries_.push_back({target, boot, change, change});
}

void Unsynced::synced(std::uint32_t target, std::uint64_t boot, std::uint64_t mark,
                      const SyncHistory* history) {
  const std::lock_guard lock(mutex_);
  std::erase_if(entries_, [&](Entry& entry) {
    if (entry.target != target || entry.first > mark) return false;
    if (entry.boot != boot) {
      const bool durable = history != nullptr && history->covers(entry.boot, entry.last);
      if (!durable) lost_ = true;
      return true;
    }
    entry.first = std::max(entry.first, mark + 1);
    return entry.last <= mark;
  });
}

bool Unsynced::take_loss() {
  const std::lock_guard lock(mutex_);
  return std::exchange(lost_, false);
}

std::size_t Unsynced::targets() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace distfuse::client
