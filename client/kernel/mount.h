// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/mount.h"

namespace distfuse::client::kernel {

/// A mount of coherence mode `kernel`: as client::run_mount, with the module's filesystem.
[[nodiscard]] Status run_mount(const MountOptions& options);

/// Takes over the mount of mode `kernel` that is at options.mountpoint: from a client that was killed, or from one that serves it, which answers what it
/// has begun and ends (kmod/uapi.h). Serves as run_mount. Of the options, what the mount itself was told stays (name, read_only).
[[nodiscard]] Status attach_mount(const MountOptions& options);

}  // namespace distfuse::client::kernel
