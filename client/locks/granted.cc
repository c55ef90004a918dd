// SPDX-License-Identifier: Apache-2.0
#include "client/locks/granted.h"

namespace distfuse::client {

/// Takes start .. end out; what sticks out on either side stays.
void GrantedLocks::cut(Ranges& ranges, df_u64 start, df_u64 end) {
  auto at = ranges.lower_bound(start);
  if (at != ranges.begin()) {
    const auto before = std::prev(at);
    const Range range = before->second;
    if (range.end >= start) {
      before->second.end = start - 1;
      if (range.end > end) ranges.emplace(end + 1, range);
    }
  }
  while (at != ranges.end() && at->first <= end) {
    const Range range = at->second;
    at = ranges.erase(at);
    if (range.end > end) ranges.emplace(end + 1, range);
  }
}

/// Joined with neighbours of its kind, as lockd has it.
void GrantedLocks::insert(Ranges& ranges, df_u64 start, Range range) {
  const auto same = [&](const Range& other) {
    return other.type == range.type && other.pid == range.pid;
  };
  const auto after = ranges.upper_bound(start);
  if (after != ranges.end() && range.end + 1 == after->first && same(after->second)) {
    range.end = after->second.end;
    ranges.erase(after);
  }
  const auto next = ranges.upper_bound(start);
  if (next != ranges.begin()) {
    Range& before = std::prev(next)->second;
    if (before.end + 1 == start && same(before)) {
      before.end = range.end;
      return;
    }
  }
  ranges.emplace(start, range);
}

void GrantedLocks::note(const df_msg& request) {
  const auto& file = request.file;
  const Owner owner{file.head.key, file.owner, (file.flags & DF_FILE_FLOCK) != 0};
  const std::lock_guard lock(mutex_);
  const auto found = owners_.find(owner);
  if (found != owners_.end()) cut(found->second, file.start, file.end);
  if (file.type != DF_FILE_NONE) {
    insert(owners_[owner], file.start, Range{file.end, file.type, file.pid});
  } else if (found != owners_.end() && found->second.empty()) {
    owners_.erase(found);
  }
}

std::vector<df_msg> GrantedLocks::all() const {
  std::vector<df_msg> messages;
  const std::lock_guard lock(mutex_);
  for (const auto& [owner, ranges] : owners_) {
    for (const auto& [start, range] : ranges) {
      df_msg message;
      df_msg_init(&message, DF_MSG_FILE_LOCK, 0, std::get<0>(owner), 0);
      message.file.owner = std::get<1>(owner);
      message.file.start = start;
      message.file.end = range.end;
      message.file.pid = range.pid;
      message.file.type = range.type;
      message.file.flags = std::get<2>(owner) ? DF_FILE_FLOCK : 0;
      messages.push_back(message);
    }
  }
  return messages;
}

std::size_t GrantedLocks::clear() {
  const std::size_t count = size();
  const std::lock_guard lock(mutex_);
  owners_.clear();
  return count;
}

std::size_t GrantedLocks::size() const {
  const std::lock_guard lock(mutex_);
  std::size_t count = 0;
  for (const auto& [owner, ranges] : owners_) count += ranges.size();
  return count;
}

}  // namespace distfuse::client
