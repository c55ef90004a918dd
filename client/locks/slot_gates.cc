// SPDX-License-Identifier: Apache-2.0
#include "client/locks/slot_gates.h"

#include <algorithm>
#include <utility>

namespace distfuse::client {

bool SlotGates::enter(df_u32 slot) {
  Gate& gate = gate_of(slot);
  std::unique_lock lock(gate.mutex);
  gate.opened.wait(lock, [&] { return gate.frozen.empty() || gate.closed; });
  if (gate.closed) return false;
  ++gate.inside;
  return true;
}

bool SlotGates::try_enter(df_u32 slot) {
  Gate& gate = gate_of(slot);
  const std::lock_guard lock(gate.mutex);
  if (!gate.frozen.empty() || gate.closed) return false;
  ++gate.inside;
  return true;
}

void SlotGates::leave(df_u32 slot) {
  Gate& gate = gate_of(slot);
  std::vector<df_msg> due;
  {
    const std::lock_guard lock(gate.mutex);
    if (--gate.inside == 0) due = std::exchange(gate.pending, {});
  }
  for (const auto& message : due) answer_(message);
}

void SlotGates::freeze(const df_msg& message) {
  Gate& gate = gate_of(message.head.slot);
  {
    const std::lock_guard lock(gate.mutex);
    if (gate.closed) return;
    // It may come again, with another number; one thaw ends it all the same.
    if (std::ranges::find(gate.frozen, message.head.slot) == gate.frozen.end()) {
      gate.frozen.push_back(message.head.slot);
    }
    if (gate.inside != 0) {
      gate.pending.push_back(message);
      return;
    }
  }
  answer_(message);
}

void SlotGates::thaw(df_u32 slot) {
  Gate& gate = gate_of(slot);
  const std::lock_guard lock(gate.mutex);
  std::erase(gate.frozen, slot);  // Who joined after the Freeze is thawed with the others.
  std::erase_if(gate.pending, [slot](const df_msg& m) { return m.head.slot == slot; });
  if (gate.frozen.empty()) gate.opened.notify_all();
}

void SlotGates::close() {
  for (auto& gate : gates_) {
    const std::lock_guard lock(gate.mutex);
    gate.closed = true;
    gate.pending.clear();
    gate.opened.notify_all();
  }
}

}  // namespace distfuse::client
