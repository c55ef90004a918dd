// SPDX-License-Identifier: Apache-2.0
// Clients and lockds on a fabric of stated costs, as a discrete-event simulation. The state machines are the real ones.
//
// Order: chains of one lock one after the other (the core has one in flight); messages of one connection in order, both ways; a
// message may overtake a chain and a chain a message, for they go over different connections.
// Checked all the time: the modes that are in use at once are compatible; no honest client is dropped.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "simulation/scale/client_node.h"
#include "simulation/scale/event_queue.h"
#include "simulation/scale/lockd_node.h"
#include "simulation/scale/nic.h"
#include "simulation/scale/parameters.h"
#include "simulation/scale/workload.h"

namespace distfuse::scale {

struct Shape {
  std::uint32_t clients = 10;
  std::uint32_t lockds = 1;
  std::uint64_t keys = 1;  // the tables have a bucket for each
  std::uint64_t seed = 1;
};

/// Told of what the clients' threads come to.
class SimulationObserver {
 public:
  virtual ~SimulationObserver() = default;
  /// Answers how long the lock is used, in ns; negative: the operation does not end by itself.
  virtual double granted(std::uint32_t client, const Operation& operation, Time waited, Time now,
                         bool cached) = 0;
  /// The operation is over: the client's thread is free.
  virtual void ended(std::uint32_t client, Time now) = 0;
  /// A time given to begin_at has come.
  virtual void begins(std::uint32_t client, Time now) = 0;
};

class Simulation final : private ClientNetwork, private LockdNetwork {
 public:
  Simulation(const Parameters& parameters, const Shape& shape, SimulationObserver& observer);

  /// The observer's begins() is called then.
  void begin_at(std::uint32_t client, Time at) {
    queue_.add(at, EventKind::operation_begins, client);
  }
  void begin(std::uint32_t client, const Operation& operation);
  /// One event; false: nothing is left to do.
  bool step();
  /// Everything that is under way comes to its end.
  void drain() {
    while (step()) continue;
  }
  /// The client is gone, without giving up anything; lockd has fenced it.
  void lose(std::uint32_t client);

  /// Nothing is under way: nobody waits, and each word (that key's, if one is given) says what the clients hold. Throws if not so.
  void check_at_rest(std::optional<df_u64> only);

  [[nodiscard]] Time now() const { return queue_.now(); }
  [[nodiscard]] std::uint64_t events() const { return queue_.done(); }
  [[nodiscard]] LockdNode& lockd(std::uint32_t index) { return *lockds_[index]; }
  [[nodiscard]] ClientNode& client(std::uint32_t index) { return clients_[index]; }
  [[nodiscard]] std::uint32_t lockd_of(df_u64 key) const;
  [[nodiscard]] Random& random() { return random_; }
  [[nodiscard]] const Shape& shape() const { return shape_; }

 private:
  struct MessageRecord {
    df_msg message;
    std::uint32_t client;
    std::uint32_t lockd;
  };
  // ClientNetwork
  void post_chain(std::uint32_t client, std::uint32_t lock, std::uint32_t lockd,
                  const df_chain& chain, Time at) override;
  void send_to_lockd(std::uint32_t client, std::uint32_t lockd, const df_msg& message,
                     Time at) override;
  void deliver_later(std::uint32_t client, std::uint32_t lockd, const df_msg& message,
                     Time at) override;
  void shed_ends_at(std::uint32_t client, std::uint32_t lock, Time at) override;
  void operation_retries_at(std::uint32_t client, Time at) override;
  void operation_granted(std::uint32_t client, const Operation& operation, Time begun,
                         bool cached) override;
  void pinned(df_u64 key, std::uint32_t mode, int change) override;
  // LockdNetwork
  void post_loopback(std::uint32_t lockd, df_u64 cookie, const df_chain& chain, Time at) override;
  void send_to_client(std::uint32_t lockd, df_u32 node, const df_msg& message, Time at) override;
  void lockd_runs_at(std::uint32_t lockd, Time at) override;
  ChainRecord& chain(std::uint32_t record) override { return chains_[record]; }
  const df_msg& message(std::uint32_t record) override { return messages_[record].message; }
  std::uint32_t message_node(std::uint32_t record) override;
  void free_chain(std::uint32_t record) override { free_chains_.push_back(record); }
  void free_message(std::uint32_t record) override { free_messages_.push_back(record); }

  std::uint32_t new_chain(const df_chain& chain);
  std::uint32_t new_message(const df_msg& message, std::uint32_t client, std::uint32_t lockd);
  void dispatch(const Event& event);
  void chain_arrives(std::uint32_t record);
  void chain_completes(std::uint32_t record);
  void message_at_lockd(std::uint32_t record);
  void message_arrives(std::uint32_t record);
  [[nodiscard]] bool misses(std::uint32_t lockd);

  Parameters parameters_;
  Shape shape_;
  SimulationObserver& observer_;
  Random random_;
  EventQueue queue_;
  std::deque<ClientNode> clients_;
  std::vector<bool> lost_;
  std::vector<Time> last_arrival_;  // of messages, by client and lockd
  std::vector<std::unique_ptr<LockdNode>> lockds_;
  std::deque<ChainRecord> chains_;
  std::deque<MessageRecord> messages_;
  std::vector<std::uint32_t> free_chains_, free_messages_;
  std::unordered_map<df_u64, std::array<int, DF_MODES>> pins_;
};

}  // namespace distfuse::scale
