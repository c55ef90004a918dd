// SPDX-License-Identifier: Apache-2.0
#include "storaged/data/chunk_layout.h"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <limits>

namespace distfuse::storaged {
namespace {

constexpr std::size_t kDigits = 10;  // 40 bits

std::uint64_t mix(std::uint64_t value) {  // splitmix64's finisher
  value += 0x9e3779b97f4a7c15ULL;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

std::optional<std::uint64_t> parse_hex(std::string_view text) {
  std::uint64_t value = 0;
  for (char c : text) {
    if (c >= 'A' && c <= 'F') return {};  // one spelling a number
  }
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

bool bad_chunk_size(std::uint32_t size) {
  return size < kMinChunkSize || size > rpc::kMaxBulk || (size & (size - 1)) != 0;
}

bool in_chunk(const ChunkOperation& operation) {
  return std::uint64_t{operation.offset} + operation.length <= operation.chunk_size;
}

}  // namespace

std::size_t ChunkKeyHash::operator()(const ChunkKey& key) const {
  return mix(key.ino ^ mix(key.chunk));
}

std::uint32_t directory_of(std::uint64_t ino) {
  return static_cast<std::uint32_t>(mix(ino) % kDirectories);
}

ChunkPath directory_path(std::uint32_t directory) {
  ChunkPath path{};
  std::snprintf(path.data(), path.size(), "%03x", directory % kDirectories);
  return path;
}

ChunkPath chunk_path(const ChunkKey& key) {
  ChunkPath path{};
  std::snprintf(path.data(), path.size(), "%03x/%010llx.%010llx", directory_of(key.ino),
                static_cast<unsigned long long>(key.ino & kMaxIno),
                static_cast<unsigned long long>(key.chunk & kMaxChunk));
  return path;
}

std::optional<ChunkKey> parse_chunk_name(std::string_view name) {
  if (name.size() != 2 * kDigits + 1 || name[kDigits] != '.') return {};
  auto ino = parse_hex(name.substr(0, kDigits));
  auto chunk = parse_hex(name.substr(kDigits + 1));
  if (!ino || !chunk) return {};
  return ChunkKey{*ino, *chunk};
}

int check(const ChunkOperation& operation) {
  using rpc::DataOp;
  if (operation.op == DataOp::statfs) return operation.buffer != nullptr ? 0 : EINVAL;
  if (operation.ino > kMaxIno) return EINVAL;
  if (operation.op == DataOp::sync) return 0;
  if (operation.ino == 0) return EINVAL;
  if (operation.op == DataOp::remove) return 0;
  if (operation.chunk > kMaxChunk || bad_chunk_size(operation.chunk_size)) return EINVAL;
  switch (operation.op) {
    case DataOp::write:
    case DataOp::read:
      return in_chunk(operation) && (operation.buffer != nullptr || operation.length == 0) ? 0
                                                                                           : EINVAL;
    case DataOp::punch:
    case DataOp::allocate:
      return in_chunk(operation) && operation.length != 0 ? 0 : EINVAL;
    case DataOp::truncate:
      return operation.offset <= operation.chunk_size ? 0 : EINVAL;
    case DataOp::seek: {
      const std::uint32_t whence = operation.flags & (rpc::kSeekData | rpc::kSeekHole);
      return operation.offset < operation.chunk_size &&
                     (whence == rpc::kSeekData || whence == rpc::kSeekHole)
                 ? 0
                 : EINVAL;
    }
    default:
      return EINVAL;
  }
}

Range range_of(const ChunkOperation& operation) {
  using rpc::DataOp;
  constexpr auto kAll = std::numeric_limits<std::uint32_t>::max();
  Range range{operation.chunk, operation.chunk, 0, kAll, true};
  switch (operation.op) {
    case DataOp::write:
    case DataOp::read:
      range.begin = operation.offset;
      range.end = operation.offset + operation.length;
      range.changes = operation.op == DataOp::write;
      break;
    case DataOp::seek:
      range.begin = operation.offset;
      range.changes = false;
      break;
    case DataOp::truncate:
      range.last_chunk = kMaxChunk;
      break;
    case DataOp::remove:
      range.first_chunk = 0;
      range.last_chunk = kMaxChunk;
      break;
    default:
      break;
  }
  return range;
}

bool conflict(const Range& a, const Range& b) {
  if (!a.changes && !b.changes) return false;
  if (a.last_chunk < b.first_chunk || b.last_chunk < a.first_chunk) return false;
  const bool both_in_one = a.first_chunk == a.last_chunk && b.first_chunk == b.last_chunk;
  return !both_in_one || (a.begin < b.end && b.begin < a.end);
}

}  // namespace distfuse::storaged
