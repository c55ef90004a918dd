// SPDX-License-Identifier: Apache-2.0
#include "client/cache/entry_cache.h"

namespace distfuse::client {

EntryCache::Directory& EntryCache::touch(rpc::Ino ino) {
  const auto [found, fresh] = directories_.try_emplace(ino);
  Directory& directory = found->second;
  if (fresh) {
    directory.sequence = next_sequence_++;
    uses_.push_front(ino);
    directory.use = uses_.begin();
  } else {
    uses_.splice(uses_.begin(), uses_, directory.use);
  }
  return directory;
}

void EntryCache::erase(rpc::Ino ino) {
  const auto found = directories_.find(ino);
  if (found == directories_.end()) return;
  entries_ -= found->second.entries.size();
  uses_.erase(found->second.use);
  directories_.erase(found);
}

void EntryCache::put(rpc::Ino ino, Directory& directory, std::string_view name, Entry entry) {
  if (const auto found = directory.entries.find(name); found != directory.entries.end()) {
    found->second = entry;
    return;
  }
  while (entries_ >= max_entries_ && uses_.back() != ino) erase(uses_.back());
  if (entries_ >= max_entries_) {
    directory.complete = false;
    directory.sequence =
        next_sequence_++;  // a listing that is under way must not count as complete
    return;
  }
  directory.entries.emplace(name, entry);
  ++entries_;
}

std::optional<EntryCache::Entry> EntryCache::find(rpc::Ino ino, std::string_view name) {
  const std::lock_guard lock(mutex_);
  const auto found = directories_.find(ino);
  if (found == directories_.end()) return std::nullopt;
  Directory& directory = found->second;
  uses_.splice(uses_.begin(), uses_, directory.use);
  const auto entry = directory.entries.find(name);
  if (entry != directory.entries.end()) return entry->second;
  if (directory.complete) return Entry{};
  return std::nullopt;
}

std::uint64_t EntryCache::sequence(rpc::Ino ino) {
  const std::lock_guard lock(mutex_);
  return touch(ino).sequence;
}

void EntryCache::fetched(rpc::Ino ino, std::string_view name, Entry entry, std::uint64_t began) {
  const std::lock_guard lock(mutex_);
  Directory& directory = touch(ino);
  if (directory.sequence == began) put(ino, directory, name, entry);
}

void EntryCache::complete(rpc::Ino ino, std::uint64_t began) {
  const std::lock_guard lock(mutex_);
  const auto found = directories_.find(ino);
  if (found == directories_.end() || found->second.sequence != began) return;
  found->second.complete = true;
}

void EntryCache::changed(rpc::Ino ino, std::string_view name, Entry entry) {
  const std::lock_guard lock(mutex_);
  Directory& directory = touch(ino);
  directory.sequence = next_sequence_++;
  put(ino, directory, name, entry);
  // A name that is known but found no room is not known to be absent.
  if (entry.ino != 0 && directory.entries.find(name) == directory.entries.end())
    directory.complete = false;
}

void EntryCache::created(rpc::Ino ino) {
  const std::lock_guard lock(mutex_);
  touch(ino).complete = true;
}

void EntryCache::forget(rpc::Ino ino) {
  const std::lock_guard lock(mutex_);
  erase(ino);
}

void EntryCache::clear() {
  const std::lock_guard lock(mutex_);
  directories_.clear();
  uses_.clear();
  entries_ = 0;
}

std::size_t EntryCache::size() {
  const std::lock_guard lock(mutex_);
  return entries_;
}

}  // namespace distfuse::client
