// SPDX-License-Identifier: Apache-2.0
// What happens next. Events of one time come in the order in which they were added: a run is a function of its seed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simulation/scale/parameters.h"

namespace distfuse::scale {

enum class EventKind : std::uint32_t {
  chain_arrives,      // subject: chain
  chain_completes,    // subject: chain
  message_at_lockd,   // subject: message
  lockd_runs,         // subject: lockd
  message_at_client,  // subject: message
  operation_begins,   // subject: client
  operation_ends,     // subject: client
  operation_retries,  // subject: client
  shed_ends,          // subject: client, detail: lock
};

struct Event {
  Time time;
  std::uint64_t order;
  EventKind kind;
  std::uint32_t subject;
  std::uint32_t detail;
};

class EventQueue {
 public:
  void add(Time time, EventKind kind, std::uint32_t subject, std::uint32_t detail = 0) {
    heap_.push_back({std::max(time, now_), count_++, kind, subject, detail});
    std::ranges::push_heap(heap_, later);
  }
  /// False: nothing is left.
  bool next(Event& event) {
    if (heap_.empty()) return false;
    std::ranges::pop_heap(heap_, later);
    event = heap_.back();
    heap_.pop_back();
    now_ = event.time;
    ++done_;
    return true;
  }
  [[nodiscard]] Time now() const { return now_; }
  [[nodiscard]] std::uint64_t done() const { return done_; }

 private:
  static bool later(const Event& a, const Event& b) {
    return a.time != b.time ? a.time > b.time : a.order > b.order;
  }
  std::vector<Event> heap_;
  Time now_ = 0;
  std::uint64_t count_ = 0;
  std::uint64_t done_ = 0;
};

}  // namespace distfuse::scale
