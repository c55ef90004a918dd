// SPDX-License-Identifier: Apache-2.0
// Extended attributes, read under S and written under X of the inode; values that were asked for are kept while the lock is (the
// kernel asks for security.capability before each write). POSIX ACLs are refused: nothing here would enforce them.
#include <sys/xattr.h>

#include <algorithm>

#include "client/fuse/filesystem.h"

namespace distfuse::client {
namespace {

constexpr std::size_t kMaxCached = 64;
constexpr std::size_t kMaxCachedValue = 1024;
constexpr std::size_t kMaxValue = 65536;

bool refused(std::string_view name) {
  return name.starts_with("system.posix_acl_");
}

void reply_bytes(fuse_req_t req, const std::string& bytes, std::size_t size) {
  if (size == 0) return (void)fuse_reply_xattr(req, bytes.size());
  if (bytes.size() > size) return (void)fuse_reply_err(req, ERANGE);
  fuse_reply_buf(req, bytes.data(), bytes.size());
}

}  // namespace

/// While the file is open for writing here, X: what follows is a write.
Result<Pin> Filesystem::pin_for_xattr(fuse_req_t req, Inode& inode) {
  return locks_->pin(inode.ino, inode.write_opens != 0 ? Mode::x : Mode::s, interrupted(req));
}

Result<std::optional<std::string>> Filesystem::xattr_value(Inode& inode, const std::string& name) {
  std::uint64_t began = 0;
  {
    const std::lock_guard lock(inode.state);
    if (const auto found = inode.xattrs.find(name); found != inode.xattrs.end())
      return found->second;
    began = inode.attributes.sequence();
  }
  auto reply = call(rpc::GetXattr{inode.ino, name});
  if (!reply && reply.error().code != ENODATA) return reply.error();
  std::optional<std::string> value;
  if (reply) value = reply->strings.empty() ? std::string{} : reply->strings.front();
  const std::lock_guard lock(inode.state);
  // A change of the inode in between may have been a change of this attribute.
  if (inode.attributes.sequence() == began && inode.xattrs.size() < kMaxCached &&
      (!value || value->size() <= kMaxCachedValue))
    inode.xattrs.emplace(name, value);
  return value;
}

void Filesystem::getxattr(fuse_req_t req, Ino ino, const char* name, std::size_t size) {
  if (refused(name)) return (void)fuse_reply_err(req, EOPNOTSUPP);
  const InodeRef inode = inodes_.get(ino);
  auto pin = pin_for_xattr(req, *inode);
  if (!pin) return reply_error(req, pin.error());
  auto value = xattr_value(*inode, name);
  if (!value) return reply_error(req, value.error());
  if (!value->has_value()) return (void)fuse_reply_err(req, ENODATA);
  reply_bytes(req, **value, size);
}

void Filesystem::listxattr(fuse_req_t req, Ino ino, std::size_t size) {
  auto pin = locks_->pin(ino, Mode::s, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  auto reply = call(rpc::ListXattr{ino});
  if (!reply) return reply_error(req, reply.error());
  std::string names;
  for (const std::string& name : reply->strings) names.append(name).push_back('\0');
  reply_bytes(req, names, size);
}

void Filesystem::setxattr(fuse_req_t req, Ino ino, const char* name, std::string value, int flags) {
  if (refused(name)) return (void)fuse_reply_err(req, EOPNOTSUPP);
  if (value.size() > kMaxValue) return (void)fuse_reply_err(req, E2BIG);
  auto pin = locks_->pin(ino, Mode::x, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  rpc::SetXattr request{ino, name, std::move(value), 0};
  if ((flags & XATTR_CREATE) != 0) request.flags |= rpc::SetXattr::kCreate;
  if ((flags & XATTR_REPLACE) != 0) request.flags |= rpc::SetXattr::kReplace;
  const InodeRef inode = inodes_.get(ino);
  const std::unique_lock data(inode->data);
  const std::lock_guard server(inode->server);
  flush_before_change(*inode);
  auto reply = call(request, req);
  if (reply) {
    const std::lock_guard lock(inode->state);
    inode->xattrs.erase(name);
    inode->attributes.invalidate();  // its ctime
  }
  fuse_reply_err(req, reply ? 0 : code_of(reply.error()));
}

void Filesystem::removexattr(fuse_req_t req, Ino ino, const char* name) {
  if (refused(name)) return (void)fuse_reply_err(req, EOPNOTSUPP);
  auto pin = locks_->pin(ino, Mode::x, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  const InodeRef inode = inodes_.get(ino);
  const std::unique_lock data(inode->data);
  const std::lock_guard server(inode->server);
  flush_before_change(*inode);
  auto reply = call(rpc::RemoveXattr{ino, name}, req);
  if (reply) {
    const std::lock_guard lock(inode->state);
    inode->xattrs.erase(name);
    inode->attributes.invalidate();
  }
  fuse_reply_err(req, reply ? 0 : code_of(reply.error()));
}

}  // namespace distfuse::client
