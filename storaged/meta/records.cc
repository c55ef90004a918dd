// SPDX-License-Identifier: Apache-2.0
#include "storaged/meta/records.h"

#include <sys/stat.h>

#include <bit>
#include <cstring>

namespace distfuse::storaged {
namespace {

static_assert(std::endian::native == std::endian::little,
              "values are written as they lie in memory");

constexpr std::uint8_t kRecordVersion = 1;

class Writer {
 public:
  explicit Writer(std::size_t size) {
    bytes_.reserve(size + 1);
    put(kRecordVersion);
  }
  template <typename T>
  void put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put(rpc::Timestamp time) { put(time.ns); }
  void put_rest(std::string_view rest) { bytes_.append(rest); }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {
    std::uint8_t version = 0;
    get(version);
    good_ = good_ && version == kRecordVersion;
  }
  template <typename T>
  void get(T& value) {
    if (bytes_.size() < sizeof value) {
      good_ = false;
      return;
    }
    std::memcpy(&value, bytes_.data(), sizeof value);
    bytes_.remove_prefix(sizeof value);
  }
  void get(rpc::Timestamp& time) { get(time.ns); }
  std::string_view rest() { return std::exchange(bytes_, {}); }
  /// Everything asked for was there, and nothing is left.
  [[nodiscard]] bool complete() const { return good_ && bytes_.empty(); }

 private:
  std::string_view bytes_;
  bool good_ = true;
};

// One list of the fields for both directions.
template <typename Attributes, typename Each>
void each_attribute(Attributes& a, Each each) {
  each(a.mode), each(a.nlink), each(a.uid), each(a.gid), each(a.rdev), each(a.size);
  each(a.atime), each(a.mtime), each(a.ctime), each(a.btime);
  each(a.chunk_size), each(a.first_target);
}

/// Follows the attributes of a reply; records of before it was there end without.
constexpr std::uint8_t kNoXattrs = 1;

void append_big_endian(std::string& key, std::uint64_t number) {
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(number >> shift));
}

}  // namespace

std::string number_key(std::uint64_t number) {
  std::string key;
  append_big_endian(key, number);
  return key;
}

std::string pair_key(std::uint64_t first, std::uint64_t second) {
  std::string key;
  key.reserve(16);
  append_big_endian(key, first);
  append_big_endian(key, second);
  return key;
}

std::string name_key(std::uint64_t number, std::string_view name) {
  std::string key;
  key.reserve(8 + name.size());
  append_big_endian(key, number);
  key.append(name);
  return key;
}

std::uint64_t key_number(std::string_view key, std::size_t offset) {
  if (key.size() < offset + 8) return 0;
  std::uint64_t number = 0;
  for (std::size_t i = 0; i < 8; ++i)
    number = number << 8 | static_cast<std::uint8_t>(key[offset + i]);
  return number;
}

std::string encode(const InodeRecord& record) {
  Writer writer(160 + record.target.size());
  each_attribute(record.attributes, [&](const auto& field) { writer.put(field); });
  writer.put(record.xattr_names_bytes);
  writer.put(record.xattr_values_bytes);
  if (S_ISDIR(record.attributes.mode)) {
    writer.put(record.parent);
    writer.put(record.next_cookie);
    writer.put(record.entries);
  } else if (S_ISLNK(record.attributes.mode)) {
    writer.put_rest(record.target);
  }
  return writer.take();
}

std::optional<InodeRecord> decode_inode(rpc::Ino ino, std::string_view bytes) {
  Reader reader(bytes);
  InodeRecord record;
  record.attributes.ino = ino;
  each_attribute(record.attributes, [&](auto& field) { reader.get(field); });
  reader.get(record.xattr_names_bytes);
  record.attributes.no_xattrs = record.xattr_names_bytes == 0;
  reader.get(record.xattr_values_bytes);
  if (S_ISDIR(record.attributes.mode)) {
    reader.get(record.parent);
    reader.get(record.next_cookie);
    reader.get(record.entries);
  } else if (S_ISLNK(record.attributes.mode)) {
    record.target = reader.rest();
  }
  if (!reader.complete()) return std::nullopt;
  return record;
}

std::string encode(const EntryRecord& record) {
  Writer writer(20);
  writer.put(record.ino);
  writer.put(record.type);
  writer.put(record.cookie);
  return writer.take();
}

std::optional<EntryRecord> decode_entry(std::string_view bytes) {
  Reader reader(bytes);
  EntryRecord record;
  reader.get(record.ino);
  reader.get(record.type);
  reader.get(record.cookie);
  if (!reader.complete()) return std::nullopt;
  return record;
}

std::string encode(const rpc::DirectoryEntry& entry) {
  Writer writer(12 + entry.name.size());
  writer.put(entry.ino);
  writer.put(entry.type);
  writer.put_rest(entry.name);
  return writer.take();
}

std::optional<rpc::DirectoryEntry> decode_cookie(std::uint64_t cookie, std::string_view bytes) {
  Reader reader(bytes);
  rpc::DirectoryEntry entry;
  entry.cookie = cookie;
  reader.get(entry.ino);
  reader.get(entry.type);
  entry.name = reader.rest();
  if (!reader.complete() || entry.name.empty()) return std::nullopt;
  return entry;
}

std::string encode(const ReplyRecord& record) {
  Writer writer(128);
  writer.put(record.error);
  writer.put(record.watermark);
  if (record.attributes) {
    writer.put(record.attributes->ino);
    each_attribute(*record.attributes, [&](const auto& field) { writer.put(field); });
    if (record.attributes->no_xattrs) writer.put(kNoXattrs);
  }
  return writer.take();
}

std::optional<ReplyRecord> decode_reply(std::string_view bytes) {
  Reader reader(bytes);
  ReplyRecord record;
  reader.get(record.error);
  reader.get(record.watermark);
  if (reader.complete()) return record;
  record.attributes.emplace();
  reader.get(record.attributes->ino);
  each_attribute(*record.attributes, [&](auto& field) { reader.get(field); });
  if (reader.complete()) return record;
  std::uint8_t flags = 0;
  reader.get(flags);
  if (!reader.complete() || flags != kNoXattrs) return std::nullopt;
  record.attributes->no_xattrs = true;
  return record;
}

std::string encode(const PurgeJob& job) {
  Writer writer(16);
  writer.put(job.size);
  writer.put(job.chunk_size);
  writer.put(job.first_target);
  return writer.take();
}

std::optional<PurgeJob> decode_purge(rpc::Ino ino, std::string_view bytes) {
  Reader reader(bytes);
  PurgeJob job;
  job.ino = ino;
  reader.get(job.size);
  reader.get(job.chunk_size);
  reader.get(job.first_target);
  if (!reader.complete()) return std::nullopt;
  return job;
}

std::string encode_number(std::uint64_t number) {
  Writer writer(8);
  writer.put(number);
  return writer.take();
}

std::optional<std::uint64_t> decode_number(std::string_view bytes) {
  Reader reader(bytes);
  std::uint64_t number = 0;
  reader.get(number);
  if (!reader.complete()) return std::nullopt;
  return number;
}

}  // namespace distfuse::storaged
