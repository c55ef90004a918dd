// SPDX-License-Identifier: Apache-2.0
// For tests and benchmarks: lockd's service on a thread of this process, and tables on it.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "client/locks/lock_table.h"
#include "common/testing/temporary_directory.h"
#include "lockd/service.h"

namespace distfuse::client::testing {

class Cluster {
 public:
  /// With a lease lockd keeps a list of sessions, and can be restarted.
  explicit Cluster(std::uint32_t slots = 4096, std::uint32_t lease_ms = 0);
  ~Cluster();
  [[nodiscard]] LockTableOptions options(const std::string& name) const;
  /// Aborts when it cannot.
  std::unique_ptr<LockTable> table(const std::string& name, CacheOwner& owner) const;
  std::unique_ptr<LockTable> table(const LockTableOptions& options, CacheOwner& owner) const;
  void stop();                               ///< As if lockd died.
  void start();                              ///< The next incarnation, at the old address.
  [[nodiscard]] std::string status() const;  ///< What lockd says of itself.
  [[nodiscard]] unsigned fenced() const { return *fenced_; }

  static constexpr const char* kId = "00112233445566778899aabbccddeeff";

 private:
  TemporaryDirectory folder_;
  lockd::ServiceOptions options_;
  std::shared_ptr<std::atomic<unsigned>> fenced_ = std::make_shared<std::atomic<unsigned>>(0);
  std::unique_ptr<lockd::Service> service_;
  std::thread thread_;
};

}  // namespace distfuse::client::testing
