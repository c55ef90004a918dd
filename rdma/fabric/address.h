// SPDX-License-Identifier: Apache-2.0
// "host:port" and socket addresses.
#pragma once

#include <sys/socket.h>

#include <string>
#include <string_view>

#include "common/result.h"

namespace distfuse::fabric {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  [[nodiscard]] sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

/// "127.0.0.1:7000", "host:7000", "[::1]:7000". EINVAL: not of that form; EADDRNOTAVAIL: unknown.
[[nodiscard]] Result<SocketAddress> resolve(std::string_view address, bool passive);
[[nodiscard]] std::string to_string(const sockaddr* address, socklen_t length);

}  // namespace distfuse::fabric
