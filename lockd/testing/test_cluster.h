// SPDX-License-Identifier: Apache-2.0
// A distfuse-lockd of its own for a test, and a storage target (rpc::Server in a child process) that can only fence.
#pragma once

#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "common/config.h"
#include "lockd/testing/process.h"
#include "lockd/testing/raw_client.h"

namespace distfuse::lockd::testing {

class TestCluster {
 public:
  /// `program`: path of distfuse-lockd. Throws std::runtime_error.
  TestCluster(const std::string& program, std::uint64_t slots, bool with_storage = true);
  ~TestCluster();

  void start_lockd();
  void start_storage();
  void stop_storage();

  [[nodiscard]] nlohmann::json status() const;
  bool eventually(const std::function<bool(const nlohmann::json&)>& good,
                  std::chrono::milliseconds timeout = std::chrono::seconds(10)) const;
  /// Of all lives of lockd.
  [[nodiscard]] std::string log() const;
  /// "lockd N", once an incarnation that has told it who lives.
  [[nodiscard]] std::string storage_says();
  [[nodiscard]] RawClientOptions options(const std::string& name) const;
  [[nodiscard]] const config::Cluster& cluster() const { return cluster_; }
  [[nodiscard]] const std::string& root() const { return root_; }
  [[nodiscard]] const std::string& config_path() const { return config_path_; }
  Process& lockd() { return *lockd_; }

 private:
  const std::string program_;
  std::string root_, config_path_, admin_;
  config::Cluster cluster_;
  std::optional<Process> lockd_, storage_;
};

/// A TCP port of 127.0.0.1 that was free a moment ago.
[[nodiscard]] int free_port();

}  // namespace distfuse::lockd::testing
