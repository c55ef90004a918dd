// SPDX-License-Identifier: Apache-2.0
// The inodes that the kernel or an open file refers to, or of which something is cached. Sharded: one mutex a shard.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "client/cache/inode.h"

namespace distfuse::client {

using InodeRef = std::shared_ptr<Inode>;

class InodeTable {
 public:
  static constexpr std::size_t kShards = 64;

  /// The inode, made if it is not here.
  InodeRef get(rpc::Ino ino);
  /// Null if it is not here.
  InodeRef find(rpc::Ino ino);
  /// The kernel was told of it once more.
  void add_lookup(Inode& inode);
  /// The kernel forgot `count` of its references. True: that was the last.
  bool forget(Inode& inode, std::uint64_t count);
  [[nodiscard]] bool known_to_kernel(rpc::Ino ino);
  /// Erases the inode if nothing refers to it: no kernel reference, no other InodeRef, nothing open, registered or cached.
  void reap(InodeRef inode);
  /// The same for all inodes of the next `shards` of kShards: for those that were referred to when the last reap() came by, or for which
  /// none came.
  void reap_some(std::size_t shards);
  /// For the flusher's last round and a lost session; a snapshot.
  std::vector<InodeRef> all();
  [[nodiscard]] std::size_t size();

 private:
  struct Shard {
    std::mutex mutex;
    std::unordered_map<rpc::Ino, InodeRef> inodes;
  };
  Shard& shard(rpc::Ino ino) { return shards_[ino % kShards]; }

  std::array<Shard, kShards> shards_;
  std::atomic<std::size_t> next_reaped_ = 0;
};

}  // namespace distfuse::client
