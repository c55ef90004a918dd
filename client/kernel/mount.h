// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/mount.h"

namespace distfuse::client::kernel {

/// A mount of coherence mode `kernel`: as client::run_mount, with the module's filesystem.
[[nodiscard]] Status run_mount(const MountOptions& options);

}  // namespace distfuse::client::kernel
