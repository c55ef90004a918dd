// SPDX-License-Identifier: Apache-2.0
// What every fabric asks of a chain before it is posted, and a chain run by this CPU on memory that it can reach.
#pragma once

#include <cstddef>
#include <span>

#include "rdma/fabric/fabric.h"

namespace distfuse::fabric {

/// EINVAL: an operation beyond `region_length`, an unaligned atomic, a chain of a length or size that is not allowed.
[[nodiscard]] Status check_chain(std::span<const Operation> chain, std::size_t region_length);

/// Runs a chain that check_chain has passed; `base` is the region's first byte. An aligned word is never torn.
void run_chain(std::byte* base, std::span<const Operation> chain);

}  // namespace distfuse::fabric
