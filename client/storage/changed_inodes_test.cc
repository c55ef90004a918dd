// SPDX-License-Identifier: Apache-2.0
#include "client/storage/changed_inodes.h"

#include <gtest/gtest.h>

namespace distfuse::client {
namespace {

std::vector<std::pair<rpc::Ino, bool>> changed(const rpc::MetadataRequest& request,
                                               rpc::Ino answered = 0) {
  rpc::MetadataReply reply;
  if (answered != 0) reply.attributes.emplace_back().ino = answered;
  std::vector<std::pair<rpc::Ino, bool>> found;
  for (const auto& one : changed_inodes(request, reply)) found.emplace_back(one.ino, one.made);
  return found;
}

using Found = std::vector<std::pair<rpc::Ino, bool>>;

TEST(ChangedInodes, WhatIsMadeAndItsParent) {
  EXPECT_EQ(changed(rpc::Create{2, "a", S_IFREG | 0644, 0, false}, 7),
            (Found{{2, false}, {7, true}}));
  EXPECT_EQ(changed(rpc::Symlink{2, "a", "b"}, 7), (Found{{2, false}, {7, true}}));
  EXPECT_EQ(changed(rpc::Link{7, 2, "a"}, 7), (Found{{2, false}, {7, true}}));
}

TEST(ChangedInodes, NamesThatGoOrMove) {
  EXPECT_EQ(changed(rpc::Unlink{2, "a", 0, false}), (Found{{2, false}}));
  EXPECT_EQ(changed(rpc::Unlink{2, "a", 7, false}), (Found{{2, false}, {7, false}}));
  EXPECT_EQ(changed(rpc::Rmdir{2, "a", 0}), (Found{{2, false}}));
  EXPECT_EQ(changed(rpc::Rename{2, "a", 2, "b", 0, 7, 0}), (Found{{2, false}, {7, false}}));
  EXPECT_EQ(changed(rpc::Rename{2, "a", 3, "b", 0, 7, 8}),
            (Found{{2, false}, {3, false}, {7, false}, {8, false}}));
}

TEST(ChangedInodes, AttributesAndQuestions) {
  EXPECT_EQ(changed(rpc::SetAttributes{7, rpc::SetAttributes::kMode, {}}, 7), (Found{{7, false}}));
  EXPECT_EQ(changed(rpc::SetXattr{7, "user.a", "b", 0}), (Found{{7, false}}));
  EXPECT_EQ(changed(rpc::RemoveXattr{7, "user.a"}), (Found{{7, false}}));
  EXPECT_TRUE(changed(rpc::GetAttributes{{7}}, 7).empty());
  EXPECT_TRUE(changed(rpc::SyncMetadata{}).empty());
}

}  // namespace
}  // namespace distfuse::client
