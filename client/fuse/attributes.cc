// SPDX-License-Identifier: Apache-2.0
// getattr, setattr, readlink; and how attributes are believed, fetched and glimpsed.
#include <sys/stat.h>

#include <algorithm>

#include "client/fuse/filesystem.h"

namespace distfuse::client {
namespace {

rpc::Timestamp from_timespec(const timespec& time) {
  return {time.tv_sec * 1'000'000'000 + time.tv_nsec};
}

rpc::SetAttributes to_request(Ino ino, const struct stat& values, int fields) {
  using Set = rpc::SetAttributes;
  rpc::SetAttributes request{};
  request.ino = ino;
  const auto field = [&](int fuse, Set::Field ours) {
    if ((fields & fuse) != 0) request.fields |= ours;
    return (fields & fuse) != 0;
  };
  if (field(FUSE_SET_ATTR_MODE, Set::kMode)) request.values.mode = values.st_mode;
  if (field(FUSE_SET_ATTR_UID, Set::kUid)) request.values.uid = values.st_uid;
  if (field(FUSE_SET_ATTR_GID, Set::kGid)) request.values.gid = values.st_gid;
  if (field(FUSE_SET_ATTR_SIZE, Set::kSize))
    request.values.size = static_cast<std::uint64_t>(values.st_size);
  // The kernel sets both the field and its NOW.
  if ((fields & FUSE_SET_ATTR_ATIME_NOW) != 0) {
    request.fields |= Set::kAtimeNow;
  } else if (field(FUSE_SET_ATTR_ATIME, Set::kAtime)) {
    request.values.atime = from_timespec(values.st_atim);
  }
  if ((fields & FUSE_SET_ATTR_MTIME_NOW) != 0) {
    request.fields |= Set::kMtimeNow;
  } else if (field(FUSE_SET_ATTR_MTIME, Set::kMtime)) {
    request.values.mtime = from_timespec(values.st_mtim);
  } else if ((fields & FUSE_SET_ATTR_SIZE) != 0) {
    request.fields |= Set::kMtimeNow;
  }
  return request;
}

}  // namespace

Result<rpc::Attributes> Filesystem::fetch_attributes(Ino ino) const {
  auto attributes = call_for_attributes(rpc::GetAttributes{{ino}});
  if (attributes && attributes->ino == 0) return Error{ESTALE, {}};
  return attributes;
}

Result<rpc::Attributes> Filesystem::pinned_attributes(Inode& inode) {
  for (;;) {
    std::uint64_t began = 0;
    {
      const std::lock_guard lock(inode.state);
      if (inode.attributes.valid()) return inode.attributes.get();
      began = inode.attributes.sequence();
    }
    auto fresh = fetch_attributes(inode.ino);
    if (!fresh) return fresh;
    const std::lock_guard lock(inode.state);
    if (inode.attributes.store_fetched(*fresh, began)) return inode.attributes.get();
  }
}

/// Without a lock: the holder of X is asked (it publishes, it flushes nothing) before the server, so that what it wrote back in between
/// is seen at the server; the newer of the two is believed.
Result<Filesystem::Described> Filesystem::describe(Inode& inode, const Interrupted& interrupted) {
  Described result;
  result.pin = locks_->try_pin(inode.ino, Mode::s);
  if (result.pin) {
    auto attributes = pinned_attributes(inode);
    if (!attributes) return attributes.error();
    result.attributes = *attributes;
    result.timeout = validity();
    return result;
  }
  return describe_unlocked(inode, interrupted);
}

Result<Filesystem::Described> Filesystem::describe_unlocked(Inode& inode,
                                                            const Interrupted& interrupted) {
  Described result;
  {
    const std::lock_guard lock(inode.state);  // a lock of ours that is on its way out is still ours
    if (inode.attributes.valid() && locks_->trust_left() != 0) {
      result.attributes = inode.attributes.get();
      return result;
    }
  }
  auto glimpsed = locks_->glimpse(inode.ino, interrupted);
  if (!glimpsed) return glimpsed.error();
  auto fresh = fetch_attributes(inode.ino);
  if (!fresh) return fresh.error();
  result.attributes = *fresh;
  if (glimpsed->has_value() && (*glimpsed)->ctime_ns >= fresh->ctime.ns) {
    result.attributes.size = (*glimpsed)->size;
    result.attributes.mtime.ns = (*glimpsed)->mtime_ns;
    result.attributes.ctime.ns = (*glimpsed)->ctime_ns;
  }
  return result;
}

void Filesystem::getattr(fuse_req_t req, Ino ino) {
  const InodeRef inode = inodes_.get(ino);
  auto described = describe(*inode, interrupted(req));
  if (!described) return reply_error(req, described.error());
  const struct stat result = to_stat(described->attributes);
  fuse_reply_attr(req, &result, described->timeout);
}

Result<FileRef> Filesystem::file_ref(Inode& inode) {
  {
    const std::lock_guard lock(inode.state);  // the layout never changes: no lock of the cluster
    const rpc::Attributes& known = inode.attributes.get();
    if (known.ino != 0)
      return FileRef{known.ino, known.chunk_size, known.first_target, &inode.unsynced};
  }
  auto fresh = fetch_attributes(inode.ino);
  if (!fresh) return fresh.error();
  return FileRef{fresh->ino, fresh->chunk_size, fresh->first_target, &inode.unsynced};
}

/// With X pinned. What is dirty here travels along, so that the server's answer is the whole truth.
Status Filesystem::change_attributes(fuse_req_t req, Inode& inode, rpc::SetAttributes request) {
  using Set = rpc::SetAttributes;
  const bool resize = (request.fields & Set::kSize) != 0;
  const std::lock_guard server(inode.server);
  std::uint64_t began = 0;
  {
    const std::lock_guard lock(inode.state);
    began = inode.attributes.sequence();
    if (const auto dirty = inode.attributes.begin_flush()) {
      const std::uint32_t fields = dirty->request.fields;
      if (!resize && (fields & Set::kSize) != 0) {
        request.fields |= Set::kSize | Set::kGrowOnly;
        request.values.size = dirty->request.values.size;
      }
      if ((request.fields & (Set::kMtime | Set::kMtimeNow)) == 0 && (fields & Set::kMtime) != 0) {
        request.fields |= Set::kMtime;
        request.values.mtime = dirty->request.values.mtime;
      }
    }
  }
  auto fresh = call_for_attributes(request, req);
  if (!fresh) return fresh.error();
  const std::lock_guard lock(inode.state);
  inode.attributes.end_setattr(*fresh, began, resize);
  return {};
}

/// A new size is admitted as page I/O is: the kernel holds back writeback of this file until it is answered (fuse_set_nowrite), and a
/// sweep waits for that writeback; so it must not wait for a revoke of a lock that still covers it.
void Filesystem::setattr(fuse_req_t req, Ino ino, const struct stat& values, int fields) {
  const bool resize = (fields & FUSE_SET_ATTR_SIZE) != 0;
  const auto size = static_cast<std::uint64_t>(values.st_size);
  if (resize && size > kMaxFileSize) return (void)fuse_reply_err(req, EFBIG);
  const InodeRef inode = inodes_.get(ino);
  auto pin = resize ? locks_->pin_page_io(ino, Mode::x, {size, 0}, interrupted(req))
                    : locks_->pin(ino, Mode::x, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  auto before = pinned_attributes(*inode);
  if (!before) return reply_error(req, before.error());
  std::unique_lock data(inode->data, std::defer_lock);
  if (resize) {
    data.lock();
    const FileRef file{ino, before->chunk_size, before->first_target, &inode->unsynced};
    // Data first, then the size: old data never comes back, not even after a crash in between, and a file that grows does not show
    // what a writer that died had left beyond its end.
    auto old = pinned_attributes(*inode);
    if (!old) return reply_error(req, old.error());
    const Status cut = data_->truncate(file, std::min(size, old->size));
    if (!cut.ok()) return reply_error(req, cut.error());
  }
  const Status changed = change_attributes(req, *inode, to_request(ino, values, fields));
  if (!changed.ok()) return reply_error(req, changed.error());
  auto after = pinned_attributes(*inode);
  if (!after) return reply_error(req, after.error());
  const struct stat result = to_stat(*after);
  fuse_reply_attr(req, &result, validity());
}

void Filesystem::readlink(fuse_req_t req, Ino ino) {
  const InodeRef inode = inodes_.get(ino);
  {
    std::unique_lock lock(inode->state);
    if (inode->link_target) {
      const std::string target = *inode->link_target;
      lock.unlock();
      return (void)fuse_reply_readlink(req, target.c_str());
    }
  }
  auto reply = call(rpc::Readlink{ino}, req);
  if (!reply) return reply_error(req, reply.error());
  if (reply->strings.empty()) return (void)fuse_reply_err(req, EPROTO);
  fuse_reply_readlink(req, reply->strings.front().c_str());
  const std::lock_guard lock(inode->state);
  inode->link_target = reply->strings.front();
}

}  // namespace distfuse::client
