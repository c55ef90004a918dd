// SPDX-License-Identifier: Apache-2.0
// The embedded metadata store: one RocksDB in one directory.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/result.h"
#include "storaged/meta/metadata_store.h"

namespace distfuse::storaged {

struct RocksdbMetadataOptions {
  std::string directory;   ///< Made if missing; its parent must exist.
  std::string cluster_id;  ///< 32 hex digits; a store of another cluster is refused.
  std::uint32_t data_targets = 1;
  std::uint64_t cache_bytes = 32ULL << 20;         ///< Block cache.
  std::uint64_t write_buffer_bytes = 32ULL << 20;  ///< All memtables together.

  std::chrono::nanoseconds orphan_grace =
      std::chrono::seconds(5);  ///< From the loss of the last name or registration; ≥ 0.

  // Limits; tests shrink them.
  std::uint32_t max_links = 0x7fffffff;      ///< Of one inode: EMLINK.
  std::uint64_t max_ino = (1ULL << 40) - 1;  ///< Last inode number: then ENOSPC.
  std::uint64_t ino_block = 65536;           ///< Inode numbers reserved by one synced write.
  std::uint64_t max_replies_per_session = 1ULL
                                          << 18;  ///< Reply records of one session: then ENOBUFS.

  /// The server's clock; empty: the system's.
  std::function<rpc::Timestamp()> clock;
};

/// Opens the store, makes it on first use (root directory 0755 of the calling user). After kill -9
/// or a power cut it opens without help. Error: EINVAL: a store of another cluster, role or format
/// version; EBUSY: another process has it open; EIO, ENOSPC and others: the message says what to
/// do.
[[nodiscard]] Result<std::unique_ptr<MetadataStore>> open_rocksdb_metadata_store(
    RocksdbMetadataOptions options);

}  // namespace distfuse::storaged
