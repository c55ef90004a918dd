// SPDX-License-Identifier: Apache-2.0
// `distfuse status`: what the daemons of a cluster say of themselves, as a table or as JSON.
#pragma once

#include <string>

#include "common/result.h"

namespace distfuse::client {

/// Prints to standard output. `complete` is set to whether every daemon is alive and answered.
[[nodiscard]] Status print_status(const std::string& root, bool as_json, bool& complete);

}  // namespace distfuse::client
