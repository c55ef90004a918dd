// SPDX-License-Identifier: Apache-2.0
// The sessions that a data target refuses, kept in DIRECTORY/FENCED: one line of 16 hex digits a session, appended and synced.
// A line that a crash left unfinished was never answered and counts for nothing; lockd fences again.
//
// Made shorter by a list of who lives (fenced_below.h), kept in DIRECTORY/FENCED_BELOW: that is replaced first, then FENCED without what it covers; a
// crash between the two leaves both.
//
// Limits: kMaxFenced sessions (16 MiB of file, as much memory). That cannot be reached: lockd sends a list with each of its lives, it loses at most
// 32768 sessions in one, and kWorthwhile are left alone: 34 thousand.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>

#include "common/result.h"
#include "storaged/fenced_below.h"

namespace distfuse::storaged {

class FencedSessions {
 public:
  static constexpr std::size_t kMaxFenced = 1U << 20;
  static constexpr std::size_t kWorthwhile = 1024;  ///< So many fences, or more, are worth a list.

  /// Error: the file cannot be read, written, or holds something else (EINVAL).
  static Result<std::unique_ptr<FencedSessions>> open(const std::string& directory);
  ~FencedSessions();
  FencedSessions(const FencedSessions&) = delete;
  FencedSessions& operator=(const FencedSessions&) = delete;

  [[nodiscard]] bool contains(std::uint64_t session) const {
    return below_.contains(session) || sessions_.contains(session);
  }
  /// Of lockd, which gave the latest of these sessions its id (incarnation << 32 | counter); 0: none.
  [[nodiscard]] std::uint64_t incarnation() const;
  /// Of fences that have a line of their own.
  [[nodiscard]] std::size_t size() const { return sessions_.size(); }
  /// From now on refused, in memory. Owner thread.
  void add(std::uint64_t session) { sessions_.insert(session); }
  /// Makes it durable; idempotent. From any one thread at a time. Error: ENOSPC, EIO.
  Status persist(std::uint64_t session);

  /// Who lives, of the sessions up to `high`, as lockd says. Answers with what is to be made durable by compact(); nothing: an older list. Owner
  /// thread.
  std::optional<FencedBelow> cover(std::uint64_t high, std::span<const std::uint64_t> living);
  /// As persist(). Nothing is forgotten on an error.
  Status compact(const FencedBelow& below);

 private:
  FencedSessions(std::string path, int file) : path_(std::move(path)), file_(file) {}
  Status load();
  Status load_below();
  [[nodiscard]] std::string below_path() const { return path_ + "_BELOW"; }

  const std::string path_;
  int file_;                  // the persisting thread's
  std::uint64_t length_ = 0;  // bytes of whole lines
  std::unordered_set<std::uint64_t> sessions_;
  FencedBelow below_;
  std::unordered_set<std::uint64_t> persisted_;  // the persisting thread's
};

}  // namespace distfuse::storaged
