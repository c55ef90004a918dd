// SPDX-License-Identifier: Apache-2.0
// What a mount has written of one inode, and no sync has made durable yet; and whether a storaged's machine has restarted in between:
// then it may be gone, and the next fsync must not answer 0 for it.
//
// A storaged that is killed loses nothing that it answered: its kernel has it. Its machine does. So each start of a machine has a boot
// number of its own, each connection tells it (rpc/wire.h), and each answer comes with it: of a target that has changes of the inode
// which no sync has covered, one number is remembered here. An answer of that target with another number, to a change or to a sync, says
// that the changes may be lost: told once, by take_loss(). No message is sent for any of this.
//
// The metadata target is one among them (kMetadataTarget): size, times, names and attributes are answered before the log is
// synced. A SyncMetadata covers all inodes, whichever asked for it: SyncHistory.
//
// Changes are numbered across the mount, when their answer is noted. A sync covers those with numbers up to mark(), taken before it is
// sent: they were answered before.
//
// Bounded: one entry a target of the inode, for targets with changes that are not synced.
//
// Serialised by: a mutex of its own, a leaf. Any thread.
//
// Limits. A mount answers for its own changes, and to whoever syncs the inode on this mount while it knows the inode; another mount's
// fsync says nothing about ours. Changes that another mount's fsync made durable count as unsynced here: an error too many,
// not one too few. So does a machine that was shut down in order, after its storaged had synced everything.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace distfuse::client {

/// Of a mount: up to which change each boot of the meta target's machine has made all metadata durable.
class SyncHistory {
 public:
  /// A SyncMetadata that was sent after `mark` was taken was answered.
  void synced(std::uint64_t boot, std::uint64_t mark);
  [[nodiscard]] bool covers(std::uint64_t boot, std::uint64_t change) const;

 private:
  static constexpr std::size_t kBoots =
      8;  ///< Older ones are forgotten: then their changes count as not synced.
  mutable std::mutex mutex_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>>
      boots_;  ///< Oldest first. Protected by mutex_.
};

class Unsynced {
 public:
  static constexpr std::uint32_t kMetadataTarget = ~std::uint32_t{0};

  /// The target has answered a change, and its machine's boot is `boot`. `history`: of the metadata target.
  void changed(std::uint32_t target, std::uint64_t boot, const SyncHistory* history = nullptr);
  /// Before a sync is sent.
  [[nodiscard]] static std::uint64_t mark() { return changes_.load(std::memory_order_seq_cst); }
  /// The target has answered a sync.
  void synced(std::uint32_t target, std::uint64_t boot, std::uint64_t mark,
              const SyncHistory* history = nullptr);
  /// Whether changes that were not synced may have been lost since it was last asked.
  [[nodiscard]] bool take_loss();
  [[nodiscard]] std::size_t targets() const;  ///< With changes that are not synced.

 private:
  struct Entry {
    std::uint32_t target;
    std::uint64_t boot;
    std::uint64_t first, last;  ///< Changes; all of them answered under `boot`.
  };
  static std::uint64_t next() { return changes_.fetch_add(1, std::memory_order_seq_cst) + 1; }

  static inline std::atomic<std::uint64_t> changes_{0};
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;  ///< Protected by mutex_.
  bool lost_ = false;           ///< Protected by mutex_.
};

}  // namespace distfuse::client
