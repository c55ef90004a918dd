// SPDX-License-Identifier: Apache-2.0
// open, create, flush, release; and the registration of opens at the server, which keeps a file that has lost its last name.
//
// Registered is not open: the registration may outlive the last close while the inode's lock is held (the unlink of another mount
// needs X, so it revokes, and shed() unregisters), and an open that finds it pays nothing. `opens` and `registered` change under
// inode.server only, which an unlink of this mount holds as well.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "client/fuse/filesystem.h"

namespace distfuse::client {
namespace {

bool writes(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY;
}

FileHandle* handle_of(const fuse_file_info* file) {
  return reinterpret_cast<FileHandle*>(file->fh);
}

void fill_reply(fuse_file_info* file, FileHandle* handle) {
  file->fh = reinterpret_cast<std::uint64_t>(handle);
  file->direct_io = handle->direct ? 1 : 0;
  file->keep_cache = 1;  // what is cached is covered by the lock, or was invalidated
}

std::unique_ptr<FileHandle> make_handle(const InodeRef& inode, int flags) {
  auto handle = std::make_unique<FileHandle>();
  handle->inode = inode;
  handle->writable = writes(flags);
  handle->direct = handle->writable && (flags & O_APPEND) != 0;
  const std::lock_guard lock(inode->state);
  handle->seen_errors = inode->errors.now();
  return handle;
}

/// As the kernel's default_permissions would, for the one open that it did not check.
bool may_open(fuse_req_t req, const rpc::Attributes& attributes, int flags) {
  const fuse_ctx* context = fuse_req_ctx(req);
  if (context->uid == 0) return true;
  std::uint32_t need = 0;
  if ((flags & O_ACCMODE) != O_WRONLY) need |= S_IROTH;
  if (writes(flags) || (flags & O_TRUNC) != 0) need |= S_IWOTH;
  if (context->uid == attributes.uid) return ((attributes.mode >> 6) & need) == need;
  bool member = context->gid == attributes.gid;
  if (!member) {
    gid_t groups[1024];
    const int count = std::min(fuse_req_getgroups(req, std::size(groups), groups),
                               static_cast<int>(std::size(groups)));
    member = count > 0 && std::find(groups, groups + count, attributes.gid) != groups + count;
  }
  return ((attributes.mode >> (member ? 3 : 0)) & need) == need;
}

}  // namespace

Status Filesystem::register_open(Inode& inode, bool writable, bool pinned) {
  const std::lock_guard server(inode.server);
  std::uint64_t began = 0;
  {
    const std::lock_guard lock(inode.state);
    began = inode.attributes.sequence();
  }
  if (!inode.registered) {
    auto fresh = call_for_attributes(rpc::OpenFile{inode.ino});
    if (!fresh) return fresh.error().code == ENOENT ? Error{ESTALE, {}} : fresh.error();
    inode.registered = true;
    const std::lock_guard lock(inode.state);
    if (pinned) (void)inode.attributes.store_fetched(*fresh, began);
  }
  const std::lock_guard lock(inode.state);
  ++inode.opens;
  if (writable) ++inode.write_opens;
  return {};
}

Status Filesystem::close_at_server(Inode& inode) {
  auto reply = call(rpc::CloseFiles{{inode.ino}});
  if (!reply) return reply.error();
  inode.registered = false;
  return {};
}

/// Nothing happens while the file is open, or while its lock is held.
void Filesystem::unregister_idle(const InodeRef& inode) {
  const Pin pin = locks_->try_pin(inode->ino, Mode::s);
  const std::lock_guard server(inode->server);
  bool idle = false;
  bool keep = false;
  {
    const std::lock_guard lock(inode->state);
    idle = inode->opens == 0 && inode->registered;
    keep = pin && inode->attributes.valid() && inode->attributes.get().nlink != 0;
  }
  // An error is the end of the session, which unregisters too.
  if (idle && !keep) (void)close_at_server(*inode).ok();
}

void Filesystem::unregister_open(const InodeRef& inode, bool writable) {
  {
    const std::lock_guard server(inode->server);
    const std::lock_guard lock(inode->state);
    --inode->opens;
    if (writable) --inode->write_opens;
  }
  unregister_idle(inode);
}

/// write_opens is raised first: from then on pages are read under X; then the pages that were read under S go.
void Filesystem::open(fuse_req_t req, Ino ino, fuse_file_info* file) {
  const InodeRef inode = inodes_.get(ino);
  const bool writable = writes(file->flags);
  {
    const Pin pin = locks_->try_pin(ino, Mode::s);
    const Status registered = register_open(*inode, writable, static_cast<bool>(pin));
    if (!registered.ok()) return reply_error(req, registered.error());
  }
  // Each of several first openers waits for it, not only the one that came first.
  if (writable) locks_->drop(ino, Mode::s);
  auto handle = make_handle(inode, file->flags);
  fill_reply(file, handle.get());
  if (fuse_reply_open(req, file) == 0) {
    (void)handle.release();
  } else {
    unregister_open(inode, writable);
  }
}

/// The kernel looked the name up and found nothing, but another mount has made it since.
Result<Filesystem::Made> Filesystem::open_existing(fuse_req_t req, Ino parent,
                                                   const std::string& name, int flags) {
  auto named = find_name(req, parent, name);
  if (!named) return named.error();
  // ESTALE makes the kernel look again and open (or follow, or create) what is there now.
  if (named->entry.ino == 0 || !S_ISREG(named->entry.type) || (flags & O_TRUNC) != 0)
    return Error{ESTALE, {}};
  Made made;
  made.inode = inodes_.get(named->entry.ino);
  made.directory = std::move(named->directory);
  auto described = describe(*made.inode, interrupted(req));
  if (!described) return described.error();
  if (!may_open(req, described->attributes, flags)) return Error{EACCES, {}};
  made.attributes = described->attributes;
  made.child = std::move(described->pin);
  DISTFUSE_TRY(register_open(*made.inode, writes(flags), static_cast<bool>(made.child)));
  if (writes(flags)) {
    made.child.release();
    locks_->drop(made.inode->ino, Mode::s);
  }
  return made;
}

void Filesystem::create(fuse_req_t req, Ino parent, const char* name, mode_t mode,
                        fuse_file_info* file) {
  const int flags = file->flags;
  rpc::Create request{parent, name, mode, 0, true};
  auto made = make_node(req, request, parent, name, true);
  if (made) {
    const std::lock_guard server(made->inode->server);
    const std::lock_guard lock(made->inode->state);
    ++made->inode->opens;
    if (writes(flags)) ++made->inode->write_opens;
    // The kernel asks for it before the first write. Nobody has set one: nobody has had the file's lock.
    if (made->child) made->inode->xattrs.emplace("security.capability", std::nullopt);
  } else if (made.error().code == EEXIST && (flags & O_EXCL) == 0) {
    made = open_existing(req, parent, name, flags);
  }
  if (!made) return reply_error(req, made.error());
  auto handle = make_handle(made->inode, flags);
  fill_reply(file, handle.get());
  const fuse_entry_param entry = entry_param(made->attributes, made->child ? validity() : 0);
  inodes_.add_lookup(*made->inode);
  if (fuse_reply_create(req, &entry, file) == 0) {
    (void)handle.release();
    return;
  }
  unregister_open(made->inode, writes(flags));
  drop_references(made->inode, 1);
}

/// Each close of a descriptor: sizes and times go out, errors come back, fcntl locks of the closing process go.
void Filesystem::flush(fuse_req_t req, Ino ino, fuse_file_info* file) {
  FileHandle& handle = *handle_of(file);
  Inode& inode = *handle.inode;
  // An error is recorded, and returned below; that of a lost session with the next one.
  if (handle.writable) {
    const Status flushed = flush_inode(inode);
    if (!flushed.ok() && session_ended(flushed.error()))
      return reply_error(req, Error{ENOTCONN, {}});
  }
  bool locks = false;
  {
    const std::lock_guard lock(inode.state);
    locks = inode.posix_locks;
  }
  if (locks) locks_->file_lock_release_owner(ino, file->lock_owner);
  fuse_reply_err(req, take_error(handle));
}

void Filesystem::release(fuse_req_t req, Ino ino, fuse_file_info* file) {
  std::unique_ptr<FileHandle> handle(handle_of(file));
  if (file->flock_release != 0) locks_->file_lock_release_owner(ino, file->lock_owner);
  unregister_open(handle->inode, handle->writable);
  fuse_reply_err(req, 0);
}

}  // namespace distfuse::client
