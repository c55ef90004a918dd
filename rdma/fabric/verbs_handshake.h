// SPDX-License-Identifier: Apache-2.0
// The private data of an accept: 32 bytes of ours {u32 magic, u16 version, u16 length of the user's data, u64 address, u64 length,
// u32 rkey of the region, u32 zero}, then the user's. The transport pads it to 196 bytes, so the length is in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rdma/fabric/verbs_queue_pair.h"

namespace distfuse::fabric::verbs {

inline constexpr std::uint32_t kAcceptMagic = 0x4346'4456;  ///< "VDFC".
inline constexpr std::uint16_t kAcceptVersion = 1;
inline constexpr std::size_t kAcceptHeader = 32;
static_assert(kAcceptHeader + kMaxAcceptData <= 196);
inline constexpr std::size_t kMaxRejectData = 148;

struct AcceptData {
  RemoteRegion region;
  std::vector<std::byte> data;
};

[[nodiscard]] std::vector<std::byte> encode_accept(const RemoteRegion& region,
                                                   std::span<const std::byte> data);
/// EPROTO: not an accept of this version.
[[nodiscard]] Result<AcceptData> decode_accept(std::span<const std::byte> bytes);

}  // namespace distfuse::fabric::verbs
