// SPDX-License-Identifier: Apache-2.0
// distfuse-storaged without its command line: opens what the roles need, serves until told to stop.
//
// Threads: meta and data, each owner of its RPC server and store; the purger; the admin socket; and those of the stores. What
// another thread wants to know is asked of the owner by Server::post.
//
// Start: listeners first (a port in use leaves nothing behind), then stores, then threads. Stop: no new work for the
// purger, then each role answers what it has, flushes everything answered, and closes. kill -9 needs no repair.
#pragma once

#include <memory>
#include <string>

#include "common/config.h"
#include "common/result.h"

namespace distfuse::storaged {

class Daemon {
 public:
  /// Serves as `name` of the cluster when this returns. Error: with what to do.
  static Result<std::unique_ptr<Daemon>> start(const config::Cluster& cluster,
                                               const std::string& name);
  virtual ~Daemon() = default;  ///< Stops in order.

  /// "ready meta=host:port data=host:port", without the role that it has not.
  [[nodiscard]] virtual std::string ready_line() const = 0;
  /// JSON, one line. Any thread.
  [[nodiscard]] virtual std::string status() = 0;
};

}  // namespace distfuse::storaged
