// SPDX-License-Identifier: Apache-2.0
// One client: the real core for each of its locks, one thread, and the duties of a shell (rdma/lock/client.h).
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "rdma/lock/client.h"
#include "rdma/lock/hold.h"
#include "simulation/scale/parameters.h"
#include "simulation/scale/workload.h"

namespace distfuse::scale {

/// What a client gives out; the simulation carries it.
class ClientNetwork {
 public:
  virtual ~ClientNetwork() = default;
  virtual void post_chain(std::uint32_t client, std::uint32_t lock, std::uint32_t lockd,
                          const df_chain& chain, Time at) = 0;
  virtual void send_to_lockd(std::uint32_t client, std::uint32_t lockd, const df_msg& message,
                             Time at) = 0;
  /// The same message is to be handled again at that time.
  virtual void deliver_later(std::uint32_t client, std::uint32_t lockd, const df_msg& message,
                             Time at) = 0;
  virtual void shed_ends_at(std::uint32_t client, std::uint32_t lock, Time at) = 0;
  virtual void operation_retries_at(std::uint32_t client, Time at) = 0;
  /// The operation has its lock. `cached`: it was here already.
  virtual void operation_granted(std::uint32_t client, const Operation& operation, Time begun,
                                 bool cached) = 0;
  virtual void pinned(df_u64 key, std::uint32_t mode, int change) = 0;
};

class ClientNode {
 public:
  ClientNode(const Parameters& parameters, ClientNetwork& network, std::uint32_t index,
             const df_table& table)
      : parameters_(parameters), network_(network), index_(index), table_(table) {}
  ClientNode(const ClientNode&) = delete;
  ClientNode& operator=(const ClientNode&) = delete;

  void begin(const Operation& operation, std::uint32_t lockd, Time now);
  void end(Time now);
  void retry(Time now);
  void chain_completed(std::uint32_t lock, df_u64 old, const df_slot* image, Time now);
  void message(std::uint32_t lockd, const df_msg& message, Time now);
  void shed_ended(std::uint32_t lock, Time now);
  /// When a message that arrives then is handled: one after the other.
  [[nodiscard]] Time handled_at(Time arrives);

  [[nodiscard]] bool waiting() const { return waiting_; }
  /// What it has in words: key, mode.
  template <typename Visit>
  void for_each_held(Visit visit) const {
    for (const Lock& lock : locks_)
      if (lock.core.held != DF_NL) visit(lock.core.key, lock.core.held);
  }
  [[nodiscard]] df_u32 node() const { return table_.node; }

 private:
  struct Lock {
    df_lock core{};
    std::uint32_t lockd = 0;
    std::uint32_t keep = 0;
    df_hold hold{};
    df_chain parked_chain{};
    bool parked = false;      // a chain on a frozen slot
    bool staying = false;     // a chain on the slot's word is posted, or its undo is about to be
    bool shed_waits = false;  // for the thread that still uses the lock
    std::vector<df_msg> freezes;  // not answered yet
  };
  std::uint32_t lock_of(std::uint32_t lockd, df_u64 key);
  Lock* find(std::uint32_t lockd, df_u64 key);
  void want(Time now);
  void granted(bool cached);
  void perform(std::uint32_t lock, const df_out& out, Time now);
  void wake(std::uint32_t lock, std::uint32_t wake, Time now);
  void begin_shed(std::uint32_t lock, Time now);
  void post(std::uint32_t lock, const df_chain& chain, Time now);
  void send(std::uint32_t lockd, const df_msg& message, Time now);
  void freeze(std::uint32_t lockd, const df_msg& message, Time now);
  void thaw(std::uint32_t lockd, const df_msg& message, Time now);
  void answer_freezes(std::uint32_t lock, Time now);
  [[nodiscard]] bool frozen(std::uint32_t lockd, std::uint32_t slot) const;
  Time leaves(Time now);
  /// The time that hold.h's machine is told (µs).
  [[nodiscard]] df_u64 hold_clock(Time now) const;

  const Parameters& parameters_;
  ClientNetwork& network_;
  std::uint32_t index_;
  df_table table_;
  std::deque<Lock> locks_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> frozen_;  // lockd, slot
  Operation operation_{};
  std::uint32_t operation_lock_ = 0;
  Time begun_ = 0;
  Time pause_ = 0;  // before the next retry
  Time nic_free_ = 0, handling_free_ = 0;
  bool waiting_ = false;
};

}  // namespace distfuse::scale
