// SPDX-License-Identifier: Apache-2.0
// What a mount knows of one inode: attributes, what of them the server does not know yet, opens, errors. Pure: no I/O, no lock
// of the cluster, no clock.
//
// Attributes are valid only while the inode's cluster lock is held: they are set by a thread that holds a pin and cleared when the
// lock is shed. Changes that the server does not know (size, mtime, ctime of a file written under X) are marked dirty here and
// taken by one flusher at a time.
//
// Order of the mutexes: data, then server, then state. `state` is never held over I/O; `server` and `data` are held over calls to the
// storageds, which need no other client, and never while waiting for a lock of the cluster.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>

#include "client/cache/unsynced.h"
#include "rpc/metadata.h"

namespace distfuse::client {

/// An error of writing behind the application's back is returned once to each open file (as the kernel's errseq).
class ErrorSequence {
 public:
  void record(int code) {
    code_ = code;
    ++count_;
  }
  [[nodiscard]] std::uint64_t now() const { return count_; }
  /// errno of the newest error after `seen`, which moves on; 0: none.
  int check_and_advance(std::uint64_t& seen) const {
    if (seen == count_) return 0;
    seen = count_;
    return code_;
  }

 private:
  std::uint64_t count_ = 0;
  int code_ = 0;
};

/// Attributes with what the server does not know of them yet.
class AttributeCache {
 public:
  enum Dirty : std::uint32_t { kSize = 1, kMtime = 2, kCtime = 4 };

  [[nodiscard]] bool valid() const { return valid_; }
  [[nodiscard]] const rpc::Attributes& get() const { return attributes_; }
  [[nodiscard]] std::uint32_t dirty() const { return dirty_; }
  /// Changes whenever something here changes: what was fetched before a change must not be stored after it.
  [[nodiscard]] std::uint64_t sequence() const { return sequence_; }
  /// Whether this mount changed size or times since it got the lock.
  [[nodiscard]] bool changed_here() const { return changed_here_; }

  /// The answer of an operation that the server ran under our pin; what is dirty here stays as it is here.
  void store(const rpc::Attributes& fresh);
  /// The answer of a plain fetch that began when sequence() was `began`. False: something changed meanwhile; fetch again.
  [[nodiscard]] bool store_fetched(const rpc::Attributes& fresh, std::uint64_t began);
  /// Not to be believed any more, the lock is still held (an operation changed them in a way that we were not told).
  void invalidate();
  /// The lock goes.
  void drop();

  /// Bytes up to `end` were written at `now`.
  void wrote(std::uint64_t end, rpc::Timestamp now);
  /// A name came to or went from this directory at `now`; `links`: change of nlink.
  void directory_changed(rpc::Timestamp now, int links);

  struct Flush {
    rpc::SetAttributes request;
    std::uint64_t sequence;
  };
  /// What to send; nothing when all is clean.
  [[nodiscard]] std::optional<Flush> begin_flush() const;
  /// The server has it. What changed meanwhile stays dirty.
  void end_flush(const Flush& flush, const rpc::Attributes& fresh);
  /// The answer to a setattr that carried what begin_flush() named when sequence() was `began`; `resized`: it set the size too, and
  /// nobody wrote meanwhile.
  void end_setattr(const rpc::Attributes& fresh, std::uint64_t began, bool resized);
  /// The lock is kept, for reading.
  void downgraded() { changed_here_ = false; }
  /// It cannot be written: forgotten.
  void give_up() { dirty_ = 0; }

 private:
  rpc::Attributes attributes_;
  bool valid_ = false;
  bool changed_here_ = false;
  std::uint32_t dirty_ = 0;
  std::uint64_t sequence_ = 0;
};

struct Inode {
  explicit Inode(rpc::Ino number) : ino(number) {}

  const rpc::Ino ino;
  std::uint64_t lookups = 0;  ///< The kernel's references; guarded by the table's shard.

  std::shared_mutex
      data;  ///< Shared: writes, reads at the end. Exclusive: appends, what cuts, changes of the record that a size must not overtake.
  std::mutex server;  ///< Held over each call that changes this inode's record at the server.

  Unsynced unsynced;

  std::mutex state;  ///< Guards all below.
  AttributeCache attributes;
  ErrorSequence errors;
  unsigned opens = 0;
  std::atomic<unsigned> write_opens{
      0};                    ///< Changed under `state`; read without, and again once a pin is held.
  bool registered = false;   ///< At the server, as open by this mount. Changed under `server`.
  bool posix_locks = false;  ///< fcntl locks were asked for through this mount.
  rpc::Ino parent = 0;       ///< Of a directory, as last seen; for "..".
  std::atomic<bool> voided{
      false};  ///< The kernel may have pages that were dirtied under a session that is lost.
  std::atomic<bool> queued{false};  ///< In the flusher's set.
  std::uint64_t cached_end = 0;     ///< No page beyond is in the kernel's cache (for appends).
  std::optional<std::string> link_target;  ///< Never changes.
  std::map<std::string, std::optional<std::string>>
      xattrs;  ///< As fetched under the lock; nullopt: there is none of that name.
};

}  // namespace distfuse::client
