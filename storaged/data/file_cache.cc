// SPDX-License-Identifier: Apache-2.0
#include "storaged/data/file_cache.h"

#include <unistd.h>

#include <algorithm>

namespace distfuse::storaged {
namespace {

void close_file(File& file) {
  if (file.fd >= 0)
    ::close(file.fd);  // errors of writeback reach fdatasync, on this or a later descriptor
  file.fd = -1;
}

}  // namespace

FileCache::~FileCache() {
  for (auto& [key, file] : files_) close_file(*file);
  for (auto& [address, file] : detached_) close_file(*file);
}

File* FileCache::find(const ChunkKey& key) {
  auto found = files_.find(key);
  return found == files_.end() ? nullptr : found->second.get();
}

File& FileCache::use(const ChunkKey& key) {
  File* file = find(key);
  if (file == nullptr) {
    while (files_.size() >= limit_ && !idle_.empty()) drop(*idle_.front());
    auto made = std::make_unique<File>();
    file = made.get();
    file->key = key;
    file->path = chunk_path(key);
    files_.emplace(key, std::move(made));
    by_ino_[key.ino].push_back(file);
  } else if (file->users == 0) {
    idle_.erase(file->idle);
  }
  ++file->users;
  return *file;
}

File* FileCache::use_if_open(const ChunkKey& key) {
  File* file = find(key);
  return file != nullptr && file->state == File::State::open ? &use(key) : nullptr;
}

void FileCache::release(File& file) {
  if (--file.users > 0) return;
  if (file.detached) {
    close_file(file);
    detached_.erase(&file);
    return;
  }
  file.idle = idle_.insert(idle_.end(), &file);
  if (file.state == File::State::closed || files_.size() > limit_)
    drop(file.state == File::State::closed ? file : *idle_.front());
}

void FileCache::unlist(File& file) {
  auto siblings = by_ino_.find(file.key.ino);
  std::erase(siblings->second, &file);
  if (siblings->second.empty()) by_ino_.erase(siblings);
}

void FileCache::drop(File& file) {
  idle_.erase(file.idle);
  unlist(file);
  close_file(file);
  files_.erase(ChunkKey{file.key});
}

void FileCache::detach(std::uint64_t ino, std::uint64_t first) {
  auto siblings = by_ino_.find(ino);
  if (siblings == by_ino_.end()) return;
  for (File* file : std::vector<File*>(siblings->second)) {
    if (file->key.chunk < first) continue;
    if (file->users == 0) {
      drop(*file);
      continue;
    }
    file->detached = true;
    unlist(*file);
    auto node = files_.extract(file->key);
    detached_.emplace(file, std::move(node.mapped()));
  }
}

}  // namespace distfuse::storaged
