// SPDX-License-Identifier: Apache-2.0
// The clock of leases: milliseconds of this machine's own time, suspended states included.
#pragma once

#include <cstdint>
#include <ctime>

namespace distfuse::client {

inline std::uint64_t now_ms() {
  timespec time{};
  clock_gettime(CLOCK_BOOTTIME, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1000 +
         static_cast<std::uint64_t>(time.tv_nsec) / 1'000'000;
}

}  // namespace distfuse::client
