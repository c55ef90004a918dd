// SPDX-License-Identifier: Apache-2.0
#include "client/locks/lock_map.h"

namespace distfuse::client {

static_assert(LockMap::kShards == 64, "shard_of takes the upper 6 bits");

void LockMap::enter(std::uint32_t epoch, const df_table& table, bool detached) {
  for (auto& shard : shards_) {
    const std::lock_guard guard(shard.mutex);
    shard.table = &table;
    shard.epoch = epoch;
    shard.detached = detached;
  }
}

LockRef LockMap::get(Ino ino) {
  Shard& shard = shard_of(ino);
  const std::lock_guard guard(shard.mutex);
  const auto found = shard.locks.find(ino);
  if (found != shard.locks.end()) return found->second;
  if (shard.closed) return nullptr;
  auto lock = std::make_shared<Lock>(ino, *shard.table, shard.epoch, shard.detached);
  shard.locks.emplace(ino, lock);
  size_.fetch_add(1, std::memory_order_relaxed);
  return lock;
}

LockRef LockMap::find(Ino ino) {
  Shard& shard = shard_of(ino);
  const std::lock_guard guard(shard.mutex);
  const auto found = shard.locks.find(ino);
  return found == shard.locks.end() ? nullptr : found->second;
}

void LockMap::erase_if_quiet(Ino ino) {
  Shard& shard = shard_of(ino);
  const std::lock_guard guard(shard.mutex);
  const auto found = shard.locks.find(ino);
  // References come from this map only, under its mutex: with one left nobody can get another. Pins hold none, but are not quiet.
  if (found == shard.locks.end() || found->second.use_count() != 1) return;
  {
    const std::lock_guard lock_guard(found->second->mutex);
    if (df_lock_quiet(&found->second->core) == 0) return;
    erased_hits_.fetch_add(found->second->hits, std::memory_order_relaxed);
  }
  shard.locks.erase(found);
  size_.fetch_sub(1, std::memory_order_relaxed);
}

std::vector<LockRef> LockMap::some(std::size_t shard) {
  Shard& chosen = shards_[shard % kShards];
  const std::lock_guard guard(chosen.mutex);
  std::vector<LockRef> locks;
  locks.reserve(chosen.locks.size());
  for (const auto& [ino, lock] : chosen.locks) locks.push_back(lock);
  return locks;
}

std::vector<LockRef> LockMap::all() {
  std::vector<LockRef> locks;
  for (std::size_t i = 0; i < kShards; ++i) {
    auto part = some(i);
    locks.insert(locks.end(), part.begin(), part.end());
  }
  return locks;
}

std::uint64_t LockMap::hits() {
  std::uint64_t sum = erased_hits_.load(std::memory_order_relaxed);
  for (const auto& lock : all()) {
    const std::lock_guard guard(lock->mutex);
    sum += lock->hits;
  }
  return sum;
}

void LockMap::close() {
  for (auto& shard : shards_) {
    const std::lock_guard guard(shard.mutex);
    shard.closed = true;
  }
}

}  // namespace distfuse::client
