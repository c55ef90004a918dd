// SPDX-License-Identifier: Apache-2.0
// What this daemon has had answered of each inode, and no sync has made durable yet (client/cache/unsynced.h): whether a storaged's machine has
// restarted in between is then known when the inode is synced. Thread-safe.
//
// Limits: bounded; of a full shard the inode that was changed longest ago is forgotten, and of that a restart is told to nobody. A daemon that follows
// another knows nothing of what that one had answered.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "client/cache/unsynced.h"

namespace distfuse::client::kernel {

class UnsyncedInodes {
 public:
  /// At most kShards x kPerShard inodes, some 200 bytes each: 26 MiB.
  static constexpr std::size_t kShards = 64;
  static constexpr std::size_t kPerShard = 2048;
  using Ref = std::shared_ptr<Unsynced>;

  /// For a change of it that is about to be asked for, or was answered.
  [[nodiscard]] Ref get(std::uint64_t ino);
  /// Null: nothing of it is known.
  [[nodiscard]] Ref find(std::uint64_t ino);
  /// After a sync: forgets it if everything is durable.
  void settle(std::uint64_t ino);

 private:
  struct Known {
    std::uint64_t ino;
    Ref unsynced;
  };
  struct Shard {
    std::mutex mutex;
    std::list<Known> order;  ///< Changed longest ago first. Protected by mutex, as the next.
    std::unordered_map<std::uint64_t, std::list<Known>::iterator> known;
  };
  Shard& shard(std::uint64_t ino) { return shards_[ino % kShards]; }

  std::array<Shard, kShards> shards_;
};

}  // namespace distfuse::client::kernel
