// SPDX-License-Identifier: Apache-2.0
// At most once, registrations and orphans, fences, purges, opening again.
#include <sys/mount.h>
#include <sys/stat.h>

#include <fstream>
#include <thread>

#include "storaged/meta/store_fixture.h"

namespace distfuse::storaged {
namespace {

using rpc::kRootIno;
using SessionTest = StoreFixture;

// ---- at most once

TEST_F(SessionTest, ARetryIsAnsweredFromItsRecord) {
  const auto context = next_context();
  const rpc::MetadataRequest request = rpc::Create{kRootIno, "f", S_IFREG | 0644};
  const auto first = store_->execute(context, request);
  ASSERT_EQ(first.error, 0);
  EXPECT_EQ(store_->execute(context, request).attributes, first.attributes);
  reopen();
  const auto again = store_->execute(context, request);
  EXPECT_EQ(again.error, 0);
  EXPECT_EQ(again.attributes, first.attributes);
  EXPECT_EQ(store_->counters().replayed, 1U);
  EXPECT_EQ(stat(kRootIno).nlink, 2U);
}

TEST_F(SessionTest, AFailureIsRecordedToo) {
  create(kRootIno, "f");
  const auto context = next_context();
  const rpc::MetadataRequest request = rpc::Create{kRootIno, "f", S_IFREG | 0644};
  EXPECT_EQ(store_->execute(context, request).error, EEXIST);
  auto remover = next_context(2);
  EXPECT_EQ(store_->execute(remover, rpc::Unlink{kRootIno, "f", 0}).error, 0);
  reopen();
  EXPECT_EQ(store_->execute(context, request).error, EEXIST);
  EXPECT_EQ(lookup(kRootIno, "f"), 0U);
}

TEST_F(SessionTest, TheWatermarkDropsRecordsAndRefusesLateCopies) {
  const rpc::MetadataRequest make = rpc::Create{kRootIno, "f", S_IFREG | 0644};
  rpc::RequestContext context{.session = 1, .request_id = 1, .lowest_unanswered = 1};
  ASSERT_EQ(store_->execute(context, make).error, 0);
  context.request_id = 2;
  ASSERT_EQ(store_->execute(context, rpc::Unlink{kRootIno, "f", 0}).error, 0);
  EXPECT_EQ(store_->counters().reply_records, 2U);
  context = {.session = 1, .request_id = 3, .lowest_unanswered = 3};
  ASSERT_EQ(store_->execute(context, rpc::Create{kRootIno, "g", S_IFREG | 0644}).error, 0);
  EXPECT_EQ(store_->counters().reply_records, 1U);
  const rpc::RequestContext late{.session = 1, .request_id = 1, .lowest_unanswered = 1};
  EXPECT_EQ(store_->execute(late, make).error, ESTALE);
  reopen();
  EXPECT_EQ(store_->counters().reply_records, 1U);
  EXPECT_EQ(store_->execute(late, make).error, ESTALE);
  EXPECT_EQ(lookup(kRootIno, "f"), 0U);
}

TEST_F(SessionTest, RequestsOutOfOrderDoNotLowerTheWatermark) {
  rpc::RequestContext context{.session = 1, .request_id = 10, .lowest_unanswered = 5};
  ASSERT_EQ(store_->execute(context, rpc::Create{kRootIno, "a", S_IFREG}).error, 0);
  context = {.session = 1, .request_id = 6, .lowest_unanswered = 2};
  ASSERT_EQ(store_->execute(context, rpc::Create{kRootIno, "b", S_IFREG}).error, 0);
  reopen();
  context = {.session = 1, .request_id = 4, .lowest_unanswered = 2};
  EXPECT_EQ(store_->execute(context, rpc::Create{kRootIno, "c", S_IFREG}).error, ESTALE);
  context = {.session = 1, .request_id = 5, .lowest_unanswered = 5};
  EXPECT_EQ(store_->execute(context, rpc::Create{kRootIno, "c", S_IFREG}).error, 0);
  context = {.session = 1, .request_id = 11, .lowest_unanswered = 12};
  EXPECT_EQ(store_->execute(context, rpc::Create{kRootIno, "d", S_IFREG}).error, EINVAL);
}

TEST_F(SessionTest, RecordsOfOneSessionAreBounded) {
  options_.max_replies_per_session = 3;
  reopen();
  rpc::RequestContext context{.session = 1, .request_id = 0, .lowest_unanswered = 1};
  for (int i = 0; i < 3; ++i) {
    ++context.request_id;
    ASSERT_EQ(store_->execute(context, rpc::Create{kRootIno, std::to_string(i), S_IFREG}).error, 0);
  }
  ++context.request_id;
  EXPECT_EQ(store_->execute(context, rpc::Create{kRootIno, "x", S_IFREG}).error, ENOBUFS);
  EXPECT_EQ(run(rpc::Create{kRootIno, "other", S_IFREG}, 2).error, 0);
  context.lowest_unanswered = 2;
  EXPECT_EQ(store_->execute(context, rpc::Create{kRootIno, "x", S_IFREG}).error, 0);
}

TEST_F(SessionTest, ReadsAreNotRecorded) {
  lookup(kRootIno, "none");
  stat(kRootIno);
  EXPECT_EQ(store_->counters().reply_records, 0U);
}

// ---- registrations, orphans, purges

TEST_F(SessionTest, AnOpenFileOutlivesItsLastNameOnAnyClient) {
  const auto file = create(kRootIno, "f", S_IFREG | 0644, true);
  ASSERT_EQ(error(rpc::OpenFile{file}, 2), 0);
  const auto reply = run(rpc::Unlink{kRootIno, "f", file, true});
  EXPECT_EQ(reply.attributes.at(0).nlink, 0U);
  reopen();
  EXPECT_EQ(stat(file).ino, file);
  EXPECT_EQ(error(rpc::Link{file, kRootIno, "back"}), ENOENT);
  EXPECT_TRUE(purges().empty());
  rpc::SetAttributes resize{file, rpc::SetAttributes::kSize, {}, false};
  resize.values.size = 123;
  EXPECT_EQ(error(resize, 2), 0);
  ASSERT_EQ(error(rpc::CloseFiles{{file, file, 999}}, 2), 0);
  pass_grace();
  EXPECT_EQ(stat(file).ino, 0U);
  reopen();
  ASSERT_EQ(purges().size(), 1U);
  EXPECT_EQ(purges()[0], (PurgeJob{file, 123, rpc::kDefaultChunkSize, 0}));
  EXPECT_TRUE(store_->purged(file).ok());
  EXPECT_TRUE(store_->purged(file).ok());
  EXPECT_EQ(store_->counters().purges_pending, 0U);
  reopen();
  EXPECT_TRUE(purges().empty());
}

TEST_F(SessionTest, ClosingANamedFileKeepsIt) {
  const auto file = create(kRootIno, "f", S_IFREG | 0644, true);
  ASSERT_EQ(error(rpc::CloseFiles{{file}}), 0);
  EXPECT_EQ(stat(file).nlink, 1U);
  ASSERT_EQ(error(rpc::Unlink{kRootIno, "f", 0}), 0);
  pass_grace();
  EXPECT_EQ(purges().size(), 1U);
}

TEST_F(SessionTest, ARemovedDirectoryThatIsOpenTakesNothingNew) {
  const auto dir = mkdir(kRootIno, "d");
  ASSERT_EQ(error(rpc::OpenFile{dir}), 0);
  ASSERT_EQ(error(rpc::Rmdir{kRootIno, "d", dir}), 0);
  EXPECT_EQ(stat(dir).nlink, 0U);
  EXPECT_EQ(error(rpc::Create{dir, "x", S_IFREG}), ENOENT);
  create(kRootIno, "f");
  EXPECT_EQ(error(rename_of(kRootIno, "f", dir, "x")), ENOENT);
  EXPECT_TRUE(run(rpc::ReadDirectory{dir, 0, 10, true}).end_of_directory);
  ASSERT_EQ(error(rpc::CloseFiles{{dir}}), 0);
  pass_grace();
  EXPECT_EQ(stat(dir).ino, 0U);
  EXPECT_TRUE(purges().empty());
}

TEST_F(SessionTest, RenameOverAnOpenFileOrphansIt) {
  const auto old = create(kRootIno, "old", S_IFREG | 0644, true);
  create(kRootIno, "new");
  ASSERT_EQ(error(rename_of(kRootIno, "new", kRootIno, "old")), 0);
  EXPECT_EQ(stat(old).nlink, 0U);
  const auto second = create(kRootIno, "second", S_IFREG | 0644, true);
  create(kRootIno, "third");
  auto rename = rename_of(kRootIno, "third", kRootIno, "second");
  rename.unregister_replaced = true;
  ASSERT_EQ(error(rename), 0);
  pass_grace();
  EXPECT_EQ(stat(second).ino, 0U);
  EXPECT_EQ(stat(old).ino, old);
}

// ---- fences

TEST_F(SessionTest, AFencedSessionIsRefusedForEverAndItsOpensAreGone) {
  const auto orphan = create(kRootIno, "orphan", S_IFREG | 0644, true);
  const auto shared = create(kRootIno, "shared", S_IFREG | 0644, true);
  const auto named = create(kRootIno, "named", S_IFREG | 0644, true);
  ASSERT_EQ(error(rpc::OpenFile{shared}, 2), 0);
  ASSERT_EQ(error(rpc::Unlink{kRootIno, "orphan", 0}), 0);
  ASSERT_EQ(error(rpc::Unlink{kRootIno, "shared", 0}), 0);
  EXPECT_EQ(error(rpc::FenceSession{0}, 0), EINVAL);
  EXPECT_EQ(error(rpc::FenceSession{1}, 0), 0);
  EXPECT_EQ(error(rpc::FenceSession{1}, 0), 0);
  EXPECT_EQ(run(rpc::GetAttributes{{orphan}}, 2).attributes.at(0).ino, orphan);
  pass_grace();
  for (int life = 0; life < 2; ++life) {
    EXPECT_EQ(error(rpc::Lookup{kRootIno, "named"}, 1), rpc::kFenced);
    EXPECT_EQ(error(rpc::Create{kRootIno, "x", S_IFREG}, 1), rpc::kFenced);
    EXPECT_EQ(store_->counters().fenced_sessions, 1U);
    EXPECT_EQ(run(rpc::GetAttributes{{orphan}}, 2).attributes.at(0).ino, 0U);
    EXPECT_EQ(run(rpc::GetAttributes{{shared}}, 2).attributes.at(0).ino, shared);
    EXPECT_EQ(run(rpc::GetAttributes{{named}}, 2).attributes.at(0).ino, named);
    reopen();
  }
  ASSERT_EQ(purges().size(), 1U);
  EXPECT_EQ(purges()[0].ino, orphan);
  EXPECT_EQ(error(rpc::FenceSession{2}, 0), 0);
  pass_grace();
  EXPECT_EQ(purges().size(), 2U);
  EXPECT_EQ(store_->counters().reply_records, 0U);
}

TEST_F(SessionTest, FencesOfLivesOfLockdDoNotAddUpAndNobodyIsTakenBack) {
  constexpr rpc::SessionId kLife = rpc::SessionId{1} << 32;
  for (rpc::SessionId life = 1; life <= 5; ++life) {
    for (rpc::SessionId i = 1; i <= 50; ++i)
      if (i != 7 && i != 8) {
        EXPECT_EQ(error(rpc::FenceSession{life * kLife + i}, 0), 0);
      }
    ASSERT_EQ(error(rpc::Lookup{kRootIno, "none"}, life * kLife + 8), ENOENT);
    const std::vector<rpc::SessionId> living{(life - 1) * kLife + 7, life * kLife + 7,
                                             life * kLife + 8};
    ASSERT_TRUE(store_->cover_fences(life * kLife + 50, living).ok());
    // An older list, one of a lockd without leases: nothing changes.
    const std::vector<rpc::SessionId> lie{life * kLife + 1};
    ASSERT_TRUE(store_->cover_fences(life * kLife + 1, lie).ok());
    ASSERT_TRUE(store_->cover_fences(0, {}).ok());
    ASSERT_EQ(error(rpc::FenceSession{(life - 1) * kLife + 7}, 0), 0);
    ASSERT_EQ(error(rpc::FenceSession{life * kLife + 8}, 0), 0);
    EXPECT_LE(store_->counters().fenced_sessions, 4U);
    reopen();
    EXPECT_LE(store_->counters().fenced_sessions, 4U);
    for (rpc::SessionId past = 1; past <= life; ++past)
      for (rpc::SessionId i = 1; i <= 50; ++i)
        ASSERT_EQ(error(rpc::Lookup{kRootIno, "none"}, past * kLife + i),
                  past == life && i == 7 ? ENOENT : rpc::kFenced)
            << life << " " << past << " " << i;
    ASSERT_EQ(error(rpc::Lookup{kRootIno, "none"}, life * kLife + 51), ENOENT) << "began later";
  }
}

TEST_F(SessionTest, TheLatestIncarnationOfLockdIsRemembered) {
  EXPECT_EQ(store_->incarnation(), 0U);
  ASSERT_TRUE(store_->note_incarnation(7).ok());
  ASSERT_TRUE(store_->note_incarnation(3).ok());
  EXPECT_EQ(store_->incarnation(), 7U);
  reopen();
  EXPECT_EQ(store_->incarnation(), 7U);
}

TEST_F(SessionTest, AFenceTakesMoreRegistrationsThanOneBatchHolds) {
  for (int i = 0; i < 2500; ++i) create(kRootIno, std::to_string(i), S_IFREG | 0644, true);
  for (int i = 0; i < 2500; ++i) ASSERT_EQ(error(rpc::Unlink{kRootIno, std::to_string(i), 0}), 0);
  EXPECT_EQ(store_->counters().inodes, 2501U);
  EXPECT_EQ(error(rpc::FenceSession{1}, 0), 0);
  EXPECT_EQ(store_->counters().inodes, 2501U);
  EXPECT_EQ(store_->counters().orphans, 2500U);
  clock_.now += kGrace.count();
  int calls = 1;  // Each takes a part, so that the owner thread can do other things in between.
  while (reap()) ++calls;
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(store_->counters().inodes, 1U);
  EXPECT_EQ(store_->counters().orphans, 0U);
  EXPECT_EQ(store_->counters().purges_pending, 2500U);
  EXPECT_EQ((*store_->pending_purges(7)).size(), 7U);
}

// ---- durability and opening

TEST_F(SessionTest, SyncRunsBesideTheOwner) {
  std::atomic<bool> stop = false;
  std::thread syncer([&] {
    while (!stop) EXPECT_TRUE(store_->sync().ok());
  });
  for (int i = 0; i < 2000; ++i) create(kRootIno, std::to_string(i));
  stop = true;
  syncer.join();
  EXPECT_TRUE(store_->sync().ok());
  const auto syncs = store_->counters().syncs;
  EXPECT_GT(syncs, 0U);
  EXPECT_TRUE(store_->sync().ok());
  EXPECT_EQ(store_->counters().syncs, syncs);  // Nothing new: no trip to the disk.
  EXPECT_EQ(error(rpc::SyncMetadata{}), 0);
}

TEST_F(SessionTest, AnotherClusterOrASecondProcessIsRefused) {
  auto other = options_;
  EXPECT_EQ(open_rocksdb_metadata_store(other).error().code, EBUSY);
  store_.reset();
  other.cluster_id = std::string(32, 'f');
  const auto refused = open_rocksdb_metadata_store(other);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, EINVAL);
  EXPECT_NE(refused.error().message.find("belongs to cluster " + kTestCluster), std::string::npos);
}

TEST_F(SessionTest, ADamagedStoreSaysSo) {
  create(kRootIno, "f");
  store_.reset();
  for (const auto& entry : std::filesystem::directory_iterator(options_.directory + "/db")) {
    if (entry.path().filename().string().starts_with("MANIFEST"))
      std::filesystem::resize_file(entry.path(), 10);
  }
  const auto opened = open_rocksdb_metadata_store(options_);
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find(options_.directory), std::string::npos);
}

TEST_F(SessionTest, ATornLogTailIsNoDamage) {
  create(kRootIno, "f");
  store_.reset();
  for (const auto& entry : std::filesystem::directory_iterator(options_.directory + "/db")) {
    if (entry.path().extension() == ".log") std::ofstream(entry.path(), std::ios::app) << "torn";
  }
  reopen();
  EXPECT_EQ(lookup(kRootIno, "f"), 2U);
}

TEST_F(SessionTest, AFullDiskRefusesChangesAndRecovers) {
  TemporaryDirectory disk;
  if (mount("tmpfs", disk.path().c_str(), "tmpfs", 0, "size=24m") != 0)
    GTEST_SKIP() << "needs the right to mount";
  options_.directory = disk.path() + "/store";
  reopen();
  const auto keeper = create(kRootIno, "keeper");
  const std::string ballast = disk.path() + "/ballast";
  std::ofstream(ballast) << std::string(4 << 20, 'b');
  int code = 0;
  int made = 0;
  while (code == 0 && made < 100'000) {
    code = error(rpc::SetXattr{keeper, "user.x", std::string(60'000, 'v'), 0});
    ++made;
  }
  EXPECT_EQ(code, ENOSPC);
  EXPECT_EQ(lookup(kRootIno, "keeper"), keeper);
  EXPECT_NE(error(rpc::Create{kRootIno, "refused", S_IFREG}), 0);
  EXPECT_EQ(lookup(kRootIno, "refused"), 0U);
  std::filesystem::remove(ballast);
  for (int i = 0; i < 100 && code != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    code = error(rpc::SetXattr{keeper, "user.y", "after", 0});
  }
  EXPECT_EQ(code, 0);
  reopen();
  EXPECT_EQ(run(rpc::GetXattr{keeper, "user.y"}).strings.at(0), "after");
  store_.reset();
  EXPECT_EQ(umount(disk.path().c_str()), 0);
}

}  // namespace
}  // namespace distfuse::storaged
