// SPDX-License-Identifier: Apache-2.0
// Open chunk files, and chunks known not to be there, by key; the least recently used that nobody uses is closed first.
//
// Bound: `limit` entries, and those in use beyond it, at most one per operation and kSyncFanOut per sync under way.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "storaged/data/chunk_layout.h"
#include "storaged/data/ring.h"

namespace distfuse::storaged {

struct PendingOperation;

struct File {
  enum class State : std::uint8_t { closed, opening, open, absent };
  ChunkKey key;
  int fd = -1;
  State state = State::closed;
  bool creating = false;  ///< The open under way may create.
  bool detached = false;  ///< Unlinked; goes with its last user.
  unsigned users = 0;
  std::uint64_t bytes = 0;  ///< Of disk, when last looked at; only where there is a capacity.
  std::vector<PendingOperation*> waiters;  ///< For the open under way.
  RingCommand command;
  ChunkPath path{};
  std::list<File*>::iterator idle;  ///< Valid while users is 0 and not detached.
};

class FileCache {
 public:
  explicit FileCache(std::size_t limit) : limit_(limit) {}
  ~FileCache();  ///< Closes all.

  /// The entry of `key`, made if there is none, in use by the caller.
  [[nodiscard]] File& use(const ChunkKey& key);
  /// The same, if it is there and open; else nullptr.
  [[nodiscard]] File* use_if_open(const ChunkKey& key);
  void release(File& file);
  /// Chunks of `ino` from `first` on were unlinked.
  void detach(std::uint64_t ino, std::uint64_t first);
  [[nodiscard]] File* find(const ChunkKey& key);
  [[nodiscard]] std::size_t size() const { return files_.size(); }

 private:
  void drop(File& file);
  void unlist(File& file);

  const std::size_t limit_;
  std::unordered_map<ChunkKey, std::unique_ptr<File>, ChunkKeyHash> files_;
  std::unordered_map<std::uint64_t, std::vector<File*>> by_ino_;  // those in files_
  std::unordered_map<File*, std::unique_ptr<File>> detached_;
  std::list<File*> idle_;  // least recently used first
};

}  // namespace distfuse::storaged
