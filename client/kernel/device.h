// SPDX-License-Identifier: Apache-2.0
// /dev/distfuse: this process as the daemon of a connection of the module. kmod/uapi.h is the contract.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "common/config.h"
#include "common/descriptor.h"
#include "common/result.h"

namespace distfuse::client::kernel {

struct Session {
  std::uint64_t id = 0;  ///< 0: lost, and there is no next one yet.
  std::uint64_t incarnation = 0;
};

/// A mount of the module's, as it is now.
struct MountState {
  std::uint32_t daemon = 0;  ///< The number of the one that serves it; 0: none.
  bool aborted = false;      ///< All its requests fail, for ever.
};

class Device {
 public:
  /// Error: what to do about a module that is not loaded, or is another version's.
  static Result<Device> open();
  /// The module connects to lockd. Error: which lockd, and why not.
  Status begin(const config::Cluster& cluster, const std::string& mount_name);
  /// This process is the next daemon of the mount there; the one that is there is given `drain` to answer what it has. Error: why not.
  Status attach(const config::Cluster& cluster, const std::string& mountpoint,
                std::chrono::milliseconds drain);
  /// Error: ENOENT: nothing of the module's is mounted there.
  static Result<MountState> look(const std::string& mountpoint);
  /// Waits until the session is another than `known`. Error: EINTR; ENOTCONN: the mount is gone.
  Result<Session> await_session(std::uint64_t known);
  /// Tells the module that a storaged refuses the session; of no effect if it is not the present one.
  void fenced(std::uint64_t session);

  /// For libfuse: one request, as read(2) has it; what leads it is noted in origin(). errno: ENODEV when this daemon's work is over.
  ssize_t read(void* buffer, std::size_t size);
  /// A next daemon has taken over: the mount goes on.
  [[nodiscard]] bool replaced() const { return replaced_->load(); }

  [[nodiscard]] const Session& session() const { return session_; }
  [[nodiscard]] std::uint64_t connection() const { return connection_; }
  [[nodiscard]] std::uint32_t number() const { return number_; }
  [[nodiscard]] int descriptor() const { return device_.get(); }

 private:
  explicit Device(Descriptor device) : device_(std::move(device)) {}

  Descriptor device_;
  Session session_;
  std::uint64_t connection_ = 0;
  std::uint32_t number_ = 1;
  std::unique_ptr<std::atomic<bool>> replaced_ = std::make_unique<std::atomic<bool>>(false);
};

}  // namespace distfuse::client::kernel
