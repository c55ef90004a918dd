// SPDX-License-Identifier: Apache-2.0
// Names come and go: create, symlink, link, unlink, rmdir, and what they share with rename.
#include <sys/stat.h>

#include "storaged/meta/operations.h"

namespace distfuse::storaged {
namespace {

constexpr std::uint32_t kModeBits = S_IFMT | 07777;

bool known_type(std::uint32_t mode) {
  return S_ISREG(mode) || S_ISDIR(mode) || S_ISCHR(mode) || S_ISBLK(mode) || S_ISFIFO(mode) ||
         S_ISSOCK(mode);
}

/// The inode that a create or symlink makes, with the set-group-id rules of its parent.
rpc::Attributes fresh_attributes(const Operation& op, const Inode& parent, rpc::Ino ino,
                                 std::uint32_t mode) {
  rpc::Attributes fresh;
  fresh.ino = ino;
  fresh.mode = mode;
  fresh.nlink = S_ISDIR(mode) ? 2 : 1;
  fresh.uid = op.context.uid;
  fresh.gid = op.context.gid;
  if ((parent.attributes.mode & S_ISGID) != 0) {
    fresh.gid = parent.attributes.gid;
    if (S_ISDIR(mode)) fresh.mode |= S_ISGID;
  }
  fresh.atime = fresh.mtime = fresh.ctime = fresh.btime = op.now;
  fresh.no_xattrs = true;
  fresh.first_target = static_cast<std::uint32_t>(ino % std::max(1U, op.options.data_targets));
  return fresh;
}

/// The parent of a name that must not exist yet. Error: EEXIST and those of directory().
Result<Inode*> parent_of_new(Operation& op, rpc::Ino ino, const std::string& name) {
  DISTFUSE_TRY(check_name(name));
  auto parent = op.tx.directory(ino);
  if (!parent.ok()) return parent;
  const auto existing = op.tx.entry(ino, name);
  if (!existing.ok()) return existing.error();
  if (existing->has_value()) return fail(EEXIST);
  return parent;
}

/// The entry that a removal is about, checked against what the client believes. Error: ENOENT, ESTALE.
Result<EntryRecord> entry_to_remove(Operation& op, rpc::Ino parent, const std::string& name,
                                    rpc::Ino expect) {
  const auto entry = op.tx.entry(parent, name);
  if (!entry.ok()) return entry.error();
  if (expect != 0 && (!entry->has_value() || (*entry)->ino != expect)) return fail(ESTALE);
  if (!entry->has_value()) return fail(ENOENT);
  return **entry;
}

}  // namespace

Status check_name(const std::string& name) {
  if (name.size() > kMaxName) return fail(ENAMETOOLONG);
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    return fail(EINVAL);
  }
  return {};
}

void touch(Operation& op, Inode& inode) {
  inode.attributes.mtime = inode.attributes.ctime = op.now;
  inode.changed = true;
}

void insert_name(Operation& op, Inode& parent, const std::string& name, Inode& inode) {
  op.tx.put_entry(parent.ino(), name, {inode.ino(), inode.type(), parent.next_cookie++});
  ++parent.entries;
  if (inode.is_directory()) {
    inode.parent = parent.ino();
    inode.changed = true;
    ++parent.attributes.nlink;
  }
  touch(op, parent);
}

void erase_name(Operation& op, Inode& parent, const std::string& name, const EntryRecord& entry) {
  op.tx.erase_entry(parent.ino(), name, entry);
  --parent.entries;
  if (S_ISDIR(entry.type)) --parent.attributes.nlink;
  touch(op, parent);
}

Status release(Operation& op, Inode& inode, bool unregister) {
  if (unregister) op.tx.erase_open(inode.ino(), op.context.session);
  if (inode.attributes.nlink != 0) return {};
  // 0 is no session: then every registration counts.
  const auto open = op.tx.open_elsewhere(inode.ino(), unregister ? op.context.session : 0);
  if (!open.ok()) return open.error();
  if (!*open && !op.orphans.contains(inode.ino())) op.tx.add_orphan(inode.ino(), op.now);
  return {};
}

Status drop_name(Operation& op, Inode& inode, bool unregister) {
  inode.attributes.nlink = inode.is_directory() ? 0 : inode.attributes.nlink - 1;
  inode.attributes.ctime = op.now;
  inode.changed = true;
  op.reply.attributes.assign(1, inode.attributes);
  return release(op, inode, unregister);
}

Status run(Operation& op, const rpc::Create& request) {
  const std::uint32_t mode = (request.mode & S_IFMT) == 0 ? request.mode | S_IFREG : request.mode;
  if ((mode & ~kModeBits) != 0 || !known_type(mode)) return fail(EINVAL);
  if (request.open && op.context.session == 0) return fail(EINVAL);
  const auto parent = parent_of_new(op, request.parent, request.name);
  if (!parent.ok()) return parent.error();
  if (S_ISDIR(mode) && (*parent)->attributes.nlink >= op.options.max_links) return fail(EMLINK);
  const auto ino = op.inos.allocate();
  if (!ino.ok()) return ino.error();
  InodeRecord record;
  record.attributes = fresh_attributes(op, **parent, *ino, mode);
  if (S_ISCHR(mode) || S_ISBLK(mode)) record.attributes.rdev = request.rdev;
  Inode& inode = op.tx.add_inode(record);
  insert_name(op, **parent, request.name, inode);
  if (request.open) op.tx.put_open(*ino, op.context.session);
  op.reply.attributes.push_back(inode.attributes);
  return {};
}

Status run(Operation& op, const rpc::Symlink& request) {
  if (request.target.empty()) return fail(ENOENT);
  if (request.target.size() > kMaxSymlink) return fail(ENAMETOOLONG);
  if (request.target.find('\0') != std::string::npos) return fail(EINVAL);
  const auto parent = parent_of_new(op, request.parent, request.name);
  if (!parent.ok()) return parent.error();
  const auto ino = op.inos.allocate();
  if (!ino.ok()) return ino.error();
  InodeRecord record;
  record.attributes = fresh_attributes(op, **parent, *ino, S_IFLNK | 0777);
  record.attributes.size = request.target.size();
  record.target = request.target;
  Inode& inode = op.tx.add_inode(record);
  insert_name(op, **parent, request.name, inode);
  op.reply.attributes.push_back(inode.attributes);
  return {};
}

Status run(Operation& op, const rpc::Link& request) {
  const auto parent = parent_of_new(op, request.parent, request.name);
  if (!parent.ok()) return parent.error();
  const auto inode = op.tx.inode(request.ino);
  if (!inode.ok()) return inode.error();
  auto& attributes = (*inode)->attributes;
  if ((*inode)->is_directory()) return fail(EPERM);
  if (attributes.nlink == 0) return fail(ENOENT);
  if (attributes.nlink >= op.options.max_links) return fail(EMLINK);
  ++attributes.nlink;
  attributes.ctime = op.now;
  (*inode)->changed = true;
  insert_name(op, **parent, request.name, **inode);
  op.reply.attributes.push_back(attributes);
  return {};
}

Status run(Operation& op, const rpc::Unlink& request) {
  DISTFUSE_TRY(check_name(request.name));
  const auto parent = op.tx.directory(request.parent);
  if (!parent.ok()) return parent.error();
  const auto entry = entry_to_remove(op, request.parent, request.name, request.expect_ino);
  if (!entry.ok()) return entry.error();
  if (S_ISDIR(entry->type)) return fail(EISDIR);
  const auto inode = op.tx.named_inode(request.parent, *entry);
  if (!inode.ok()) return inode.error();
  erase_name(op, **parent, request.name, *entry);
  return drop_name(op, **inode, request.unregister_open);
}

Status run(Operation& op, const rpc::Rmdir& request) {
  DISTFUSE_TRY(check_name(request.name));
  const auto parent = op.tx.directory(request.parent);
  if (!parent.ok()) return parent.error();
  const auto entry = entry_to_remove(op, request.parent, request.name, request.expect_ino);
  if (!entry.ok()) return entry.error();
  if (!S_ISDIR(entry->type)) return fail(ENOTDIR);
  const auto inode = op.tx.named_inode(request.parent, *entry);
  if (!inode.ok()) return inode.error();
  if ((*inode)->entries != 0) return fail(ENOTEMPTY);
  erase_name(op, **parent, request.name, *entry);
  return drop_name(op, **inode, false);
}

}  // namespace distfuse::storaged
