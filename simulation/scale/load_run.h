// SPDX-License-Identifier: Apache-2.0
// A workload at one number of clients: throughput, latency of acquire, what it costs lockd, what is busiest.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simulation/scale/parameters.h"
#include "simulation/scale/workload.h"

namespace distfuse::scale {

struct LoadOptions {
  Workload workload = Workload::private_files;
  WorkloadOptions details;
  std::uint32_t clients = 10;
  std::uint32_t lockds = 1;
  std::uint64_t seed = 1;
  /// The measurement ends when it has seen so many acquires of each client on average, or so many events.
  std::uint32_t acquires = 50;
  std::uint64_t events = 4'000'000;
};

/// Of the measured time, unless said otherwise; of lockds and words the busiest.
struct LoadResult {
  std::uint64_t operations = 0;  // that got their lock
  std::uint64_t acquires = 0;    // of them, not cached
  double seconds = 0;            // simulated
  double operations_per_second = 0;
  double acquires_per_second = 0;
  // From the want to the grant, of acquires that were begun in the measured time (µs).
  double p50_us = 0, p99_us = 0, max_us = 0;
  double messages_per_operation = 0;  // to and from lockd
  double lockd_cpu_ns_per_operation = 0;
  double lockd_cpu = 0, receiver = 0, atomics = 0, word = 0, sender = 0;  // busy share
  std::uint32_t longest_queue = 0;    // of waiters on one slot, in the whole run
  std::uint64_t longest_backlog = 0;  // work waiting for lockd's thread, likewise
  std::uint64_t asks = 0, revokes = 0, freezes = 0, repairs = 0,
                finds = 0;               // whole run, all lockds
  std::uint64_t begun = 0, granted = 0;  // whole run: equal
  std::uint64_t events = 0;              // whole run
  std::uint64_t lockd_memory_bytes = 0;  // of one lockd's core
};

/// Throws std::runtime_error when a promise of the protocol is broken.
[[nodiscard]] LoadResult run_load(const Parameters& parameters, const LoadOptions& options);

}  // namespace distfuse::scale
