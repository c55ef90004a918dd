// SPDX-License-Identifier: Apache-2.0
#include "client/cache/inode_table.h"

#include <algorithm>

namespace distfuse::client {

namespace {

bool says_something(Inode& inode) {
  const std::lock_guard state(inode.state);
  return inode.opens != 0 || inode.registered || inode.attributes.valid() ||
         inode.attributes.dirty() != 0;
}

}  // namespace

InodeRef InodeTable::get(rpc::Ino ino) {
  Shard& s = shard(ino);
  const std::lock_guard lock(s.mutex);
  InodeRef& slot = s.inodes[ino];
  if (slot == nullptr) slot = std::make_shared<Inode>(ino);
  return slot;
}

InodeRef InodeTable::find(rpc::Ino ino) {
  Shard& s = shard(ino);
  const std::lock_guard lock(s.mutex);
  const auto found = s.inodes.find(ino);
  return found == s.inodes.end() ? nullptr : found->second;
}

void InodeTable::add_lookup(Inode& inode) {
  const std::lock_guard lock(shard(inode.ino).mutex);
  ++inode.lookups;
}

bool InodeTable::forget(Inode& inode, std::uint64_t count) {
  const std::lock_guard lock(shard(inode.ino).mutex);
  if (inode.lookups == 0) return false;
  inode.lookups -= std::min(inode.lookups, count);
  return inode.lookups == 0;
}

bool InodeTable::known_to_kernel(rpc::Ino ino) {
  Shard& s = shard(ino);
  const std::lock_guard lock(s.mutex);
  const auto found = s.inodes.find(ino);
  return ino == rpc::kRootIno || (found != s.inodes.end() && found->second->lookups != 0);
}

// By value: the caller's reference is one of those that are counted.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
void InodeTable::reap(InodeRef inode) {
  Shard& s = shard(inode->ino);
  const rpc::Ino ino = inode->ino;
  const std::lock_guard lock(s.mutex);
  // Copies are made under this mutex, or from a copy that is counted: two means the table's and ours.
  if (inode->lookups != 0 || inode.use_count() > 2 || says_something(*inode)) return;
  s.inodes.erase(ino);
}

void InodeTable::reap_some(std::size_t shards) {
  for (std::size_t i = 0; i < shards; ++i) {
    Shard& s = shards_[next_reaped_.fetch_add(1, std::memory_order_relaxed) % kShards];
    const std::lock_guard lock(s.mutex);
    std::erase_if(s.inodes, [](const auto& entry) {
      const InodeRef& inode = entry.second;
      return inode->lookups == 0 && inode.use_count() == 1 && !says_something(*inode);
    });
  }
}

std::vector<InodeRef> InodeTable::all() {
  std::vector<InodeRef> result;
  for (Shard& s : shards_) {
    const std::lock_guard lock(s.mutex);
    for (const auto& [ino, inode] : s.inodes) result.push_back(inode);
  }
  return result;
}

std::size_t InodeTable::size() {
  std::size_t count = 0;
  for (Shard& s : shards_) {
    const std::lock_guard lock(s.mutex);
    count += s.inodes.size();
  }
  return count;
}

}  // namespace distfuse::client
