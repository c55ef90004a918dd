// SPDX-License-Identifier: Apache-2.0
// What the programs of tests/verbs share: the device that they run on, lockd's service in a process of its own, and checks that print.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "client/locks/lock_table.h"
#include "lockd/testing/process.h"
#include "rdma/fabric/verbs_counters.h"

namespace distfuse::verbs_tests {

/// DISTFUSE_VERBS_DEVICE (default rxe0) and DISTFUSE_VERBS_HOST, its address; ends the program when that is not told.
struct Place {
  std::string device, host;
};
[[nodiscard]] const Place& place();

/// A mount without caches.
class NoCache final : public client::CacheOwner {
 public:
  void invalidate_kernel(client::Ino, std::span<const client::Range>) override {}
  void shed(client::Ino, client::Mode) override {}
  std::optional<client::ValueBlock> publish(client::Ino) override { return {}; }
  void session_lost(const std::string& reason) override;
};

/// Forked: made before this process uses the fabric.
class Lockd {
 public:
  explicit Lockd(std::uint32_t lease_ms);
  ~Lockd();
  [[nodiscard]] nlohmann::json status();
  [[nodiscard]] fabric::verbs::Counters counters();
  /// CPU time of all its threads, nanoseconds, and the same in clock ticks as /proc has it.
  [[nodiscard]] std::uint64_t cpu_ns() const;
  [[nodiscard]] std::uint64_t ticks() const;
  [[nodiscard]] std::unique_ptr<client::LockTable> table(const std::string& name,
                                                         client::CacheOwner& owner) const;

 private:
  lockd::testing::Process process_;
  std::string address_;
};

/// Takes a lock, holds it unpinned.
void take(client::LockTable& table, client::Ino ino, client::Mode mode);

/// Prints "ok" or "FAILED" with the text; remembers failures for exit_status().
bool check(bool good, const std::string& text);
[[nodiscard]] int exit_status();

}  // namespace distfuse::verbs_tests
