// SPDX-License-Identifier: Apache-2.0
// A role of a storaged: what its thread runs beside the RPC server.
#pragma once

namespace distfuse::storaged {

class Role {
 public:
  virtual ~Role() = default;
  /// Runs what is ready, never sleeps; whether anything was.
  virtual bool progress() = 0;
  /// Nothing is owed to anybody.
  [[nodiscard]] virtual bool idle() const = 0;
  /// Flushes everything answered and ends. The server makes no progress after it.
  virtual void stop() = 0;
};

}  // namespace distfuse::storaged
