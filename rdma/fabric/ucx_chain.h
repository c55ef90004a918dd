// SPDX-License-Identifier: Apache-2.0
// Chains asked for over the stream: run by the target, and their results put in place by who asked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rdma/fabric/chain.h"
#include "rdma/fabric/ucx_wire.h"

namespace distfuse::fabric::ucx {

/// Runs a chain that came over the stream, and appends the frame that answers it to `reply`.
[[nodiscard]] Status serve_chain(std::span<std::byte> region, const ChainRequest& request,
                                 std::vector<std::byte>& reply);

/// Puts the results of a chain where its operations want them. EPROTO: their size is not what the chain asks for.
[[nodiscard]] Status store_results(std::span<const Operation> chain,
                                   std::span<const std::byte> results);

}  // namespace distfuse::fabric::ucx
