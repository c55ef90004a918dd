// SPDX-License-Identifier: Apache-2.0
// The mount's locks: pins for operations, revokes for the cluster. The shell around the lock core (rdma/lock/) of mode `user`.
//
// Parties: FUSE threads pin; the control thread talks to lockd; revoker threads shed. One mutex per lock. See
// docs/decisions.md, "Locks and the kernel's caches in mode user", for why page I/O is admitted while a revoke runs.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"

namespace distfuse::client {

using Ino = std::uint64_t;

enum class Mode : std::uint8_t { none, is, ix, s, x };

struct ValueBlock {
  std::uint64_t size = 0;
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;
};

struct Range {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  ///< 0: to the end.
};

/// As off_t -1, as FUSE_NOTIFY_INVAL_INODE takes it: no page is looked at.
inline constexpr Range kAttributesOnly{~std::uint64_t{0}, 0};

/// The owner of what locks cover. Called without any lock-table mutex held.
class CacheOwner {
 public:
  virtual ~CacheOwner() = default;
  /// Revoker thread: remove the kernel's pages (in these ranges; empty: all) and attributes. May block on pages that are being
  /// read or written. Called again for ranges that were read or written meanwhile.
  virtual void invalidate_kernel(Ino ino, std::span<const Range> ranges) = 0;
  /// Revoker thread: attributes only, because no page I/O was admitted under this hold of the lock. Pages that are locked now belong to
  /// requests that wait for the lock: an override must not touch pages (FUSE_NOTIFY_INVAL_INODE with offset -1). By default
  /// invalidate_kernel with the one range kAttributesOnly.
  virtual void invalidate_attributes(Ino ino) {
    const Range attributes = kAttributesOnly;
    invalidate_kernel(ino, {&attributes, 1});
  }
  /// Revoker thread, must not block: what this mount may keep when another wants `asked`-compatible use of an X held here (`asked` s):
  /// none when pages are read under X only because the file is open for writing.
  virtual Mode keep_allowed(Ino ino, Mode asked) {
    (void)ino;
    return asked;
  }
  /// Any thread, with the lock's mutex held: must not wait, nor call the table. Whether page I/O that asks for S needs X, because
  /// the file is open for writing here. True from before drop() is called by the open, so that the answer, the pin and the
  /// drop are in one order. Who reads pages asks for S and leaves the choice to this: see pin_page_io.
  virtual bool page_io_needs_x(Ino ino) {
    (void)ino;
    return false;
  }
  /// Revoker thread, gate closed, no pin left: bring dirty size and times to storaged, unregister idle opens, and forget
  /// attributes and entries (`keep` none) or mark them clean (`keep` s). An error has been recorded for fsync/close by the owner.
  virtual void shed(Ino ino, Mode keep) = 0;
  /// Control or revoker thread; must not block: the current size and times, if this mount changed them under X.
  virtual std::optional<ValueBlock> publish(Ino ino) = 0;
  /// Revoker thread, in place of shed(): the lock was not had again after lockd's restart. What is dirty below it must not be written: it is an
  /// error, recorded for fsync and close; everything known is forgotten.
  virtual void forfeit(Ino ino) { shed(ino, Mode::none); }
  /// The session's keeper: the session is lost; every cache is void, dirty state cannot be written. Must not wait.
  virtual void session_lost(const std::string& reason) = 0;
};

class LockTable;

/// Keeps a lock from being shed. Movable; unpins when destroyed.
class Pin {
 public:
  Pin() = default;
  Pin(LockTable* table, void* lock, Mode mode) : table_(table), lock_(lock), mode_(mode) {}
  Pin(Pin&& other) noexcept { swap(other); }
  Pin& operator=(Pin&& other) noexcept {
    Pin(std::move(other)).swap(*this);
    return *this;
  }
  ~Pin();
  explicit operator bool() const { return lock_ != nullptr; }
  [[nodiscard]] Mode mode() const { return mode_; }
  void release() { Pin().swap(*this); }

 private:
  void swap(Pin& other) noexcept {
    std::swap(table_, other.table_);
    std::swap(lock_, other.lock_);
    std::swap(mode_, other.mode_);
  }
  LockTable* table_ = nullptr;
  void* lock_ = nullptr;
  Mode mode_ = Mode::none;
};

/// Asked now and then by a waiting call: true when the application was interrupted.
using Interrupted = std::function<bool()>;

struct Wanted {
  Ino ino;
  Mode mode;
};

struct SessionInfo {
  std::uint64_t session = 0;
  std::uint32_t node_id = 0;
  std::uint64_t incarnation = 0;
  std::string state;             ///< live, suspect, connecting, reclaiming, lost.
  std::uint64_t lease_ms = 0;    ///< 0: none.
  std::uint64_t trusted_ms = 0;  ///< From now on; ~0: no lease.
  std::uint64_t reconnects = 0;  ///< To later incarnations of lockd.
  std::uint64_t forfeited = 0;   ///< Locks that were not had again then.
  std::uint64_t file_locks = 0;  ///< Ranges granted to this mount.
};

struct LockTableOptions {
  std::string fabric_kind = "ucx";
  std::string device;
  std::string lockd;       ///< host:port
  std::string cluster_id;  ///< 32 hex digits.
  std::string mount_name;  ///< For lockd's status.
  unsigned lanes = 16;
  unsigned revokers = 8;
  std::size_t max_locks = 100000;  ///< Held locks kept without a pin; the oldest go first.
  /// Minimum hold time against ping-pong (rdma/lock/hold.h); off, to measure what it brings.
  bool hold_time = true;
  /// Of one attempt. The first connection is tried three times: a message of the RDMA connection manager that is lost is sent again after 4.3 s, fixed.
  std::chrono::milliseconds connect_timeout{5000};
  std::chrono::milliseconds give_up{30000};  ///< No lockd for this long: the session is lost.
};

struct LockCounters {
  std::uint64_t hits = 0, free_takes = 0, asks = 0, revokes = 0, sweeps = 0, resweeps = 0,
                glimpses = 0, finds = 0, held = 0;
};

class LockTable {
 public:
  /// Connects to lockd and gets a session. Error: not reachable, another protocol version, another cluster, no node id left; EAGAIN:
  /// lockd has restarted and gives no new session yet.
  static Result<std::unique_ptr<LockTable>> create(const LockTableOptions& options,
                                                   CacheOwner& owner);
  virtual ~LockTable() = default;  ///< Sheds everything, ends the session.

  [[nodiscard]] virtual SessionInfo session() const = 0;
  /// For how long what is held may be believed, milliseconds from now; 0: not now; ~0: without end.
  [[nodiscard]] virtual std::uint64_t trust_left() const = 0;

  /// A storaged has refused this session as fenced: it is lost, whatever is trusted. Any thread; does not wait.
  virtual void fenced() = 0;

  /// Blocks until `mode` is held, and while locks may not be used (the lease is not renewed, lockd restarts). EINTR: interrupted; EIO: they
  /// could not be used for LockTableOptions::give_up; ENOTCONN: session lost, nothing was pinned.
  virtual Result<Pin> pin(Ino ino, Mode mode, const Interrupted& interrupted = {}) = 0;
  /// By ascending ino, duplicates merged to the stronger mode; the pins in the order of `wanted` (a duplicate's pin is empty).
  virtual Result<std::vector<Pin>> pin_all(std::span<const Wanted> wanted,
                                           const Interrupted& interrupted = {}) = 0;
  /// Never waits for another node, nor for lockd: held already or free to take; else an empty Pin.
  virtual Pin try_pin(Ino ino, Mode mode) = 0;
  /// try_pin for many with the chains in flight together; empty pins where it did not work.
  virtual std::vector<Pin> try_pin_many(std::span<const Ino> inodes, Mode mode) = 0;
  /// For READ and WRITE requests, which may hold page locks: see the head of this file. READ asks for s always: it gets x when the owner
  /// says page_io_needs_x, but may be served under s while an open for writing is still dropping the pages read under s.
  /// WRITE asks for x and gets x. EIO also: the lock was not had again after lockd's restart, and its pages are being swept.
  virtual Result<Pin> pin_page_io(Ino ino, Mode mode, Range range,
                                  const Interrupted& interrupted = {}) = 0;
  /// Gives the lock up if it is held in `mode` or weaker (sweep, shed, release) and returns when it is gone.
  virtual void drop(Ino ino, Mode mode) = 0;
  /// The kernel forgot the inode: the lock may go, later, in the background.
  virtual void forget(Ino ino) = 0;
  /// Look and Glimpse: what an X holder has not yet told the server (this mount too, while it gives X up); nothing when nobody holds X or nothing changed.
  /// EINTR: interrupted.
  virtual Result<std::optional<ValueBlock>> glimpse(Ino ino,
                                                    const Interrupted& interrupted = {}) = 0;

  // fcntl and flock, by message to lockd. `owner`: the kernel's lock owner, unique in this mount. end is inclusive.
  struct FileLock {
    Ino ino;
    std::uint64_t owner;
    bool flock;
    std::int16_t type;  ///< F_RDLCK, F_WRLCK, F_UNLCK.
    std::uint64_t start, end;
    std::int32_t pid;
  };
  virtual Status file_lock(const FileLock& lock, bool wait,
                           const Interrupted& interrupted = {}) = 0;  ///< EAGAIN, EDEADLK, EINTR.
  virtual Result<FileLock> file_lock_test(const FileLock& lock) = 0;  ///< type F_UNLCK: free.
  virtual void file_lock_release_owner(Ino ino, std::uint64_t owner) = 0;

  [[nodiscard]] virtual LockCounters counters() const = 0;

 private:
  friend class Pin;
  virtual void unpin(void* lock, Mode mode) = 0;
};

inline Pin::~Pin() {
  if (lock_ != nullptr) table_->unpin(lock_, mode_);
}

}  // namespace distfuse::client
