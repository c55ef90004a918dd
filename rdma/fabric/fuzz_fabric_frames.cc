// SPDX-License-Identifier: Apache-2.0
// Arbitrary bytes as the stream of a peer of the `ucx` fabric, decoded, and chains run against a small region; and as the private
// data of an accept of the `verbs` fabric.
#include <cstdlib>
#include <cstring>

#include "rdma/fabric/ucx_chain.h"
#include "rdma/fabric/ucx_wire.h"
#include "rdma/fabric/verbs_handshake.h"

using namespace distfuse::fabric;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static std::byte* region = static_cast<std::byte*>(std::aligned_alloc(4096, 4096));
  std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data), size);
  if (const auto accept = verbs::decode_accept(input); accept.ok()) {
    const auto again = verbs::encode_accept(accept->region, accept->data);
    if (std::memcmp(again.data(), data, again.size()) != 0) std::abort();
  }
  while (true) {
    const auto decoded = ucx::decode(input);
    if (!decoded || decoded->consumed == 0) return 0;
    if (decoded->consumed > input.size()) std::abort();
    if (const auto* request = std::get_if<ucx::ChainRequest>(&decoded->frame)) {
      std::vector<std::byte> reply;
      const auto status = ucx::serve_chain({region, 4096}, *request, reply);
      if (status.ok()) {
        const auto answer = ucx::decode(reply);
        if (!answer || answer->consumed != reply.size()) std::abort();
      }
    }
    if (const auto* hello = std::get_if<ucx::Hello>(&decoded->frame);
        hello != nullptr && hello->version == ucx::kVersion) {
      std::vector<std::byte> again;
      ucx::encode(*hello, again);
      if (again.size() != decoded->consumed) std::abort();
    }
    input = input.subspan(decoded->consumed);
  }
}
