// SPDX-License-Identifier: Apache-2.0
#include "client/storage/changed_inodes.h"

#include <algorithm>

namespace distfuse::client {

namespace {

class Changed {
 public:
  Changed(const rpc::MetadataReply& reply, std::vector<ChangedInode>& found)
      : reply_(reply), found_(found) {}

  void operator()(const rpc::SetAttributes& set) { add(set.ino); }
  void operator()(const rpc::SetXattr& set) { add(set.ino); }
  void operator()(const rpc::RemoveXattr& remove) { add(remove.ino); }
  void operator()(const rpc::Create& create) { made_in(create.parent); }
  void operator()(const rpc::Symlink& symlink) { made_in(symlink.parent); }
  void operator()(const rpc::Link& link) { made_in(link.parent); }
  void operator()(const rpc::Rmdir& rmdir) { add(rmdir.parent); }
  void operator()(const rpc::Unlink& unlink) {
    add(unlink.parent);
    add(unlink.expect_ino);
  }
  void operator()(const rpc::Rename& rename) {
    add(rename.old_parent);
    add(rename.new_parent);
    add(rename.expect_source);
    add(rename.expect_replaced);
  }
  template <typename Other>
  void operator()(const Other&) {}

 private:
  void add(rpc::Ino ino, bool made = false) {
    const auto same = [ino](const ChangedInode& other) { return other.ino == ino; };
    if (ino != 0 && std::none_of(found_.begin(), found_.end(), same)) found_.push_back({ino, made});
  }
  void made_in(rpc::Ino parent) {
    add(parent);
    if (!reply_.attributes.empty()) add(reply_.attributes.front().ino, true);
  }

  const rpc::MetadataReply& reply_;
  std::vector<ChangedInode>& found_;
};

}  // namespace

std::vector<ChangedInode> changed_inodes(const rpc::MetadataRequest& request,
                                         const rpc::MetadataReply& reply) {
  std::vector<ChangedInode> found;
  std::visit(Changed(reply, found), request);
  return found;
}

}  // namespace distfuse::client
