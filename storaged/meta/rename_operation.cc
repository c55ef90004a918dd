// SPDX-License-Identifier: Apache-2.0
// rename(2), RENAME_NOREPLACE and RENAME_EXCHANGE. Two mounts may rename at once on stale views of the tree; the checks that
// keep it a tree are therefore made here, on the parent pointers of the directories, and not only by each kernel.
#include <sys/stat.h>

#include "storaged/meta/operations.h"

namespace distfuse::storaged {
namespace {

struct Names {  ///< What the two names of a rename lead to.
  Inode* old_parent;
  Inode* new_parent;
  EntryRecord source;
  std::optional<EntryRecord> target;
};

/// `ino` is `directory` or above it. Error: EIO.
Result<bool> is_above(Operation& op, rpc::Ino ino, rpc::Ino directory) {
  while (directory != ino) {
    if (directory == rpc::kRootIno) return false;
    const auto parent = op.tx.stored_parent(directory);
    if (!parent.ok()) return parent.error();
    directory = *parent;
  }
  return true;
}

Status check_request(const rpc::Rename& request) {
  DISTFUSE_TRY(check_name(request.old_name));
  DISTFUSE_TRY(check_name(request.new_name));
  constexpr std::uint32_t kBoth = rpc::Rename::kNoReplace | rpc::Rename::kExchange;
  if ((request.flags & ~kBoth) != 0 || request.flags == kBoth) return fail(EINVAL);
  return {};
}

/// Finds both names and checks them against what the client believes.
Result<Names> resolve(Operation& op, const rpc::Rename& request) {
  const auto old_parent = op.tx.directory(request.old_parent);
  if (!old_parent.ok()) return old_parent.error();
  const auto new_parent = op.tx.directory(request.new_parent);
  if (!new_parent.ok()) return new_parent.error();
  const auto source = op.tx.entry(request.old_parent, request.old_name);
  if (!source.ok()) return source.error();
  const auto target = op.tx.entry(request.new_parent, request.new_name);
  if (!target.ok()) return target.error();
  const rpc::Ino source_ino = source->has_value() ? (*source)->ino : 0;
  const rpc::Ino target_ino = target->has_value() ? (*target)->ino : 0;
  if (request.expect_source != 0 && source_ino != request.expect_source) return fail(ESTALE);
  if ((request.check_replaced || request.expect_replaced != 0) &&
      target_ino != request.expect_replaced) {
    return fail(ESTALE);
  }
  if (source_ino == 0) return fail(ENOENT);
  if ((request.flags & rpc::Rename::kNoReplace) != 0 && target_ino != 0) return fail(EEXIST);
  if ((request.flags & rpc::Rename::kExchange) != 0 && target_ino == 0) return fail(ENOENT);
  return Names{*old_parent, *new_parent, **source, *target};
}

/// A directory leaves `from` for `to`.
void move_directory(Inode& directory, Inode& from, Inode& to) {
  --from.attributes.nlink;
  ++to.attributes.nlink;
  directory.parent = to.ino();
}

Status exchange(Operation& op, const rpc::Rename& request, const Names& names, Inode& source) {
  const auto found = op.tx.named_inode(request.new_parent, *names.target);
  if (!found.ok()) return found.error();
  Inode& target = **found;
  if (target.is_directory()) {
    const auto above = is_above(op, target.ino(), request.old_parent);
    if (!above.ok()) return above.error();
    if (*above) return fail(EINVAL);
  }
  const std::uint32_t limit = op.options.max_links;
  if (names.old_parent != names.new_parent && source.is_directory() != target.is_directory()) {
    const Inode& gains = source.is_directory() ? *names.new_parent : *names.old_parent;
    if (gains.attributes.nlink >= limit) return fail(EMLINK);
  }
  if (source.is_directory()) move_directory(source, *names.old_parent, *names.new_parent);
  if (target.is_directory()) move_directory(target, *names.new_parent, *names.old_parent);
  op.tx.put_entry(request.old_parent, request.old_name,
                  {target.ino(), target.type(), names.source.cookie});
  op.tx.put_entry(request.new_parent, request.new_name,
                  {source.ino(), source.type(), names.target->cookie});
  target.attributes.ctime = op.now;
  target.changed = true;
  return {};
}

Status check_replace(const Inode& source, const Inode& target) {
  if (target.is_directory() && !source.is_directory()) return fail(EISDIR);
  if (!target.is_directory() && source.is_directory()) return fail(ENOTDIR);
  if (target.is_directory() && target.entries != 0) return fail(ENOTEMPTY);
  return {};
}

/// The name keeps its cookie and leads to the source from now on.
Status replace(Operation& op, const rpc::Rename& request, const Names& names, Inode& source) {
  const auto found = op.tx.named_inode(request.new_parent, *names.target);
  if (!found.ok()) return found.error();
  Inode& target = **found;
  DISTFUSE_TRY(check_replace(source, target));
  erase_name(op, *names.old_parent, request.old_name, names.source);
  op.tx.put_entry(request.new_parent, request.new_name,
                  {source.ino(), source.type(), names.target->cookie});
  if (source.is_directory())
    source.parent = request.new_parent;  // One came, one went: nlink stays.
  return drop_name(op, target, request.unregister_replaced);
}

Status move(Operation& op, const rpc::Rename& request, const Names& names, Inode& source) {
  if (source.is_directory() && names.old_parent != names.new_parent &&
      names.new_parent->attributes.nlink >= op.options.max_links) {
    return fail(EMLINK);
  }
  erase_name(op, *names.old_parent, request.old_name, names.source);
  insert_name(op, *names.new_parent, request.new_name, source);
  return {};
}

}  // namespace

Status run(Operation& op, const rpc::Rename& request) {
  DISTFUSE_TRY(check_request(request));
  const auto names = resolve(op, request);
  if (!names.ok()) return names.error();
  if (names->target && names->target->ino == names->source.ino)
    return {};  // Two names of one inode.
  const auto found = op.tx.named_inode(request.old_parent, names->source);
  if (!found.ok()) return found.error();
  Inode& source = **found;
  if (source.is_directory()) {
    const auto above = is_above(op, source.ino(), request.new_parent);
    if (!above.ok()) return above.error();
    if (*above) return fail(EINVAL);
  }
  if ((request.flags & rpc::Rename::kExchange) != 0) {
    DISTFUSE_TRY(exchange(op, request, *names, source));
  } else if (names->target) {
    DISTFUSE_TRY(replace(op, request, *names, source));
  } else {
    DISTFUSE_TRY(move(op, request, *names, source));
  }
  touch(op, *names->old_parent);
  touch(op, *names->new_parent);
  source.attributes.ctime = op.now;
  source.changed = true;
  return {};
}

}  // namespace distfuse::storaged
