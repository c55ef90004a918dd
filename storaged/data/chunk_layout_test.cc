// SPDX-License-Identifier: Apache-2.0
#include "storaged/data/chunk_layout.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "storaged/data/dirty_ledger.h"
#include "storaged/data/inode_order.h"
#include "storaged/data/usage.h"

namespace distfuse::storaged {
namespace {

using rpc::DataOp;

ChunkOperation op(DataOp kind, std::uint64_t chunk, std::uint32_t offset, std::uint32_t length) {
  static std::byte buffer[8];
  return {kind, 7, chunk, offset, length, 65536, 0, buffer};
}

TEST(ChunkLayout, NamesAreReadBackAndNothingElseIs) {
  for (std::uint64_t ino : {std::uint64_t{1}, std::uint64_t{0xabcdef}, kMaxIno}) {
    for (std::uint64_t chunk : {std::uint64_t{0}, std::uint64_t{77}, kMaxChunk}) {
      const ChunkPath path = chunk_path({ino, chunk});
      const std::string text = path.data();
      ASSERT_EQ(text.size(), 25U);
      EXPECT_EQ(text.substr(0, 3), directory_path(directory_of(ino)).data());
      EXPECT_EQ(parse_chunk_name(text.substr(4)), (ChunkKey{ino, chunk}));
    }
  }
  for (const char* name :
       {"", ".", "..", "0000000001", "0000000001.000000000", "0000000001-0000000000",
        "000000000A.0000000000", "+000000001.0000000000", "0000000001.00000000000",
        "000000000g.0000000000"}) {
    EXPECT_FALSE(parse_chunk_name(name)) << name;
  }
}

TEST(ChunkLayout, DirectoriesSpread) {
  std::set<std::uint32_t> seen;
  for (std::uint64_t ino = 1; ino <= 40960; ++ino) seen.insert(directory_of(ino));
  EXPECT_GT(seen.size(), 4080U);
  EXPECT_LT(*seen.rbegin(), kDirectories);
}

TEST(ChunkLayout, BadOperationsAreRefused) {
  EXPECT_EQ(check(op(DataOp::write, 0, 65528, 8)), 0);
  EXPECT_EQ(check(op(DataOp::write, 0, 65529, 8)), EINVAL);
  EXPECT_EQ(check(op(DataOp::read, 0, 0xffffffffU, 2)), EINVAL);
  EXPECT_EQ(check(op(DataOp::read, kMaxChunk + 1, 0, 8)), EINVAL);
  EXPECT_EQ(check(op(DataOp::truncate, 0, 65536, 0)), 0);
  EXPECT_EQ(check(op(DataOp::truncate, 0, 65537, 0)), EINVAL);
  EXPECT_EQ(check(op(DataOp::punch, 0, 0, 0)), EINVAL);
  EXPECT_EQ(check(op(DataOp::seek, 0, 0, 0)), EINVAL);  // neither data nor hole
  EXPECT_EQ(check(op(DataOp::fence, 0, 0, 0)), EINVAL);
  EXPECT_EQ(check(op(static_cast<DataOp>(99), 0, 0, 0)), EINVAL);
  auto bad = op(DataOp::read, 0, 0, 8);
  for (std::uint32_t size : {0U, 2048U, 65537U, 8U << 20}) {
    bad.chunk_size = size;
    EXPECT_EQ(check(bad), EINVAL) << size;
  }
  bad = op(DataOp::read, 0, 0, 8);
  bad.ino = 0;
  EXPECT_EQ(check(bad), EINVAL);
  bad.ino = kMaxIno + 1;
  EXPECT_EQ(check(bad), EINVAL);
  bad = op(DataOp::read, 0, 0, 8);
  bad.buffer = nullptr;
  EXPECT_EQ(check(bad), EINVAL);
}

bool meet(const ChunkOperation& a, const ChunkOperation& b) {
  EXPECT_EQ(conflict(range_of(a), range_of(b)), conflict(range_of(b), range_of(a)));
  return conflict(range_of(a), range_of(b));
}

TEST(ChunkLayout, ConflictsAreThoseThatTouchTheSameBytes) {
  const auto read = op(DataOp::read, 3, 0, 4096);
  const auto write = op(DataOp::write, 3, 0, 4096);
  EXPECT_FALSE(meet(read, read));
  EXPECT_TRUE(meet(read, write));
  EXPECT_FALSE(meet(write, op(DataOp::write, 3, 4096, 4096)));
  EXPECT_TRUE(meet(write, op(DataOp::write, 3, 4095, 1)));
  EXPECT_FALSE(meet(write, op(DataOp::write, 4, 0, 4096)));
  EXPECT_TRUE(meet(write, op(DataOp::truncate, 3, 65536, 0)));
  EXPECT_TRUE(meet(write, op(DataOp::truncate, 2, 0, 0)));
  EXPECT_FALSE(meet(write, op(DataOp::truncate, 4, 0, 0)));
  EXPECT_TRUE(meet(read, op(DataOp::remove, 0, 0, 0)));
  EXPECT_TRUE(meet(read, op(DataOp::punch, 3, 8192, 4096)));
  EXPECT_TRUE(meet(op(DataOp::seek, 3, 100, 0), op(DataOp::write, 3, 60000, 10)));
  EXPECT_FALSE(meet(op(DataOp::seek, 3, 4096, 0), write));
}

TEST(InodeOrder, EachWaitsForTheEarlierOnesInConflictOnly) {
  InodeOrder order;
  Ordered first{range_of(op(DataOp::write, 0, 0, 100))};
  Ordered cut{range_of(op(DataOp::truncate, 0, 0, 0))};
  Ordered other{range_of(op(DataOp::write, 0, 200, 100))};
  Ordered later{range_of(op(DataOp::read, 0, 0, 10))};
  std::vector<Ordered*> ready;
  EXPECT_TRUE(order.enter(first));
  EXPECT_FALSE(order.enter(cut));
  EXPECT_FALSE(order.enter(other));  // must not overtake the truncate
  EXPECT_FALSE(order.enter(later));
  order.leave(first, ready);
  EXPECT_EQ(ready, std::vector<Ordered*>{&cut});
  ready.clear();
  order.leave(cut, ready);
  EXPECT_EQ(ready, (std::vector<Ordered*>{&other, &later}));
  ready.clear();
  order.leave(later, ready);
  order.leave(other, ready);
  EXPECT_TRUE(ready.empty());
  EXPECT_TRUE(order.empty());
}

TEST(DirtyLedger, ErrorsAreReportedOnce) {
  DirtyLedger ledger;
  ledger.wrote({5, 1});
  ledger.wrote({5, 1});
  ledger.wrote({5, 2});
  EXPECT_EQ(ledger.chunks(), 2U);
  ledger.failed(5, EIO);
  EXPECT_EQ(ledger.take_error(5), EIO);
  EXPECT_EQ(ledger.take_error(5), 0);
  ledger.removed(5, 2);
  EXPECT_EQ(ledger.take(5), std::vector<std::uint64_t>{1});
  EXPECT_EQ(ledger.chunks(), 0U);
}

TEST(DirtyLedger, AChangeDuringADirectorySyncIsNotForgotten) {
  DirtyLedger ledger;
  ledger.changed_directory(9);
  const std::uint64_t upto = ledger.changes();
  ledger.changed_directory(9);
  ledger.synced_directory(9, upto);
  EXPECT_TRUE(ledger.directory_dirty(9));
  ledger.synced_directory(9, ledger.changes());
  EXPECT_FALSE(ledger.directory_dirty(9));
  EXPECT_FALSE(ledger.root_dirty());
}

TEST(Usage, AScanReplacesTheCheckpointAndHonoursChangesDuringIt) {
  auto usage = std::make_unique<Usage>(1000, 900);
  EXPECT_FALSE(usage->reserve(101));
  EXPECT_TRUE(usage->reserve(100));
  EXPECT_FALSE(usage->reserve(1));
  usage->release(100);
  usage->add(4, 50);
  EXPECT_EQ(usage->used(), 950U);
  const std::uint64_t began = usage->changes(4);
  usage->add(4, 10);
  EXPECT_FALSE(usage->scanned(4, began, 50));
  EXPECT_TRUE(usage->scanned(4, usage->changes(4), 60));
  usage->scan_complete();
  EXPECT_EQ(usage->used(), 60U);
  EXPECT_EQ(usage->available(), 940U);
}

}  // namespace
}  // namespace distfuse::storaged
