// SPDX-License-Identifier: Apache-2.0
#include "storaged/meta/store_database.h"

#include <fmt/format.h>
#include <rocksdb/cache.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <cstdarg>
#include <cstdio>

namespace distfuse::storaged {
namespace {

constexpr std::array<const char*, kFamilies> kFamilyNames = {
    "inodes", "entries", "cookies", "xattrs", "opens", "orphans", "replies", "purges", "system"};

/// RocksDB's errors go to our log. Its own log file would lie on the store's disk, and RocksDB 7.8 aborts at the second
/// line that it cannot write there: a full disk would end the process.
class Log final : public rocksdb::Logger {
 public:
  Log() : rocksdb::Logger(rocksdb::InfoLogLevel::ERROR_LEVEL) {}
  void Logv(const char* /*format*/, va_list /*arguments*/) override {}  // the options, at length
  void Logv(rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    using rocksdb::InfoLogLevel;
    if (level < InfoLogLevel::ERROR_LEVEL || level == InfoLogLevel::HEADER_LEVEL) return;
    char line[512];
    if (std::vsnprintf(line, sizeof line, format, arguments) <= 0) return;
    std::string_view text(line);
    while (text.ends_with('\n')) text.remove_suffix(1);
    spdlog::info("rocksdb: {}", text);  // the error itself is logged where it stops somebody
  }
};

int to_errno(const rocksdb::Status& status) {
  if (status.IsNoSpace()) return ENOSPC;
  if (status.IsBusy()) return EBUSY;
  return EIO;
}

rocksdb::DBOptions database_options(const StoreDatabase::Options& options) {
  rocksdb::DBOptions db;
  db.create_if_missing = true;
  db.create_missing_column_families = true;
  // A torn tail of the log is the mark of a crash, not damage: recover up to it.
  db.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  db.db_write_buffer_size = options.write_buffer_bytes;
  db.max_total_wal_size = 4 * options.write_buffer_bytes;
  db.max_background_jobs = 2;
  db.max_open_files = 256;
  db.bytes_per_sync = 1 << 20;
  db.info_log = std::make_shared<Log>();
  db.max_manifest_file_size = 4 << 20;
  db.stats_dump_period_sec = 0;
  db.stats_persist_period_sec = 0;
  return db;
}

rocksdb::ColumnFamilyOptions family_options(const StoreDatabase::Options& options,
                                            const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.cache_index_and_filter_blocks = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;
  rocksdb::ColumnFamilyOptions family;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  family.write_buffer_size = options.write_buffer_bytes / 2;
  family.max_write_buffer_number = 2;
  family.compression = rocksdb::kNoCompression;
  family.level_compaction_dynamic_level_bytes = true;
  return family;
}

/// First key that does not begin with `prefix`; empty: there is none.
std::string after_prefix(std::string prefix) {
  while (!prefix.empty() && prefix.back() == '\xff') prefix.pop_back();
  if (!prefix.empty()) prefix.back() = static_cast<char>(prefix.back() + 1);
  return prefix;
}

}  // namespace

Result<std::unique_ptr<StoreDatabase>> StoreDatabase::open(const Options& options) {
  std::unique_ptr<StoreDatabase> self(new StoreDatabase(options.directory));
  const auto cache = rocksdb::NewLRUCache(options.cache_bytes, 2);
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  families.emplace_back(rocksdb::kDefaultColumnFamilyName, family_options(options, cache));
  for (const char* name : kFamilyNames) families.emplace_back(name, family_options(options, cache));
  (void)::mkdir(options.directory.c_str(),
                0700);  // else RocksDB complains that it is not there yet
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  const auto status =
      rocksdb::DB::Open(database_options(options), options.directory, families, &handles, &db);
  if (!status.ok()) {
    return Error{to_errno(status),
                 fmt::format("{}: cannot open the metadata store: {}; if its disk is sound and not "
                             "full, restore the directory from a copy",
                             options.directory, status.ToString())};
  }
  self->db_.reset(db);
  db->DestroyColumnFamilyHandle(handles[0]);  // `default` must exist; nothing is kept in it.
  std::copy(handles.begin() + 1, handles.end(), self->handles_.begin());
  return self;
}

StoreDatabase::~StoreDatabase() {
  if (db_ == nullptr) return;
  for (auto* family : handles_) db_->DestroyColumnFamilyHandle(family);
  const auto status = db_->Close();
  if (!status.ok())
    spdlog::error("{}: closing the metadata store: {}", directory_, status.ToString());
}

Status StoreDatabase::check_read(const rocksdb::Status& status) {
  if (status.ok()) return {};
  spdlog::error("{}: cannot read the metadata store: {}", directory_, status.ToString());
  return Error{EIO, {}};
}

Error StoreDatabase::corrupt(Family family, std::string_view key) {
  std::string hex;
  for (const char byte : key) hex += fmt::format("{:02x}", static_cast<std::uint8_t>(byte));
  spdlog::error("{}: the metadata store is damaged: {} {}", directory_,
                kFamilyNames[static_cast<std::size_t>(family)], hex);
  return Error{EIO, {}};
}

Result<bool> StoreDatabase::get(Family family, const std::string& key,
                                rocksdb::PinnableSlice* value) {
  const auto status = db_->Get(rocksdb::ReadOptions(), handle(family), key, value);
  if (status.IsNotFound()) return false;
  DISTFUSE_TRY(check_read(status));
  return true;
}

Status StoreDatabase::multi_get(Family family, const std::vector<std::string>& keys,
                                std::vector<rocksdb::PinnableSlice>* values,
                                std::vector<bool>* found) {
  const std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
  std::vector<rocksdb::Status> statuses(keys.size());
  *values = std::vector<rocksdb::PinnableSlice>(keys.size());
  found->assign(keys.size(), false);
  db_->MultiGet(rocksdb::ReadOptions(), handle(family), keys.size(), slices.data(), values->data(),
                statuses.data());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (statuses[i].IsNotFound()) continue;
    DISTFUSE_TRY(check_read(statuses[i]));
    (*found)[i] = true;
  }
  return {};
}

void StoreDatabase::put(rocksdb::WriteBatch& batch, Family family, const std::string& key,
                        const std::string& value) {
  if (!batch.Put(handle(family), key, value).ok())
    std::abort();  // Only a bad batch of ours can fail.
}

void StoreDatabase::erase(rocksdb::WriteBatch& batch, Family family, const std::string& key) {
  if (!batch.Delete(handle(family), key).ok()) std::abort();
}

StoreDatabase::Scan::Scan(StoreDatabase& database, Family family, const std::string& prefix,
                          const std::string& first)
    : end(after_prefix(prefix)), end_slice(end) {
  rocksdb::ReadOptions options;
  if (!end.empty()) options.iterate_upper_bound = &end_slice;
  iterator.reset(database.db_->NewIterator(options, database.handle(family)));
  iterator->Seek(first);
}

Status StoreDatabase::resume() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_resume_) return Error{write_error_, {}};
  next_resume_ = now + std::chrono::seconds(1);
  if (!db_->Resume().ok()) return Error{write_error_, {}};
  spdlog::info("{}: the metadata store takes writes again", directory_);
  write_failed_ = false;
  return {};
}

Status StoreDatabase::write(rocksdb::WriteBatch& batch, bool durable) {
  if (broken()) return Error{EIO, {}};
  if (write_failed_) DISTFUSE_TRY(resume());
  rocksdb::WriteOptions options;
  options.sync = durable;
  const auto status = db_->Write(options, &batch);
  if (status.ok()) return {};
  spdlog::error("{}: cannot write the metadata store: {}", directory_, status.ToString());
  write_failed_ = true;
  write_error_ = to_errno(status);
  return Error{write_error_, {}};
}

Status StoreDatabase::sync() {
  if (broken()) return Error{EIO, {}};
  const std::uint64_t written = db_->GetLatestSequenceNumber();
  if (written <= synced_.load(std::memory_order_acquire)) return {};
  const auto status = db_->SyncWAL();
  if (!status.ok()) {
    spdlog::error("{}: cannot sync the metadata store: {}; changes are refused until a restart",
                  directory_, status.ToString());
    broken_.store(true, std::memory_order_release);
    return Error{EIO, {}};
  }
  syncs_.fetch_add(1, std::memory_order_relaxed);
  std::uint64_t before = synced_.load(std::memory_order_relaxed);
  while (before < written &&
         !synced_.compare_exchange_weak(before, written, std::memory_order_release)) {
  }
  return {};
}

}  // namespace distfuse::storaged
