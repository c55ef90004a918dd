// SPDX-License-Identifier: Apache-2.0
// What the verbs fabric asks of its devices, counted: so that a test can hold an operation's cost against the protocol's arithmetic, and an
// operator can see what a process does. For the whole process, by worker.
//
// Serialised by: each worker's owner thread alone adds to its own cell; anybody reads. A sum taken while workers run is of different
// moments. What a worker counted outlives it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace distfuse::fabric::verbs {

enum class Count : std::uint8_t {
  doorbells,  ///< ibv_post_send calls: system calls on soft-RoCE, a write to the device elsewhere.
  reads,      ///< Work requests on send queues, by kind.
  writes,     ///< RDMA WRITE.
  atomics,    ///< Compare-and-swap, fetch-and-add.
  sends,      ///< SEND: messages, and returns of credits.
  receives,   ///< Work requests on receive queues.
  completions,  ///< Polled from completion queues.
  events,       ///< Completion events: interrupts.
  sleeps,       ///< Waits in the kernel.
  wakeups,      ///< Of them, those that something ended before their timeout.
};
inline constexpr std::size_t kCounts = 10;
inline constexpr std::array<const char*, kCounts> kCountNames = {
    "doorbells", "reads",       "writes", "atomics", "sends",
    "receives",  "completions", "events", "sleeps",  "wakeups"};

struct Counters {
  std::array<std::uint64_t, kCounts> values{};
  [[nodiscard]] std::uint64_t operator[](Count what) const {
    return values[static_cast<std::size_t>(what)];
  }
  /// Work requests on send queues.
  [[nodiscard]] std::uint64_t requests() const {
    return (*this)[Count::reads] + (*this)[Count::writes] + (*this)[Count::atomics] +
           (*this)[Count::sends];
  }
  friend Counters operator-(const Counters& a, const Counters& b) {
    Counters difference;
    for (std::size_t i = 0; i < kCounts; ++i) difference.values[i] = a.values[i] - b.values[i];
    return difference;
  }
};

/// A worker's.
class CounterCell {
 public:
  CounterCell();
  ~CounterCell();
  CounterCell(const CounterCell&) = delete;
  CounterCell& operator=(const CounterCell&) = delete;
  /// Owner thread: no locked instruction.
  void add(Count what, std::uint64_t n = 1) {
    auto& value = values_[static_cast<std::size_t>(what)];
    value.store(value.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  void add_to(Counters& sum) const {
    for (std::size_t i = 0; i < kCounts; ++i)
      sum.values[i] += values_[i].load(std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<std::uint64_t>, kCounts> values_{};
};

/// Of all workers of this process, those that are gone included.
[[nodiscard]] Counters counters();

}  // namespace distfuse::fabric::verbs
