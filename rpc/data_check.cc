// SPDX-License-Identifier: Apache-2.0
#include "rpc/data_check.h"

namespace distfuse::rpc {
namespace {

constexpr std::uint64_t kMaxIno = (std::uint64_t{1} << 40) - 1;
constexpr std::uint64_t kMaxChunk = std::uint64_t{1} << 40;  // × 4 MiB stays below 2^63

Error bad(const char* field) {
  return Error{EINVAL, std::string("data request: bad ") + field};
}

bool flags_fit(DataOp op, std::uint32_t flags) {
  switch (op) {
    case DataOp::write:
      return (flags & ~std::uint32_t{kWriteSync}) == 0;
    case DataOp::seek:
      return flags == kSeekData || flags == kSeekHole;
    default:
      return flags == 0;
  }
}

Status check_range(const DataRequest& r, bool needs_length) {
  if (r.ino == 0 || r.ino > kMaxIno) return bad("inode");
  if (r.chunk > kMaxChunk) return bad("chunk");
  if (r.chunk_size == 0 || r.chunk_size > kMaxBulk) return bad("chunk size");
  if (std::uint64_t{r.offset} + r.length > r.chunk_size) return bad("range");
  if (needs_length && r.length == 0) return bad("length");
  return {};
}

}  // namespace

Status check_data_request(const DataRequest& r, std::size_t bulk) {
  if (r.op < static_cast<std::uint16_t>(DataOp::write) ||
      r.op > static_cast<std::uint16_t>(DataOp::sessions))
    return bad("operation");
  const auto op = static_cast<DataOp>(r.op);
  if ((r.reserved[0] | r.reserved[1] | r.reserved[2]) != 0) return bad("reserved bytes");
  if (!flags_fit(op, r.flags)) return bad("flags");
  if (bulk != (sends_bulk(r.op) ? r.length : 0)) return bad("payload length");
  switch (op) {
    case DataOp::write:
    case DataOp::read:
    case DataOp::punch:
    case DataOp::allocate:
      return check_range(r, true);
    case DataOp::truncate:
    case DataOp::seek:
      return check_range(r, false);
    case DataOp::remove:
      return r.ino == 0 || r.ino > kMaxIno ? bad("inode") : Status{};
    case DataOp::sync:
      return r.ino > kMaxIno ? bad("inode") : Status{};
    case DataOp::fence:
      return r.ino == 0 ? bad("session") : Status{};
    case DataOp::sessions:
      if (r.ino == 0) return bad("incarnation");
      return r.length % 8 != 0 || r.length / 8 > kMaxSessions ? bad("length") : Status{};
    case DataOp::statfs:
      return {};
  }
  return bad("operation");
}

Status check_data_reply(const DataRequest& request, const DataReply& reply, std::size_t bulk) {
  const Error broken{EPROTO, "data reply does not fit its request"};
  if (reply.error < 0 || reply.error >= 4096 || reply.request_id != request.request_id)
    return broken;
  if (reply.error != 0) return bulk == 0 ? Status{} : broken;
  switch (static_cast<DataOp>(request.op)) {
    case DataOp::read:
      return bulk == request.length && reply.length == bulk ? Status{} : broken;
    case DataOp::statfs:
      return bulk == sizeof(DataStatfs) && reply.length == bulk ? Status{} : broken;
    case DataOp::seek:
      return bulk == 0 && reply.offset <= request.chunk_size ? Status{} : broken;
    default:
      return bulk == 0 ? Status{} : broken;
  }
}

}  // namespace distfuse::rpc
