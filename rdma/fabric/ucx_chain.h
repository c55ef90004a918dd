// SPDX-License-Identifier: Apache-2.0
// Chains run by this machine's CPU on memory that it can reach: a mapped region of a peer, or (asked for over the stream, and
// by the loopback) a region of this process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rdma/fabric/fabric.h"
#include "rdma/fabric/ucx_wire.h"

namespace distfuse::fabric::ucx {

/// EINVAL: an operation beyond `region_length`, an unaligned atomic, a chain of a length or size that is not allowed.
[[nodiscard]] Status check_chain(std::span<const Operation> chain, std::size_t region_length);

/// Runs a chain that check_chain has passed; `base` is the region's first byte. An aligned word is never torn.
void run_chain(std::byte* base, std::span<const Operation> chain);

/// Runs a chain that came over the stream, and appends the frame that answers it to `reply`.
[[nodiscard]] Status serve_chain(std::span<std::byte> region, const ChainRequest& request,
                                 std::vector<std::byte>& reply);

/// Puts the results of a chain where its operations want them. EPROTO: their size is not what the chain asks for.
[[nodiscard]] Status store_results(std::span<const Operation> chain,
                                   std::span<const std::byte> results);

}  // namespace distfuse::fabric::ucx
