// SPDX-License-Identifier: Apache-2.0
// lockd's state directory: the incarnation number, raised at every start, so that no session id and no answer of an earlier
// lockd is taken for one of this.
//
// File `incarnation`: "CLUSTER-ID NUMBER\n", replaced by rename and synced. File `lock`: held by flock while lockd runs.
#pragma once

#include <cstdint>
#include <string>

#include "common/result.h"

namespace distfuse::lockd {

class StateDir {
 public:
  /// Creates the directory if need be and raises the number. Error: EBUSY: another lockd uses it; EXDEV: it belongs to
  /// another cluster; EINVAL: the file is damaged; others as the system says.
  static Result<StateDir> open(const std::string& path, const std::string& cluster_id);
  ~StateDir();
  StateDir(StateDir&& other) noexcept;
  StateDir& operator=(StateDir&&) = delete;

  /// 1 to 2^32-1.
  [[nodiscard]] std::uint32_t incarnation() const { return incarnation_; }

 private:
  StateDir(int lock, std::uint32_t incarnation) : lock_(lock), incarnation_(incarnation) {}
  int lock_;
  std::uint32_t incarnation_;
};

}  // namespace distfuse::lockd
