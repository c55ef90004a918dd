// SPDX-License-Identifier: Apache-2.0
// For the random test: the part of a mount that the lock table serves, with the waits that a kernel makes.
//
// Mount is kernel and daemon of one mount in one: pages with page locks, attributes with attr_version, and the daemon's
// operations under pins. Truth is shared by all mounts: what the storage has, and what a reader must see at least.
//
// What can hang for real hangs here: a READ or WRITE holds its page's lock from before it asks for its pin until after its
// answer; a sweep waits for each page's lock; a dirty page (stored through a shared mapping) is written back by the sweep itself, which
// is a WRITE that asks for a pin; writers of one inode wait for each other outside of the lock table (i_rwsem).
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "client/locks/lock_table.h"

namespace distfuse::client::testing {

inline constexpr std::size_t kInodes = 4;
inline constexpr std::size_t kPages = 4;
inline constexpr std::uint64_t kPageSize = 4096;

/// Who has pins: aborts when two mounts have what is not compatible.
class PinCheck {
 public:
  void enter(Ino ino, unsigned mount, Mode mode);
  void leave(Ino ino, unsigned mount, Mode mode);

 private:
  struct Holders {
    std::map<unsigned, int> shared, exclusive;
  };
  std::mutex mutex_;
  std::array<Holders, kInodes> holders_;
};

struct Truth {
  struct Cell {
    std::atomic<std::uint64_t> stored = 0;   ///< At the storage.
    std::atomic<std::uint64_t> written = 0;  ///< The newest, wherever it is.
    std::atomic<std::uint64_t> done =
        0;  ///< Of writes that have returned: a reader sees at least this.
  };
  std::array<std::array<Cell, kPages>, kInodes> pages;
  std::array<Cell, kInodes> sizes;
  PinCheck check;
};

class Mount final : public CacheOwner {
 public:
  Mount(unsigned id, Truth& truth) : id_(id), truth_(truth) {}
  void use(LockTable& table) { table_ = &table; }

  // What applications do. false: interrupted.
  bool read(Ino ino, std::size_t page, const Interrupted& interrupted);
  bool write(Ino ino, std::size_t first, std::size_t count, const Interrupted& interrupted);
  void store(
      Ino ino,
      std::size_t page);  ///< Through a shared mapping, if the page is there to be stored to.
  void open_for_writing(Ino ino);
  void close_for_writing(Ino ino);
  bool stat(Ino ino, const Interrupted& interrupted);
  void stat_by_glimpse(Ino ino);
  bool grow(
      Ino ino,
      const Interrupted& interrupted);  ///< Changes the size, which stays dirty in the daemon.
  bool rename(Ino first, Ino second, const Interrupted& interrupted);
  void readdirplus();

  void invalidate_kernel(Ino ino, std::span<const Range> ranges) override;
  void invalidate_attributes(Ino ino) override;
  void shed(Ino ino, Mode keep) override;
  std::optional<ValueBlock> publish(Ino ino) override;
  void session_lost(const std::string& reason) override;
  Mode keep_allowed(Ino ino, Mode asked) override;
  bool page_io_needs_x(Ino ino) override { return inode(ino).write_opens > 0; }

  [[nodiscard]] std::string describe();
  std::atomic<bool> lost = false;

 private:
  struct Page {
    bool locked = false;
    bool uptodate = false;
    bool dirty = false;
    std::uint64_t value = 0;
  };
  struct Inode {
    std::mutex mutex;  ///< The kernel's own short locks.
    std::condition_variable unlocked;
    std::array<Page, kPages> pages;
    bool attributes = false;
    std::uint64_t attributes_version = 0;
    std::uint64_t attributes_size = 0;
    std::mutex rwsem;
    std::atomic<int> write_opens = 0;
    // The daemon's.
    std::mutex daemon_mutex;
    bool size_known = false;
    bool size_dirty = false;
    std::uint64_t size = 0;
  };
  class Checked;

  Inode& inode(Ino ino) { return inodes_[ino - 1]; }
  void lock_page(Inode& inode, std::size_t page);
  void unlock_page(Inode& inode, std::size_t page);
  Result<Pin> pin_page(Ino ino, Mode mode, std::size_t page, std::size_t count,
                       const Interrupted& interrupted);
  void write_back(Ino ino, std::size_t page);
  void invalidate_page(Ino ino, std::size_t page);
  void drop_attributes(Ino ino);
  std::uint64_t daemon_size(Ino ino);

  const unsigned id_;
  Truth& truth_;
  LockTable* table_ = nullptr;
  std::array<Inode, kInodes> inodes_;
};

}  // namespace distfuse::client::testing
