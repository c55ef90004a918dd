// SPDX-License-Identifier: Apache-2.0
// mknod, mkdir, symlink, link, unlink, rmdir: under X of the directory, and of the inode that loses or gains a name.
#include <sys/stat.h>

#include "client/fuse/filesystem.h"

namespace distfuse::client {

/// The server stamps a directory with the time that it gives the inode whose name came or went.
void Filesystem::directory_changed(Ino ino, rpc::Timestamp time, int links) {
  const InodeRef inode = inodes_.get(ino);
  const std::lock_guard lock(inode->state);
  if (inode->attributes.valid()) {
    inode->attributes.directory_changed(time, links);
  } else {
    inode->attributes.invalidate();
  }
}

void Filesystem::directory_changed(Ino ino) {
  const InodeRef inode = inodes_.get(ino);
  const std::lock_guard lock(inode->state);
  inode->attributes.invalidate();
}

/// Nobody can know the new inode before X of its directory goes, so what the server answered is true if the child's lock is
/// free to take; X, because who makes a file writes it.
Result<Filesystem::Made> Filesystem::make_node(fuse_req_t req, const rpc::MetadataRequest& request,
                                               Ino parent, const std::string& name, bool open) {
  if (name.size() > 255) return Error{ENAMETOOLONG, {}};
  Made made;
  auto pin = locks_->pin(parent, Mode::x, interrupted(req));
  if (!pin) return pin.error();
  made.directory = std::move(*pin);
  if (const auto known = entries_.find(parent, name); known && known->ino != 0)
    return Error{EEXIST, {}};
  auto attributes = call_for_attributes(request, req);
  if (!attributes) {
    // The operation may have run at a server that we lost.
    if (attributes.error().code != EEXIST) entries_.forget(parent);
    return attributes.error();
  }
  made.attributes = *attributes;
  made.inode = inodes_.get(attributes->ino);
  made.child = locks_->try_pin(attributes->ino, Mode::x);
  const bool is_directory = S_ISDIR(attributes->mode);
  {
    const std::lock_guard server(made.inode->server);
    const std::lock_guard lock(made.inode->state);
    if (made.child) made.inode->attributes.store(*attributes);
    if (is_directory) made.inode->parent = parent;
    if (open) made.inode->registered = true;
  }
  entries_.changed(parent, name, {attributes->ino, attributes->mode & S_IFMT});
  if (is_directory && made.child) entries_.created(attributes->ino);
  directory_changed(parent, attributes->ctime, is_directory ? 1 : 0);
  return made;
}

void Filesystem::make(fuse_req_t req, rpc::Create request) {
  const Ino parent = request.parent;
  const std::string name = request.name;
  auto made = make_node(req, request, parent, name, false);
  if (!made) return reply_error(req, made.error());
  reply_entry(req, made->inode, made->attributes, made->child ? validity() : 0);
}

void Filesystem::symlink(fuse_req_t req, const char* target, Ino parent, const char* name) {
  auto made = make_node(req, rpc::Symlink{parent, name, target}, parent, name, false);
  if (!made) return reply_error(req, made.error());
  {
    const std::lock_guard lock(made->inode->state);
    made->inode->link_target = target;
  }
  reply_entry(req, made->inode, made->attributes, made->child ? validity() : 0);
}

void Filesystem::link(fuse_req_t req, Ino ino, Ino parent, const char* name) {
  if (std::string_view(name).size() > 255) return (void)fuse_reply_err(req, ENAMETOOLONG);
  const Wanted wanted[] = {{parent, Mode::x}, {ino, Mode::x}};
  auto pins = locks_->pin_all(wanted, interrupted(req));
  if (!pins) return reply_error(req, pins.error());
  const InodeRef inode = inodes_.get(ino);
  const std::unique_lock data(inode->data);
  const std::lock_guard server(inode->server);
  flush_before_change(*inode);
  auto attributes = call_for_attributes(rpc::Link{ino, parent, name}, req);
  if (!attributes) {
    if (attributes.error().code != EEXIST) entries_.forget(parent);
    return reply_error(req, attributes.error());
  }
  rpc::Attributes current;
  {
    const std::lock_guard lock(inode->state);
    inode->attributes.store(*attributes);
    current = inode->attributes.get();
  }
  entries_.changed(parent, name, {ino, current.mode & S_IFMT});
  directory_changed(parent, attributes->ctime, 0);
  reply_entry(req, inode, current, validity());
}

void Filesystem::name_removed(Inode& inode, const rpc::Attributes& attributes, bool unregistered) {
  if (unregistered) inode.registered = false;
  const std::lock_guard lock(inode.state);
  inode.attributes.store(attributes);
  // Nobody will read its size again: there is nothing to flush.
  if (attributes.nlink == 0 && inode.opens == 0) inode.attributes.give_up();
}

/// With X of the directory and of the inode that it is believed to lead to. An open of the inode on this mount waits at `server`:
/// it registers before the name goes, or finds the inode gone.
Status Filesystem::remove_pinned(fuse_req_t req, Ino parent, const std::string& name, Ino ino,
                                 bool directory) {
  const InodeRef inode = inodes_.get(ino);
  const std::lock_guard server(inode->server);
  const bool unregister = !directory && inode->registered && inode->opens == 0;
  auto left = directory ? call_for_attributes(rpc::Rmdir{parent, name, ino}, req)
                        : call_for_attributes(rpc::Unlink{parent, name, ino, unregister}, req);
  if (!left) {
    if (left.error().code != ENOTEMPTY) entries_.forget(parent);
    return left.error();
  }
  name_removed(*inode, *left, unregister);
  entries_.changed(parent, name, {});
  if (directory) entries_.forget(ino);
  directory_changed(parent, left->ctime, directory ? -1 : 0);
  return {};
}

Status Filesystem::remove_name(fuse_req_t req, Ino parent, const std::string& name,
                               bool directory) {
  for (int attempt = 0;; ++attempt) {
    Ino ino = 0;
    {
      auto named = find_name(req, parent, name);
      if (!named) return named.error();
      ino = named->entry.ino;
      if (ino == 0) return Error{ENOENT, {}};
      if (directory != S_ISDIR(named->entry.type)) return Error{directory ? ENOTDIR : EISDIR, {}};
    }
    const Wanted wanted[] = {{parent, Mode::x}, {ino, Mode::x}};
    auto pins = locks_->pin_all(wanted, interrupted(req));
    if (!pins) return pins.error();
    Status removed = remove_pinned(req, parent, name, ino, directory);
    if (removed.ok() || removed.error().code != ESTALE || attempt == kMaxRetries) return removed;
  }
}

void Filesystem::unlink(fuse_req_t req, Ino parent, const char* name) {
  reply_status(req, remove_name(req, parent, name, false));
}

void Filesystem::rmdir(fuse_req_t req, Ino parent, const char* name) {
  reply_status(req, remove_name(req, parent, name, true));
}

}  // namespace distfuse::client
