// SPDX-License-Identifier: Apache-2.0
// lockd's NIC and the slot table behind it.
//
// Servers, each first come first served: the receiver (every operation and message), the atomic unit (all words together), one per
// word (atomics of the same word), the sender (messages of lockd). A chain's operations follow one another; a chain that waits for
// its word keeps nobody else from theirs. The effect on memory is done when the chain arrives: words serve in the order of arrival, so
// that is one of the orders which the model allows.
#pragma once

#include <cstdint>
#include <vector>

#include "rdma/lock/lockd.h"
#include "rdma/lock/slot.h"
#include "simulation/scale/parameters.h"

namespace distfuse::scale {

struct ChainRecord {
  df_chain chain{};
  df_u64 old = 0;
  df_u64 cookie = 0;         // lockd's own
  std::uint32_t client = 0;  // kLoopback: lockd's own
  std::uint32_t lock = 0;    // of the client
  std::uint32_t lockd = 0;
  bool has_image = false;
  std::vector<df_slot> image;
};
inline constexpr std::uint32_t kLoopback = 0xffffffff;

/// How long each server was busy.
struct NicLoad {
  Time receiver = 0;
  Time atomics = 0;
  Time hottest_word = 0;
  Time sender = 0;
};

class Nic {
 public:
  Nic(const Parameters& parameters, const df_table& table, double connections);

  /// The chain is here: does it, and says when its last operation has ended. `misses`: its connection's context is not cached.
  Time execute(ChainRecord& record, Time now, bool misses);
  /// A message is here: when lockd can poll it.
  Time receive(Time now);
  /// lockd posted a message of so many bytes: when it is on the wire.
  Time send(Time now, std::uint32_t bytes);
  /// Probability that a connection's context is not cached.
  [[nodiscard]] double miss_probability() const { return miss_probability_; }
  [[nodiscard]] NicLoad load() const;
  [[nodiscard]] df_slot& slot(std::uint32_t index) { return slots_[index]; }
  [[nodiscard]] std::size_t slots() const { return slots_.size(); }

 private:
  Time occupy(Time& server, Time& busy, Time from, Time length);
  Time run(const df_op& op, ChainRecord& record, Time arrived, Time before);
  void effect(const df_op& op, ChainRecord& record);

  const Parameters& parameters_;
  double miss_probability_;
  Time read_penalty_;
  Time write_penalty_;
  std::vector<df_slot> slots_;
  std::vector<Time> word_free_;
  std::vector<Time> word_busy_;
  Time receiver_free_ = 0, atomics_free_ = 0, sender_free_ = 0;
  NicLoad load_;
};

}  // namespace distfuse::scale
