// SPDX-License-Identifier: Apache-2.0
#include "client/kernel/unsynced_inodes.h"

namespace distfuse::client::kernel {

UnsyncedInodes::Ref UnsyncedInodes::get(std::uint64_t ino) {
  Shard& shard = this->shard(ino);
  const std::lock_guard lock(shard.mutex);
  if (const auto found = shard.known.find(ino); found != shard.known.end()) {
    shard.order.splice(shard.order.end(), shard.order, found->second);
    return found->second->unsynced;
  }
  if (shard.known.size() == kPerShard) {
    shard.known.erase(shard.order.front().ino);
    shard.order.pop_front();
  }
  shard.order.push_back({ino, std::make_shared<Unsynced>()});
  shard.known.emplace(ino, std::prev(shard.order.end()));
  return shard.order.back().unsynced;
}

UnsyncedInodes::Ref UnsyncedInodes::find(std::uint64_t ino) {
  Shard& shard = this->shard(ino);
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.known.find(ino);
  return found == shard.known.end() ? nullptr : found->second->unsynced;
}

void UnsyncedInodes::settle(std::uint64_t ino) {
  Shard& shard = this->shard(ino);
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.known.find(ino);
  // Who else has it is in the middle of a change.
  if (found == shard.known.end() || found->second->unsynced.use_count() > 1 ||
      found->second->unsynced->targets() != 0)
    return;
  shard.order.erase(found->second);
  shard.known.erase(found);
}

}  // namespace distfuse::client::kernel
