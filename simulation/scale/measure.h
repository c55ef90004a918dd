// SPDX-License-Identifier: Apache-2.0
// What lockd's core takes of this machine's processor: the figures behind Parameters::lockd_core_ns and its neighbours.
#pragma once

#include <cstdint>

namespace distfuse::scale {

/// ns a call, the median of many; the clock's own time is taken off.
struct CoreTimes {
  double ask = 0, released = 0;
  double chain = 0;  // completed, but no stage of revokes begins
  double stage = 0;  // completed, and one begins
};

/// Hand-overs of X of one slot, with so many live sessions and so many waiters in its queue all the time.
[[nodiscard]] CoreTimes measure_hand_over(std::uint32_t sessions, std::uint32_t queue);

struct CoreCosts {
  double
      message_ns;  // a message or a chain, nobody else waiting, few sessions: the mean of the three
  double waiter_ns;   // more for each waiter in the queue, likewise
  double session_ns;  // a stage of revokes: more for each live session
};
[[nodiscard]] CoreCosts measure_core();

}  // namespace distfuse::scale
