// SPDX-License-Identifier: Apache-2.0
// The keys and values of the metadata store. Keys are big-endian, so that their order is the numbers' order; values begin
// with a version byte and are little-endian of fixed layout, with at most one variable part at the end.
//
//   inodes   ino                  → inode record
//   entries  parent|name          → entry record (inode, type, cookie)
//   cookies  parent|cookie        → inode, type, name: what readdir scans
//   xattrs   ino|name             → value
//   opens    ino|session          → empty: the session has the inode open
//   orphans  ino                  → number: when its grace began, ns since 1970
//   replies  session|request id   → reply record
//   purges   ino                  → purge record
//   system   "ino_reserved", "inodes_used", "fenced"|session, "below_fenced" (storaged/fenced_below.h), "lockd_incarnation"
//
// A decoder that meets anything but what its encoder writes gives nullopt; the store answers EIO then.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "rpc/metadata.h"
#include "storaged/meta/metadata_store.h"

namespace distfuse::storaged {

inline constexpr std::uint32_t kMetadataFormatVersion = 1;
/// Cookies below are left to the client, for '.' and '..'.
inline constexpr std::uint64_t kFirstCookie = 16;

struct InodeRecord {
  rpc::Attributes attributes;
  std::uint32_t xattr_names_bytes = 0;  ///< Each name with its NUL, as listxattr counts.
  std::uint32_t xattr_values_bytes = 0;
  // Directories only:
  rpc::Ino parent = 0;
  std::uint64_t next_cookie = kFirstCookie;
  std::uint64_t entries = 0;
  // Symbolic links only:
  std::string target;
  bool operator==(const InodeRecord&) const = default;
};

struct EntryRecord {
  rpc::Ino ino = 0;
  std::uint32_t type = 0;  ///< S_IFMT bits.
  std::uint64_t cookie = 0;
  bool operator==(const EntryRecord&) const = default;
};

struct ReplyRecord {
  std::int32_t error = 0;
  std::uint64_t watermark = 0;  ///< Of the session when this was written.
  std::optional<rpc::Attributes> attributes;
  bool operator==(const ReplyRecord&) const = default;
};

[[nodiscard]] std::string number_key(std::uint64_t number);
[[nodiscard]] std::string pair_key(std::uint64_t first, std::uint64_t second);
[[nodiscard]] std::string name_key(std::uint64_t number, std::string_view name);
/// The number in the 8 bytes at `offset`; 0 when the key is too short.
[[nodiscard]] std::uint64_t key_number(std::string_view key, std::size_t offset = 0);

[[nodiscard]] std::string encode(const InodeRecord& record);
[[nodiscard]] std::string encode(const EntryRecord& record);
[[nodiscard]] std::string encode(
    const rpc::DirectoryEntry& entry);  ///< Value of `cookies`; the cookie is the key's.
[[nodiscard]] std::string encode(const ReplyRecord& record);
[[nodiscard]] std::string encode(const PurgeJob& job);
[[nodiscard]] std::string encode_number(std::uint64_t number);

[[nodiscard]] std::optional<InodeRecord> decode_inode(rpc::Ino ino, std::string_view bytes);
[[nodiscard]] std::optional<EntryRecord> decode_entry(std::string_view bytes);
[[nodiscard]] std::optional<rpc::DirectoryEntry> decode_cookie(std::uint64_t cookie,
                                                               std::string_view bytes);
[[nodiscard]] std::optional<ReplyRecord> decode_reply(std::string_view bytes);
[[nodiscard]] std::optional<PurgeJob> decode_purge(rpc::Ino ino, std::string_view bytes);
[[nodiscard]] std::optional<std::uint64_t> decode_number(std::string_view bytes);

}  // namespace distfuse::storaged
