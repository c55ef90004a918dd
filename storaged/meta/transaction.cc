// SPDX-License-Identifier: Apache-2.0
#include "storaged/meta/transaction.h"

#include <sys/stat.h>

namespace distfuse::storaged {
namespace {

const std::string kReservedKey = "ino_reserved";

}  // namespace

std::uint32_t Inode::type() const {
  return attributes.mode & S_IFMT;
}
bool Inode::is_directory() const {
  return S_ISDIR(attributes.mode);
}

Status InoAllocator::load() {
  rocksdb::PinnableSlice value;
  const auto found = database_.get(Family::system, kReservedKey, &value);
  if (!found.ok()) return found.error();
  if (!*found) return {};
  const auto reserved = decode_number(StoreDatabase::view(value));
  if (!reserved) return database_.corrupt(Family::system, kReservedKey);
  next_ = reserved_ = *reserved;
  return {};
}

Result<rpc::Ino> InoAllocator::allocate() {
  if (next_ > last_) return Error{ENOSPC, {}};
  if (next_ == reserved_) {
    rocksdb::WriteBatch batch;
    database_.put(batch, Family::system, kReservedKey, encode_number(reserved_ + block_));
    DISTFUSE_TRY(database_.write(batch, true));
    reserved_ += block_;
  }
  return next_++;
}

Result<Inode*> Transaction::inode(rpc::Ino ino) {
  for (auto& inode : inodes_) {
    if (inode.ino() != ino) continue;
    if (inode.removed) return Error{ENOENT, {}};
    return &inode;
  }
  rocksdb::PinnableSlice value;
  const auto found = database_.get(Family::inodes, number_key(ino), &value);
  if (!found.ok()) return found.error();
  if (!*found) return Error{ENOENT, {}};
  auto record = decode_inode(ino, StoreDatabase::view(value));
  if (!record) return database_.corrupt(Family::inodes, number_key(ino));
  return &inodes_.emplace_back(Inode{std::move(*record)});
}

Result<Inode*> Transaction::directory(rpc::Ino ino) {
  auto found = inode(ino);
  if (!found.ok()) return found;
  if (!(*found)->is_directory()) return Error{ENOTDIR, {}};
  if ((*found)->attributes.nlink == 0) return Error{ENOENT, {}};
  return found;
}

Result<Inode*> Transaction::named_inode(rpc::Ino parent, const EntryRecord& entry) {
  auto found = inode(entry.ino);
  if (!found.ok() && found.error().code == ENOENT) {
    return database_.corrupt(Family::entries, pair_key(parent, entry.ino));
  }
  return found;
}

Result<rpc::Ino> Transaction::stored_parent(rpc::Ino ino) {
  const auto key = number_key(ino);
  rocksdb::PinnableSlice value;
  const auto found = database_.get(Family::inodes, key, &value);
  if (!found.ok()) return found.error();
  const auto record = *found ? decode_inode(ino, StoreDatabase::view(value)) : std::nullopt;
  if (!record || record->parent == 0) return database_.corrupt(Family::inodes, key);
  return record->parent;
}

Inode& Transaction::add_inode(const InodeRecord& record) {
  auto& inode = inodes_.emplace_back(Inode{record});
  inode.changed = true;
  ++inodes_added_;
  return inode;
}

Status Transaction::remove_inode(Inode& inode) {
  const auto& attributes = inode.attributes;
  database_.erase(batch_, Family::inodes, number_key(inode.ino()));
  remove_orphan(inode.ino());
  if (inode.xattr_names_bytes != 0) {
    const std::string prefix = number_key(inode.ino());
    DISTFUSE_TRY(database_.scan(Family::xattrs, prefix, prefix, [&](std::string_view key, auto) {
      database_.erase(batch_, Family::xattrs, std::string(key));
      return true;
    }));
  }
  if (S_ISREG(attributes.mode)) {
    const PurgeJob job{inode.ino(), attributes.size, attributes.chunk_size,
                       attributes.first_target};
    database_.put(batch_, Family::purges, number_key(inode.ino()), encode(job));
    ++purges_added_;
  }
  inode.removed = true;
  --inodes_added_;
  return {};
}

Result<std::optional<EntryRecord>> Transaction::entry(rpc::Ino parent, const std::string& name) {
  const auto key = name_key(parent, name);
  rocksdb::PinnableSlice value;
  const auto found = database_.get(Family::entries, key, &value);
  if (!found.ok()) return found.error();
  if (!*found) return std::optional<EntryRecord>();
  auto record = decode_entry(StoreDatabase::view(value));
  if (!record) return database_.corrupt(Family::entries, key);
  return record;
}

void Transaction::put_entry(rpc::Ino parent, const std::string& name, const EntryRecord& entry) {
  database_.put(batch_, Family::entries, name_key(parent, name), encode(entry));
  database_.put(batch_, Family::cookies, pair_key(parent, entry.cookie),
                encode(rpc::DirectoryEntry{entry.cookie, entry.ino, entry.type, name}));
}

void Transaction::erase_entry(rpc::Ino parent, const std::string& name, const EntryRecord& entry) {
  database_.erase(batch_, Family::entries, name_key(parent, name));
  database_.erase(batch_, Family::cookies, pair_key(parent, entry.cookie));
}

void Transaction::put_open(rpc::Ino ino, rpc::SessionId session) {
  database_.put(batch_, Family::opens, pair_key(ino, session), {});
}

void Transaction::erase_open(rpc::Ino ino, rpc::SessionId session) {
  database_.erase(batch_, Family::opens, pair_key(ino, session));
}

Result<bool> Transaction::open_elsewhere(rpc::Ino ino, rpc::SessionId except) {
  bool open = false;
  const std::string prefix = number_key(ino);
  DISTFUSE_TRY(database_.scan(Family::opens, prefix, prefix, [&](std::string_view key, auto) {
    open = key_number(key, 8) != except;
    return !open;
  }));
  return open;
}

void Transaction::add_orphan(rpc::Ino ino, rpc::Timestamp since) {
  database_.put(batch_, Family::orphans, number_key(ino),
                encode_number(static_cast<std::uint64_t>(since.ns)));
  orphans_added_.emplace_back(ino, since);
}

void Transaction::remove_orphan(rpc::Ino ino) {
  database_.erase(batch_, Family::orphans, number_key(ino));
  orphans_removed_.push_back(ino);
}

void Transaction::discard() {
  batch_.Clear();
  inodes_.clear();
  inodes_added_ = purges_added_ = 0;
  orphans_added_.clear();
  orphans_removed_.clear();
}

Status Transaction::commit() {
  for (const auto& inode : inodes_) {
    if (inode.changed && !inode.removed) {
      database_.put(batch_, Family::inodes, number_key(inode.ino()), encode(inode));
    }
  }
  if (batch_.Count() == 0) return {};
  return database_.write(batch_);
}

}  // namespace distfuse::storaged
