// SPDX-License-Identifier: Apache-2.0
// Where files' data lies, which never changes: a bounded memory of what the server's answers said, so that a READ or WRITE, which names
// an inode alone, needs no question. Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "client/storage/file_data.h"

namespace distfuse::client::kernel {

class Layouts {
 public:
  /// At most kShards × kPerShard files: 48 bytes each, 12 MiB in all. A full shard forgets everything: what is used comes back by a question each.
  static constexpr std::size_t kShards = 64;
  static constexpr std::size_t kPerShard = 4096;

  void note(const rpc::Attributes& attributes);
  [[nodiscard]] std::optional<FileRef> find(rpc::Ino ino);

 private:
  struct Shard {
    std::mutex mutex;
    std::unordered_map<rpc::Ino, FileRef> files;  ///< Protected by mutex.
  };
  std::array<Shard, kShards> shards_;
};

}  // namespace distfuse::client::kernel
