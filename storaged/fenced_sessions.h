// SPDX-License-Identifier: Apache-2.0
// The sessions that a data target refuses, kept in DIRECTORY/FENCED: one line of 16 hex digits a session, appended and synced.
// A line that a crash left unfinished was never answered and counts for nothing; lockd fences again.
//
// Limit: kMaxFenced sessions (16 MiB of file, as much memory); session numbers are not used twice, so the set only grows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>

#include "common/result.h"

namespace distfuse::storaged {

class FencedSessions {
 public:
  static constexpr std::size_t kMaxFenced = 1U << 20;

  /// Error: the file cannot be read, written, or holds something else (EINVAL).
  static Result<std::unique_ptr<FencedSessions>> open(const std::string& directory);
  ~FencedSessions();
  FencedSessions(const FencedSessions&) = delete;
  FencedSessions& operator=(const FencedSessions&) = delete;

  [[nodiscard]] bool contains(std::uint64_t session) const { return sessions_.contains(session); }
  [[nodiscard]] std::size_t size() const { return sessions_.size(); }
  /// From now on refused, in memory. Owner thread.
  void add(std::uint64_t session) { sessions_.insert(session); }
  /// Makes it durable; idempotent. From any one thread at a time. Error: ENOSPC, EIO.
  Status persist(std::uint64_t session);

 private:
  FencedSessions(std::string path, int file) : path_(std::move(path)), file_(file) {}
  Status load();

  const std::string path_;
  const int file_;
  std::uint64_t length_ = 0;  // bytes of whole lines
  std::unordered_set<std::uint64_t> sessions_;
  std::unordered_set<std::uint64_t> persisted_;  // the persisting thread's
};

}  // namespace distfuse::storaged
