// SPDX-License-Identifier: Apache-2.0
// Who waits for whom among the operations of one inode: each waits for the earlier ones that touch the same bytes.
// Pure; O(operations of the inode) a call, of which there are at most ChunkStore::max_operations().
#pragma once

#include <cstddef>
#include <vector>

#include "storaged/data/chunk_layout.h"

namespace distfuse::storaged {

/// Part of each ordered operation.
struct Ordered {
  Range range;
  std::size_t waits_for = 0;  ///< Earlier operations in conflict and not left.
};

class InodeOrder {
 public:
  /// Queues; answers whether the operation may run now. If not, a later leave() names it.
  bool enter(Ordered& operation) {
    operation.waits_for = 0;
    for (const Ordered* earlier : members_)
      operation.waits_for += conflict(earlier->range, operation.range) ? 1 : 0;
    members_.push_back(&operation);
    return operation.waits_for == 0;
  }

  /// The operation took effect (or failed); appends to `ready` those that may run now.
  void leave(Ordered& operation, std::vector<Ordered*>& ready) {
    std::size_t kept = 0;
    bool after = false;
    for (Ordered* member : members_) {
      if (member == &operation) {
        after = true;
        continue;
      }
      if (after && conflict(operation.range, member->range) && --member->waits_for == 0)
        ready.push_back(member);
      members_[kept++] = member;
    }
    members_.resize(kept);
  }

  [[nodiscard]] bool empty() const { return members_.empty(); }

 private:
  std::vector<Ordered*> members_;  // in order of arrival
};

}  // namespace distfuse::storaged
