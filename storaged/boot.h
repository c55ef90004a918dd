// SPDX-License-Identifier: Apache-2.0
// Which start of its machine a storaged runs in. A process that is killed leaves what it has written to its kernel; a machine does not: so
// a mount that has written, and not synced, under one number, and meets another, may have lost data (client/cache/unsynced.h).
#pragma once

#include <cstdint>

#include "common/result.h"

namespace distfuse::storaged {

/// Random with each start of the machine, and not 0: from the kernel's boot_id, or from what the environment variable
/// DISTFUSE_BOOT_ID says instead. Error: there is neither.
[[nodiscard]] Result<std::uint64_t> boot_number();

}  // namespace distfuse::storaged
