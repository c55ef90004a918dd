// SPDX-License-Identifier: Apache-2.0
// Looking and setting: lookup, getattr, setattr, readdir, readlink; and who has what open.
#include <sys/stat.h>

#include <algorithm>

#include "storaged/meta/operations.h"

namespace distfuse::storaged {
namespace {

using Set = rpc::SetAttributes;

constexpr std::uint32_t kAllFields = Set::kMode | Set::kUid | Set::kGid | Set::kSize | Set::kAtime |
                                     Set::kMtime | Set::kCtime | Set::kAtimeNow | Set::kMtimeNow |
                                     Set::kGrowOnly;

Status check_size(const Inode& inode, const Set& request) {
  if ((request.fields & Set::kSize) == 0) return {};
  if (inode.is_directory()) return fail(EISDIR);
  if (!S_ISREG(inode.attributes.mode)) return fail(EINVAL);
  return request.values.size > kMaxFileSize ? Status(fail(EFBIG)) : Status();
}

/// True: the size has changed.
bool set_size(rpc::Attributes& attributes, const Set& request) {
  const std::uint64_t size = request.values.size;
  if ((request.fields & Set::kSize) == 0 || size == attributes.size) return false;
  if ((request.fields & Set::kGrowOnly) != 0 && size < attributes.size) return false;
  attributes.size = size;
  return true;
}

void set_times(rpc::Attributes& attributes, const Set& request, rpc::Timestamp now, bool resized) {
  const auto has = [&](std::uint32_t field) { return (request.fields & field) != 0; };
  if (has(Set::kAtime)) attributes.atime = request.values.atime;
  if (has(Set::kAtimeNow)) attributes.atime = now;
  if (has(Set::kMtime)) {
    attributes.mtime = request.values.mtime;
  } else if (has(Set::kMtimeNow) || resized) {
    attributes.mtime = now;
  }
  attributes.ctime = has(Set::kCtime) ? request.values.ctime : now;
}

/// As a write by an unprivileged user does.
void kill_setid(rpc::Attributes& attributes) {
  if (!S_ISREG(attributes.mode)) return;
  attributes.mode &= ~static_cast<std::uint32_t>(S_ISUID);
  if ((attributes.mode & S_IXGRP) != 0) attributes.mode &= ~static_cast<std::uint32_t>(S_ISGID);
}

/// Attributes of each inode; ino 0 where there is none.
Result<std::vector<rpc::Attributes>> read_attributes(Operation& op,
                                                     const std::vector<rpc::Ino>& inodes) {
  std::vector<std::string> keys;
  keys.reserve(inodes.size());
  for (const auto ino : inodes) keys.push_back(number_key(ino));
  std::vector<rocksdb::PinnableSlice> values;
  std::vector<bool> found;
  DISTFUSE_TRY(op.tx.database().multi_get(Family::inodes, keys, &values, &found));
  std::vector<rpc::Attributes> attributes(inodes.size());
  for (std::size_t i = 0; i < inodes.size(); ++i) {
    if (!found[i]) continue;
    const auto record = decode_inode(inodes[i], StoreDatabase::view(values[i]));
    if (!record) return op.tx.database().corrupt(Family::inodes, keys[i]);
    attributes[i] = record->attributes;
  }
  return attributes;
}

}  // namespace

Status run(Operation& op, const rpc::Lookup& request) {
  const auto parent = op.tx.inode(request.parent);
  if (!parent.ok()) return parent.error();
  if (!(*parent)->is_directory()) return fail(ENOTDIR);
  rpc::Ino ino = 0;
  if (request.name == ".") {
    ino = request.parent;
  } else if (request.name == "..") {
    ino = (*parent)->parent;
  } else {
    DISTFUSE_TRY(check_name(request.name));
    const auto entry = op.tx.entry(request.parent, request.name);
    if (!entry.ok()) return entry.error();
    if (!entry->has_value()) return fail(ENOENT);
    ino = (*entry)->ino;
  }
  const auto inode = op.tx.inode(ino);
  if (!inode.ok()) return inode.error();
  op.reply.attributes.push_back((*inode)->attributes);
  return {};
}

Status run(Operation& op, const rpc::GetAttributes& request) {
  if (request.inodes.size() > kMaxInodesPerRequest) return fail(EINVAL);
  auto attributes = read_attributes(op, request.inodes);
  if (!attributes.ok()) return attributes.error();
  op.reply.attributes = std::move(*attributes);
  return {};
}

Status run(Operation& op, const rpc::SetAttributes& request) {
  if ((request.fields & ~kAllFields) != 0) return fail(EINVAL);
  const auto found = op.tx.inode(request.ino);
  if (!found.ok()) return found.error();
  Inode& inode = **found;
  DISTFUSE_TRY(check_size(inode, request));
  auto& attributes = inode.attributes;
  if (request.kill_setid) kill_setid(attributes);
  if ((request.fields & Set::kMode) != 0) {
    attributes.mode = (attributes.mode & S_IFMT) | (request.values.mode & 07777);
  }
  if ((request.fields & Set::kUid) != 0) attributes.uid = request.values.uid;
  if ((request.fields & Set::kGid) != 0) attributes.gid = request.values.gid;
  const bool resized = set_size(attributes, request);
  set_times(attributes, request, op.now, resized);
  inode.changed = true;
  op.reply.attributes.push_back(attributes);
  return {};
}

Status run(Operation& op, const rpc::Readlink& request) {
  const auto inode = op.tx.inode(request.ino);
  if (!inode.ok()) return inode.error();
  if (!S_ISLNK((*inode)->attributes.mode)) return fail(EINVAL);
  op.reply.strings.push_back((*inode)->target);
  return {};
}

Status run(Operation& op, const rpc::ReadDirectory& request) {
  if (request.max_entries == 0) return fail(EINVAL);
  const auto directory = op.tx.inode(request.ino);
  if (!directory.ok()) return directory.error();
  if (!(*directory)->is_directory()) return fail(ENOTDIR);
  auto& entries = op.reply.entries;
  op.reply.end_of_directory = true;
  if (request.after_cookie == UINT64_MAX || (*directory)->entries == 0) return {};
  const std::size_t limit = std::min(request.max_entries, kMaxEntriesPerReply);
  std::optional<Error> damage;
  DISTFUSE_TRY(op.tx.database().scan(Family::cookies, number_key(request.ino),
                                     pair_key(request.ino, request.after_cookie + 1),
                                     [&](std::string_view key, std::string_view value) {
                                       if (entries.size() == limit) {
                                         op.reply.end_of_directory = false;
                                         return false;
                                       }
                                       auto entry = decode_cookie(key_number(key, 8), value);
                                       if (!entry) {
                                         damage = op.tx.database().corrupt(Family::cookies, key);
                                         return false;
                                       }
                                       entries.push_back(std::move(*entry));
                                       return true;
                                     }));
  if (damage) return *damage;
  if (!request.attributes) return {};
  std::vector<rpc::Ino> inodes;
  for (const auto& entry : entries) inodes.push_back(entry.ino);
  auto attributes = read_attributes(op, inodes);
  if (!attributes.ok()) return attributes.error();
  op.reply.attributes = std::move(*attributes);
  return {};
}

Status run(Operation& op, const rpc::OpenFile& request) {
  if (op.context.session == 0) return fail(EINVAL);
  const auto inode = op.tx.inode(request.ino);
  if (!inode.ok()) return inode.error();
  op.tx.put_open(request.ino, op.context.session);
  if (op.orphans.contains(request.ino)) op.tx.remove_orphan(request.ino);
  op.reply.attributes.push_back((*inode)->attributes);
  return {};
}

Status unregister(Operation& op, rpc::Ino ino) {
  const auto inode = op.tx.inode(ino);
  if (!inode.ok()) return inode.error().code == ENOENT ? Status() : inode.error();
  return release(op, **inode, true);
}

Status run(Operation& op, const rpc::CloseFiles& request) {
  if (request.inodes.size() > kMaxCloses) return fail(EINVAL);
  auto inodes = request.inodes;
  std::sort(inodes.begin(), inodes.end());
  inodes.erase(std::unique(inodes.begin(), inodes.end()), inodes.end());
  for (const auto ino : inodes) DISTFUSE_TRY(unregister(op, ino));
  return {};
}

}  // namespace distfuse::storaged
