// SPDX-License-Identifier: Apache-2.0
// What the clients do: one thread each; an operation takes a lock, uses it for a while, and thinks before the next.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "rdma/lock/slot.h"
#include "simulation/scale/parameters.h"

namespace distfuse::scale {

/// xorshift64*: the same numbers everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull | 1) { next(); }
  std::uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1dull;
  }
  /// 0 .. below - 1.
  std::uint64_t below(std::uint64_t below) { return (next() >> 32) * below >> 32; }
  /// 0 .. 1.
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  /// Between half of the mean and half as much again.
  Time around(double mean_ns) { return from_ns(mean_ns * (0.5 + unit())); }

 private:
  std::uint64_t state_;
};

enum class Workload {
  private_files,  // X of a file of its own, given up after use: never cached, every operation is a chain
  directory,         // S of one directory to look up; a few X to create; cached until revoked
  directory_intent,  // the same by IS and IX: nothing cached, given up after use
  hot_write,         // X of one file; cached until revoked
  hot_extents,       // X of an extent of one file, drawn from four a client; cached until revoked
  hot_intent,        // IX of one file, given up after use
  hot_read,          // S of one file; one client takes X now and then
};

[[nodiscard]] std::optional<Workload> workload_of(std::string_view name);
[[nodiscard]] std::string_view name_of(Workload workload);

struct WorkloadOptions {
  double think_ns = 100'000;        // between operations
  double create_share = 0.01;       // directory: of all operations
  double writer_period_ns = 2e6;    // hot_read: between two X
  std::uint32_t private_files = 4;  // of a client
};

struct Operation {
  df_u64 key;
  std::uint32_t mode;  // enum df_mode
  double hold_ns;
  double think_ns;  // after it
  bool drop;        // the lock is given up after it
};

class WorkloadSource {
 public:
  WorkloadSource(Workload workload, const WorkloadOptions& options, std::uint32_t clients)
      : workload_(workload), options_(options), clients_(clients), turns_(clients) {}

  [[nodiscard]] Operation next(std::uint32_t client, Random& random);
  /// How many keys there are in all: the table is sized for them.
  [[nodiscard]] std::uint64_t keys() const;
  /// Acquires of each client, on average, before the measurement: what is done only once is over then.
  [[nodiscard]] std::uint32_t warm_acquires() const;

 private:
  Workload workload_;
  WorkloadOptions options_;
  std::uint32_t clients_;
  std::vector<std::uint32_t> turns_;
};

}  // namespace distfuse::scale
