// SPDX-License-Identifier: Apache-2.0
// Inode → Lock, in shards. Order of mutexes: shard, then lock.
#pragma once

#include <array>
#include <atomic>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "client/locks/lock.h"

namespace distfuse::client {

class LockMap {
 public:
  /// Locks that are made from now on belong to this epoch's table, and are detached or not. Before the first get().
  void enter(std::uint32_t epoch, const df_table& table, bool detached);
  /// Null: closed.
  LockRef get(Ino ino);
  /// Null: there is none.
  LockRef find(Ino ino);
  /// Takes the lock out if nobody uses it and it says nothing.
  void erase_if_quiet(Ino ino);
  /// All there are now.
  std::vector<LockRef> all();
  /// Of one shard, for the trimmer. `shard` counts on for ever.
  std::vector<LockRef> some(std::size_t shard);
  [[nodiscard]] std::size_t size() const { return size_.load(std::memory_order_relaxed); }
  /// No lock comes into being from now on.
  void close();
  /// Sum of Lock::hits, of those erased too.
  [[nodiscard]] std::uint64_t hits();

  static constexpr std::size_t kShards = 64;

 private:
  struct alignas(64) Shard {
    std::mutex mutex;
    std::unordered_map<Ino, LockRef> locks;
    const df_table* table = nullptr;
    std::uint32_t epoch = 0;
    bool detached = false;
    bool closed = false;
  };
  Shard& shard_of(Ino ino) { return shards_[(ino * 0x9e3779b97f4a7c15ull) >> 58]; }

  std::array<Shard, kShards> shards_;
  std::atomic<std::size_t> size_ = 0;
  std::atomic<std::uint64_t> erased_hits_ = 0;
};

}  // namespace distfuse::client
