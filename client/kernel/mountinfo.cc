// SPDX-License-Identifier: Apache-2.0
#include "client/kernel/mountinfo.h"

#include <fstream>
#include <sstream>

namespace distfuse::client::kernel {
namespace {

/// mountinfo writes space, tab, newline and backslash as \ooo.
std::string plain(const std::string& field) {
  std::string result;
  for (std::size_t i = 0; i < field.size(); ++i) {
    if (field[i] == '\\' && i + 3 < field.size()) {
      result += static_cast<char>(std::stoi(field.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      result += field[i];
    }
  }
  return result;
}

}  // namespace

std::optional<MountInfo> find_mount(const std::string& path) {
  std::ifstream mounts("/proc/self/mountinfo");
  std::optional<MountInfo> found;
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string id, parent, device, root, mountpoint, field, type;
    fields >> id >> parent >> device >> root >> mountpoint;
    if (plain(mountpoint) != path) continue;
    while (fields >> field && field != "-") {
    }
    fields >> type;
    const auto colon = device.find(':');
    if (colon == std::string::npos) continue;
    found = MountInfo{static_cast<std::uint32_t>(std::stoul(device.substr(colon + 1))), type};
  }
  return found;
}

}  // namespace distfuse::client::kernel
