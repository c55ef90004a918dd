// SPDX-License-Identifier: Apache-2.0
#include "vm/agent/tcp.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace distfuse::vm {
namespace {

/// What a kernel does not know is left as it is: these are timeouts of a connection that works without them.
void set(int fd, int level, int option, int value) {
  (void)setsockopt(fd, level, option, &value, sizeof(value));
}

}  // namespace

void watch_peer(int fd) {
  constexpr int kProbes = 5;
  constexpr int kAttempts = 4;  // to connect: 31 s
  const auto seconds = static_cast<int>(kPeerTimeout.count());
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, IPPROTO_TCP, TCP_SYNCNT, kAttempts);
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, seconds * 1000);
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, seconds / (kProbes + 1));
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, seconds / (kProbes + 1));
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, kProbes);
}

}  // namespace distfuse::vm
