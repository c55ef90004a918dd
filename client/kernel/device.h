// SPDX-License-Identifier: Apache-2.0
// /dev/distfuse: this process as the daemon of a connection of the module. kmod/uapi.h is the contract.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <string>

#include "common/config.h"
#include "common/descriptor.h"
#include "common/result.h"

namespace distfuse::client::kernel {

struct Session {
  std::uint64_t id = 0;  ///< 0: lost, and there is no next one yet.
  std::uint64_t incarnation = 0;
};

class Device {
 public:
  /// Error: what to do about a module that is not loaded, or is another version's.
  static Result<Device> open();
  /// The module connects to lockd. Error: which lockd, and why not.
  Status begin(const config::Cluster& cluster, const std::string& mount_name);
  /// Waits until the session is another than `known`. Error: EINTR; ENOTCONN: the mount is gone.
  Result<Session> await_session(std::uint64_t known);

  [[nodiscard]] const Session& session() const { return session_; }
  [[nodiscard]] std::uint64_t connection() const { return connection_; }
  [[nodiscard]] int descriptor() const { return device_.get(); }

 private:
  explicit Device(Descriptor device) : device_(std::move(device)) {}

  Descriptor device_;
  Session session_;
  std::uint64_t connection_ = 0;
};

}  // namespace distfuse::client::kernel
