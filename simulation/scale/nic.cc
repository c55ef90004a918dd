// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/nic.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace distfuse::scale {

Nic::Nic(const Parameters& parameters, const df_table& table, double connections)
    : parameters_(parameters),
      miss_probability_(std::max(0.0, 1 - parameters.cached_connections / connections)),
      read_penalty_(from_ns(read_penalty_ns(connections))),
      write_penalty_(from_ns(write_penalty_ns(connections))),
      slots_(df_table_slots(&table)),
      word_free_(slots_.size()),
      word_busy_(slots_.size()) {
  for (std::uint32_t i = 0; i < slots_.size(); ++i) df_lockd_prepare_slot(&slots_[i], i);
}

Time Nic::occupy(Time& server, Time& busy, Time from, Time length) {
  server = std::max(server, from) + length;
  busy += length;
  return server;
}

void Nic::effect(const df_op& op, ChainRecord& record) {
  if (op.offset + op.length > slots_.size() * DF_SLOT_SIZE)
    throw std::runtime_error("an operation outside of the table");
  auto* at = reinterpret_cast<df_u8*>(slots_.data()) + op.offset;
  df_u64 word = 0;
  switch (op.kind) {
    case DF_OP_READ:
      record.has_image = true;
      record.image.resize(op.length / DF_SLOT_SIZE);
      std::memcpy(record.image.data(), at, op.length);
      return;
    case DF_OP_WRITE:
      std::memcpy(at, record.chain.bytes + op.data, op.length);
      return;
    default:
      std::memcpy(&record.old, at, sizeof(word));
      word = op.kind == DF_OP_FAA        ? record.old + op.operand
             : record.old == op.expected ? op.operand
                                         : record.old;
      std::memcpy(at, &word, sizeof(word));
  }
}

/// ORDER: an operation begins when its packet is in and the one before it in the chain has ended.
Time Nic::run(const df_op& op, ChainRecord& record, Time arrived, Time before) {
  const bool reads = op.kind == DF_OP_READ;
  const Time in = occupy(receiver_free_, load_.receiver, arrived,
                         from_ns(reads ? parameters_.nic_read_ns : parameters_.nic_write_ns));
  const Time begin = std::max(in, before);
  effect(op, record);
  if (reads)
    return begin + from_ns(parameters_.host_read_ns + op.length * parameters_.link_ns_per_byte);
  if (op.kind == DF_OP_WRITE) return begin;
  const auto word = op.offset / DF_SLOT_SIZE;
  const Time length = from_ns(parameters_.atomic_ns);
  const Time unit = occupy(atomics_free_, load_.atomics, begin, length);
  return occupy(word_free_[word], word_busy_[word], unit - length,
                from_ns(parameters_.same_word_atomic_ns));
}

Time Nic::execute(ChainRecord& record, Time now, bool misses) {
  Time end = now;
  record.has_image = false;
  record.old = 0;
  if (record.client != kLoopback) occupy(receiver_free_, load_.receiver, now, read_penalty_);
  if (misses) end += from_ns(parameters_.miss_ns);
  for (std::uint32_t i = 0; i < record.chain.count; ++i)
    end = run(record.chain.op[i], record, now, end);
  return end;
}

Time Nic::receive(Time now) {
  return occupy(receiver_free_, load_.receiver, now,
                from_ns(parameters_.nic_write_ns) + write_penalty_);
}

Time Nic::send(Time now, std::uint32_t bytes) {
  const Time length = from_ns(parameters_.nic_write_ns) + write_penalty_;
  return occupy(sender_free_, load_.sender, now,
                std::max(length, from_ns(bytes * parameters_.link_ns_per_byte)));
}

NicLoad Nic::load() const {
  NicLoad load = load_;
  for (const Time busy : word_busy_) load.hottest_word = std::max(load.hottest_word, busy);
  return load;
}

}  // namespace distfuse::scale
