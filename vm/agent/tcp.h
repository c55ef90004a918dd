// SPDX-License-Identifier: Apache-2.0
// How a TCP connection between two guests notices that the other end is gone.
#pragma once

#include <chrono>

namespace distfuse::vm {

/// A guest that is cut off or stands still for this long has ended its connections; for less, nobody notices.
inline constexpr std::chrono::seconds kPeerTimeout{60};

/// Before connect(), or after accept(). Small frames are not held back.
void watch_peer(int fd);

}  // namespace distfuse::vm
