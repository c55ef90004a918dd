// SPDX-License-Identifier: Apache-2.0
// Which inodes a metadata request has changed: each of them has that to sync (client/cache/unsynced.h).
#pragma once

#include <vector>

#include "rpc/metadata.h"

namespace distfuse::client {

struct ChangedInode {
  rpc::Ino ino = 0;
  bool made = false;  ///< By this request.
};

/// Of a request that was answered without an error; none twice, none 0. What the request names without its number (the inode behind a name) is not among them.
[[nodiscard]] std::vector<ChangedInode> changed_inodes(const rpc::MetadataRequest& request,
                                                       const rpc::MetadataReply& reply);

}  // namespace distfuse::client
