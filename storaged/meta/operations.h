// SPDX-License-Identifier: Apache-2.0
// The metadata operations, one function per request. Each reads through the transaction, changes through it, and fills the
// reply; an error is the answer, and the caller drops the transaction then.
#pragma once

#include <string>

#include "common/result.h"
#include "rpc/metadata.h"
#include "storaged/meta/orphan_list.h"
#include "storaged/meta/rocksdb_metadata_store.h"
#include "storaged/meta/transaction.h"

namespace distfuse::storaged {

inline constexpr std::size_t kMaxName = 255;
inline constexpr std::size_t kMaxSymlink = 4095;
inline constexpr std::size_t kMaxInodesPerRequest = 1024;
inline constexpr std::size_t kMaxCloses = 65536;
inline constexpr std::uint32_t kMaxEntriesPerReply = 1024;  ///< A larger max_entries is cut to it.
inline constexpr std::size_t kMaxXattrValue = 65536;
inline constexpr std::size_t kMaxXattrNames = 65536;     ///< Of one inode, each name with its NUL.
inline constexpr std::size_t kMaxXattrValues = 1 << 20;  ///< Of one inode.
/// A lock key has 24 bits for the extent (of 4 MiB) plus one.
inline constexpr std::uint64_t kMaxFileSize = ((1ULL << 24) - 1) << 22;

struct Operation {
  Transaction& tx;
  InoAllocator& inos;
  const OrphanList& orphans;
  const rpc::RequestContext& context;
  const RocksdbMetadataOptions& options;
  rpc::Timestamp now;
  rpc::MetadataReply& reply;
};

inline Error fail(int code) {
  return Error{code, {}};
}

/// Error: ENAMETOOLONG; EINVAL: empty, '/', NUL, "." or "..".
[[nodiscard]] Status check_name(const std::string& name);
/// Removes the registration of the context's session, if told; an inode that nothing keeps becomes an
/// orphan, unless it is one: closing again does not lengthen its grace.
[[nodiscard]] Status release(Operation& op, Inode& inode, bool unregister);
/// The context's session has the inode open no longer; an unknown inode is no error.
[[nodiscard]] Status unregister(Operation& op, rpc::Ino ino);
/// A name of `inode` is gone: link count, ctime, the reply, and what follows when it was the last.
[[nodiscard]] Status drop_name(Operation& op, Inode& inode, bool unregister);
/// Puts a new name into `parent`, with the parent's count of entries and of subdirectories, and its times.
void insert_name(Operation& op, Inode& parent, const std::string& name, Inode& inode);
/// Takes a name out of `parent`, likewise.
void erase_name(Operation& op, Inode& parent, const std::string& name, const EntryRecord& entry);
/// Modified now: mtime and ctime.
void touch(Operation& op, Inode& inode);

[[nodiscard]] Status run(Operation& op, const rpc::Lookup& request);
[[nodiscard]] Status run(Operation& op, const rpc::GetAttributes& request);
[[nodiscard]] Status run(Operation& op, const rpc::SetAttributes& request);
[[nodiscard]] Status run(Operation& op, const rpc::Create& request);
[[nodiscard]] Status run(Operation& op, const rpc::Symlink& request);
[[nodiscard]] Status run(Operation& op, const rpc::Readlink& request);
[[nodiscard]] Status run(Operation& op, const rpc::Link& request);
[[nodiscard]] Status run(Operation& op, const rpc::Unlink& request);
[[nodiscard]] Status run(Operation& op, const rpc::Rmdir& request);
[[nodiscard]] Status run(Operation& op, const rpc::Rename& request);
[[nodiscard]] Status run(Operation& op, const rpc::ReadDirectory& request);
[[nodiscard]] Status run(Operation& op, const rpc::OpenFile& request);
[[nodiscard]] Status run(Operation& op, const rpc::CloseFiles& request);
[[nodiscard]] Status run(Operation& op, const rpc::GetXattr& request);
[[nodiscard]] Status run(Operation& op, const rpc::SetXattr& request);
[[nodiscard]] Status run(Operation& op, const rpc::ListXattr& request);
[[nodiscard]] Status run(Operation& op, const rpc::RemoveXattr& request);

}  // namespace distfuse::storaged
