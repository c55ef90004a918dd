// SPDX-License-Identifier: Apache-2.0
// What must hold whatever the machine: counts, orders, the model's own arithmetic; the real state machines' promises.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "rdma/lock/hold.h"
#include "simulation/scale/load_run.h"
#include "simulation/scale/measure.h"
#include "simulation/scale/report.h"
#include "simulation/scale/storm.h"

namespace distfuse::scale {
namespace {

constexpr Workload kWorkloads[] = {
    Workload::private_files, Workload::directory,  Workload::directory_intent, Workload::hot_write,
    Workload::hot_extents,   Workload::hot_intent, Workload::hot_read};

std::uint64_t seed() {
  static const std::uint64_t seed = [] {
    const char* text = std::getenv("DISTFUSE_SEED");
    const auto value = text != nullptr ? std::strtoull(text, nullptr, 0) : 20260101;
    std::printf("DISTFUSE_SEED=%llu\n", value);
    return value;
  }();
  return seed;
}

LoadOptions options_of(Workload workload, std::uint32_t clients, std::uint32_t lockds = 1) {
  LoadOptions options;
  options.workload = workload;
  options.clients = clients;
  options.lockds = lockds;
  options.seed = seed();
  options.acquires = 20;
  options.events = 200'000;
  return options;
}

LoadResult run(const LoadOptions& options, const Parameters& parameters = {}) {
  return run_load(parameters, options);
}

// run_load itself throws when incompatible modes are in use at once, when somebody waits for ever, when a word does not
// say what is held, when lockd drops an honest client.
TEST(Scale, EveryAcquireIsGranted) {
  for (const Workload workload : kWorkloads)
    for (const std::uint32_t lockds : {1u, 3u})
      for (const std::uint32_t clients : {2u, 10u, 200u}) {
        SCOPED_TRACE(std::string(name_of(workload)) + ", clients " + std::to_string(clients) +
                     ", lockds " + std::to_string(lockds));
        const auto result = run(options_of(workload, clients, lockds));
        EXPECT_EQ(result.begun, result.granted);
        EXPECT_GT(result.acquires, 0u);
        EXPECT_EQ(result.repairs, 0u) << "nobody died";
      }
}

TEST(Scale, PrivateFilesCostLockdNothing) {
  for (const std::uint32_t clients : {1u, 10u, 100u, 1000u}) {
    const auto result = run(options_of(Workload::private_files, clients));
    EXPECT_EQ(result.messages_per_operation, 0);
    EXPECT_EQ(result.lockd_cpu_ns_per_operation, 0);
    EXPECT_EQ(result.asks + result.finds + result.revokes, 0u);
    EXPECT_EQ(result.operations, result.acquires);
  }
}

TEST(Scale, TenClientsWaitForOneRoundTrip) {
  const Parameters p;
  const auto result = run(options_of(Workload::private_files, 10));
  // X of a slot that is known: post, CAS of the word, READ of the slot.
  const double expected = p.client_post_ns + p.client_nic_ns + 2 * p.wire_ns + p.nic_write_ns +
                          p.same_word_atomic_ns + p.host_read_ns +
                          DF_SLOT_SIZE * p.link_ns_per_byte;
  EXPECT_NEAR(result.p50_us * 1000, expected, 0.01);
  EXPECT_NEAR(result.p99_us * 1000, expected, 0.01 * expected);
}

TEST(Scale, AHandOverIsItsMessages) {
  const Parameters p;
  auto options = options_of(Workload::hot_write, 2);
  options.details.think_ns = 10;  // the other one always waits
  const auto result = run(options);
  EXPECT_EQ(result.asks, result.revokes);
  const double messages =
      result.messages_per_operation * result.operations_per_second / result.acquires_per_second;
  EXPECT_NEAR(messages, 4, 0.2) << "Ask, Revoke, Released, Grant";
  // Revoke and Released, the READ and the CAS of lockd's, Grant: nothing can be quicker than their wires, wakes, and the flush.
  const double least =
      3 * p.wire_ns + 2 * p.client_wake_ns + p.shed_exclusive_ns + 4 * p.loop_wire_ns;
  EXPECT_GT(result.p50_us * 1000, least);
  EXPECT_LT(result.p50_us * 1000, 3 * least);
}

TEST(Scale, OneSeedOneResult) {
  for (const Workload workload : kWorkloads) {
    auto options = options_of(workload, 50, 2);
    const auto text = [&options] { return json_of(options, run(options)).dump(); };
    const std::string first = text();
    EXPECT_EQ(first, text()) << name_of(workload);
    ++options.seed;
    EXPECT_NE(first, text()) << name_of(workload);
  }
}

TEST(Scale, MoreClientsGetMoreUntilTheNicIsBusy) {
  double before = 0, wait = 0;
  for (const std::uint32_t clients : {10u, 100u, 1000u}) {
    const auto result = run(options_of(Workload::private_files, clients));
    EXPECT_GE(result.operations_per_second, 5 * before) << clients;
    EXPECT_GE(result.p50_us, wait) << clients;
    EXPECT_LE(result.receiver, 1.01) << clients;
    before = result.operations_per_second;
    wait = result.p50_us;
  }
  auto options = options_of(Workload::private_files, 1000);
  options.details.think_ns = 1000;
  const auto one = run(options);
  options.lockds = 4;
  const auto four = run(options);
  EXPECT_GT(one.receiver, 0.97) << "meant to be saturated";
  EXPECT_GT(four.operations_per_second, 2 * one.operations_per_second);
}

TEST(Scale, OneWordHasItsRate) {
  const Parameters p;
  auto options = options_of(Workload::hot_intent, 500);
  options.details.think_ns = 1000;
  const double most = 1e9 / (2 * p.same_word_atomic_ns);  // one to take it, one to give it up
  const auto one = run(options);
  EXPECT_LE(one.operations_per_second, 1.01 * most);
  EXPECT_GT(one.operations_per_second, 0.9 * most);
  EXPECT_EQ(one.asks, 0u) << "IX with IX needs nobody";
  options.lockds = 4;
  EXPECT_NEAR(run(options).operations_per_second, one.operations_per_second, 0.05 * most)
      << "one word is at one lockd";
}

TEST(Scale, AQueueStarvesNobody) {
  Parameters held;
  held.hold_divisor = 1;
  const auto options = options_of(Workload::hot_write, 200);
  const auto result = run(options);
  EXPECT_LT(result.max_us, 1.3 * result.p50_us) << "in order: all wait for about one round";
  EXPECT_LT(run(options, held).max_us, 200 * (DF_HOLD_MAX_US + 100.0))
      << "a round of the longest holds";
}

// It is for those who have work to do while they hold.
TEST(Scale, AnAdaptiveHoldTradesWaitForWork) {
  auto options = options_of(Workload::hot_write, 20);
  options.details.think_ns = 1000;
  Parameters held;
  held.hold_divisor = 1;
  const auto eager = run(options), patient = run(options, held);
  EXPECT_GT(patient.operations_per_second, 3 * eager.operations_per_second);
  EXPECT_GT(patient.p99_us, eager.p99_us);
  EXPECT_LT(patient.messages_per_operation, eager.messages_per_operation / 3);
}

TEST(Scale, AStormAsksWhomTheHintsName) {
  for (const std::uint32_t readers : {1u, 5u, 63u, 64u, 150u}) {
    StormOptions options;
    options.sessions = 200;
    options.readers = readers;
    const auto result = run_storm({}, options);
    std::set<std::uint32_t> hints;
    for (std::uint32_t node = 1; node <= readers; ++node) hints.insert(node % DF_HINTS);
    std::uint64_t named = 0;
    for (std::uint32_t node = 1; node <= options.sessions; ++node)
      named += hints.contains(node % DF_HINTS);
    EXPECT_EQ(result.messages, 2 * named + 2) << "Ask, Grant; Revoke and Released for each";
    EXPECT_EQ(result.freezes, 0u);
  }
}

TEST(Scale, AStormGrowsWithTheSessions) {
  double before = 0;
  for (const std::uint32_t sessions : {10u, 100u, 1000u}) {
    StormOptions options;
    options.sessions = sessions;
    options.readers = sessions - 1;
    const auto result = run_storm({}, options);
    EXPECT_GT(result.revoke_us, before);
    before = result.revoke_us;
  }
}

// check_at_rest, which run_storm ends with, finds what the dead left in the word.
TEST(Scale, WhatTheDeadLeftIsRepaired) {
  StormOptions options;
  options.sessions = 100;
  options.readers = 90;
  options.lost = 7;
  const auto result = run_storm({}, options);
  EXPECT_EQ(result.freezes, 1u);
  EXPECT_EQ(result.repairs, 1u);
  options.lost = 90;
  EXPECT_EQ(run_storm({}, options).repairs, 1u);
}

TEST(Scale, ImpossibleStormsAreRefused) {
  StormOptions options;
  options.sessions = options.readers = 10;
  EXPECT_THROW((void)run_storm({}, options), std::runtime_error);
}

TEST(Scale, ParametersAreNamed) {
  Parameters parameters;
  EXPECT_TRUE(set_parameter(parameters, "wire_ns=12.5"));
  EXPECT_EQ(parameters.wire_ns, 12.5);
  for (const char* bad : {"", "wire_ns", "wire_ns=", "wire_ns=x", "wire_ns=-1", "wire_ns=inf",
                          "wire_ns=nan", "wires=1"})
    EXPECT_FALSE(set_parameter(parameters, bad)) << bad;
  EXPECT_EQ(parameters.wire_ns, 12.5);
}

TEST(Scale, MoreConnectionsCostMore) {
  EXPECT_EQ(read_penalty_ns(1), 0);
  EXPECT_NEAR(read_penalty_ns(4096), 1000.0 / 21 - 1000.0 / 83, 1e-9);
  double read = 0, write = 0;
  for (double connections = 1; connections < 100000; connections *= 1.7) {
    EXPECT_GE(read_penalty_ns(connections), read);
    EXPECT_GE(write_penalty_ns(connections), write);
    read = read_penalty_ns(connections);
    write = write_penalty_ns(connections);
  }
}

TEST(Scale, TheCoreCanBeTimed) {
  const auto times = measure_hand_over(16, 4);
  EXPECT_GT(times.ask + times.released + times.chain + times.stage, 0);
}

}  // namespace
}  // namespace distfuse::scale
