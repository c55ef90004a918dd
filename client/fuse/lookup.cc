// SPDX-License-Identifier: Apache-2.0
// lookup, forget: names to inodes under S of the directory.
#include <sys/stat.h>

#include "client/fuse/filesystem.h"

namespace distfuse::client {

Result<Filesystem::Named> Filesystem::find_name(fuse_req_t req, Ino parent,
                                                const std::string& name) {
  if (name.size() > 255) return Error{ENAMETOOLONG, {}};
  auto pin = locks_->pin(parent, Mode::s, interrupted(req));
  if (!pin) return pin.error();
  if (const auto cached = entries_.find(parent, name)) return Named{*cached, std::move(*pin)};
  const std::uint64_t began = entries_.sequence(parent);
  auto found = call_for_attributes(rpc::Lookup{parent, name}, req);
  if (!found && found.error().code != ENOENT) return found.error();
  EntryCache::Entry entry;
  if (found) entry = {found->ino, found->mode & S_IFMT};
  entries_.fetched(parent, name, entry, began);
  return Named{entry, std::move(*pin)};
}

void Filesystem::lookup(fuse_req_t req, Ino parent, const char* name) {
  auto named = find_name(req, parent, name);
  if (!named) return reply_error(req, named.error());
  if (named->entry.ino == 0) return (void)fuse_reply_err(req, ENOENT);
  const InodeRef inode = inodes_.get(named->entry.ino);
  if (S_ISDIR(named->entry.type)) {
    const std::lock_guard lock(inode->state);
    inode->parent = parent;
  }
  auto described = describe(*inode, interrupted(req));
  if (!described) return reply_error(req, described.error());
  reply_entry(req, inode, described->attributes, described->timeout);
}

void Filesystem::drop_references(const InodeRef& inode, std::uint64_t count) {
  if (!inodes_.forget(*inode, count)) return;
  locks_->forget(inode->ino);  // its shed() clears the caches and reaps the inode
}

void Filesystem::forget(Ino ino, std::uint64_t count) {
  const std::shared_lock generation(generation_mutex_);
  InodeRef inode = inodes_.find(ino);
  if (inode == nullptr) return;
  drop_references(inode, count);
  inodes_.reap(std::move(inode));
}

}  // namespace distfuse::client
