// SPDX-License-Identifier: Apache-2.0
// Freeze and Thaw: while lockd counts who holds a slot, nothing of this session changes its word.
//
// Parties: threads that run TAKE, RELEASE and PUBLISH chains enter the slot's gate first and leave it when the chain, and the UNDO
// of a TAKE, are complete and the lock knows the outcome; the control thread freezes and thaws.
//
// States of a gate: open; closing (Freeze came, chains inside: the last to leave answers it); frozen. Entering waits until it is
// open. Slots share kGates gates: a neighbour is parked along, which only costs it time.
//
// Never in a cycle: who is inside waits for its completion only (a thread with chains inside several gates uses try_enter),
// so a Freeze is answered without any other client; and a thaw needs nothing but every session's answer.
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

#include "rdma/lock/wire.h"

namespace distfuse::client {

class SlotGates {
 public:
  /// Answers a Freeze; called without the gate's mutex.
  using Answer = std::function<void(const df_msg& freeze)>;
  explicit SlotGates(Answer answer) : answer_(std::move(answer)) {}

  /// false: closed for good.
  bool enter(df_u32 slot);
  bool try_enter(df_u32 slot);
  void leave(df_u32 slot);
  /// Again for a frozen slot: answered again.
  void freeze(const df_msg& message);
  void thaw(df_u32 slot);
  /// The session is over: nobody waits any more.
  void close();

 private:
  static constexpr std::size_t kGates = 512;
  struct Gate {
    std::mutex mutex;
    std::condition_variable opened;
    unsigned inside = 0;
    std::vector<df_u32> frozen;  ///< Slots, each once; ≤ what lockd has contended.
    std::vector<df_msg>
        pending;  ///< Freezes not answered yet, of slots in `frozen`; lockd sends few for one.
    bool closed = false;
  };
  Gate& gate_of(df_u32 slot) { return gates_[slot % kGates]; }

  Answer answer_;
  std::array<Gate, kGates> gates_;
};

}  // namespace distfuse::client
