// SPDX-License-Identifier: Apache-2.0
// rename: X of both directories, of the source and of what it replaces, taken by ascending number once all four are known; the server
// checks that the names still lead there and says ESTALE when they do not.
#include <fcntl.h>
#include <sys/stat.h>

#include "client/fuse/filesystem.h"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE 2
#endif

namespace distfuse::client {

struct Filesystem::RenameNames {
  Ino old_parent = 0;
  std::string old_name;
  Ino new_parent = 0;
  std::string new_name;
  unsigned flags = 0;
  EntryCache::Entry source;
  EntryCache::Entry target;
};

void Filesystem::rename(fuse_req_t req, Ino old_parent, const char* old_name, Ino new_parent,
                        const char* new_name, unsigned flags) {
  if ((flags & ~unsigned{RENAME_NOREPLACE | RENAME_EXCHANGE}) != 0)
    return (void)fuse_reply_err(req, EINVAL);
  RenameNames names{old_parent, old_name, new_parent, new_name, flags, {}, {}};
  for (int attempt = 0;; ++attempt) {
    const Status done = rename_once(req, names);
    if (done.ok() || done.error().code != ESTALE || attempt == kMaxRetries)
      return reply_status(req, done);
  }
}

Status Filesystem::rename_once(fuse_req_t req, RenameNames& names) {
  {
    auto source = find_name(req, names.old_parent, names.old_name);
    if (!source) return source.error();
    names.source = source->entry;
  }
  {
    auto target = find_name(req, names.new_parent, names.new_name);
    if (!target) return target.error();
    names.target = target->entry;
  }
  if (names.source.ino == 0) return Error{ENOENT, {}};
  std::vector<Wanted> wanted{
      {names.old_parent, Mode::x}, {names.new_parent, Mode::x}, {names.source.ino, Mode::x}};
  if (names.target.ino != 0) wanted.push_back({names.target.ino, Mode::x});
  auto pins = locks_->pin_all(wanted, interrupted(req));
  if (!pins) return pins.error();
  return rename_pinned(req, names);
}

Status Filesystem::rename_pinned(fuse_req_t req, const RenameNames& names) {
  const InodeRef source = inodes_.get(names.source.ino);
  const InodeRef target = names.target.ino == 0 || names.target.ino == names.source.ino
                              ? nullptr
                              : inodes_.get(names.target.ino);
  // By ascending number, as the locks of the cluster.
  const bool target_first = target != nullptr && target->ino < source->ino;
  Inode* const low = target_first ? target.get() : source.get();
  Inode* const high = target_first ? source.get() : target.get();
  const std::unique_lock low_data(low->data);
  std::unique_lock<std::shared_mutex> high_data;
  if (high != nullptr) high_data = std::unique_lock(high->data);
  const std::unique_lock first(low->server);
  std::unique_lock<std::mutex> second;
  if (high != nullptr) second = std::unique_lock(high->server);

  flush_before_change(*source);
  if (target != nullptr && (names.flags & RENAME_EXCHANGE) != 0) flush_before_change(*target);
  rpc::Rename request{};
  request.old_parent = names.old_parent;
  request.old_name = names.old_name;
  request.new_parent = names.new_parent;
  request.new_name = names.new_name;
  if ((names.flags & RENAME_NOREPLACE) != 0) request.flags |= rpc::Rename::kNoReplace;
  if ((names.flags & RENAME_EXCHANGE) != 0) request.flags |= rpc::Rename::kExchange;
  request.expect_source = names.source.ino;
  request.expect_replaced = names.target.ino;
  request.check_replaced = true;
  const bool replaces = target != nullptr && (names.flags & RENAME_EXCHANGE) == 0;
  request.unregister_replaced = replaces && target->registered && target->opens == 0;
  auto reply = call(request, req);
  if (!reply) {
    entries_.forget(names.old_parent);
    entries_.forget(names.new_parent);
    return reply.error();
  }
  if (names.target.ino == names.source.ino) return {};  // two names of one inode: both stay
  if (replaces && !reply->attributes.empty())
    name_removed(*target, reply->attributes.front(), request.unregister_replaced);
  renamed(names);
  return {};
}

void Filesystem::renamed(const RenameNames& names) {
  const bool exchange = (names.flags & RENAME_EXCHANGE) != 0;
  entries_.changed(names.new_parent, names.new_name, names.source);
  entries_.changed(names.old_parent, names.old_name, exchange ? names.target : EntryCache::Entry{});
  if (!exchange && S_ISDIR(names.target.type)) entries_.forget(names.target.ino);
  directory_changed(names.old_parent);
  directory_changed(names.new_parent);
  const auto moved = [&](const EntryCache::Entry& entry, Ino parent) {
    const InodeRef inode = inodes_.get(entry.ino);
    const std::lock_guard lock(inode->state);
    inode->attributes.invalidate();  // its ctime
    if (S_ISDIR(entry.type)) inode->parent = parent;
  };
  moved(names.source, names.new_parent);
  if (exchange) moved(names.target, names.old_parent);
}

}  // namespace distfuse::client
