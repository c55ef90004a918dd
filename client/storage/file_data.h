// SPDX-License-Identifier: Apache-2.0
// The data of files, striped over the data targets. Every call sends all it needs at once and returns when all of it is answered;
// what lock covers it is the caller's business. Stateless, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "client/cache/unsynced.h"
#include "client/storage/stripe.h"
#include "common/result.h"
#include "rpc/client.h"

namespace distfuse::client {

struct FileRef {
  rpc::Ino ino = 0;
  std::uint32_t chunk_size = rpc::kDefaultChunkSize;
  std::uint32_t first_target = 0;
  Unsynced* unsynced = nullptr;  ///< Of the inode: what changes and syncs the file is noted there.
};

class FileData {
 public:
  FileData(rpc::Client& client, std::uint32_t targets) : client_(client), targets_(targets) {}

  /// Fills `buffer`; what was never written reads as zeros. The size is the caller's to clamp at.
  Status read(const FileRef& file, std::uint64_t offset, std::span<std::byte> buffer);
  /// `durable`: at the disk when it returns.
  Status write(const FileRef& file, std::uint64_t offset, std::span<const std::byte> buffer,
               bool durable);
  /// What lies at `size` and beyond is gone, at every target.
  Status truncate(const FileRef& file, std::uint64_t size);
  Status punch(const FileRef& file, std::uint64_t offset, std::uint64_t length);
  Status allocate(const FileRef& file, std::uint64_t offset, std::uint64_t length);
  /// Where data (or a hole) begins at or after `offset`, looking no further than `size`; ENXIO: no data before `size`.
  Result<std::uint64_t> seek(const FileRef& file, std::uint64_t offset, std::uint64_t size,
                             bool hole);
  /// Everything answered for the file before is durable. `size`: bytes of it.
  Status sync(const FileRef& file, std::uint64_t size);
  /// The sum over all targets, in units of the first target's block size.
  Result<rpc::DataStatfs> statfs();

  [[nodiscard]] Layout layout(const FileRef& file) const {
    return {file.chunk_size, file.first_target % targets_, targets_};
  }

 private:
  Status over_range(const FileRef& file, rpc::DataOp op, std::uint64_t offset,
                    std::uint64_t length);
  Status change(const FileRef& file, std::span<rpc::DataCall> calls);

  rpc::Client& client_;
  std::uint32_t targets_;
};

}  // namespace distfuse::client
