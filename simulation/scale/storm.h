// SPDX-License-Identifier: Apache-2.0
// The invalidation storm: many clients have one file cached under S, some of them die, one of the others wants X; then all want S again.
#pragma once

#include <cstdint>

#include "simulation/scale/parameters.h"

namespace distfuse::scale {

struct StormOptions {
  std::uint32_t sessions = 10;  // at one lockd
  std::uint32_t readers = 9;    // of them, fewer than sessions
  std::uint32_t lost = 0;       // readers that die with their S
  std::uint64_t seed = 1;
};

struct StormResult {
  double revoke_us = 0;  // from the writer's want to its grant
  double herd_p50_us = 0,
         herd_all_us = 0;  // from then on: until half of the readers, all have S again
  std::uint64_t revokes = 0, freezes = 0, repairs = 0;
  std::uint64_t messages = 0;  // to and from lockd, for the writer's grant
  double lockd_cpu_us = 0;     // likewise
  std::uint64_t herd_messages = 0;
  double herd_cpu_us = 0;
  std::uint64_t events = 0;
  std::uint64_t lockd_memory_bytes = 0;  // the core's, with 4096 contended slots at once
  std::uint64_t object_bytes = 0;        // of it, a contended slot
};

/// Throws std::runtime_error when a promise of the protocol is broken.
[[nodiscard]] StormResult run_storm(const Parameters& parameters, const StormOptions& options);

}  // namespace distfuse::scale
