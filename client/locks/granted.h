// SPDX-License-Identifier: Apache-2.0
// The fcntl and flock locks that lockd has granted to this mount: what a new lockd is told (DF_FILE_RECLAIM), and what is lost with a
// session.
//
// Parties: the control thread notes each FileLock and FileUnlock that was answered with success, in the order of the answers; the
// re-assertion reads. So what is here is exactly what lockd has, but for an unlock whose answer was lost: that is asked again.
//
// Limits: lockd bounds what a session may have (ENOLCK); here is what it granted, 32 bytes a range.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "rdma/lock/wire.h"

namespace distfuse::client {

class GrantedLocks {
 public:
  /// A FileLock (READ or WRITE) or FileUnlock (NONE) that was answered with 0.
  void note(const df_msg& request);
  /// A FileLock message for each range, seq 0.
  [[nodiscard]] std::vector<df_msg> all() const;
  /// Everything is forgotten; how many ranges there were.
  std::size_t clear();
  [[nodiscard]] std::size_t size() const;

 private:
  struct Range {
    df_u64 end;  ///< Inclusive.
    df_u8 type;
    df_s32 pid;
  };
  using Owner = std::tuple<df_u64, df_u64, bool>;  ///< Key, owner, flock.
  using Ranges = std::map<df_u64, Range>;          ///< By start; never overlapping.

  static void insert(Ranges& ranges, df_u64 start, Range range);
  static void cut(Ranges& ranges, df_u64 start, df_u64 end);

  mutable std::mutex mutex_;
  std::map<Owner, Ranges> owners_;
};

}  // namespace distfuse::client
