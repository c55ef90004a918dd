// SPDX-License-Identifier: Apache-2.0
// Frames of the `ucx` fabric's connection stream (TCP), little-endian, pure: bytes in, structs out.
//
// A frame is an 8-byte header {u32 length of the body, u16 type, u16 zero} and the body. The connecting side sends one Hello; the
// listening side answers with one Accept or Reject; then both send Messages. Whatever breaks a limit below is malformed,
// and its sender is dropped.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "rdma/fabric/fabric.h"

namespace distfuse::fabric::ucx {

inline constexpr std::uint64_t kMagic = 0x4346'4953'5546'5444;  ///< "DTFUSIFC".
inline constexpr std::uint16_t kVersion = 1;
inline constexpr std::size_t kHeaderSize = 8;
inline constexpr std::size_t kMaxWorkerAddress =
    4096;                                      ///< Seen: 60 (lo and shared memory) to 700 bytes.
inline constexpr std::size_t kMaxRkey = 1024;  ///< Seen: 27 to 60 bytes.
inline constexpr std::size_t kMaxReason = 256;
// The largest body is an Accept: 8+2+1+8+8+8 fixed, three lengths of 2, and what they measure.
inline constexpr std::size_t kMaxBody = 64 + kMaxWorkerAddress + kMaxRkey + kMaxAcceptData;
static_assert(kMaxBody >= kMaxMessage);

enum class FrameType : std::uint16_t { hello = 1, accept = 2, reject = 3, message = 4 };

/// Two processes with the same one can map each other's memory: boot id of the kernel, IPC and PID namespace, user. All
/// zeros: shared memory is not to be used.
using HostId = std::array<std::byte, 40>;

struct Hello {
  std::uint16_t version = kVersion;
  HostId host{};
  std::vector<std::byte> data;  ///< ≤ kMaxConnectData.
};

struct Accept {
  bool shared = false;  ///< The address and the key are for shared memory; else for UCP operations.
  std::uint64_t region_address = 0;
  std::uint64_t region_length = 0;  ///< 0: no region, and then no address, key nor gate.
  std::uint64_t gate_address =
      0;  ///< 8-aligned word in the region's allocation: 1 while the connection lives.
  std::vector<std::byte> worker;  ///< UCP worker address, ≤ kMaxWorkerAddress.
  std::vector<std::byte> rkey;    ///< Packed, ≤ kMaxRkey.
  std::vector<std::byte> data;    ///< ≤ kMaxAcceptData.
};

struct Reject {
  std::string reason;  ///< ≤ kMaxReason.
};

struct Message {
  std::span<const std::byte> bytes;  ///< ≤ kMaxMessage; points into the decoder's input.
};

using Frame = std::variant<Hello, Accept, Reject, Message>;

/// What is at the front of `input`. consumed 0: not a whole frame yet. An Error: malformed.
struct Decoded {
  std::size_t consumed = 0;
  Frame frame;
};
[[nodiscard]] Result<Decoded> decode(std::span<const std::byte> input);

void encode(const Hello& hello, std::vector<std::byte>& out);
void encode(const Accept& accept, std::vector<std::byte>& out);
void encode(const Reject& reject, std::vector<std::byte>& out);
void encode(const Message& message, std::vector<std::byte>& out);

}  // namespace distfuse::fabric::ucx
