// SPDX-License-Identifier: Apache-2.0
// Whose store a directory is: the text file IDENTITY in it names cluster, role and format version.
#pragma once

#include <cstdint>
#include <string>

#include "common/result.h"

namespace distfuse::storaged {

struct Identity {
  std::string cluster_id;  ///< 32 hex digits.
  std::string role;        ///< "meta" or "data".
  std::uint32_t version;   ///< Of the store's format.
  bool operator==(const Identity&) const = default;
};

/// A store directory that is ours: verified, and locked against every other process until
/// destroyed.
class StoreClaim {
 public:
  /// Makes `directory` if missing (its parent must exist) and IDENTITY in it if the directory is
  /// empty; else what IDENTITY says must equal `identity`. Error: EINVAL: another cluster's, role's
  /// or version's store, or not a store at all; EBUSY: another process has it; others as the system
  /// calls. Each message names the directory and says what to do.
  static Result<StoreClaim> take(const std::string& directory, const Identity& identity);

  StoreClaim(StoreClaim&& other) noexcept;
  StoreClaim& operator=(StoreClaim&& other) noexcept;
  StoreClaim(const StoreClaim&) = delete;
  StoreClaim& operator=(const StoreClaim&) = delete;
  ~StoreClaim();

 private:
  explicit StoreClaim(int lock) : lock_(lock) {}
  int lock_;  ///< Descriptor of IDENTITY, with an exclusive flock.
};

}  // namespace distfuse::storaged
