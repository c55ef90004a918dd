// SPDX-License-Identifier: Apache-2.0
// What a sync has to make durable: chunks written, directories changed, and errors not yet reported. Pure.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "storaged/data/chunk_layout.h"

namespace distfuse::storaged {

class DirtyLedger {
 public:
  void wrote(const ChunkKey& key) {
    chunks_ += inodes_[key.ino].dirty.insert(key.chunk).second ? 1 : 0;
  }

  /// Chunks of `ino` from `first` on are gone.
  void removed(std::uint64_t ino, std::uint64_t first) {
    auto found = inodes_.find(ino);
    if (found == inodes_.end()) return;
    chunks_ -=
        std::erase_if(found->second.dirty, [first](std::uint64_t chunk) { return chunk >= first; });
    if (first == 0) found->second.error = 0;
    forget_if_clean(found);
  }

  /// What is dirty, which is then the caller's to sync.
  [[nodiscard]] std::vector<std::uint64_t> take(std::uint64_t ino) {
    auto found = inodes_.find(ino);
    if (found == inodes_.end()) return {};
    std::vector<std::uint64_t> chunks(found->second.dirty.begin(), found->second.dirty.end());
    chunks_ -= chunks.size();
    found->second.dirty.clear();
    forget_if_clean(found);
    return chunks;
  }

  /// Every dirty inode, whose chunks are then the caller's to sync.
  [[nodiscard]] std::vector<std::uint64_t> take_all() {
    std::vector<std::uint64_t> inodes;
    for (auto entry = inodes_.begin(); entry != inodes_.end();) {
      if (!entry->second.dirty.empty()) inodes.push_back(entry->first);
      entry->second.dirty.clear();
      entry = entry->second.error == 0 ? inodes_.erase(entry) : std::next(entry);
    }
    chunks_ = 0;
    return inodes;
  }

  /// Writeback of `ino` failed where no sync was there to tell.
  void failed(std::uint64_t ino, int error) { inodes_[ino].error = error; }

  /// The error not yet reported, once; 0: none.
  [[nodiscard]] int take_error(std::uint64_t ino) {
    auto found = inodes_.find(ino);
    if (found == inodes_.end()) return 0;
    const int error = std::exchange(found->second.error, 0);
    forget_if_clean(found);
    return error;
  }

  [[nodiscard]] std::size_t chunks() const { return chunks_; }

  // ---- directories: a count of changes, and how many of them a sync has covered

  void changed_directory(std::uint32_t directory) { changed_[directory] = ++changes_; }
  void changed_root() { changed_[kDirectories] = ++changes_; }
  [[nodiscard]] bool directory_dirty(std::uint32_t directory) const {
    return changed_[directory] > synced_[directory];
  }
  [[nodiscard]] bool root_dirty() const { return directory_dirty(kDirectories); }
  [[nodiscard]] std::uint64_t changes() const { return changes_; }
  /// A sync of the directory that began when changes() was `upto` succeeded.
  void synced_directory(std::uint32_t directory, std::uint64_t upto) {
    if (synced_[directory] < upto) synced_[directory] = upto;
  }
  void synced_root(std::uint64_t upto) { synced_directory(kDirectories, upto); }
  void synced_all_directories(std::uint64_t upto) {
    for (std::uint32_t i = 0; i <= kDirectories; ++i) synced_directory(i, upto);
  }

 private:
  struct Inode {
    std::unordered_set<std::uint64_t> dirty;
    int error = 0;
  };
  using Inodes = std::unordered_map<std::uint64_t, Inode>;
  void forget_if_clean(Inodes::iterator entry) {
    if (entry->second.dirty.empty() && entry->second.error == 0) inodes_.erase(entry);
  }

  Inodes inodes_;
  std::size_t chunks_ = 0;
  std::uint64_t changes_ = 0;
  std::array<std::uint64_t, kDirectories + 1> changed_{};  // [kDirectories]: ROOT/data itself
  std::array<std::uint64_t, kDirectories + 1> synced_{};
};

}  // namespace distfuse::storaged
