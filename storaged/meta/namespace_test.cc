// SPDX-License-Identifier: Apache-2.0
// The namespace operations, errno by errno.
#include <sys/stat.h>

#include "storaged/meta/operations.h"
#include "storaged/meta/store_fixture.h"

namespace distfuse::storaged {
namespace {

using rpc::kRootIno;
using NamespaceTest = StoreFixture;

TEST_F(NamespaceTest, CreateGivesAttributesAndAName) {
  const auto reply = run(rpc::Create{kRootIno, "a", S_IFREG | 0640});
  ASSERT_EQ(reply.error, 0);
  ASSERT_EQ(reply.attributes.size(), 1U);
  const auto& a = reply.attributes[0];
  EXPECT_EQ(a.ino, 2U);
  EXPECT_EQ(a.mode, S_IFREG | 0640U);
  EXPECT_EQ(a.nlink, 1U);
  EXPECT_EQ(a.uid, 1000U);
  EXPECT_EQ(a.gid, 100U);
  EXPECT_EQ(a.size, 0U);
  EXPECT_EQ(a.first_target, 0U);
  EXPECT_EQ(a.mtime, a.ctime);
  EXPECT_EQ(a.btime, a.ctime);
  EXPECT_EQ(stat(2), a);
  EXPECT_EQ(lookup(kRootIno, "a"), 2U);
  EXPECT_EQ(stat(kRootIno).mtime, a.ctime);
  EXPECT_EQ(create(kRootIno, "b"), 3U);
}

TEST_F(NamespaceTest, CreateErrors) {
  const auto file = create(kRootIno, "f");
  EXPECT_EQ(error(rpc::Create{kRootIno, "f", S_IFREG | 0644}), EEXIST);
  EXPECT_EQ(error(rpc::Create{file, "x", S_IFREG | 0644}), ENOTDIR);
  EXPECT_EQ(error(rpc::Create{99, "x", S_IFREG | 0644}), ENOENT);
  EXPECT_EQ(error(rpc::Create{kRootIno, "x", S_IFLNK | 0777}), EINVAL);
  EXPECT_EQ(error(rpc::Create{kRootIno, "x", 0x10000 | S_IFREG}), EINVAL);
  EXPECT_EQ(error(rpc::Create{kRootIno, "x", S_IFREG, 0, true}, 0), EINVAL);
  EXPECT_EQ(error(rpc::Create{kRootIno, std::string(256, 'n'), S_IFREG}), ENAMETOOLONG);
  for (const auto& name : {std::string(), std::string("."), std::string(".."), std::string("a/b"),
                           std::string("a\0b", 3)}) {
    EXPECT_EQ(error(rpc::Create{kRootIno, name, S_IFREG}), EINVAL);
  }
  EXPECT_EQ(error(rpc::Create{kRootIno, std::string(255, 'n'), S_IFREG}), 0);
}

TEST_F(NamespaceTest, NodesOfEveryType) {
  for (const std::uint32_t type : std::initializer_list<std::uint32_t>{
           S_IFREG, S_IFDIR, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK}) {
    const auto reply = run(rpc::Create{kRootIno, std::to_string(type), type | 0600, 0x1234});
    ASSERT_EQ(reply.error, 0);
    EXPECT_EQ(reply.attributes[0].mode, type | 0600);
    EXPECT_EQ(reply.attributes[0].rdev, S_ISCHR(type) || S_ISBLK(type) ? 0x1234U : 0U);
  }
  EXPECT_EQ(stat(create(kRootIno, "typeless", 0600)).mode, S_IFREG | 0600U);
}

TEST_F(NamespaceTest, SetgidDirectoriesPassOnTheirGroup) {
  const auto dir = mkdir(kRootIno, "d");
  rpc::SetAttributes set{dir, rpc::SetAttributes::kMode | rpc::SetAttributes::kGid, {}, false};
  set.values.mode = 02775;
  set.values.gid = 777;
  ASSERT_EQ(error(set), 0);
  const auto file = stat(create(dir, "f"));
  EXPECT_EQ(file.gid, 777U);
  EXPECT_EQ(file.mode & S_ISGID, 0U);
  const auto sub = stat(mkdir(dir, "s"));
  EXPECT_EQ(sub.gid, 777U);
  EXPECT_EQ(sub.mode & S_ISGID, static_cast<std::uint32_t>(S_ISGID));
}

TEST_F(NamespaceTest, DirectoriesCountTheirSubdirectories) {
  const auto dir = mkdir(kRootIno, "d");
  EXPECT_EQ(stat(dir).nlink, 2U);
  EXPECT_EQ(stat(kRootIno).nlink, 3U);
  mkdir(dir, "s");
  EXPECT_EQ(stat(dir).nlink, 3U);
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "d", 0}), ENOTEMPTY);
  const auto reply = run(rpc::Rmdir{dir, "s", 0});
  EXPECT_EQ(reply.error, 0);
  EXPECT_EQ(reply.attributes.at(0).nlink, 0U);
  EXPECT_EQ(stat(dir).nlink, 2U);
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "d", 0}), 0);
  EXPECT_EQ(stat(kRootIno).nlink, 2U);
  EXPECT_EQ(stat(dir).nlink, 0U);
  pass_grace();
  EXPECT_EQ(stat(dir).ino, 0U);
}

TEST_F(NamespaceTest, RmdirErrors) {
  const auto file = create(kRootIno, "f");
  const auto dir = mkdir(kRootIno, "d");
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "f", 0}), ENOTDIR);
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "none", 0}), ENOENT);
  EXPECT_EQ(error(rpc::Rmdir{file, "x", 0}), ENOTDIR);
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "d", file}), ESTALE);
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "none", dir}), ESTALE);
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, ".", 0}), EINVAL);
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "d", dir}), 0);
}

TEST_F(NamespaceTest, UnlinkErrorsAndCounts) {
  const auto file = create(kRootIno, "f");
  mkdir(kRootIno, "d");
  EXPECT_EQ(error(rpc::Unlink{kRootIno, "d", 0}), EISDIR);
  EXPECT_EQ(error(rpc::Unlink{kRootIno, "none", 0}), ENOENT);
  EXPECT_EQ(error(rpc::Unlink{kRootIno, "f", file + 1}), ESTALE);
  ASSERT_EQ(error(rpc::Link{file, kRootIno, "g"}), 0);
  auto reply = run(rpc::Unlink{kRootIno, "f", file});
  EXPECT_EQ(reply.error, 0);
  EXPECT_EQ(reply.attributes.at(0).nlink, 1U);
  EXPECT_EQ(stat(file).nlink, 1U);
  EXPECT_TRUE(purges().empty());
  reply = run(rpc::Unlink{kRootIno, "g", file});
  EXPECT_EQ(reply.attributes.at(0).nlink, 0U);
  EXPECT_EQ(stat(file).nlink, 0U);
  pass_grace();
  EXPECT_EQ(stat(file).ino, 0U);
  ASSERT_EQ(purges().size(), 1U);
}

TEST_F(NamespaceTest, LinkErrors) {
  options_.max_links = 3;
  reopen();
  const auto file = create(kRootIno, "f");
  const auto dir = mkdir(kRootIno, "d");
  EXPECT_EQ(error(rpc::Link{dir, kRootIno, "x"}), EPERM);
  EXPECT_EQ(error(rpc::Link{99, kRootIno, "x"}), ENOENT);
  EXPECT_EQ(error(rpc::Link{file, kRootIno, "f"}), EEXIST);
  EXPECT_EQ(error(rpc::Link{file, file, "x"}), ENOTDIR);
  const auto before = stat(file);
  const auto reply = run(rpc::Link{file, dir, "x"});
  EXPECT_EQ(reply.attributes.at(0).nlink, 2U);
  EXPECT_GT(stat(file).ctime.ns, before.ctime.ns);
  EXPECT_EQ(stat(file).mtime, before.mtime);
  EXPECT_EQ(error(rpc::Link{file, dir, "y"}), 0);
  EXPECT_EQ(error(rpc::Link{file, dir, "z"}), EMLINK);
  // The root has nlink 3 with one subdirectory.
  EXPECT_EQ(error(rpc::Create{kRootIno, "e", S_IFDIR | 0755}), EMLINK);
}

TEST_F(NamespaceTest, InodeNumbersRunOut) {
  options_.max_ino = 3;
  reopen();
  EXPECT_EQ(create(kRootIno, "a"), 2U);
  EXPECT_EQ(create(kRootIno, "b"), 3U);
  EXPECT_EQ(error(rpc::Create{kRootIno, "c", S_IFREG}), ENOSPC);
  EXPECT_EQ(error(rpc::Symlink{kRootIno, "c", "t"}), ENOSPC);
}

TEST_F(NamespaceTest, InodeNumbersNeverComeAgain) {
  options_.ino_block = 4;
  reopen();
  rpc::Ino last = 0;
  for (int life = 0; life < 3; ++life) {
    for (int i = 0; i < 6; ++i) {
      const auto name = std::to_string(life) + "." + std::to_string(i);
      const auto ino = create(kRootIno, name);
      EXPECT_GT(ino, last);
      last = ino;
      EXPECT_EQ(error(rpc::Unlink{kRootIno, name, 0}), 0);
    }
    reopen();
  }
}

TEST_F(NamespaceTest, Symlinks) {
  const auto reply = run(rpc::Symlink{kRootIno, "s", "../target"});
  ASSERT_EQ(reply.error, 0);
  EXPECT_EQ(reply.attributes[0].mode, S_IFLNK | 0777U);
  EXPECT_EQ(reply.attributes[0].size, 9U);
  reopen();
  EXPECT_EQ(run(rpc::Readlink{reply.attributes[0].ino}).strings.at(0), "../target");
  EXPECT_EQ(error(rpc::Readlink{kRootIno}), EINVAL);
  EXPECT_EQ(error(rpc::Readlink{99}), ENOENT);
  EXPECT_EQ(error(rpc::Symlink{kRootIno, "s", "x"}), EEXIST);
  EXPECT_EQ(error(rpc::Symlink{kRootIno, "t", ""}), ENOENT);
  EXPECT_EQ(error(rpc::Symlink{kRootIno, "t", std::string(4096, 'x')}), ENAMETOOLONG);
  EXPECT_EQ(error(rpc::Symlink{kRootIno, "t", std::string("a\0b", 3)}), EINVAL);
  EXPECT_EQ(error(rpc::Symlink{kRootIno, "t", std::string(4095, 'x')}), 0);
}

TEST_F(NamespaceTest, LookupErrorsAndDots) {
  const auto file = create(kRootIno, "f");
  const auto dir = mkdir(kRootIno, "d");
  EXPECT_EQ(error(rpc::Lookup{kRootIno, "none"}), ENOENT);
  EXPECT_EQ(error(rpc::Lookup{file, "x"}), ENOTDIR);
  EXPECT_EQ(error(rpc::Lookup{99, "x"}), ENOENT);
  EXPECT_EQ(error(rpc::Lookup{kRootIno, std::string(256, 'x')}), ENAMETOOLONG);
  EXPECT_EQ(lookup(dir, "."), dir);
  EXPECT_EQ(lookup(dir, ".."), kRootIno);
  EXPECT_EQ(lookup(kRootIno, ".."), kRootIno);
}

// ---- rename

TEST_F(NamespaceTest, RenameMovesANameAndItsTimes) {
  const auto from = mkdir(kRootIno, "from");
  const auto to = mkdir(kRootIno, "to");
  const auto file = create(from, "f");
  const auto before = stat(file);
  const auto reply = run(rename_of(from, "f", to, "g"));
  EXPECT_EQ(reply.error, 0);
  EXPECT_TRUE(reply.attributes.empty());
  EXPECT_EQ(lookup(from, "f"), 0U);
  EXPECT_EQ(lookup(to, "g"), file);
  const auto after = stat(file);
  EXPECT_GT(after.ctime.ns, before.ctime.ns);
  EXPECT_EQ(after.mtime, before.mtime);
  EXPECT_EQ(stat(from).mtime, after.ctime);
  EXPECT_EQ(stat(to).mtime, after.ctime);
  EXPECT_EQ(stat(to).ctime, after.ctime);
}

TEST_F(NamespaceTest, RenameErrors) {
  const auto file = create(kRootIno, "f");
  const auto dir = mkdir(kRootIno, "d");
  const auto full = mkdir(kRootIno, "full");
  create(full, "x");
  EXPECT_EQ(error(rename_of(kRootIno, "none", kRootIno, "g")), ENOENT);
  EXPECT_EQ(error(rename_of(99, "f", kRootIno, "g")), ENOENT);
  EXPECT_EQ(error(rename_of(kRootIno, "f", 99, "g")), ENOENT);
  EXPECT_EQ(error(rename_of(kRootIno, "f", file, "g")), ENOTDIR);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "d")), EISDIR);
  EXPECT_EQ(error(rename_of(kRootIno, "d", kRootIno, "f")), ENOTDIR);
  EXPECT_EQ(error(rename_of(kRootIno, "d", kRootIno, "full")), ENOTEMPTY);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "d", rpc::Rename::kNoReplace)), EEXIST);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "none", rpc::Rename::kExchange)), ENOENT);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "g", 3)), EINVAL);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "g", 4)), EINVAL);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "")), EINVAL);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, std::string(256, 'x'))), ENAMETOOLONG);
  EXPECT_EQ(lookup(kRootIno, "f"), file);
  EXPECT_EQ(lookup(kRootIno, "d"), dir);
}

TEST_F(NamespaceTest, RenameChecksWhatTheClientBelieves) {
  const auto file = create(kRootIno, "f");
  const auto other = create(kRootIno, "g");
  auto wrong_source = rename_of(kRootIno, "f", kRootIno, "h");
  wrong_source.expect_source = other;
  EXPECT_EQ(error(wrong_source), ESTALE);
  auto not_there = rename_of(kRootIno, "f", kRootIno, "g");
  not_there.check_replaced = true;
  EXPECT_EQ(error(not_there), ESTALE);
  auto wrong_target = rename_of(kRootIno, "f", kRootIno, "g");
  wrong_target.expect_replaced = file;
  EXPECT_EQ(error(wrong_target), ESTALE);
  auto right = rename_of(kRootIno, "f", kRootIno, "g");
  right.expect_source = file;
  right.expect_replaced = other;
  right.check_replaced = true;
  const auto reply = run(right);
  EXPECT_EQ(reply.error, 0);
  EXPECT_EQ(reply.attributes.at(0).ino, other);
  EXPECT_EQ(reply.attributes.at(0).nlink, 0U);
}

TEST_F(NamespaceTest, RenameIntoOwnDescendant) {
  const auto a = mkdir(kRootIno, "a");
  const auto b = mkdir(a, "b");
  const auto c = mkdir(b, "c");
  EXPECT_EQ(error(rename_of(kRootIno, "a", a, "x")), EINVAL);
  EXPECT_EQ(error(rename_of(kRootIno, "a", c, "x")), EINVAL);
  EXPECT_EQ(error(rename_of(kRootIno, "a", b, "c", rpc::Rename::kExchange)), EINVAL);
  EXPECT_EQ(error(rename_of(b, "c", kRootIno, "a", rpc::Rename::kExchange)), EINVAL);
  EXPECT_EQ(error(rename_of(b, "c", kRootIno, "a")), ENOTEMPTY);
  // Two mounts that would each make a loop of the other's half: the second is refused.
  const auto d = mkdir(kRootIno, "d");
  EXPECT_EQ(error(rename_of(kRootIno, "d", c, "d")), 0);
  EXPECT_EQ(error(rename_of(kRootIno, "a", d, "a")), EINVAL);
  EXPECT_EQ(lookup(d, ".."), c);
}

TEST_F(NamespaceTest, RenameToTheSameInodeDoesNothing) {
  const auto file = create(kRootIno, "f");
  ASSERT_EQ(error(rpc::Link{file, kRootIno, "g"}), 0);
  const auto before = stat(file);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "f")), 0);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "g")), 0);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "g", rpc::Rename::kExchange)), 0);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "g", rpc::Rename::kNoReplace)), EEXIST);
  EXPECT_EQ(stat(file), before);
  EXPECT_EQ(lookup(kRootIno, "f"), file);
  EXPECT_EQ(lookup(kRootIno, "g"), file);
}

TEST_F(NamespaceTest, RenameReplacesAFileAndPurgesIt) {
  const auto file = create(kRootIno, "f");
  const auto old = create(kRootIno, "g");
  const auto reply = run(rename_of(kRootIno, "f", kRootIno, "g"));
  EXPECT_EQ(reply.attributes.at(0).ino, old);
  EXPECT_EQ(lookup(kRootIno, "g"), file);
  pass_grace();
  EXPECT_EQ(stat(old).ino, 0U);
  ASSERT_EQ(purges().size(), 1U);
  EXPECT_EQ(purges()[0].ino, old);
}

TEST_F(NamespaceTest, RenameMovesDirectoriesWithTheirCounts) {
  const auto from = mkdir(kRootIno, "from");
  const auto to = mkdir(kRootIno, "to");
  const auto dir = mkdir(from, "d");
  const auto empty = mkdir(to, "e");
  EXPECT_EQ(error(rename_of(from, "d", to, "e")), 0);
  EXPECT_EQ(stat(from).nlink, 2U);
  EXPECT_EQ(stat(to).nlink, 3U);
  pass_grace();
  EXPECT_EQ(stat(empty).ino, 0U);
  EXPECT_EQ(lookup(dir, ".."), to);
  EXPECT_EQ(error(rename_of(to, "e", from, "again")), 0);
  EXPECT_EQ(stat(from).nlink, 3U);
  EXPECT_EQ(stat(to).nlink, 2U);
  EXPECT_EQ(lookup(dir, ".."), from);
  const auto second = mkdir(from, "second");
  EXPECT_EQ(error(rename_of(from, "second", from, "again")), 0);
  EXPECT_EQ(stat(from).nlink, 3U);
  EXPECT_EQ(lookup(from, "again"), second);
}

TEST_F(NamespaceTest, ExchangeSwapsFileAndDirectory) {
  const auto a = mkdir(kRootIno, "a");
  const auto b = mkdir(kRootIno, "b");
  const auto dir = mkdir(a, "x");
  const auto file = create(b, "y");
  EXPECT_EQ(error(rename_of(a, "x", b, "y", rpc::Rename::kExchange)), 0);
  EXPECT_EQ(lookup(a, "x"), file);
  EXPECT_EQ(lookup(b, "y"), dir);
  EXPECT_EQ(lookup(dir, ".."), b);
  EXPECT_EQ(stat(a).nlink, 2U);
  EXPECT_EQ(stat(b).nlink, 3U);
  EXPECT_EQ(stat(file).ctime, stat(dir).ctime);
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "a", 0}), ENOTEMPTY);
  const auto listed = run(rpc::ReadDirectory{b, 0, 10, false});
  ASSERT_EQ(listed.entries.size(), 1U);
  EXPECT_EQ(listed.entries[0].type, static_cast<std::uint32_t>(S_IFDIR));
}

// ---- readdir

TEST_F(NamespaceTest, ReaddirIsStableUnderChange) {
  const auto dir = mkdir(kRootIno, "d");
  for (int i = 0; i < 20; ++i) create(dir, "f" + std::to_string(i));
  const auto first = run(rpc::ReadDirectory{dir, 0, 8, true});
  ASSERT_EQ(first.entries.size(), 8U);
  ASSERT_EQ(first.attributes.size(), 8U);
  EXPECT_FALSE(first.end_of_directory);
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(first.entries[i].ino, first.attributes[i].ino);
    EXPECT_GE(first.entries[i].cookie, kFirstCookie);
  }
  // What was given goes, what was not given goes, something new comes.
  EXPECT_EQ(error(rpc::Unlink{dir, first.entries[7].name, 0}), 0);
  EXPECT_EQ(error(rpc::Unlink{dir, "f15", 0}), 0);
  create(dir, "new");
  const auto rest = run(rpc::ReadDirectory{dir, first.entries[7].cookie, 100, false});
  EXPECT_TRUE(rest.end_of_directory);
  ASSERT_EQ(rest.entries.size(), 12U);
  EXPECT_EQ(rest.entries.front().name, "f8");
  EXPECT_EQ(rest.entries.back().name, "new");
  const auto none = run(rpc::ReadDirectory{dir, rest.entries.back().cookie, 100, false});
  EXPECT_TRUE(none.entries.empty());
  EXPECT_TRUE(none.end_of_directory);
}

TEST_F(NamespaceTest, ReaddirErrorsAndLimits) {
  const auto file = create(kRootIno, "f");
  EXPECT_EQ(error(rpc::ReadDirectory{file, 0, 10, false}), ENOTDIR);
  EXPECT_EQ(error(rpc::ReadDirectory{99, 0, 10, false}), ENOENT);
  EXPECT_EQ(error(rpc::ReadDirectory{kRootIno, 0, 0, false}), EINVAL);
  EXPECT_TRUE(run(rpc::ReadDirectory{kRootIno, UINT64_MAX, 10, false}).end_of_directory);
  const auto exact = run(rpc::ReadDirectory{kRootIno, 0, 1, false});
  EXPECT_EQ(exact.entries.size(), 1U);
  EXPECT_TRUE(exact.end_of_directory);
  const auto dir = mkdir(kRootIno, "big");
  for (std::size_t i = 0; i <= kMaxEntriesPerReply; ++i) create(dir, std::to_string(i));
  const auto capped = run(rpc::ReadDirectory{dir, 0, UINT32_MAX, true});
  EXPECT_EQ(capped.entries.size(), kMaxEntriesPerReply);
  EXPECT_FALSE(capped.end_of_directory);
}

}  // namespace
}  // namespace distfuse::storaged
