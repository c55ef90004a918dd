// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace distfuse::client::kernel {

struct MountInfo {
  std::uint32_t device_minor = 0;
  std::string type;  ///< Such as fuse.distfuse or distfuse.
};

/// What is mounted at exactly this path, uppermost. Nothing of the mount itself is asked: its client may be away.
[[nodiscard]] std::optional<MountInfo> find_mount(const std::string& path);

}  // namespace distfuse::client::kernel
