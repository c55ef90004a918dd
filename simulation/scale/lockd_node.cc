// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/lockd_node.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace distfuse::scale {

LockdNode::LockdNode(const Parameters& parameters, LockdNetwork& network, std::uint32_t index,
                     const df_lockd_config& config, double connections)
    : parameters_(parameters),
      network_(network),
      index_(index),
      nic_(parameters, df_table{config.buckets, config.overflow, DF_NODE_LOCKD}, connections),
      memory_(df_lockd_memory(&config) / sizeof(df_u64)),
      waiting_(nic_.slots()) {
  df_lockd_shell shell{};
  shell.context = this;
  shell.post = [](void* context, df_u64 cookie, const df_chain* chain) {
    static_cast<LockdNode*>(context)->posted(cookie, *chain);
  };
  shell.send = [](void* context, df_u32 node, const df_msg* message) {
    static_cast<LockdNode*>(context)->sent(node, *message);
  };
  shell.drop = [](void* /*context*/, df_u32 node, int reason) {
    throw std::runtime_error("lockd drops node " + std::to_string(node) + ", which " +
                             df_drop_text(reason));
  };
  core_ = memory_.empty() ? nullptr : df_lockd_init(memory_.data(), &config, &shell);
  if (core_ == nullptr) throw std::runtime_error("lockd refuses its configuration");
}

void LockdNode::join(df_u32 node) {
  if (df_lockd_session_joined(core_, node) != 0)
    throw std::runtime_error("lockd refuses a session");
  ++sessions_;
}

void LockdNode::gone(df_u32 node, Time now) {
  now_ = now;
  spent_ = 0;
  df_lockd_session_gone(core_, node, 0);
  --sessions_;
}

df_lockd_counters LockdNode::counters() const {
  df_lockd_counters counters{};
  df_lockd_read_counters(core_, &counters);
  return counters;
}

void LockdNode::queue(Job job, Time now) {
  jobs_.push_back(job);
  longest_backlog_ = std::max(longest_backlog_, jobs_.size());
  if (running_) return;
  running_ = true;
  network_.lockd_runs_at(index_, now + from_ns(parameters_.lockd_wake_ns));
}

void LockdNode::message_received(std::uint32_t record, Time now) {
  ++messages_in_;
  queue({false, record}, now);
}

void LockdNode::chain_completed(std::uint32_t record, Time now) {
  queue({true, record}, now);
}

void LockdNode::run(Time now) {
  if (jobs_.empty()) {
    running_ = false;
    return;
  }
  const Job job = jobs_.front();
  jobs_.pop_front();
  now_ = now;
  spent_ = 0;
  perform(job);
  busy_ += spent_;
  network_.lockd_runs_at(index_, now + spent_);
}

/// The core walks a slot's queue at each message and at each completed chain of the slot.
void LockdNode::perform(const Job& job) {
  const auto walk = [this](std::uint32_t slot) {
    return slot < waiting_.size() ? parameters_.lockd_waiter_ns * waiting_[slot] : 0;
  };
  charge(parameters_.lockd_receive_ns + parameters_.lockd_core_ns);
  if (job.is_chain) {
    const ChainRecord& record = network_.chain(job.record);
    charge(walk(record.chain.slot));
    df_lockd_chain_done(core_, record.cookie, record.old,
                        record.has_image ? record.image.data() : nullptr);
    network_.free_chain(job.record);
    return;
  }
  const df_msg message = network_.message(job.record);
  const auto node = network_.message_node(job.record);
  network_.free_message(job.record);
  if (message.head.type != DF_MSG_FIND) charge(walk(message.head.slot));
  if (message.head.type == DF_MSG_ASK)
    longest_queue_ = std::max(longest_queue_, ++waiting_[message.head.slot]);
  df_lockd_message(core_, node, &message);
}

void LockdNode::posted(df_u64 cookie, const df_chain& chain) {
  charge(parameters_.lockd_send_ns);
  network_.post_loopback(index_, cookie, chain, now_ + spent_);
}

void LockdNode::sent(df_u32 node, const df_msg& message) {
  const bool stage = message.head.type == DF_MSG_REVOKE || message.head.type == DF_MSG_FREEZE;
  if (stage && message.head.seq != revoke_seq_) {  // it looked at every session
    revoke_seq_ = message.head.seq;
    charge(parameters_.lockd_session_ns * sessions_);
  }
  if (message.head.type == DF_MSG_GRANT) --waiting_[message.head.slot];
  charge(parameters_.lockd_send_ns);
  ++messages_out_;
  network_.send_to_client(index_, node, message, nic_.send(now_ + spent_, message.head.length));
}

}  // namespace distfuse::scale
