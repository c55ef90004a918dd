// SPDX-License-Identifier: Apache-2.0
// The data operations: a fixed header, and bulk that UCX moves by rendezvous between the final buffers. Little-endian, as
// laid out; sizes asserted. A receiver checks every field against the message's length and its own limits before use.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace distfuse::rpc {

inline constexpr std::uint32_t kMaxBulk =
    4U << 20;  ///< Bytes of one bulk transfer; also the largest chunk.

enum class DataOp : std::uint16_t {
  write = 1,  ///< Bulk from the client. `flags` kWriteSync: durable before the answer.
  read = 2,  ///< Bulk to the client: exactly `length` bytes; what was never written reads as zeros.
  truncate =
      3,  ///< Chunk `chunk` is cut to `offset` bytes (a later read gives zeros); chunks above it on this target are
          ///< removed. offset 0: chunk itself removed too.
  punch = 4,     ///< [offset, offset+length) of the chunk becomes a hole.
  allocate = 5,  ///< Space for [offset, offset+length) of the chunk is reserved, contents kept.
  seek =
      6,  ///< `flags` kSeekHole or kSeekData from offset; the answer's `offset`, ENXIO when there is none in the chunk.
  sync =
      7,  ///< Everything answered for `ino` before is durable when this is answered. ino 0: everything.
  remove = 8,  ///< Every chunk of the inode goes (from the meta target's purge).
  statfs = 9,  ///< Bulk to the client: DataStatfs.
  fence =
      10,  ///< From lockd: `ino` is the session; from the answer on its requests are refused (kFenced).
  sessions =
      11,  ///< From lockd, to the meta target as well: who lives. `ino`: incarnation; `chunk`: high; bulk from lockd: session
  ///< ids, 8 bytes each. Sessions above `high` are accepted; others must be named. ESTALE: a later
  ///< incarnation was seen.
};

/// Node ids are 15 bits: no lockd has more.
inline constexpr std::uint32_t kMaxSessions = 32768;
/// The error of a storaged that has not been told who lives since it started. Client tries again by itself.
inline constexpr int kLearning = EINPROGRESS;
/// The error of whatever a fenced session asks. No operation of a storaged has it as an error of its own.
inline constexpr int kFenced = EKEYREVOKED;

/// Whether the request's bulk goes to the server.
[[nodiscard]] constexpr bool sends_bulk(std::uint16_t op) {
  return op == static_cast<std::uint16_t>(DataOp::write) ||
         op == static_cast<std::uint16_t>(DataOp::sessions);
}

enum DataFlag : std::uint32_t { kWriteSync = 1, kSeekData = 2, kSeekHole = 4 };

struct DataRequest {
  std::uint64_t session;
  std::uint64_t request_id;
  std::uint64_t ino;
  std::uint64_t chunk;
  std::uint32_t offset;  ///< Within the chunk.
  std::uint32_t length;
  std::uint32_t chunk_size;
  std::uint32_t flags;
  std::uint16_t op;
  std::uint16_t reserved[3];
};
static_assert(sizeof(DataRequest) == 56 && std::is_trivially_copyable_v<DataRequest>);

struct DataReply {
  std::uint64_t request_id;
  std::int32_t error;  ///< errno, 0: success.
  std::uint32_t offset;
  std::uint32_t length;  ///< Bytes of bulk that follow (read, statfs) or were written.
  std::uint32_t reserved;
};
static_assert(sizeof(DataReply) == 24);

struct DataStatfs {
  std::uint64_t block_size, blocks, blocks_free, blocks_available, files, files_free;
};
static_assert(sizeof(DataStatfs) == 48);

}  // namespace distfuse::rpc
