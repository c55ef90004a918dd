// SPDX-License-Identifier: Apache-2.0
// For tests: a chunk store in a directory of its own, operations called as if they were synchronous, and a model.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/testing/temporary_directory.h"
#include "storaged/data/chunk_layout.h"
#include "storaged/data/file_chunk_store.h"

namespace distfuse::storaged::testing {

inline constexpr std::uint32_t kChunk = 64U << 10;
inline const std::string kCluster = "0123456789abcdef0123456789abcdef";

inline std::uint64_t seed() {
  const char* text = std::getenv("DISTFUSE_SEED");
  const std::uint64_t value =
      text != nullptr ? std::strtoull(text, nullptr, 0) : std::random_device{}();
  std::printf("DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(value));
  return value;
}

inline std::unique_ptr<ChunkStore> open_store(const std::string& path, std::uint64_t capacity = 0,
                                              unsigned ring = 256, std::size_t files = 2048) {
  FileChunkStoreOptions options;
  options.directory = path + "/store";
  options.cluster_id = kCluster;
  options.capacity = capacity;
  options.ring_entries = ring;
  options.open_files = files;
  auto store = open_file_chunk_store(options);
  if (!store) {
    ADD_FAILURE() << store.error().message;
    std::abort();
  }
  return std::move(*store);
}

/// Sleeps as the daemon does. Fails the test after 30 s.
template <typename Condition>
void run_until(ChunkStore& store, Condition condition) {
  while (!condition()) {
    if (store.progress()) continue;
    if (condition()) return;
    pollfd fd{store.event_fd(), POLLIN, 0};
    if (::poll(&fd, 1, 30000) == 0) {
      ADD_FAILURE() << "the store is silent, operations in flight: " << store.in_flight();
      std::abort();
    }
  }
}

inline ChunkOutcome call(ChunkStore& store, const ChunkOperation& operation) {
  ChunkOutcome result;
  bool done = false;
  store.submit(operation, [&](const ChunkOutcome& outcome) {
    result = outcome;
    done = true;
  });
  run_until(store, [&] { return done; });
  return result;
}

inline ChunkOperation operation(rpc::DataOp op, std::uint64_t ino, std::uint64_t chunk,
                                std::uint32_t offset, std::uint32_t length,
                                std::byte* buffer = nullptr, std::uint32_t flags = 0) {
  return {op, ino, chunk, offset, length, kChunk, flags, buffer};
}

inline int write(ChunkStore& store, std::uint64_t ino, std::uint64_t chunk, std::uint32_t offset,
                 std::string text, std::uint32_t flags = 0) {
  return call(store, operation(rpc::DataOp::write, ino, chunk, offset,
                               static_cast<std::uint32_t>(text.size()),
                               reinterpret_cast<std::byte*>(text.data()), flags))
      .error;
}

inline std::string read(ChunkStore& store, std::uint64_t ino, std::uint64_t chunk,
                        std::uint32_t offset, std::uint32_t length) {
  std::string text(length, 'X');  // what is missing must be overwritten by zeros
  const auto outcome = call(store, operation(rpc::DataOp::read, ino, chunk, offset, length,
                                             reinterpret_cast<std::byte*>(text.data())));
  EXPECT_EQ(outcome.error, 0);
  EXPECT_EQ(outcome.length, length);
  return text;
}

inline int simple(ChunkStore& store, rpc::DataOp op, std::uint64_t ino, std::uint64_t chunk = 0,
                  std::uint32_t offset = 0, std::uint32_t length = 0) {
  return call(store, operation(op, ino, chunk, offset, length)).error;
}

/// What a chunk store holds, by its rules.
class Model {
 public:
  void write(const ChunkKey& key, std::uint32_t offset, const std::string& text) {
    bytes(key).replace(offset, text.size(), text);
  }
  void punch(const ChunkKey& key, std::uint32_t offset, std::uint32_t length) {
    if (chunks_.contains({key.ino, key.chunk}))
      bytes(key).replace(offset, length, std::string(length, '\0'));
  }
  void truncate(const ChunkKey& key, std::uint32_t offset) {
    if (offset < kChunk) punch(key, offset, kChunk - offset);
    for (auto at = chunks_.lower_bound({key.ino, key.chunk + (offset != 0 ? 1 : 0)});
         at != chunks_.end() && at->first.first == key.ino;) {
      at = chunks_.erase(at);
    }
  }
  void remove(std::uint64_t ino) { truncate({ino, 0}, 0); }
  [[nodiscard]] std::string read(const ChunkKey& key, std::uint32_t offset,
                                 std::uint32_t length) const {
    auto at = chunks_.find({key.ino, key.chunk});
    return at == chunks_.end() ? std::string(length, '\0') : at->second.substr(offset, length);
  }

 private:
  std::string& bytes(const ChunkKey& key) {
    return chunks_.try_emplace({key.ino, key.chunk}, kChunk, '\0').first->second;
  }
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::string> chunks_;
};

}  // namespace distfuse::storaged::testing
