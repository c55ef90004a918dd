// SPDX-License-Identifier: Apache-2.0
// What each operation of the lock protocol costs in work requests, completions and system calls to sleep, counted by the fabric and held
// against the protocol's arithmetic; and that lockd's process does nothing while nobody contends.
//
//   operation                 client: post_send calls, requests                       lockd
//   acquire X                 1: CAS, READ                                            -
//   acquire S                 1: WRITE (hint), FAA, READ                              -
//   release S                 1: FAA                                                  -
//   release X                 1: WRITE (version), FAA                                 -
//   renew                     1: WRITE                                                -
//   hand-over of X to an X    4: CAS and READ of the new holder, its SEND Ask;        2 SENDs, 4 chains: below
//                                WRITE and FAA of the old holder, its SEND Released
// lockd in a hand-over: SEND Revoke, SEND Grant, and four chains through its loopback: FAA (contended bit) and READ at the Ask; READ at Released;
// WRITE of the hints, CAS, READ for the grant; FAA (contended bit off) when nobody waits any more. So 6 posts, 3 atomics, 1 WRITE, 3 READs, and
// 8 completions: 4 of chains, 2 of SENDs, 2 of receives. A Released that comes while a chain is under way costs one more READ.
// A chain has one completion, its last request's; a message has one at each end.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "tests/verbs/rig.h"

namespace distfuse::verbs_tests {
namespace {

using client::Mode;
using fabric::verbs::Count;
using fabric::verbs::Counters;

constexpr std::uint64_t kRounds = 500;

struct Cost {
  std::uint64_t doorbells, reads, writes, atomics, sends, completions;
};

void print(const std::string& what, std::uint64_t rounds, const Counters& used) {
  std::printf("       %s, per operation:", what.c_str());
  for (std::size_t i = 0; i < fabric::verbs::kCounts; ++i)
    std::printf(" %s %.3f", fabric::verbs::kCountNames[i], double(used.values[i]) / double(rounds));
  std::printf("\n");
}

/// `extra`: renewals and returns of credits that may have come in between.
void expect(const std::string& what, std::uint64_t rounds, const Counters& used, const Cost& cost,
            std::uint64_t extra) {
  print(what, rounds, used);
  const auto about = [&](Count count, std::uint64_t each) {
    return used[count] >= each * rounds && used[count] <= each * rounds + extra;
  };
  check(about(Count::doorbells, cost.doorbells) && about(Count::reads, cost.reads) &&
            about(Count::writes, cost.writes) && about(Count::atomics, cost.atomics) &&
            about(Count::sends, cost.sends) && about(Count::completions, cost.completions),
        what + ": posts " + std::to_string(cost.doorbells) + ", READs " +
            std::to_string(cost.reads) + ", WRITEs " + std::to_string(cost.writes) + ", atomics " +
            std::to_string(cost.atomics) + ", SENDs " + std::to_string(cost.sends) +
            ", completions " + std::to_string(cost.completions));
}

void uncontended(client::LockTable& table) {
  for (const auto mode : {Mode::x, Mode::s}) {
    const std::string name = mode == Mode::x ? "X" : "S";
    take(table, 1, mode);
    table.drop(1, mode);
    Counters acquires, releases;
    const auto add = [](Counters& sum, const Counters& more) {
      for (std::size_t i = 0; i < fabric::verbs::kCounts; ++i) sum.values[i] += more.values[i];
    };
    for (std::uint64_t i = 0; i < kRounds; ++i) {
      const auto start = fabric::verbs::counters();
      take(table, 1, mode);
      const auto taken = fabric::verbs::counters();
      table.drop(1, mode);
      add(acquires, taken - start);
      add(releases, fabric::verbs::counters() - taken);
    }
    const Cost acquire = mode == Mode::x ? Cost{1, 1, 0, 1, 0, 1} : Cost{1, 1, 1, 1, 0, 1};
    expect("acquire " + name, kRounds, acquires, acquire, 3);
    // X raises the version, whatever was done under it.
    const Cost release = mode == Mode::x ? Cost{1, 0, 1, 1, 0, 1} : Cost{1, 0, 0, 1, 0, 1};
    expect("release " + name, kRounds, releases, release, 3);
  }
}

std::uint64_t messages(Lockd& lockd) {
  return lockd.status()["counters"]["messages"].get<std::uint64_t>();
}

/// Ten thousand locks: lockd's threads have nothing to do. What wakes them is the guest's own doing: 1 part in 200 of the time is let pass.
/// Without a lease: with one lockd looks at the lease words every lease/8.
void lockd_sleeps(Lockd& lockd, client::LockTable& table) {
  for (client::Ino ino = 1; ino <= 64; ++ino) {  // Lanes are connected, slots are found.
    take(table, ino, Mode::x);
    table.drop(ino, Mode::x);
  }
  const auto before_messages = messages(lockd);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto before = lockd.counters();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto ticks = lockd.ticks();
  const auto ns = lockd.cpu_ns();
  const auto began = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < 10000; ++i) {
    take(table, 1 + i % 64, i % 3 == 0 ? Mode::s : Mode::x);
    table.drop(1 + i % 64, i % 3 == 0 ? Mode::s : Mode::x);
  }
  const auto new_ticks = lockd.ticks() - ticks;
  const auto new_ns = lockd.cpu_ns() - ns;
  const auto elapsed = static_cast<std::uint64_t>(
      std::chrono::nanoseconds(std::chrono::steady_clock::now() - began).count());
  const auto used = lockd.counters() - before;
  const auto handled = messages(lockd) - before_messages;
  check(new_ns <= elapsed / 200 && handled == 0 && used.requests() == 0 &&
            used[Count::completions] == 0,
        "10000 acquires and releases: lockd used " + std::to_string(new_ticks) + " ticks (" +
            std::to_string(new_ns) + " of " + std::to_string(elapsed) + " ns), handled " +
            std::to_string(handled) + " messages, posted " + std::to_string(used.requests()) +
            " requests, woke up " + std::to_string(used[Count::wakeups]) + " times");
}

void renewals(Lockd& lockd) {
  NoCache cache;
  const auto table = lockd.table("renewer", cache);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const auto before = fabric::verbs::counters();
  std::this_thread::sleep_for(std::chrono::milliseconds(4000));
  const auto used = fabric::verbs::counters() - before;
  const auto renewed = used[Count::writes];
  print("renew", renewed == 0 ? 1 : renewed, used);
  check(renewed >= 6 && renewed <= 9 && used.requests() == renewed &&
            used[Count::doorbells] == renewed && used[Count::completions] + 1 >= renewed &&
            used[Count::completions] <= renewed + 1,
        "renew: " + std::to_string(renewed) +
            " WRITEs of a lease of 2 s in 4 s (8 are due), one "
            "post and one completion each, nothing else");
}

void hand_over(Lockd& lockd) {
  NoCache first_cache, second_cache;
  const auto first = lockd.table("first", first_cache);
  const auto second = lockd.table("second", second_cache);
  constexpr client::Ino kIno = 7;
  for (int i = 0; i < 3; ++i) {  // Both know the slot, and have the lanes that they need.
    take(*first, kIno, Mode::x);
    take(*second, kIno, Mode::x);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  constexpr std::uint64_t kHandOvers = 200;
  const auto at_lockd = lockd.counters();
  const auto before = fabric::verbs::counters();
  for (std::uint64_t i = 0; i < kHandOvers / 2; ++i) {
    take(*first, kIno, Mode::x);
    take(*second, kIno, Mode::x);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const auto clients = fabric::verbs::counters() - before;
  const auto daemon = lockd.counters() - at_lockd;
  // Ask, Released; Revoke and Grant arrive: two receives, so with the two chains and two SENDs six completions. Extra: renewals of two
  // sessions, and a return of credits for every 32 messages that none of ours told.
  expect("hand-over, both clients", kHandOvers, clients, {4, 1, 1, 2, 2, 6}, 60);
  print("hand-over, lockd", kHandOvers, daemon);
  const auto looks = daemon[Count::reads] - 3 * kHandOvers;  // One more each, at most.
  check(daemon[Count::atomics] == 3 * kHandOvers && daemon[Count::writes] == kHandOvers &&
            looks <= kHandOvers && daemon[Count::sends] >= 2 * kHandOvers &&
            daemon[Count::sends] <= 2 * kHandOvers + 30 &&
            daemon[Count::doorbells] >= 6 * kHandOvers + looks &&
            daemon[Count::doorbells] <= 6 * kHandOvers + looks + 30 &&
            daemon[Count::completions] >= 8 * kHandOvers + looks &&
            daemon[Count::completions] <= 8 * kHandOvers + looks + 60,
        "hand-over, lockd: posts 6, SENDs 2, atomics 3, WRITEs 1, READs 3, completions 8, and " +
            std::to_string(looks) + " more READs in " + std::to_string(kHandOvers));
}

int run() {
  Lockd lockd(10000);
  Lockd short_lease(2000);
  Lockd no_lease(0);
  {
    NoCache cache;
    const auto table = lockd.table("requests", cache);
    uncontended(*table);
  }
  {
    NoCache cache;
    const auto table = no_lease.table("sleeper", cache);
    lockd_sleeps(no_lease, *table);
  }
  renewals(short_lease);
  hand_over(lockd);
  return exit_status();
}

}  // namespace
}  // namespace distfuse::verbs_tests

int main() {
  const int status = distfuse::verbs_tests::run();
  return status != 0 ? status : distfuse::verbs_tests::exit_status();
}
