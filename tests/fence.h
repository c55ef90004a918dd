// SPDX-License-Identifier: Apache-2.0
// What lockd does to a session that it has lost, done behind its back.
#pragma once

#include <cstdint>
#include <string>

#include "tests/cluster.h"

namespace distfuse::tests {

/// The session of this client, as lockd knows it; 0: none.
[[nodiscard]] std::uint64_t session_of(const Cluster& cluster, const std::string& client);

/// Every storaged refuses the session from here on; lockd knows nothing of it, and the mount renews its lease all the time.
void fence_everywhere(const Cluster& cluster, std::uint64_t session);

}  // namespace distfuse::tests
