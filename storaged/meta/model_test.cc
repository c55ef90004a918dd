// SPDX-License-Identifier: Apache-2.0
// The store against the reference model: random operations of several sessions, retries, fences, and the store opened again
// in between. Replay a failure with DISTFUSE_SEED.
#include <unistd.h>

#include <cstdio>
#include <map>
#include <random>

#include "storaged/meta/reference_model.h"
#include "storaged/meta/store_fixture.h"

namespace distfuse::storaged {
namespace {

constexpr std::int64_t kOperations = 50000;
constexpr std::int64_t kDumpEvery = 1000;
constexpr std::int64_t kGraceOperations = 100;

std::uint64_t seed_of_run() {
  const char* given = std::getenv("DISTFUSE_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::printf("DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

class ModelTest : public StoreFixture {
 protected:
  void SetUp() override {
    options_.ino_block = 8;
    StoreFixture::SetUp();
    options_.clock = [this] { return rpc::Timestamp{now_}; };
    options_.orphan_grace = std::chrono::nanoseconds(kGraceOperations);
    reopen();
  }

  static void expect_same(const rpc::MetadataReply& got, const rpc::MetadataReply& wanted) {
    ASSERT_EQ(got.error, wanted.error);
    ASSERT_EQ(got.attributes, wanted.attributes);
    ASSERT_EQ(got.strings, wanted.strings);
    ASSERT_EQ(got.end_of_directory, wanted.end_of_directory);
    ASSERT_EQ(got.inodes_used, wanted.inodes_used);
    ASSERT_EQ(got.entries.size(), wanted.entries.size());
    for (std::size_t i = 0; i < got.entries.size(); ++i) {
      ASSERT_EQ(got.entries[i].cookie, wanted.entries[i].cookie);
      ASSERT_EQ(got.entries[i].ino, wanted.entries[i].ino);
      ASSERT_EQ(got.entries[i].type, wanted.entries[i].type);
      ASSERT_EQ(got.entries[i].name, wanted.entries[i].name);
    }
  }

  std::int64_t now_ = 1'000'000;
};

TEST_F(ModelTest, RandomOperationsAgree) {
  RequestGenerator generator(seed_of_run(), rpc::kRootIno);
  ReferenceModel model(geteuid(), getegid(), stat(rpc::kRootIno).btime);
  rpc::SessionId first_session = 1;
  std::map<std::size_t, int> succeeded;  // By kind of request.
  int adopted = 0;
  for (std::int64_t i = 0; i < kOperations; ++i) {
    SCOPED_TRACE("operation " + std::to_string(i));
    now_ = 2'000'000 + i;
    auto context = next_context(first_session + generator.below(3));
    rpc::MetadataRequest request = generator.next();
    if (generator.below(2000) == 0) {
      request = rpc::FenceSession{first_session++};
      context.session = 0;
    }
    const auto got = store_->execute(context, request);
    ASSERT_NO_FATAL_FAILURE(expect_same(got, model.execute(context, request, {now_}, got)))
        << "kind " << request.index();
    if (generator.below(500) == 0) reopen();
    if (generator.below(4) == 0) {  // Again, as after a lost answer.
      now_ += 1'000'000;
      ASSERT_NO_FATAL_FAILURE(expect_same(store_->execute(context, request), got))
          << "kind " << request.index();
    }
    if (generator.below(20) == 0) {  // After some of the retries the clock is far ahead.
      while (reap()) {
      }
      model.reap_orphans({now_}, kGraceOperations);
    }
    generator.note(got);
    if (got.error == 0) ++succeeded[request.index()];
    if (std::holds_alternative<rpc::OpenFile>(request) && got.error == 0 &&
        got.attributes.at(0).nlink == 0) {
      ++adopted;
    }
    if (i % kDumpEvery == 0) {
      ASSERT_EQ(dump_store(*store_, model.last_ino() + 1), model.dump());
    }
  }
  reopen();
  ASSERT_EQ(dump_store(*store_, model.last_ino() + 1), model.dump());
  for (std::size_t kind = 0; kind < std::variant_size_v<rpc::MetadataRequest>; ++kind) {
    if (kind == rpc::MetadataRequest(rpc::SyncMetadata{}).index()) continue;
    EXPECT_GT(succeeded[kind], 0) << "the run never saw request " << kind << " succeed";
    std::printf("request %zu: %d succeeded\n", kind, succeeded[kind]);
  }
  EXPECT_GT(adopted, 0) << "the run never saw an open without a name";
}

}  // namespace
}  // namespace distfuse::storaged
