// SPDX-License-Identifier: Apache-2.0
// Frames of the `ucx` fabric's connection stream (TCP), little-endian, pure: bytes in, structs out.
//
// A frame is an 8-byte header {u32 length of the body, u16 type, u16 zero} and the body. The connecting side sends one
// Hello; the listening side answers with one Accept or Reject; then both send Messages, and the connecting side
// ChainRequests, each answered by ChainResults in the order asked. Whatever breaks a limit below is malformed, and its
// sender is dropped.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "rdma/fabric/fabric.h"

namespace distfuse::fabric::ucx {

inline constexpr std::uint64_t kMagic = 0x4346'4953'5546'5444;  ///< "DTFUSIFC".
inline constexpr std::uint16_t kVersion = 1;
inline constexpr std::size_t kHeaderSize = 8;
inline constexpr std::size_t kMaxWorkerAddress = 4096;  ///< Seen: 60 to 100 bytes.
inline constexpr std::size_t kMaxRkey = 1024;           ///< Seen: 27 to 60 bytes.
inline constexpr std::size_t kMaxReason = 256;
/// op, offset, length, operand, expected.
inline constexpr std::size_t kOperationSize = 1 + 8 + 4 + 8 + 8;
// The largest bodies: a ChainRequest (count, operations, the bytes of its writes) and its results (an atomic's 8 bytes each,
// the bytes of its reads). An Accept is far below.
inline constexpr std::size_t kMaxBody = 1 + kMaxChain * kOperationSize + kMaxTransfer;
static_assert(kMaxBody >= kMaxMessage);
static_assert(kMaxBody >= 64 + kMaxWorkerAddress + kMaxRkey + kMaxAcceptData);
static_assert(kMaxBody >= kMaxChain * 8 + kMaxTransfer);

enum class FrameType : std::uint16_t {
  hello = 1,
  accept = 2,
  reject = 3,
  message = 4,
  chain = 5,
  results = 6
};

/// Two processes with the same one can map each other's memory: boot id of the kernel, IPC and PID namespace, user. All
/// zeros: shared memory is not to be used.
using HostId = std::array<std::byte, 40>;

struct Hello {
  std::uint16_t version = kVersion;
  HostId host{};
  std::vector<std::byte> data;  ///< ≤ kMaxConnectData.
};

struct Accept {
  bool shared = false;  ///< The region can be mapped, and the rest says how. Else: ChainRequests.
  std::uint64_t region_length = 0;  ///< 0: no region.
  std::uint64_t region_address = 0;
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

/// Decoded: 1 to kMaxChain operations of known kinds that move no more than kMaxTransfer; not checked against a region.
struct ChainRequest {
  std::array<Operation, kMaxChain> operations;  ///< `local` is unset.
  std::size_t count = 0;
  std::span<const std::byte>
      data;  ///< Of its writes, one after the other; points into the decoder's input.
};

struct ChainResults {
  std::span<const std::byte> bytes;  ///< Of its reads and atomics, one after the other.
};

using Frame = std::variant<Hello, Accept, Reject, Message, ChainRequest, ChainResults>;

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
void encode_request(std::span<const Operation> chain, std::vector<std::byte>& out);
/// Appends a ChainResults frame of `size` zeros and answers where they are.
std::byte* begin_results(std::size_t size, std::vector<std::byte>& out);
[[nodiscard]] std::size_t result_size(std::span<const Operation> chain);

}  // namespace distfuse::fabric::ucx
