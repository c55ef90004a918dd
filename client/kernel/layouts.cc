// SPDX-License-Identifier: Apache-2.0
#include "client/kernel/layouts.h"

#include <sys/stat.h>

namespace distfuse::client::kernel {

void Layouts::note(const rpc::Attributes& attributes) {
  if (!S_ISREG(attributes.mode)) return;
  Shard& shard = shards_[attributes.ino % kShards];
  const std::lock_guard lock(shard.mutex);
  if (shard.files.size() >= kPerShard) shard.files.clear();
  shard.files.try_emplace(attributes.ino,
                          FileRef{attributes.ino, attributes.chunk_size, attributes.first_target});
}

std::optional<FileRef> Layouts::find(rpc::Ino ino) {
  Shard& shard = shards_[ino % kShards];
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.files.find(ino);
  if (found == shard.files.end()) return std::nullopt;
  return found->second;
}

}  // namespace distfuse::client::kernel
