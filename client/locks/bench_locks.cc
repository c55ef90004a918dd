// SPDX-License-Identifier: Apache-2.0
// What a lock costs through the lock table: held, free, handed over. Prints one JSON object; times in ns. lockd's service runs in
// this process; its thread sleeps but for hand-overs.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "client/locks/testing/cluster.h"

namespace distfuse::client {
namespace {

using Clock = std::chrono::steady_clock;

/// A mount without caches.
class NoCache final : public CacheOwner {
 public:
  void invalidate_kernel(Ino /*ino*/, std::span<const Range> /*ranges*/) override {}
  void shed(Ino /*ino*/, Mode /*keep*/) override {}
  std::optional<ValueBlock> publish(Ino /*ino*/) override { return {}; }
  void session_lost(const std::string& reason) override {
    std::fprintf(stderr, "bench_locks: session lost: %s\n", reason.c_str());
    std::exit(1);
  }
};

std::string measure(const char* name, std::size_t count,
                    const std::function<void(std::size_t)>& once) {
  for (std::size_t i = 0; i < count / 10; ++i) once(i);
  std::vector<std::uint64_t> times(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto begin = Clock::now();
    once(i);
    times[i] = static_cast<std::uint64_t>((Clock::now() - begin).count());
  }
  std::ranges::sort(times);
  return fmt::format("\"{}\": {{\"count\": {}, \"p50_ns\": {}, \"p99_ns\": {}}}", name, count,
                     times[count / 2], times[count * 99 / 100]);
}

void take(LockTable& table, Ino ino, Mode mode) {
  if (auto pin = table.pin(ino, mode); !pin) {
    std::fprintf(stderr, "bench_locks: %s\n", pin.error().message.c_str());
    std::exit(1);
  }
}

int run() {
  spdlog::set_level(spdlog::level::warn);
  testing::Cluster cluster(65536);
  NoCache cache_a, cache_b;
  const auto a = cluster.table("a", cache_a);
  const auto b = cluster.table("b", cache_b);
  std::vector<std::string> parts;
  take(*a, 1, Mode::s);
  parts.push_back(measure("held_pin", 200000, [&](auto) { take(*a, 1, Mode::s); }));
  parts.push_back(measure("free_take_shared_and_drop", 5000, [&](auto) {
    take(*a, 2, Mode::s);
    a->drop(2, Mode::s);
  }));
  // A take of a lock that was never seen: find, claim, take.
  parts.push_back(measure("first_take", 5000, [&](std::size_t i) {
    static Ino next = 1000;
    (void)i;
    take(*a, next++, Mode::x);
  }));
  // Held by nobody and the slot known: the chain alone.
  for (Ino ino = 100000; ino < 105500; ++ino) {
    take(*a, ino, Mode::x);
    a->drop(ino, Mode::x);
  }
  parts.push_back(measure("free_take", 5000, [&](std::size_t) {
    static Ino next = 100000;
    take(*a, next++, Mode::x);
  }));
  parts.push_back(measure("hand_over_exclusive_round_trip", 2000, [&](auto) {
    take(*a, 3, Mode::x);
    take(*b, 3, Mode::x);
  }));
  parts.push_back(measure("writer_and_reader_round_trip", 2000, [&](auto) {
    take(*a, 4, Mode::x);
    take(*b, 4, Mode::s);
  }));
  std::printf("{%s}\n", fmt::format("{}", fmt::join(parts, ", ")).c_str());
  return 0;
}

}  // namespace
}  // namespace distfuse::client

int main() {
  return distfuse::client::run();
}
