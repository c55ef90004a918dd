// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "simulation/scale/load_run.h"
#include "simulation/scale/storm.h"

namespace distfuse::scale {

/// Options and result; equal for equal options, to the last digit.
[[nodiscard]] nlohmann::ordered_json json_of(const LoadOptions& options, const LoadResult& result);
[[nodiscard]] nlohmann::ordered_json json_of(const StormOptions& options,
                                             const StormResult& result);

}  // namespace distfuse::scale
