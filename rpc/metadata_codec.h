// SPDX-License-Identifier: Apache-2.0
// Metadata requests and replies to and from their wire form (Cap'n Proto, one segment,
// rpc/metadata.capnp). Decoding believes nothing: every field is checked; a bad message is EPROTO
// with the field's name, never undefined behaviour.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"
#include "rpc/metadata.h"

namespace distfuse::rpc {

inline constexpr std::size_t kMaxName = 255;
inline constexpr std::size_t kMaxSymlink = 4095;
inline constexpr std::size_t kMaxXattrValue = 65536;
inline constexpr std::size_t kMaxInodesPerRequest = 1024;
inline constexpr std::size_t kMaxEntriesPerReply = 1024;  ///< ReadDirectory.
inline constexpr std::size_t kMaxStringsPerReply = 1024;  ///< ListXattr.
inline constexpr std::size_t kMaxMetadataRequest =
    128U << 10;  ///< Bytes encoded: an xattr value and its name, with room.
inline constexpr std::size_t kMaxMetadataReply =
    1U << 20;  ///< Bytes encoded: 1024 entries with longest names, attributes.
inline constexpr Ino kMaxIno = (Ino{1} << 40) - 1;

using Bytes = std::vector<std::byte>;

/// 1 to 255 bytes, no '/' and NUL, not "." or "..".
[[nodiscard]] bool valid_name(std::string_view name);
/// 1 to 255 bytes without NUL.
[[nodiscard]] bool valid_xattr_name(std::string_view name);

/// Error: EINVAL/ENAMETOOLONG/E2BIG: a field that no decoder would accept (a program's own, so that
/// an application's bad name comes back as an errno and never as a lost connection).
[[nodiscard]] Result<Bytes> encode_request(const RequestContext& context,
                                           const MetadataRequest& request);
[[nodiscard]] Result<Bytes> encode_reply(const MetadataReply& reply);

/// `bytes` must be 8-aligned (else copied first). Error: EPROTO.
[[nodiscard]] Result<std::pair<RequestContext, MetadataRequest>> decode_request(
    std::span<const std::byte> bytes);
[[nodiscard]] Result<MetadataReply> decode_reply(std::span<const std::byte> bytes);

}  // namespace distfuse::rpc
