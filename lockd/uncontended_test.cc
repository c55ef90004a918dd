// SPDX-License-Identifier: Apache-2.0
// A million uncontended acquires and releases: lockd handles no message, and where the fabric needs no CPU of the target
// (shared memory) its CPU time stays where it was.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>

#include "lockd/testing/test_cluster.h"

namespace distfuse::lockd::testing {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kRounds = 1000000;
// The two status queries and one clock tick; measured 0.1 to 4 ms. A daemon that worked for each lock would need seconds.
constexpr std::uint64_t kCpuBoundUs = 20000;

int lock_a_million_times(const RawClientOptions& options, Talk& talk) {
  auto client = RawClient::connect(options);
  if (!client.ok()) {
    talk.say("failed: " + client.error().message);
    return 1;
  }
  auto& raw = **client;
  raw.renew_lease();  // A build with sanitizers needs longer than a lease.
  talk.say("ready");
  (void)talk.hear();
  const auto start = Clock::now();
  for (int i = 0; i < kRounds; ++i) {
    const auto key = df_key_inode(static_cast<std::uint64_t>(1 + i % 64));
    if (!raw.acquire(key, i % 3 == 0 ? DF_S : DF_X)) return 2;
    raw.unpin(key);
    if (!raw.drop(key)) return 3;
  }
  const auto ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
  talk.say(std::to_string(ns / kRounds));
  (void)talk.hear();
  return raw.bye() ? 0 : 4;
}

TEST(Uncontended, AMillionLocksDoNotWakeLockd) {
  TestCluster cluster(LOCKD_PROGRAM, 1024);
  auto client = Process::fork_child(
      [&](Talk& talk) { return lock_a_million_times(cluster.options("million"), talk); });
  ASSERT_EQ(client.talk().hear(), "ready");
  const auto before = cluster.status();
  client.talk().say("go");
  const auto each = client.talk().hear(std::chrono::seconds(100));
  ASSERT_FALSE(each.empty());
  const auto after = cluster.status();
  const auto messages = after["counters"]["messages"].get<std::uint64_t>() -
                        before["counters"]["messages"].get<std::uint64_t>();
  const auto cpu = after["cpu_us"].get<std::uint64_t>() - before["cpu_us"].get<std::uint64_t>();
  std::printf(
      "%d acquire+release: %s ns each; lockd: %llu messages handled, %llu us of CPU (fabric: %s)\n",
      kRounds, each.c_str(), static_cast<unsigned long long>(messages),
      static_cast<unsigned long long>(cpu), after["fabric"].get<std::string>().c_str());
  EXPECT_EQ(messages, 0U);
  EXPECT_LT(cpu, kCpuBoundUs);
  EXPECT_EQ(after["held"]["x"], 0);
  EXPECT_EQ(after["held"]["s"], 0);
  client.talk().say("end");
  EXPECT_EQ(client.wait(), 0);
  EXPECT_TRUE(cluster.eventually([](const nlohmann::json& s) { return s["sessions"].empty(); }));
  EXPECT_EQ(cluster.status()["counters"]["byes"], 1);
}

}  // namespace
}  // namespace distfuse::lockd::testing
