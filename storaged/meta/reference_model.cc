// SPDX-License-Identifier: Apache-2.0
#include "storaged/meta/reference_model.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>

namespace distfuse::storaged {

using namespace rpc;  // NOLINT: the model speaks of nothing else.

ReferenceModel::ReferenceModel(std::uint32_t uid, std::uint32_t gid, Timestamp made) {
  Node& root = nodes_[kRootIno];
  root.parent = kRootIno;
  root.attributes = {.ino = kRootIno,
                     .mode = S_IFDIR | 0755,
                     .nlink = 2,
                     .uid = uid,
                     .gid = gid,
                     .rdev = 0,
                     .size = 0,
                     .atime = made,
                     .mtime = made,
                     .ctime = made,
                     .btime = made,
                     .chunk_size = kDefaultChunkSize,
                     .first_target = 0,
                     .no_xattrs = true};
}

struct ReferenceModel::Call {
  ReferenceModel& model;
  const RequestContext& context;
  Timestamp now;
  const MetadataReply& seen;
  MetadataReply reply;

  static void require(bool condition, int code) {
    if (!condition) throw Failure{code};
  }
  Node& node(Ino ino) {
    require(model.nodes_.contains(ino), ENOENT);
    return model.nodes_.at(ino);
  }
  Node& directory(Ino ino, bool living = true) {
    Node& found = node(ino);
    require(S_ISDIR(found.attributes.mode), ENOTDIR);
    require(!living || found.attributes.nlink > 0, ENOENT);
    return found;
  }
  static bool is_directory(const Node& node) { return S_ISDIR(node.attributes.mode); }
  void modified(Node& node) { node.attributes.mtime = node.attributes.ctime = now; }
  void answer(const Node& node) { reply.attributes.push_back(node.attributes); }

  void link_in(Node& parent, const std::string& name, Node& child) {
    parent.names[name] = {child.attributes.ino, parent.next_cookie++};
    if (is_directory(child)) child.parent = parent.attributes.ino, ++parent.attributes.nlink;
    modified(parent);
  }
  void link_out(Node& parent, const std::string& name) {
    if (is_directory(node(parent.names.at(name).ino))) --parent.attributes.nlink;
    parent.names.erase(name);
    modified(parent);
  }
  void orphan(Ino ino) {
    Node& gone = node(ino);
    if (gone.attributes.nlink > 0 || !gone.open_by.empty() || gone.orphan_since) return;
    gone.orphan_since = now.ns;
  }
  void lose_name(Node& child, bool unregister) {
    child.attributes.nlink = is_directory(child) ? 0 : child.attributes.nlink - 1;
    child.attributes.ctime = now;
    answer(child);
    if (unregister) child.open_by.erase(context.session);
    orphan(child.attributes.ino);
  }
  Node& make(Node& parent, const std::string& name, std::uint32_t mode) {
    require(!parent.names.contains(name), EEXIST);
    const Ino ino = seen.attributes.size() == 1 ? seen.attributes[0].ino : 0;
    require(ino > model.last_ino_, EPROTO);  // The store must have made one, with a fresh number.
    model.last_ino_ = ino;
    Node& fresh = model.nodes_[ino];
    const bool inherits = (parent.attributes.mode & S_ISGID) != 0;
    fresh.attributes.ino = ino;
    fresh.attributes.mode =
        mode | (inherits && S_ISDIR(mode) ? static_cast<std::uint32_t>(S_ISGID) : 0U);
    fresh.attributes.nlink = S_ISDIR(mode) ? 2 : 1;
    fresh.attributes.uid = context.uid;
    fresh.attributes.gid = inherits ? parent.attributes.gid : context.gid;
    fresh.attributes.atime = fresh.attributes.btime = now;
    fresh.attributes.first_target = static_cast<std::uint32_t>(ino % 2);
    fresh.attributes.no_xattrs = true;
    modified(fresh);
    link_in(parent, name, fresh);
    return fresh;
  }

  void run(const Lookup& r) {
    const Node& parent = directory(r.parent, false);
    require(parent.names.contains(r.name), ENOENT);
    answer(node(parent.names.at(r.name).ino));
  }
  void run(const GetAttributes& r) {
    for (const Ino ino : r.inodes) {
      reply.attributes.push_back(model.nodes_.contains(ino) ? node(ino).attributes : Attributes{});
    }
  }
  void run(const SetAttributes& r) {
    Node& target = node(r.ino);
    Attributes& a = target.attributes;
    const auto has = [&](std::uint32_t field) { return (r.fields & field) != 0; };
    if (has(SetAttributes::kSize)) {
      require(!is_directory(target), EISDIR);
      require(S_ISREG(a.mode), EINVAL);
      const auto size =
          has(SetAttributes::kGrowOnly) ? std::max(a.size, r.values.size) : r.values.size;
      if (size != a.size) a.mtime = now;
      a.size = size;
    }
    if (r.kill_setid && S_ISREG(a.mode)) a.mode &= (a.mode & 010) != 0 ? ~06000U : ~04000U;
    if (has(SetAttributes::kMode)) a.mode = (a.mode & S_IFMT) | (r.values.mode & 07777);
    if (has(SetAttributes::kUid)) a.uid = r.values.uid;
    if (has(SetAttributes::kGid)) a.gid = r.values.gid;
    if (has(SetAttributes::kAtime)) a.atime = r.values.atime;
    if (has(SetAttributes::kMtime)) a.mtime = r.values.mtime;
    a.ctime = has(SetAttributes::kCtime) ? r.values.ctime : now;
    answer(target);
  }
  void run(const Create& r) {
    Node& fresh = make(directory(r.parent), r.name, r.mode);
    if (r.open) fresh.open_by.insert(context.session);
    answer(fresh);
  }
  void run(const Symlink& r) {
    Node& fresh = make(directory(r.parent), r.name, S_IFLNK | 0777);
    fresh.target = r.target;
    fresh.attributes.size = r.target.size();
    answer(fresh);
  }
  void run(const Readlink& r) {
    require(S_ISLNK(node(r.ino).attributes.mode), EINVAL);
    reply.strings.push_back(node(r.ino).target);
  }
  void run(const Link& r) {
    Node& parent = directory(r.parent);
    require(!parent.names.contains(r.name), EEXIST);
    Node& child = node(r.ino);
    require(!is_directory(child), EPERM);
    require(child.attributes.nlink > 0, ENOENT);
    ++child.attributes.nlink;
    child.attributes.ctime = now;
    link_in(parent, r.name, child);
    answer(child);
  }
  void remove(Ino parent_ino, const std::string& name, Ino expect, bool directories,
              bool unregister) {
    Node& parent = directory(parent_ino);
    const Ino ino = parent.names.contains(name) ? parent.names.at(name).ino : 0;
    require(expect == 0 || expect == ino, ESTALE);
    require(ino != 0, ENOENT);
    Node& child = node(ino);
    require(is_directory(child) == directories, directories ? ENOTDIR : EISDIR);
    require(child.names.empty(), ENOTEMPTY);
    link_out(parent, name);
    lose_name(child, unregister);
  }
  void run(const Unlink& r) { remove(r.parent, r.name, r.expect_ino, false, r.unregister_open); }
  void run(const Rmdir& r) { remove(r.parent, r.name, r.expect_ino, true, false); }

  bool within(Ino ino, Ino ancestor) {
    for (; ino != ancestor; ino = node(ino).parent) {
      if (ino == kRootIno) return false;
    }
    return true;
  }
  void run(const Rename& r) {
    require(r.flags < 3, EINVAL);
    Node& from = directory(r.old_parent);
    Node& to = directory(r.new_parent);
    const Ino source = from.names.contains(r.old_name) ? from.names.at(r.old_name).ino : 0;
    const Ino target = to.names.contains(r.new_name) ? to.names.at(r.new_name).ino : 0;
    require(r.expect_source == 0 || r.expect_source == source, ESTALE);
    require((!r.check_replaced && r.expect_replaced == 0) || r.expect_replaced == target, ESTALE);
    require(source != 0, ENOENT);
    require(r.flags != Rename::kNoReplace || target == 0, EEXIST);
    require(r.flags != Rename::kExchange || target != 0, ENOENT);
    if (source == target) return;
    require(!is_directory(node(source)) || !within(r.new_parent, source), EINVAL);
    if (r.flags == Rename::kExchange) {
      exchange(r, from, to, node(source), node(target));
    } else {
      if (target != 0) replace_checks(node(source), node(target));
      const auto cookie = target != 0 ? to.names.at(r.new_name).cookie : to.next_cookie++;
      link_out(from, r.old_name);
      if (target != 0 && is_directory(node(target))) --to.attributes.nlink;
      if (is_directory(node(source))) node(source).parent = r.new_parent, ++to.attributes.nlink;
      to.names[r.new_name] = {source, cookie};
    }
    node(source).attributes.ctime = now;
    modified(from);
    modified(to);
    if (r.flags != Rename::kExchange && target != 0) lose_name(node(target), r.unregister_replaced);
  }
  void replace_checks(const Node& source, const Node& target) {
    require(!is_directory(target) || is_directory(source), EISDIR);
    require(is_directory(target) || !is_directory(source), ENOTDIR);
    require(target.names.empty(), ENOTEMPTY);
  }
  void exchange(const Rename& r, Node& from, Node& to, Node& source, Node& target) {
    require(!is_directory(target) || !within(r.old_parent, target.attributes.ino), EINVAL);
    from.names.at(r.old_name).ino = target.attributes.ino;
    to.names.at(r.new_name).ino = source.attributes.ino;
    if (is_directory(source))
      source.parent = r.new_parent, --from.attributes.nlink, ++to.attributes.nlink;
    if (is_directory(target))
      target.parent = r.old_parent, --to.attributes.nlink, ++from.attributes.nlink;
    target.attributes.ctime = now;
  }

  void run(const ReadDirectory& r) {
    const Node& parent = directory(r.ino, false);
    std::map<std::uint64_t, DirectoryEntry> ordered;
    for (const auto& [name, to] : parent.names) {
      if (to.cookie <= r.after_cookie) continue;
      ordered[to.cookie] = {to.cookie, to.ino, node(to.ino).attributes.mode & S_IFMT, name};
    }
    for (const auto& [cookie, entry] : ordered) {
      if (reply.entries.size() == r.max_entries) return;
      reply.entries.push_back(entry);
      if (r.attributes) answer(node(entry.ino));
    }
    reply.end_of_directory = true;
  }
  void run(const OpenFile& r) {
    node(r.ino).open_by.insert(context.session);
    node(r.ino).orphan_since.reset();
    answer(node(r.ino));
  }
  void close(Ino ino, SessionId session) {
    if (!model.nodes_.contains(ino)) return;
    node(ino).open_by.erase(session);
    orphan(ino);
  }
  void run(const CloseFiles& r) {
    for (const Ino ino : r.inodes) close(ino, context.session);
  }
  void run(const GetXattr& r) {
    require(node(r.ino).xattrs.contains(r.name), ENODATA);
    reply.strings.push_back(node(r.ino).xattrs.at(r.name));
  }
  void run(const SetXattr& r) {
    Node& target = node(r.ino);
    require(r.flags != SetXattr::kCreate || !target.xattrs.contains(r.name), EEXIST);
    require(r.flags != SetXattr::kReplace || target.xattrs.contains(r.name), ENODATA);
    target.xattrs[r.name] = r.value;
    target.attributes.no_xattrs = false;
    target.attributes.ctime = now;
  }
  void run(const ListXattr& r) {
    for (const auto& [name, value] : node(r.ino).xattrs) reply.strings.push_back(name);
  }
  void run(const RemoveXattr& r) {
    require(node(r.ino).xattrs.erase(r.name) == 1, ENODATA);
    node(r.ino).attributes.ctime = now;
    node(r.ino).attributes.no_xattrs = node(r.ino).xattrs.empty();
  }
  void run(const StatFilesystem&) {
    for (const auto& [ino, each] : model.nodes_) reply.inodes_used += each.orphan_since ? 0 : 1;
  }
  void run(const SyncMetadata&) {}
  void run(const FenceSession& r) {
    model.fenced_.insert(r.session);
    std::set<Ino> all;
    for (const auto& [ino, each] : model.nodes_) all.insert(ino);
    for (const Ino ino : all) close(ino, r.session);
  }
};

MetadataReply ReferenceModel::execute(const RequestContext& context, const MetadataRequest& request,
                                      Timestamp now, const MetadataReply& seen) {
  Call call{*this, context, now, seen, {}};
  try {
    Call::require(!fenced_.contains(context.session), rpc::kFenced);
    std::visit([&](const auto& each) { call.run(each); }, request);
  } catch (const Failure& failure) {
    call.reply = {};
    call.reply.error = failure.code;
  }
  return call.reply;
}

void ReferenceModel::reap_orphans(Timestamp now, std::int64_t grace_ns) {
  for (auto each = nodes_.begin(); each != nodes_.end();) {
    const auto& [ino, node] = *each;
    if (!node.orphan_since || std::abs(now.ns - *node.orphan_since) < grace_ns) {
      ++each;
      continue;
    }
    if (S_ISREG(node.attributes.mode)) purges_[ino] = node.attributes.size;
    each = nodes_.erase(each);
  }
}

namespace {

std::string line(const Attributes& a) {
  return fmt::format(
      "{} mode {:o} nlink {} {}:{} rdev {} size {} times {} {} {} {} chunk {} first {} {}\n", a.ino,
      a.mode, a.nlink, a.uid, a.gid, a.rdev, a.size, a.atime.ns, a.mtime.ns, a.ctime.ns, a.btime.ns,
      a.chunk_size, a.first_target, a.no_xattrs ? "no xattrs" : "xattrs");
}
std::string entry_line(std::uint64_t cookie, Ino ino, const std::string& name) {
  return fmt::format("  @{} {} -> {}\n", cookie, name, ino);
}
std::string xattr_line(const std::string& name, const std::string& value) {
  return fmt::format("  {}={}\n", name, value);
}

}  // namespace

std::string ReferenceModel::dump() const {
  std::string text;
  for (const auto& [ino, node] : nodes_) {
    text += line(node.attributes);
    std::map<std::uint64_t, std::string> ordered;
    for (const auto& [name, to] : node.names)
      ordered[to.cookie] = entry_line(to.cookie, to.ino, name);
    for (const auto& [cookie, entry] : ordered) text += entry;
    for (const auto& [name, value] : node.xattrs) text += xattr_line(name, value);
    if (!node.target.empty()) text += "  -> " + node.target + "\n";
    if (S_ISDIR(node.attributes.mode) && node.attributes.nlink > 0)
      text += fmt::format("  .. {}\n", node.parent);
  }
  for (const auto& [ino, size] : purges_) text += fmt::format("purge {} size {}\n", ino, size);
  return text;
}

std::string dump_store(MetadataStore& store, Ino last_ino) {
  const auto ask = [&](const MetadataRequest& request) { return store.execute({}, request); };
  std::string text;
  for (Ino ino = 1; ino <= last_ino; ++ino) {
    const auto attributes = ask(GetAttributes{{ino}}).attributes.at(0);
    if (attributes.ino == 0) continue;
    text += line(attributes);
    const bool is_directory = S_ISDIR(attributes.mode);
    if (is_directory) {
      const auto listed = ask(ReadDirectory{ino, 0, 1000, false});
      for (const auto& entry : listed.entries) {
        text += entry_line(entry.cookie, entry.ino, entry.name);
        const auto found = ask(Lookup{ino, entry.name});
        if (found.error != 0 || found.attributes.at(0).ino != entry.ino)
          text += "  lookup and readdir differ\n";
      }
    }
    for (const auto& name : ask(ListXattr{ino}).strings) {
      text += xattr_line(name, ask(GetXattr{ino, name}).strings.at(0));
    }
    if (S_ISLNK(attributes.mode)) text += "  -> " + ask(Readlink{ino}).strings.at(0) + "\n";
    if (is_directory && attributes.nlink > 0) {
      text += fmt::format("  .. {}\n", ask(Lookup{ino, ".."}).attributes.at(0).ino);
    }
  }
  const auto jobs = store.pending_purges(1U << 20);
  for (const auto& job : *jobs) {
    text += fmt::format("purge {} size {}\n", job.ino, job.size);
  }
  return text;
}

// ---- requests

Ino RequestGenerator::ino() {
  if (one_in(4)) return kRootIno;
  if (one_in(8) || recent_.empty()) return below(last_ino_ + 2);
  return recent_[below(recent_.size())];
}

std::string RequestGenerator::name() {
  return std::string(1, static_cast<char>('a' + below(8)));
}

MetadataRequest RequestGenerator::next_change(std::uint64_t kind) {
  const Ino expect = one_in(8) ? ino() : 0;
  switch (kind) {
    case 0:
      return Unlink{ino(), name(), expect, one_in(2)};
    case 1:
      return Rmdir{ino(), name(), expect};
    case 2:
      return Link{ino(), ino(), name()};
    case 3:
      return Symlink{ino(), name(), name() + "/" + name()};
    case 4: {
      SetAttributes set{
          ino(), static_cast<std::uint32_t>(below(128) | (one_in(2) ? 512 : 0)), {}, one_in(4)};
      set.values.mode = static_cast<std::uint32_t>(below(010000));
      set.values.uid = static_cast<std::uint32_t>(below(5));
      set.values.gid = static_cast<std::uint32_t>(below(5));
      set.values.size = below(1 << 20);
      set.values.atime = {static_cast<std::int64_t>(below(100))};
      set.values.mtime = {static_cast<std::int64_t>(below(100))};
      set.values.ctime = {static_cast<std::int64_t>(below(100))};
      return set;
    }
    case 5:
      return OpenFile{ino()};
    case 6:
      return CloseFiles{{ino(), ino(), ino()}};
    case 7:
      return SetXattr{ino(), "user." + name(), name(), static_cast<std::uint32_t>(below(3))};
    case 8:
      return RemoveXattr{ino(), "user." + name()};
    case 9:
    case 10:
    case 11:
      return Rename{ino(),
                    name(),
                    ino(),
                    name(),
                    static_cast<std::uint32_t>(below(4)),
                    expect,
                    one_in(8) ? ino() : 0,
                    one_in(8),
                    one_in(2)};
    default:
      return Create{ino(), name(),
                    (one_in(2) ? S_IFDIR : S_IFREG) | static_cast<std::uint32_t>(below(010000)), 0,
                    one_in(3)};
  }
}

MetadataRequest RequestGenerator::next_look(std::uint64_t kind) {
  switch (kind) {
    case 0:
      return GetAttributes{{ino(), ino()}};
    case 1:
      return ReadDirectory{ino(), below(24), static_cast<std::uint32_t>(1 + below(9)), one_in(2)};
    case 2:
      return Readlink{ino()};
    case 3:
      return GetXattr{ino(), "user." + name()};
    case 4:
      return ListXattr{ino()};
    case 5:
      return StatFilesystem{};
    default:
      return Lookup{ino(), name()};
  }
}

MetadataRequest RequestGenerator::next() {
  return one_in(4) ? next_look(below(8)) : next_change(below(16));
}

void RequestGenerator::note(const MetadataReply& reply) {
  for (const auto& attributes : reply.attributes) {
    if (attributes.ino == 0) continue;
    last_ino_ = std::max(last_ino_, attributes.ino);
    recent_.push_back(attributes.ino);
    if (recent_.size() > kRecent) recent_.pop_front();
  }
}

}  // namespace distfuse::storaged
