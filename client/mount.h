// SPDX-License-Identifier: Apache-2.0
// A mount of coherence mode `user`: in-tree FUSE, write-through, locks taken by this process.
#pragma once

#include <functional>
#include <string>

#include "common/config.h"
#include "common/result.h"

namespace distfuse::client {

struct MountOptions {
  config::Cluster cluster;
  std::string mountpoint;    ///< Absolute.
  std::string name;          ///< For lockd's status and the logs.
  std::string admin_socket;  ///< Answers `status`; empty: none.
  bool read_only = false;
  bool allow_other = true;
  bool debug = false;           ///< libfuse prints every request to standard error.
  std::function<void()> ready;  ///< Called once when the mount is usable.
};

/// Mounts, serves, and returns when it was unmounted (or SIGTERM or SIGINT unmounted it): everything flushed, locks released, the
/// session ended. Error: what kept it from mounting; ENOTCONN: the session was lost while it was mounted.
[[nodiscard]] Status run_mount(const MountOptions& options);

}  // namespace distfuse::client
