// SPDX-License-Identifier: Apache-2.0
// What the module says of the request that this thread serves (kmod/uapi.h, dfs_request_head). libfuse reads a request and serves it on
// one thread, and its interface has no room for more than FUSE's own.
#pragma once

#include <cstdint>

#include "rpc/client.h"

namespace distfuse::client::kernel {

struct Origin {
  std::uint64_t unique = 0;
  std::uint64_t session = 0;  ///< Under whose locks it was made; 0: there was none.
  std::uint64_t lowest = 0;   ///< The oldest request that is unanswered.
  bool resent = false;        ///< A former daemon may have done it.
  std::uint32_t changes = 0;  ///< At the meta target, named so far.

  /// A request stands for this many numbers.
  static constexpr std::uint32_t kNames = 16;

  /// The id of the next change that the request makes at the meta target: the same whenever, and by whomever, it is served.
  [[nodiscard]] rpc::RequestName next_name() { return {unique + changes++, lowest}; }
};

/// Of the request that this thread has read last.
inline Origin& origin() {
  thread_local Origin current;
  return current;
}

}  // namespace distfuse::client::kernel
