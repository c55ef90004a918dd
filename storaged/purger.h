// SPDX-License-Identifier: Apache-2.0
// The purger: has the metadata store remove the orphans whose grace is over, removes the chunks of inodes that are gone from every
// data target, then tells the store.
//
// Parties: the purge thread; the meta thread, which it asks for jobs and tells of their end by Server::post; the data targets,
// by RPC. Each job is removed at all targets; when kSyncAfter jobs or kSyncEvery have gathered, all targets are synced, and only
// then the jobs are forgotten: a power cut cannot bring a chunk back that nobody would remove again.
//
// Space: while there are orphans the targets are asked once in kSpaceEvery how full they are. When less than kLowPercent of one is
// left, orphans have a tenth of their grace; so what is deleted from a full target comes back in a second or two.
//
// Recovery: the store keeps a job until it is told; a target that is down or fails leaves its jobs for the next round,
// kRetry later. Bound: kBatch jobs a round, kSyncAfter + kBatch removed and not forgotten.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "rpc/server.h"
#include "storaged/meta/metadata_store.h"

namespace distfuse::storaged {

class Purger {
 public:
  static constexpr std::size_t kBatch = 256;
  static constexpr std::size_t kSyncAfter = 4096;
  static constexpr std::chrono::seconds kSyncEvery{5};
  static constexpr std::chrono::seconds kRetry{1};
  static constexpr std::chrono::seconds kSpaceEvery{1};
  static constexpr unsigned kLowPercent = 5;
  static constexpr std::chrono::milliseconds kGather{
      200};  ///< Jobs that come one by one go together.

  /// `server`, `store`: the meta thread's, which runs until stop() has returned.
  Purger(rpc::Server& server, MetadataStore& store, std::unique_ptr<rpc::Client> targets,
         std::uint32_t count);
  ~Purger() { stop(); }
  Purger(const Purger&) = delete;
  Purger& operator=(const Purger&) = delete;

  void wake();  ///< There are jobs. Any thread, cheap, after stop() too.
  void stop();  ///< Ends the round under way, at the latest when the client has given up.

 private:
  void serve();
  /// Sleeps until woken or `limit`, kGather at least unless it is 0; whether to go on.
  bool sleep(std::chrono::milliseconds limit);
  struct Work {
    std::vector<PurgeJob> jobs;
    bool more_due = false;  // orphans
  };
  Work ask(std::size_t limit);
  bool remove(const std::vector<PurgeJob>& jobs);
  bool sync_targets();
  void look_at_space();
  void forget_removed();
  void report(int error);

  rpc::Server& server_;
  MetadataStore& store_;
  std::unique_ptr<rpc::Client> targets_;
  const std::uint32_t count_;
  std::unordered_set<rpc::Ino> removed_;  // at every target, not yet synced
  std::chrono::steady_clock::time_point first_removed_;
  bool failing_ = false;
  bool short_of_space_ = false;
  std::chrono::steady_clock::time_point space_seen_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool wanted_ = true;  // protected by mutex_; true: jobs of the last run
  bool stop_ = false;   // protected by mutex_
  std::thread thread_;  // last: it uses the others
};

}  // namespace distfuse::storaged
