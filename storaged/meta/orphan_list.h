// SPDX-License-Identifier: Apache-2.0
// Orphans: inodes without a name and without a registration. One stays for a grace time, because an open is two requests: a
// client that looked the name up before it went may still open the inode, as it could on a local filesystem.
//
// Kept in `orphans` (inode → when its grace began) and here, with the list ordered by time. Times are the wall clock's, so that
// they outlive the process; an orphan is due when its time is the grace or more away from now, in the past or, after the
// clock was set back, in the future: at a clock that jumps a grace ends early, never late by more than itself.
// Bound: 100 bytes an orphan; at 20,000 removals a second and 5 s of grace 100,000 orphans, 10 MB. The purger takes them out
// faster than removals put them in (kOrphansPerReap a call, without a pause while more are due).
#pragma once

#include <chrono>
#include <cstdint>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/result.h"
#include "storaged/meta/transaction.h"

namespace distfuse::storaged {

class OrphanList {
 public:
  explicit OrphanList(StoreDatabase& database) : database_(database) {}
  /// Reads what earlier lives of the store left. Error: EIO.
  Status load();

  [[nodiscard]] bool contains(rpc::Ino ino) const { return since_.contains(ino); }
  [[nodiscard]] std::uint64_t size() const { return since_.size(); }
  /// Up to `limit` orphans whose grace is over.
  [[nodiscard]] std::vector<rpc::Ino> due(rpc::Timestamp now, std::chrono::nanoseconds grace,
                                          std::size_t limit) const;
  /// The transaction has been written: takes over its changes.
  void committed(const Transaction& transaction);

 private:
  void add(rpc::Ino ino, rpc::Timestamp since);
  void remove(rpc::Ino ino);

  StoreDatabase& database_;
  std::unordered_map<rpc::Ino, std::int64_t> since_;
  std::set<std::pair<std::int64_t, rpc::Ino>> by_time_;
};

}  // namespace distfuse::storaged
