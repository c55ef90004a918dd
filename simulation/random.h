// SPDX-License-Identifier: Apache-2.0
// The one source of chance of a run (SplitMix64): the same seed gives the same numbers on every machine and library.
#pragma once

#include <cstdint>

namespace distfuse::simulation {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ULL + 0x1234567) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31U);
  }
  /// 0 .. n - 1; 0 for n = 0.
  std::uint64_t below(std::uint64_t n) { return n == 0 ? 0 : next() % n; }
  /// Both ends included.
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + below(high - low + 1);
  }
  /// True once in n.
  bool once_in(std::uint64_t n) { return below(n) == 0; }
  bool percent(std::uint64_t p) { return below(100) < p; }
  /// Around `mean`: mostly less, sometimes up to 8 times as much.
  std::uint64_t spread(std::uint64_t mean) {
    const auto tail = below(16) == 0 ? between(1, 8) : 1;
    return (mean / 2 + below(mean + 1)) * tail;
  }

 private:
  std::uint64_t state_;
};

}  // namespace distfuse::simulation
