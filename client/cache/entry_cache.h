// SPDX-License-Identifier: Apache-2.0
// Names in directories, found and not found, as seen under S or X of the directory. The caller holds a pin of the directory in every
// call but forget() and counters; shed() of the directory's lock calls forget().
//
// A name that was asked of the server without the kernel's exclusion can be overtaken by a create on this mount: so what was fetched
// carries the directory's sequence from before the fetch, and is dropped when a change came between.
//
// Bounded: kMaxEntries names over all directories; the directory that was used least recently goes first, as a whole.
#pragma once

#include <cstdint>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "rpc/metadata.h"

namespace distfuse::client {

class EntryCache {
 public:
  struct Entry {
    rpc::Ino ino = 0;  ///< 0: no such name.
    std::uint32_t type = 0;
    bool operator==(const Entry&) const = default;
  };

  explicit EntryCache(std::size_t max_entries = kMaxEntries) : max_entries_(max_entries) {}

  /// nullopt: not known here.
  std::optional<Entry> find(rpc::Ino directory, std::string_view name);
  /// To be taken before names are fetched.
  std::uint64_t sequence(rpc::Ino directory);
  /// What was fetched since `began`; ignored when the directory changed meanwhile.
  void fetched(rpc::Ino directory, std::string_view name, Entry entry, std::uint64_t began);
  /// All names were fetched since `began`, unless something changed or was evicted: what is not here does not exist.
  void complete(rpc::Ino directory, std::uint64_t began);
  /// This mount changed the name.
  void changed(rpc::Ino directory, std::string_view name, Entry entry);
  /// The directory was just made, under our lock: it is empty.
  void created(rpc::Ino directory);
  void forget(rpc::Ino directory);
  /// All of them.
  void clear();
  [[nodiscard]] std::size_t size();

  static constexpr std::size_t kMaxEntries = 500000;

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view name) const {
      return std::hash<std::string_view>{}(name);
    }
  };
  struct Directory {
    std::unordered_map<std::string, Entry, Hash, std::equal_to<>> entries;
    bool complete = false;
    std::uint64_t sequence = 0;
    std::list<rpc::Ino>::iterator use;
  };

  Directory& touch(rpc::Ino ino);
  void put(rpc::Ino ino, Directory& directory, std::string_view name, Entry entry);
  void erase(rpc::Ino ino);

  std::mutex mutex_;
  std::unordered_map<rpc::Ino, Directory> directories_;
  std::list<rpc::Ino> uses_;  ///< The most recent first.
  std::size_t entries_ = 0;
  std::size_t max_entries_;
  std::uint64_t next_sequence_ =
      1;  ///< Never used twice, so that an evicted directory that returns differs.
};

}  // namespace distfuse::client
