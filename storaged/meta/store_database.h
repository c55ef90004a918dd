// SPDX-License-Identifier: Apache-2.0
// RocksDB as the metadata store uses it: the column families, small memory, errors logged once and given as errno values.
//
// write() appends to the log without a sync: it survives kill -9. sync() makes what was written before it durable. A failed
// sync breaks the database for good (pages that the kernel dropped cannot be synced); a failed write (a full disk) breaks it
// until a later write finds that RocksDB can resume.
// Threads: the owner thread for everything; sync() and broken() also from a sync thread.
#pragma once

#include <rocksdb/db.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace distfuse::storaged {

enum class Family : std::uint8_t {
  inodes,
  entries,
  cookies,
  xattrs,
  opens,
  orphans,
  replies,
  purges,
  system
};
inline constexpr std::size_t kFamilies = 9;

class StoreDatabase {
 public:
  struct Options {
    std::string directory;
    std::uint64_t cache_bytes;
    std::uint64_t write_buffer_bytes;
  };
  static Result<std::unique_ptr<StoreDatabase>> open(const Options& options);
  ~StoreDatabase();
  StoreDatabase(const StoreDatabase&) = delete;
  StoreDatabase& operator=(const StoreDatabase&) = delete;

  /// False: no such key. Error: EIO.
  [[nodiscard]] Result<bool> get(Family family, const std::string& key,
                                 rocksdb::PinnableSlice* value);
  /// One status per key, OK or NotFound. Error: EIO.
  Status multi_get(Family family, const std::vector<std::string>& keys,
                   std::vector<rocksdb::PinnableSlice>* values, std::vector<bool>* found);
  void put(rocksdb::WriteBatch& batch, Family family, const std::string& key,
           const std::string& value);
  void erase(rocksdb::WriteBatch& batch, Family family, const std::string& key);

  /// Keys from `first` on that begin with `prefix`, in order, until `each(key, value)` is false. Error: EIO.
  template <typename Each>
  Status scan(Family family, const std::string& prefix, const std::string& first, Each each) {
    Scan cursor(*this, family, prefix, first);
    for (; cursor.iterator->Valid(); cursor.iterator->Next()) {
      if (!each(view(cursor.iterator->key()), view(cursor.iterator->value()))) return {};
    }
    return check_read(cursor.iterator->status());
  }

  /// Atomic. Error: ENOSPC, EIO: nothing of it happened as far as later reads can see.
  Status write(rocksdb::WriteBatch& batch, bool durable = false);
  Status sync();
  /// A sync has failed.
  [[nodiscard]] bool broken() const { return broken_.load(std::memory_order_acquire); }
  [[nodiscard]] std::uint64_t syncs() const { return syncs_.load(std::memory_order_relaxed); }
  /// Logs that what lies under `key` cannot be, and gives the EIO.
  [[nodiscard]] Error corrupt(Family family, std::string_view key);

  static std::string_view view(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

 private:
  struct Scan {
    Scan(StoreDatabase& database, Family family, const std::string& prefix,
         const std::string& first);
    std::string end;  ///< First key after the prefix; empty: none.
    rocksdb::Slice end_slice;
    std::unique_ptr<rocksdb::Iterator> iterator;
  };

  explicit StoreDatabase(std::string directory) : directory_(std::move(directory)) {}
  rocksdb::ColumnFamilyHandle* handle(Family family) {
    return handles_[static_cast<std::size_t>(family)];
  }
  Status check_read(const rocksdb::Status& status);
  Status resume();

  std::string directory_;
  std::unique_ptr<rocksdb::DB> db_;
  std::array<rocksdb::ColumnFamilyHandle*, kFamilies> handles_{};
  bool write_failed_ = false;
  int write_error_ = 0;
  std::chrono::steady_clock::time_point next_resume_;
  std::atomic<std::uint64_t> synced_{0};  ///< Sequence number up to which the log is on the disk.
  std::atomic<std::uint64_t> syncs_{0};
  std::atomic<bool> broken_{false};
};

}  // namespace distfuse::storaged
