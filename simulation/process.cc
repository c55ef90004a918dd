// SPDX-License-Identifier: Apache-2.0
#include "simulation/process.h"

#include <utility>

namespace distfuse::simulation {

void Scheduler::push(Time at, const Process* process, std::function<void()> action) {
  queue_.push(
      {at, sequence_++, process, process != nullptr ? process->life() : 0, std::move(action)});
}

void Scheduler::hardware(Time delay, std::function<void()> action) {
  push(now_ + delay, nullptr, std::move(action));
}

void Scheduler::later(const Process& process, Time delay, std::function<void()> action) {
  push(now_ + delay, &process, std::move(action));
}

bool Scheduler::step(Time end) {
  if (queue_.empty() || queue_.top().at > end) {
    now_ = end;
    return false;
  }
  Event event = std::move(const_cast<Event&>(queue_.top()));  // Popped at once.
  queue_.pop();
  now_ = event.at;
  if (event.process != nullptr) {
    if (event.life != event.process->life()) return true;
    if (event.process->stalled_until() > now_) {
      push(event.process->stalled_until(), event.process, std::move(event.action));
      return true;
    }
  }
  event.action();
  return true;
}

Time Clock::until(Time now, std::uint64_t ms) const {
  const auto shown = local(now);
  if (ms * 1000 <= shown) return 0;
  const auto left = static_cast<std::int64_t>(ms * 1000 - shown);
  return static_cast<Time>(left * 1'000'000 / (1'000'000 + ppm_)) + 1;
}

}  // namespace distfuse::simulation
