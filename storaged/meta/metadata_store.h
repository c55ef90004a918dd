// SPDX-License-Identifier: Apache-2.0
// The metadata store: what a meta target keeps, behind one interface, so that a distributed engine
// can stand in for the embedded one (rocksdb_metadata_store.h).
//
// Who calls: one owner thread calls everything but sync() and counters(); a sync thread calls
// sync(); any thread reads counters(). What is answered survives the death of the process; what
// sync() has covered survives a power cut.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/result.h"
#include "rpc/data.h"
#include "rpc/metadata.h"

namespace distfuse::storaged {

/// An inode that is gone and whose chunks may still lie at the data targets. Kept until purged().
struct PurgeJob {
  rpc::Ino ino = 0;
  std::uint64_t size = 0;  ///< Bytes, as last known here; chunks may lie beyond it.
  std::uint32_t chunk_size = 0;
  std::uint32_t first_target = 0;
  bool operator==(const PurgeJob&) const = default;
};

struct MetadataCounters {
  std::uint64_t operations = 0;      ///< Requests executed, reads included.
  std::uint64_t errors = 0;          ///< Of these, answered with an error.
  std::uint64_t replayed = 0;        ///< Retries answered from their reply record.
  std::uint64_t refused = 0;         ///< Requests of fenced sessions.
  std::uint64_t syncs = 0;           ///< sync() calls that reached the disk.
  std::uint64_t inodes = 0;          ///< In use now, open ones without a name and orphans included.
  std::uint64_t orphans = 0;         ///< Without name and registration, in their grace.
  std::uint64_t purges_pending = 0;  ///< Purge records now.
  std::uint64_t reply_records = 0;   ///< Reply records kept now.
  std::uint64_t fenced_sessions = 0;  ///< Sessions refused from now on.
};

class MetadataStore {
 public:
  virtual ~MetadataStore() = default;

  /// Runs one request to its end, or answers a retry from the reply record of the first run.
  ///
  /// Errors (reply.error) are those of the system call, and: rpc::kFenced: the session is fenced; ESTALE: an
  /// expect_* did not hold, or the request was answered long ago (its id is below the session's
  /// watermark). EIO: the store is broken (logged); ENOSPC: its disk is full. EINVAL: the request
  /// breaks a limit of rpc/metadata.h.
  ///
  /// Not checked here: permissions (the kernel does, default_permissions) and that FenceSession
  /// comes from lockd (the caller knows its peer). SyncMetadata calls sync() on the calling thread:
  /// a server hands it to its sync thread instead.
  [[nodiscard]] virtual rpc::MetadataReply execute(const rpc::RequestContext& context,
                                                   const rpc::MetadataRequest& request) = 0;

  /// Makes everything answered before the call durable. From a sync thread, beside execute(). Once
  /// it has failed it fails always, and so does every changing request, until the store is opened
  /// again: what the kernel dropped cannot be synced.
  virtual Status sync() = 0;

  /// An inode that has lost its last name and its last registration is an orphan: for a grace time
  /// all that needs no name still works on it, and OpenFile registers it as any other. Then this
  /// call removes it and leaves a purge job for its chunks. `short_of_space`: after a tenth of the
  /// grace. True: more are due, call again. A store that is broken removes nothing. Error: EIO,
  /// ENOSPC.
  [[nodiscard]] virtual Result<bool> reap_orphans(bool short_of_space) = 0;

  /// Up to `limit` inodes whose chunks must go, oldest inode first. The same are returned until
  /// purged().
  [[nodiscard]] virtual Result<std::vector<PurgeJob>> pending_purges(std::size_t limit) = 0;

  /// Every data target has removed the chunks of `ino`: forgets the job. An unknown inode is no
  /// error.
  virtual Status purged(rpc::Ino ino) = 0;

  /// Who lives of the sessions up to `high`, as lockd says: one rule takes the place of their fences (storaged/fenced_below.h), in one
  /// batch. An older list changes nothing. Error: EIO, ENOSPC; nothing changed.
  virtual Status cover_fences(rpc::SessionId high, std::span<const rpc::SessionId> living) = 0;

  /// The latest incarnation of lockd that was here, in all lives of the store; 0: none.
  [[nodiscard]] virtual std::uint64_t incarnation() const = 0;
  /// Raises it; synced with the next sync(). A lower one changes nothing. Error: EIO, ENOSPC; nothing changed.
  virtual Status note_incarnation(std::uint64_t incarnation) = 0;

  [[nodiscard]] virtual MetadataCounters counters() const = 0;
};

}  // namespace distfuse::storaged
