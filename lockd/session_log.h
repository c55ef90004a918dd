// SPDX-License-Identifier: Apache-2.0
// The list of sessions in lockd's state directory: who may come back after a restart.
//
// File `sessions`, readable by lockd's user alone: "distfuse-sessions 2 CLUSTER-ID\n", then one line a change, appended in order:
//   "begin|lost|end SESSION NODE LEASE-MS NAME TOKEN CHECKSUM\n"; session, name, token and checksum in hex, an empty name is "-".
// A session is on the list from `begin` to `end`; after `lost` it may not come back. What matters is synced before it is acted upon: a
// `begin` before the Welcome, a `lost` before the locks are anybody's. An `end` that a crash forgets costs a grace period.
//
// Recovery: an unfinished or damaged tail is the rest of an append that was never acted upon: it is cut off. Damage with good lines behind it
// is refused: sessions would be forgotten. open() rewrites the list; so does append() when most lines are of sessions that are gone.
//
// Version 1 had no tokens. Its sessions are taken for lost when it is opened: nobody can show that one is his, and a client of that
// version speaks another protocol anyway. Rewritten, their token is all zero, which no Hello can name.
//
// Limits: kSlack lines of gone sessions (about 115 bytes each) beside those of the present ones.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/descriptor.h"
#include "common/result.h"
#include "lockd/daemon.h"

namespace distfuse::lockd {

class SessionLog {
 public:
  static constexpr std::size_t kSlack = 4096;

  /// `lease_ms`: what sessions that come back will be told; the list has the longest that each was told. Error: EXDEV: another
  /// cluster's; EINVAL: damaged; others as the system says, with what to do.
  static Result<std::unique_ptr<SessionLog>> open(const std::string& state_dir,
                                                  const std::string& cluster_id,
                                                  std::uint32_t lease_ms);

  /// Those on the list when it was opened, by id.
  [[nodiscard]] const std::vector<ListedSession>& listed() const { return listed_; }
  /// All of it is durable when this returns, or nothing is. Error: ENOSPC, EIO; may be tried again.
  [[nodiscard]] Status append(std::span<const SessionChange> changes);

 private:
  SessionLog(std::string path, std::string cluster_id)
      : path_(std::move(path)), cluster_id_(std::move(cluster_id)) {}
  Status load();
  Status rewrite();
  void lose_all();
  static void apply(std::map<SessionId, ListedSession>& sessions, const SessionChange& change);

  const std::string path_;
  const std::string cluster_id_;
  std::vector<ListedSession> listed_;
  std::map<SessionId, ListedSession> sessions_;
  Descriptor file_;
  std::uint64_t length_ = 0;  ///< Of whole lines.
  std::size_t lines_ = 0;
};

}  // namespace distfuse::lockd
