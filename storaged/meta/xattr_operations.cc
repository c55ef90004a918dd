// SPDX-License-Identifier: Apache-2.0
// Extended attributes, with the limits of the Linux VFS; the sums of an inode's names and values are in its record, so that
// an inode without any costs no search. Namespaces: user, trusted, security; of `system` the two POSIX access control lists,
// which the kernels of coherence mode `kernel` enforce. (Mode `user` sets none, and sees the mode bits that they make.)
#include <string_view>

#include "storaged/meta/operations.h"

namespace distfuse::storaged {
namespace {

Status check_xattr_name(const std::string& name) {
  if (name.empty() || name.size() > kMaxName) return fail(ERANGE);
  if (name.find('\0') != std::string::npos) return fail(EINVAL);
  if (name == "system.posix_acl_access" || name == "system.posix_acl_default") return {};
  for (const std::string_view space : {"user.", "trusted.", "security."}) {
    if (name.starts_with(space) && name.size() > space.size()) return {};
  }
  return fail(EOPNOTSUPP);
}

/// Nullopt: the inode has no such xattr.
Result<std::optional<std::string>> read_xattr(Operation& op, const Inode& inode,
                                              const std::string& name) {
  if (inode.xattr_names_bytes == 0) return std::optional<std::string>();
  rocksdb::PinnableSlice value;
  const auto found = op.tx.database().get(Family::xattrs, name_key(inode.ino(), name), &value);
  if (!found.ok()) return found.error();
  if (!*found) return std::optional<std::string>();
  return std::optional(value.ToString());
}

}  // namespace

Status run(Operation& op, const rpc::GetXattr& request) {
  DISTFUSE_TRY(check_xattr_name(request.name));
  const auto inode = op.tx.inode(request.ino);
  if (!inode.ok()) return inode.error();
  auto value = read_xattr(op, **inode, request.name);
  if (!value.ok()) return value.error();
  if (!value->has_value()) return fail(ENODATA);
  op.reply.strings.push_back(std::move(**value));
  return {};
}

Status run(Operation& op, const rpc::SetXattr& request) {
  constexpr std::uint32_t kBoth = rpc::SetXattr::kCreate | rpc::SetXattr::kReplace;
  if ((request.flags & ~kBoth) != 0) return fail(EINVAL);
  DISTFUSE_TRY(check_xattr_name(request.name));
  if (request.value.size() > kMaxXattrValue) return fail(E2BIG);
  const auto found = op.tx.inode(request.ino);
  if (!found.ok()) return found.error();
  Inode& inode = **found;
  const auto old = read_xattr(op, inode, request.name);
  if (!old.ok()) return old.error();
  if (old->has_value() && (request.flags & rpc::SetXattr::kCreate) != 0) return fail(EEXIST);
  if (!old->has_value() && (request.flags & rpc::SetXattr::kReplace) != 0) return fail(ENODATA);
  const std::size_t names =
      inode.xattr_names_bytes + (old->has_value() ? 0 : request.name.size() + 1);
  const std::size_t values =
      inode.xattr_values_bytes - (old->has_value() ? (*old)->size() : 0) + request.value.size();
  if (names > kMaxXattrNames || values > kMaxXattrValues) return fail(ENOSPC);
  inode.xattr_names_bytes = static_cast<std::uint32_t>(names);
  inode.xattr_values_bytes = static_cast<std::uint32_t>(values);
  inode.attributes.no_xattrs = false;
  inode.attributes.ctime = op.now;
  inode.changed = true;
  op.tx.database().put(op.tx.batch(), Family::xattrs, name_key(inode.ino(), request.name),
                       request.value);
  return {};
}

Status run(Operation& op, const rpc::ListXattr& request) {
  const auto inode = op.tx.inode(request.ino);
  if (!inode.ok()) return inode.error();
  if ((*inode)->xattr_names_bytes == 0) return {};
  const std::string prefix = number_key(request.ino);
  return op.tx.database().scan(Family::xattrs, prefix, prefix, [&](std::string_view key, auto) {
    op.reply.strings.emplace_back(key.substr(prefix.size()));
    return true;
  });
}

Status run(Operation& op, const rpc::RemoveXattr& request) {
  DISTFUSE_TRY(check_xattr_name(request.name));
  const auto found = op.tx.inode(request.ino);
  if (!found.ok()) return found.error();
  Inode& inode = **found;
  const auto old = read_xattr(op, inode, request.name);
  if (!old.ok()) return old.error();
  if (!old->has_value()) return fail(ENODATA);
  inode.xattr_names_bytes -= static_cast<std::uint32_t>(request.name.size() + 1);
  inode.xattr_values_bytes -= static_cast<std::uint32_t>((*old)->size());
  inode.attributes.no_xattrs = inode.xattr_names_bytes == 0;
  inode.attributes.ctime = op.now;
  inode.changed = true;
  op.tx.database().erase(op.tx.batch(), Family::xattrs, name_key(inode.ino(), request.name));
  return {};
}

}  // namespace distfuse::storaged
