// SPDX-License-Identifier: Apache-2.0
// A metadata store in a directory of its own, for tests: opened, closed and opened again; requests numbered as a client does.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "common/testing/temporary_directory.h"
#include "storaged/meta/rocksdb_metadata_store.h"

namespace distfuse::storaged {

inline const std::string kTestCluster = "0123456789abcdef0123456789abcdef";

/// A clock that moves by one with each look, so that every time in a test is told apart.
struct TestClock {
  std::int64_t now = 1'000'000;
  rpc::Timestamp operator()() { return {++now}; }
};

class StoreFixture : public testing::Test {
 protected:
  static constexpr std::chrono::nanoseconds kGrace{
      1'000'000};  ///< Longer than any test's clock moves by itself.

  void SetUp() override {
    options_.directory = directory_.path() + "/store";
    options_.cluster_id = kTestCluster;
    options_.data_targets = 2;
    options_.cache_bytes = options_.write_buffer_bytes = 4 << 20;
    options_.clock = [this] { return clock_(); };
    options_.orphan_grace = kGrace;
    reopen();
  }

  void reopen() {
    store_.reset();
    auto opened = open_rocksdb_metadata_store(options_);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    store_ = std::move(*opened);
  }

  rpc::RequestContext next_context(rpc::SessionId session = 1) {
    const auto id = ++request_id_;
    return {.session = session, .request_id = id, .lowest_unanswered = id, .uid = 1000, .gid = 100};
  }

  rpc::MetadataReply run(const rpc::MetadataRequest& request, rpc::SessionId session = 1) {
    return store_->execute(next_context(session), request);
  }
  int error(const rpc::MetadataRequest& request, rpc::SessionId session = 1) {
    return run(request, session).error;
  }

  /// The inode made; 0 and a failed expectation when it was not.
  rpc::Ino create(rpc::Ino parent, const std::string& name, std::uint32_t mode = S_IFREG | 0644,
                  bool open = false, rpc::SessionId session = 1) {
    const auto reply = run(rpc::Create{parent, name, mode, 0, open}, session);
    EXPECT_EQ(reply.error, 0) << name;
    return reply.attributes.empty() ? 0 : reply.attributes[0].ino;
  }
  rpc::Ino mkdir(rpc::Ino parent, const std::string& name) {
    return create(parent, name, S_IFDIR | 0755);
  }
  /// Attributes; ino 0: there is none.
  rpc::Attributes stat(rpc::Ino ino) { return run(rpc::GetAttributes{{ino}}).attributes.at(0); }
  rpc::Ino lookup(rpc::Ino parent, const std::string& name) {
    const auto reply = run(rpc::Lookup{parent, name});
    return reply.attributes.empty() ? 0 : reply.attributes[0].ino;
  }
  rpc::Rename rename_of(rpc::Ino from, std::string old_name, rpc::Ino to, std::string new_name,
                        std::uint32_t flags = 0) {
    return {from, std::move(old_name), to, std::move(new_name), flags, 0, 0, false, false};
  }
  /// The grace of every orphan that there is passes, and what is due is removed.
  void pass_grace() {
    clock_.now += kGrace.count();
    reap();
  }
  /// Whether more were due.
  bool reap(bool short_of_space = false) {
    const auto more = store_->reap_orphans(short_of_space);
    EXPECT_TRUE(more.ok());
    return more.ok() && *more;
  }
  std::vector<PurgeJob> purges() {
    auto jobs = store_->pending_purges(1000);
    EXPECT_TRUE(jobs.ok());
    return *jobs;
  }

  TemporaryDirectory directory_;
  TestClock clock_;
  RocksdbMetadataOptions options_;
  std::unique_ptr<MetadataStore> store_;
  std::uint64_t request_id_ = 0;
};

}  // namespace distfuse::storaged
