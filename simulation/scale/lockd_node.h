// SPDX-License-Identifier: Apache-2.0
// One lockd: the real core, one service thread that takes messages and completed chains one after the other, one NIC.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "rdma/lock/lockd.h"
#include "simulation/scale/nic.h"
#include "simulation/scale/parameters.h"

namespace distfuse::scale {

/// What a lockd's core gives out; the simulation carries it.
class LockdNetwork {
 public:
  virtual ~LockdNetwork() = default;
  virtual void post_loopback(std::uint32_t lockd, df_u64 cookie, const df_chain& chain,
                             Time at) = 0;
  virtual void send_to_client(std::uint32_t lockd, df_u32 node, const df_msg& message, Time at) = 0;
  /// The service thread has something to do at that time.
  virtual void lockd_runs_at(std::uint32_t lockd, Time at) = 0;
  virtual ChainRecord& chain(std::uint32_t record) = 0;
  virtual const df_msg& message(std::uint32_t record) = 0;
  virtual std::uint32_t message_node(std::uint32_t record) = 0;
  virtual void free_chain(std::uint32_t record) = 0;
  virtual void free_message(std::uint32_t record) = 0;
};

class LockdNode {
 public:
  LockdNode(const Parameters& parameters, LockdNetwork& network, std::uint32_t index,
            const df_lockd_config& config, double connections);
  LockdNode(const LockdNode&) = delete;
  LockdNode& operator=(const LockdNode&) = delete;

  void join(df_u32 node);
  /// Fenced; its locks are in the table yet.
  void gone(df_u32 node, Time now);

  void message_received(std::uint32_t record, Time now);
  void chain_completed(std::uint32_t record, Time now);
  /// The service thread's next piece of work, if there is one.
  void run(Time now);

  [[nodiscard]] Nic& nic() { return nic_; }
  [[nodiscard]] df_lockd_counters counters() const;
  [[nodiscard]] Time busy() const { return busy_; }
  [[nodiscard]] std::uint64_t messages_in() const { return messages_in_; }
  [[nodiscard]] std::uint64_t messages_out() const { return messages_out_; }
  [[nodiscard]] std::uint32_t longest_queue() const { return longest_queue_; }
  [[nodiscard]] std::size_t longest_backlog() const { return longest_backlog_; }
  [[nodiscard]] std::uint64_t memory_bytes() const { return memory_.size() * sizeof(df_u64); }

 private:
  struct Job {
    bool is_chain;
    std::uint32_t record;
  };
  void queue(Job job, Time now);
  void charge(double ns) { spent_ += from_ns(ns); }
  void perform(const Job& job);
  void posted(df_u64 cookie, const df_chain& chain);
  void sent(df_u32 node, const df_msg& message);

  const Parameters& parameters_;
  LockdNetwork& network_;
  std::uint32_t index_;
  Nic nic_;
  std::vector<df_u64> memory_;
  df_lockd* core_;
  std::deque<Job> jobs_;
  bool running_ = false;
  Time now_ = 0;
  Time spent_ = 0;  // of the job at hand
  Time busy_ = 0;
  df_u64 revoke_seq_ = 0;               // of the last stage that was charged for
  std::vector<std::uint32_t> waiting_;  // Asks in the queue, by slot
  std::uint32_t sessions_ = 0;
  std::uint32_t longest_queue_ = 0;
  std::size_t longest_backlog_ = 0;
  std::uint64_t messages_in_ = 0, messages_out_ = 0;
};

}  // namespace distfuse::scale
