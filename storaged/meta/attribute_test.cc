// SPDX-License-Identifier: Apache-2.0
// setattr, xattrs, statfs.
#include <sys/stat.h>

#include "storaged/meta/operations.h"
#include "storaged/meta/store_fixture.h"

namespace distfuse::storaged {
namespace {

using rpc::kRootIno;
using Set = rpc::SetAttributes;

class AttributeTest : public StoreFixture {
 protected:
  rpc::MetadataReply set(rpc::Ino ino, std::uint32_t fields, const rpc::Attributes& values,
                         bool kill = false) {
    return run(Set{ino, fields, values, kill});
  }
  static rpc::Attributes size_of(std::uint64_t size) {
    rpc::Attributes values;
    values.size = size;
    return values;
  }
};

TEST_F(AttributeTest, ModeOwnerAndCtime) {
  const auto file = create(kRootIno, "f");
  const auto before = stat(file);
  rpc::Attributes values;
  values.mode = S_IFDIR | 04711;  // The type is not the client's to set.
  values.uid = 7;
  values.gid = 8;
  const auto after = set(file, Set::kMode | Set::kUid | Set::kGid, values).attributes.at(0);
  EXPECT_EQ(after.mode, S_IFREG | 04711U);
  EXPECT_EQ(after.uid, 7U);
  EXPECT_EQ(after.gid, 8U);
  EXPECT_GT(after.ctime.ns, before.ctime.ns);
  EXPECT_EQ(after.mtime, before.mtime);
  EXPECT_EQ(stat(file), after);
}

TEST_F(AttributeTest, Times) {
  const auto file = create(kRootIno, "f");
  rpc::Attributes values;
  values.atime = {-5};
  values.mtime = {6};
  values.ctime = {7};
  const auto given = set(file, Set::kAtime | Set::kMtime | Set::kCtime, values).attributes.at(0);
  EXPECT_EQ(given.atime.ns, -5);
  EXPECT_EQ(given.mtime.ns, 6);
  EXPECT_EQ(given.ctime.ns, 7);
  const auto now = set(file, Set::kAtimeNow | Set::kMtimeNow, {}).attributes.at(0);
  EXPECT_EQ(now.atime, now.mtime);
  EXPECT_EQ(now.atime, now.ctime);
  EXPECT_GT(now.atime.ns, 7);
}

TEST_F(AttributeTest, SizeAndGrowOnly) {
  const auto file = create(kRootIno, "f");
  const auto grown = set(file, Set::kSize, size_of(100)).attributes.at(0);
  EXPECT_EQ(grown.size, 100U);
  EXPECT_EQ(grown.mtime, grown.ctime);
  const auto kept = set(file, Set::kSize | Set::kGrowOnly, size_of(50)).attributes.at(0);
  EXPECT_EQ(kept.size, 100U);
  EXPECT_EQ(kept.mtime, grown.mtime);
  EXPECT_EQ(set(file, Set::kSize | Set::kGrowOnly, size_of(150)).attributes.at(0).size, 150U);
  EXPECT_EQ(set(file, Set::kSize, size_of(10)).attributes.at(0).size, 10U);
  EXPECT_EQ(set(file, Set::kSize, size_of(kMaxFileSize)).error, 0);
  EXPECT_EQ(set(file, Set::kSize, size_of(kMaxFileSize + 1)).error, EFBIG);
  EXPECT_EQ(set(kRootIno, Set::kSize, size_of(1)).error, EISDIR);
  EXPECT_EQ(set(create(kRootIno, "p", S_IFIFO | 0600), Set::kSize, size_of(1)).error, EINVAL);
  EXPECT_EQ(set(file, 1U << 20, {}).error, EINVAL);
  EXPECT_EQ(set(99, Set::kMode, {}).error, ENOENT);
}

TEST_F(AttributeTest, KillSetid) {
  const auto with_execute = create(kRootIno, "a", S_IFREG | 06775);
  EXPECT_EQ(set(with_execute, 0, {}, true).attributes.at(0).mode, S_IFREG | 0775U);
  const auto without = create(kRootIno, "b", S_IFREG | 06765);
  EXPECT_EQ(set(without, 0, {}, true).attributes.at(0).mode, S_IFREG | 02765U);
  const auto dir = create(kRootIno, "d", S_IFDIR | 06775);
  EXPECT_EQ(set(dir, 0, {}, true).attributes.at(0).mode, S_IFDIR | 06775U);
}

TEST_F(AttributeTest, ManyInodesAtOnce) {
  const auto file = create(kRootIno, "f");
  const auto reply = run(rpc::GetAttributes{{kRootIno, 99, file, kRootIno}});
  ASSERT_EQ(reply.attributes.size(), 4U);
  EXPECT_EQ(reply.attributes[0].ino, kRootIno);
  EXPECT_EQ(reply.attributes[1].ino, 0U);
  EXPECT_EQ(reply.attributes[2].ino, file);
  EXPECT_EQ(reply.attributes[3], reply.attributes[0]);
  EXPECT_EQ(run(rpc::GetAttributes{std::vector<rpc::Ino>(1025, 1)}).error, EINVAL);
}

TEST_F(AttributeTest, XattrsAreSetReplacedListedAndRemoved) {
  const auto file = create(kRootIno, "f");
  EXPECT_EQ(error(rpc::GetXattr{file, "user.a"}), ENODATA);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.a", "1", rpc::SetXattr::kReplace}), ENODATA);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.a", "1", rpc::SetXattr::kCreate}), 0);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.a", "2", rpc::SetXattr::kCreate}), EEXIST);
  const auto before = stat(file);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.a", std::string("\0two", 4), rpc::SetXattr::kReplace}),
            0);
  EXPECT_GT(stat(file).ctime.ns, before.ctime.ns);
  EXPECT_EQ(error(rpc::SetXattr{file, "trusted.empty", "", 0}), 0);
  reopen();
  EXPECT_EQ(run(rpc::GetXattr{file, "user.a"}).strings.at(0), std::string("\0two", 4));
  EXPECT_EQ(run(rpc::GetXattr{file, "trusted.empty"}).strings.at(0), "");
  EXPECT_EQ(run(rpc::ListXattr{file}).strings,
            (std::vector<std::string>{"trusted.empty", "user.a"}));
  EXPECT_EQ(error(rpc::RemoveXattr{file, "user.a"}), 0);
  EXPECT_EQ(error(rpc::RemoveXattr{file, "user.a"}), ENODATA);
  EXPECT_EQ(run(rpc::ListXattr{file}).strings.size(), 1U);
}

TEST_F(AttributeTest, XattrLimits) {
  const auto file = create(kRootIno, "f");
  EXPECT_EQ(error(rpc::SetXattr{file, "user.a", "", 4}), EINVAL);
  EXPECT_EQ(error(rpc::SetXattr{file, "", "", 0}), ERANGE);
  EXPECT_EQ(error(rpc::SetXattr{file, "user." + std::string(251, 'x'), "", 0}), ERANGE);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.", "", 0}), EOPNOTSUPP);
  EXPECT_EQ(error(rpc::SetXattr{file, "system.posix_acl_access", "", 0}), 0);
  EXPECT_EQ(error(rpc::RemoveXattr{file, "system.posix_acl_access"}), 0);
  EXPECT_EQ(error(rpc::SetXattr{file, "system.other", "", 0}), EOPNOTSUPP);
  EXPECT_EQ(error(rpc::SetXattr{file, std::string("user.\0", 6), "", 0}), EINVAL);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.big", std::string(65537, 'x'), 0}), E2BIG);
  EXPECT_EQ(error(rpc::SetXattr{99, "user.a", "", 0}), ENOENT);
  EXPECT_EQ(error(rpc::ListXattr{99}), ENOENT);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(
        error(rpc::SetXattr{file, "user.big" + std::to_string(i), std::string(65536, 'x'), 0}), 0);
  }
  EXPECT_EQ(error(rpc::SetXattr{file, "user.more", "x", 0}), ENOSPC);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.big0", "x", 0}), 0);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.more", "x", 0}), 0);
}

TEST_F(AttributeTest, XattrNamesFitOneListing) {
  const auto file = create(kRootIno, "f");
  int set = 0;
  int code = 0;
  while ((code = error(rpc::SetXattr{
              file, "user." + std::string(245, 'x') + std::to_string(10000 + set), "", 0})) == 0) {
    ++set;
  }
  EXPECT_EQ(code, ENOSPC);
  EXPECT_EQ(set, 65536 / 256);
  EXPECT_EQ(run(rpc::ListXattr{file}).strings.size(), 256U);
}

TEST_F(AttributeTest, XattrsGoWithTheInode) {
  const auto file = create(kRootIno, "f");
  ASSERT_EQ(error(rpc::SetXattr{file, "user.a", "1", 0}), 0);
  ASSERT_EQ(error(rpc::Unlink{kRootIno, "f", 0}), 0);
  EXPECT_EQ(run(rpc::GetXattr{file, "user.a"}).strings.at(0), "1");
  pass_grace();
  EXPECT_EQ(error(rpc::GetXattr{file, "user.a"}), ENOENT);
}

TEST_F(AttributeTest, StatfsCountsInodes) {
  EXPECT_EQ(run(rpc::StatFilesystem{}).inodes_used, 1U);
  create(kRootIno, "f", S_IFREG | 0644, true);
  mkdir(kRootIno, "d");
  reopen();
  EXPECT_EQ(run(rpc::StatFilesystem{}).inodes_used, 3U);
  ASSERT_EQ(error(rpc::Unlink{kRootIno, "f", 0}), 0);
  EXPECT_EQ(run(rpc::StatFilesystem{}).inodes_used, 3U);  // Still open.
  ASSERT_EQ(error(rpc::CloseFiles{{2}}), 0);
  EXPECT_EQ(run(rpc::StatFilesystem{}).inodes_used, 2U);  // At once, whatever the grace.
  EXPECT_EQ(store_->counters().inodes, 3U);
  reopen();
  EXPECT_EQ(run(rpc::StatFilesystem{}).inodes_used, 2U);
  pass_grace();
  EXPECT_EQ(run(rpc::StatFilesystem{}).inodes_used, 2U);
  EXPECT_EQ(store_->counters().inodes, 2U);
}

}  // namespace
}  // namespace distfuse::storaged
