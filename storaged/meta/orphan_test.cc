// SPDX-License-Identifier: Apache-2.0
// Orphans: what still works on an inode that has no name and no registration, how long, and what a clock that jumps does to it.
#include <sys/stat.h>

#include <limits>

#include "storaged/meta/store_fixture.h"

namespace distfuse::storaged {
namespace {

using rpc::kRootIno;

class OrphanTest : public StoreFixture {
 protected:
  /// A regular file without a name, whose grace begins now.
  rpc::Ino orphan(const std::string& name = "f") {
    const auto ino = create(kRootIno, name);
    EXPECT_EQ(error(rpc::Unlink{kRootIno, name, ino}), 0);
    return ino;
  }
  bool exists(rpc::Ino ino) { return stat(ino).ino == ino; }
  void move_clock(std::chrono::nanoseconds by) {
    clock_.now += by.count();
    reap();
  }
};

TEST_F(OrphanTest, WithinTheGraceAllButNamesWorks) {
  const auto file = create(kRootIno, "f");
  ASSERT_EQ(error(rpc::SetXattr{file, "user.a", "1", 0}), 0);
  ASSERT_EQ(error(rpc::Unlink{kRootIno, "f", file}), 0);
  move_clock(kGrace / 2);
  EXPECT_EQ(stat(file).nlink, 0U);
  rpc::SetAttributes resize{file, rpc::SetAttributes::kSize, {}, false};
  resize.values.size = 77;
  EXPECT_EQ(error(resize), 0);
  EXPECT_EQ(run(rpc::GetXattr{file, "user.a"}).strings.at(0), "1");
  EXPECT_EQ(run(rpc::ListXattr{file}).strings.size(), 1U);
  EXPECT_EQ(error(rpc::SetXattr{file, "user.b", "2", 0}), 0);
  EXPECT_EQ(error(rpc::RemoveXattr{file, "user.b"}), 0);
  EXPECT_EQ(lookup(kRootIno, "f"), 0U);
  EXPECT_EQ(error(rpc::Link{file, kRootIno, "back"}), ENOENT);
  EXPECT_TRUE(purges().empty());
  EXPECT_EQ(store_->counters().orphans, 1U);
  move_clock(kGrace / 2);
  EXPECT_FALSE(exists(file));
  EXPECT_EQ(error(rpc::GetXattr{file, "user.a"}), ENOENT);
  EXPECT_EQ(store_->counters().orphans, 0U);
  ASSERT_EQ(purges().size(), 1U);
  EXPECT_EQ(purges()[0].size, 77U);
}

TEST_F(OrphanTest, AnOpenWithinTheGraceKeepsItUntilTheLastClose) {
  const auto file = orphan();
  move_clock(kGrace / 2);
  const auto opened = run(rpc::OpenFile{file});
  ASSERT_EQ(opened.error, 0);
  EXPECT_EQ(opened.attributes.at(0).nlink, 0U);
  ASSERT_EQ(error(rpc::OpenFile{file}, 2), 0);
  EXPECT_EQ(store_->counters().orphans, 0U);
  move_clock(10 * kGrace);
  reopen();
  move_clock(10 * kGrace);
  ASSERT_EQ(error(rpc::CloseFiles{{file}}), 0);
  EXPECT_EQ(store_->counters().orphans, 0U);
  ASSERT_EQ(error(rpc::CloseFiles{{file}}, 2), 0);
  EXPECT_EQ(store_->counters().orphans, 1U);
  move_clock(kGrace / 2);  // The grace began anew with the last close.
  EXPECT_TRUE(exists(file));
  ASSERT_EQ(error(rpc::OpenFile{file}, 2), 0);
  ASSERT_EQ(error(rpc::CloseFiles{{file}}, 2), 0);
  move_clock(kGrace / 2);
  EXPECT_TRUE(exists(file));
  move_clock(kGrace / 2);
  EXPECT_FALSE(exists(file));
}

TEST_F(OrphanTest, AnOpenAfterTheGraceFindsNothing) {
  const auto file = orphan();
  clock_.now += kGrace.count();
  EXPECT_EQ(error(rpc::OpenFile{file}),
            0);  // Over, but nobody has removed it: no reason to refuse.
  ASSERT_EQ(error(rpc::CloseFiles{{file}}), 0);
  pass_grace();
  EXPECT_EQ(error(rpc::OpenFile{file}), ENOENT);
}

TEST_F(OrphanTest, ClosesOfOthersDoNotLengthenTheGrace) {
  const auto file = orphan();
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(exists(file));
    ASSERT_EQ(error(rpc::CloseFiles{{file}}, 3), 0);
    move_clock(kGrace / 4);
  }
  EXPECT_FALSE(exists(file));
}

TEST_F(OrphanTest, EveryTypeHasItAndOnlyFilesLeaveChunks) {
  const auto dir = mkdir(kRootIno, "d");
  ASSERT_EQ(error(rpc::Rmdir{kRootIno, "d", dir}), 0);
  const auto link = run(rpc::Symlink{kRootIno, "l", "to"}).attributes.at(0).ino;
  ASSERT_EQ(error(rpc::Unlink{kRootIno, "l", link}), 0);
  const auto fifo = create(kRootIno, "p", S_IFIFO | 0644);
  ASSERT_EQ(error(rpc::Unlink{kRootIno, "p", fifo}), 0);
  EXPECT_TRUE(run(rpc::ReadDirectory{dir, 0, 10, true}).end_of_directory);
  EXPECT_EQ(error(rpc::Create{dir, "x", S_IFREG}), ENOENT);
  EXPECT_EQ(run(rpc::Readlink{link}).strings.at(0), "to");
  EXPECT_EQ(stat(fifo).nlink, 0U);
  pass_grace();
  for (const auto ino : {dir, link, fifo}) EXPECT_FALSE(exists(ino));
  EXPECT_TRUE(purges().empty());
  EXPECT_EQ(store_->counters().inodes, 1U);
}

TEST_F(OrphanTest, WhenSpaceIsShortATenthOfTheGraceIsLeft) {
  const auto file = orphan();
  clock_.now += kGrace.count() / 20;
  EXPECT_FALSE(reap(true));
  EXPECT_TRUE(exists(file));
  clock_.now += kGrace.count() / 20;
  EXPECT_FALSE(reap(false));
  EXPECT_TRUE(exists(file));
  EXPECT_FALSE(reap(true));
  EXPECT_FALSE(exists(file));
}

TEST_F(OrphanTest, TheGraceGoesOnAfterARestart) {
  const auto file = orphan();
  clock_.now += kGrace.count() / 2;
  reopen();
  reap();
  EXPECT_TRUE(exists(file));
  EXPECT_EQ(store_->counters().orphans, 1U);
  ASSERT_EQ(error(rpc::OpenFile{file}), 0);
  pass_grace();
  reopen();
  pass_grace();
  EXPECT_TRUE(exists(file));
  ASSERT_EQ(error(rpc::CloseFiles{{file}}), 0);
  reopen();
  clock_.now += 1000 * kGrace.count();  // It was down for long.
  reap();
  EXPECT_FALSE(exists(file));
  reopen();
  EXPECT_EQ(store_->counters().orphans, 0U);
  EXPECT_EQ(purges().size(), 1U);
}

TEST_F(OrphanTest, AClockSetBackEndsTheGraceOrLengthensItByLessThanItself) {
  const auto far = orphan("far");
  clock_.now -= 100 * kGrace.count();
  const auto present = orphan("present");
  reap();
  EXPECT_FALSE(exists(far));
  EXPECT_TRUE(exists(present));
  clock_.now -= kGrace.count() / 2;
  const auto last = orphan("last");
  reap();
  EXPECT_TRUE(exists(present));
  move_clock(kGrace * 3 / 2);
  EXPECT_FALSE(exists(present));
  EXPECT_FALSE(exists(last));
}

TEST_F(OrphanTest, TimesAtTheEndsOfTheScaleAreNoTrouble) {
  clock_.now = std::numeric_limits<std::int64_t>::min();
  const auto low = orphan("low");
  clock_.now = std::numeric_limits<std::int64_t>::max() - 1000;
  const auto high = orphan("high");
  reap();
  EXPECT_FALSE(exists(low));
  EXPECT_TRUE(exists(high));
  clock_.now = 0;
  reap();
  EXPECT_FALSE(exists(high));
}

TEST_F(OrphanTest, ARetriedRemovalDoesNotTouchTheGrace) {
  const auto file = create(kRootIno, "f");
  const auto context = next_context();
  const rpc::MetadataRequest request = rpc::Unlink{kRootIno, "f", file};
  ASSERT_EQ(store_->execute(context, request).error, 0);
  clock_.now += kGrace.count() / 2;
  ASSERT_EQ(store_->execute(context, request).error, 0);
  clock_.now += kGrace.count() / 2;
  reap();
  EXPECT_FALSE(exists(file));
}

TEST_F(OrphanTest, AFailedOperationOrphansNothing) {
  const auto file = create(kRootIno, "f");
  const auto dir = mkdir(kRootIno, "d");
  create(dir, "x");
  EXPECT_EQ(error(rpc::Rmdir{kRootIno, "d", dir}), ENOTEMPTY);
  EXPECT_EQ(error(rename_of(kRootIno, "f", kRootIno, "d")), EISDIR);
  EXPECT_EQ(store_->counters().orphans, 0U);
  pass_grace();
  EXPECT_TRUE(exists(file));
  EXPECT_TRUE(exists(dir));
}

}  // namespace
}  // namespace distfuse::storaged
