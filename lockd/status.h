// SPDX-License-Identifier: Apache-2.0
// What `status` on the admin socket answers: JSON about sessions, the slot table (walked when asked), file locks, counters.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "lockd/daemon.h"

namespace distfuse::lockd {

struct ServiceStatus {
  std::string address;
  std::string fabric;
  std::chrono::seconds uptime{};
  std::uint64_t wakeups = 0;  ///< Times that the service thread slept.
  std::uint64_t chains = 0;   ///< Posted on the loopback.
  std::uint64_t connections = 0;
};

/// A slot's lock word as it is now. Peers change it all the time.
[[nodiscard]] std::uint64_t read_word(std::span<std::byte> table, std::uint32_t slot);

[[nodiscard]] std::string status_json(const Daemon& daemon, std::span<std::byte> table,
                                      const ServiceStatus& service);

}  // namespace distfuse::lockd
