// SPDX-License-Identifier: Apache-2.0
// What happened: a hash over everything (equal runs, equal hash) and the last events for a failure's report.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simulation/branches.h"

namespace distfuse::simulation {

using Time = std::uint64_t;  ///< Microseconds of simulated time.
inline constexpr Time kNever = ~Time{0};

class Trace {
 public:
  explicit Trace(std::size_t kept) : ring_(kept) {}
  /// `what` must be a string literal.
  void note(Time at, unsigned who, const char* what, std::uint64_t a = 0, std::uint64_t b = 0,
            std::uint64_t c = 0) {
    mix(at);
    mix(std::uint64_t{who} << 32 ^ static_cast<unsigned char>(what[0]));
    mix(a ^ b << 17 ^ c << 41);
    ring_[count_++ % ring_.size()] = {at, what, a, b, c, who};
  }
  void reached(Branch branch, std::uint64_t times = 1) {
    branches_[static_cast<std::size_t>(branch)] += times;
  }
  [[nodiscard]] std::uint64_t hash() const { return hash_; }
  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] const BranchCounts& branches() const { return branches_; }
  /// The last events, oldest first, one a line.
  [[nodiscard]] std::string tail(std::size_t most, const std::vector<std::string>& names) const;

 private:
  struct Event {
    Time at = 0;
    const char* what = "";
    std::uint64_t a = 0, b = 0, c = 0;
    unsigned who = 0;
  };
  void mix(std::uint64_t value) {
    hash_ = (hash_ ^ value) * 0x100000001b3ULL;
    hash_ ^= hash_ >> 29U;
  }

  std::uint64_t hash_ = 0xcbf29ce484222325ULL;
  std::uint64_t count_ = 0;
  std::vector<Event> ring_;
  BranchCounts branches_{};
};

}  // namespace distfuse::simulation
