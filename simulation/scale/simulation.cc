// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/simulation.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace distfuse::scale {
namespace {

/// A bucket for each key: 9 keys in one of 8 slots, one time in a million.
df_lockd_config config_of(const Shape& shape) {
  const auto buckets = static_cast<df_u32>(std::max<std::uint64_t>(64, shape.keys / shape.lockds));
  df_lockd_config config{};
  config.buckets = buckets;
  config.overflow = buckets / 4;
  config.sessions = shape.clients;
  config.objects = static_cast<df_u32>(std::min<std::uint64_t>(shape.keys + 64, 65536));
  config.waiters = shape.clients + 64;
  config.asks = 16;
  return config;
}

}  // namespace

Simulation::Simulation(const Parameters& parameters, const Shape& shape,
                       SimulationObserver& observer)
    : parameters_(parameters),
      shape_(shape),
      observer_(observer),
      random_(shape.seed),
      lost_(shape.clients),
      last_arrival_(std::size_t{shape.clients} * shape.lockds) {
  const auto config = config_of(shape);
  ClientNetwork& clients = *this;
  LockdNetwork& lockds = *this;
  for (std::uint32_t i = 0; i < shape.clients; ++i)
    clients_.emplace_back(parameters_, clients, i,
                          df_table{config.buckets, config.overflow, i + 1});
  const double connections = parameters_.connections_per_client * shape.clients;
  for (std::uint32_t i = 0; i < shape.lockds; ++i) {
    lockds_.push_back(std::make_unique<LockdNode>(parameters_, lockds, i, config, connections));
    for (const auto& client : clients_) lockds_.back()->join(client.node());
  }
}

std::uint32_t Simulation::lockd_of(df_u64 key) const {
  key = (key ^ key >> 31) * 0xbf58476d1ce4e5b9ull;
  key = (key ^ key >> 27) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>((key >> 32) * shape_.lockds >> 32);
}

void Simulation::begin(std::uint32_t client, const Operation& operation) {
  clients_[client].begin(operation, lockd_of(operation.key), queue_.now());
}

void Simulation::lose(std::uint32_t client) {
  lost_[client] = true;
  for (auto& lockd : lockds_) lockd->gone(clients_[client].node(), queue_.now());
}

bool Simulation::misses(std::uint32_t lockd) {
  const double probability = lockds_[lockd]->nic().miss_probability();
  return probability > 0 && random_.unit() < probability;
}

// --- events

bool Simulation::step() {
  Event event{};
  if (!queue_.next(event)) return false;
  dispatch(event);
  return true;
}

void Simulation::dispatch(const Event& event) {
  switch (event.kind) {
    case EventKind::chain_arrives:
      return chain_arrives(event.subject);
    case EventKind::chain_completes:
      return chain_completes(event.subject);
    case EventKind::message_at_lockd:
      return message_at_lockd(event.subject);
    case EventKind::lockd_runs:
      return lockds_[event.subject]->run(event.time);
    case EventKind::message_at_client:
      return message_arrives(event.subject);
    case EventKind::operation_begins:
      return observer_.begins(event.subject, event.time);
    case EventKind::operation_ends:
      clients_[event.subject].end(event.time);
      return observer_.ended(event.subject, event.time);
    case EventKind::operation_retries:
      return clients_[event.subject].retry(event.time);
    case EventKind::shed_ends:
      return clients_[event.subject].shed_ended(event.detail, event.time);
  }
}

// --- chains

std::uint32_t Simulation::new_chain(const df_chain& chain) {
  if (free_chains_.empty()) {
    free_chains_.push_back(static_cast<std::uint32_t>(chains_.size()));
    chains_.emplace_back();
  }
  const auto record = free_chains_.back();
  free_chains_.pop_back();
  chains_[record].chain = chain;
  return record;
}

void Simulation::post_chain(std::uint32_t client, std::uint32_t lock, std::uint32_t lockd,
                            const df_chain& chain, Time at) {
  const auto record = new_chain(chain);
  chains_[record].client = client;
  chains_[record].lock = lock;
  chains_[record].lockd = lockd;
  queue_.add(at + from_ns(parameters_.wire_ns), EventKind::chain_arrives, record);
}

void Simulation::post_loopback(std::uint32_t lockd, df_u64 cookie, const df_chain& chain, Time at) {
  const auto record = new_chain(chain);
  chains_[record].client = kLoopback;
  chains_[record].cookie = cookie;
  chains_[record].lockd = lockd;
  queue_.add(at + from_ns(parameters_.loop_wire_ns), EventKind::chain_arrives, record);
}

void Simulation::chain_arrives(std::uint32_t index) {
  ChainRecord& record = chains_[index];
  const bool own = record.client == kLoopback;
  const bool missed = !own && misses(record.lockd);
  const Time end = lockds_[record.lockd]->nic().execute(record, queue_.now(), missed);
  queue_.add(end + from_ns(own ? parameters_.loop_wire_ns : parameters_.wire_ns),
             EventKind::chain_completes, index);
}

void Simulation::chain_completes(std::uint32_t index) {
  ChainRecord& record = chains_[index];
  if (record.client == kLoopback) return lockds_[record.lockd]->chain_completed(index, now());
  if (!lost_[record.client])
    clients_[record.client].chain_completed(
        record.lock, record.old, record.has_image ? record.image.data() : nullptr, now());
  free_chain(index);
}

// --- messages

std::uint32_t Simulation::new_message(const df_msg& message, std::uint32_t client,
                                      std::uint32_t lockd) {
  if (free_messages_.empty()) {
    free_messages_.push_back(static_cast<std::uint32_t>(messages_.size()));
    messages_.emplace_back();
  }
  const auto record = free_messages_.back();
  free_messages_.pop_back();
  messages_[record] = {message, client, lockd};
  return record;
}

std::uint32_t Simulation::message_node(std::uint32_t record) {
  return clients_[messages_[record].client].node();
}

void Simulation::send_to_lockd(std::uint32_t client, std::uint32_t lockd, const df_msg& message,
                               Time at) {
  if (df_msg_check(&message, message.head.length) != DF_CHECK_OK)
    throw std::runtime_error("a client would send a malformed message");
  // ORDER: a connection's messages stay in order, though one waits for its context and the next does not.
  Time& last = last_arrival_[std::size_t{client} * shape_.lockds + lockd];
  const double late = misses(lockd) ? parameters_.miss_ns : 0;
  last = std::max(last, at + from_ns(parameters_.wire_ns + late));
  queue_.add(last, EventKind::message_at_lockd, new_message(message, client, lockd));
}

void Simulation::send_to_client(std::uint32_t lockd, df_u32 node, const df_msg& message, Time at) {
  const auto client = node - 1;
  if (lost_[client]) return;
  const Time handled = clients_[client].handled_at(at + from_ns(parameters_.wire_ns));
  queue_.add(handled, EventKind::message_at_client, new_message(message, client, lockd));
}

void Simulation::deliver_later(std::uint32_t client, std::uint32_t lockd, const df_msg& message,
                               Time at) {
  queue_.add(at, EventKind::message_at_client, new_message(message, client, lockd));
}

void Simulation::message_arrives(std::uint32_t index) {
  const MessageRecord record = messages_[index];
  free_message(index);
  if (!lost_[record.client]) clients_[record.client].message(record.lockd, record.message, now());
}

void Simulation::message_at_lockd(std::uint32_t index) {
  auto& lockd = *lockds_[messages_[index].lockd];
  lockd.message_received(index, lockd.nic().receive(now()));
}

void Simulation::lockd_runs_at(std::uint32_t lockd, Time at) {
  queue_.add(at, EventKind::lockd_runs, lockd);
}

// --- the clients' threads

void Simulation::shed_ends_at(std::uint32_t client, std::uint32_t lock, Time at) {
  queue_.add(at, EventKind::shed_ends, client, lock);
}

void Simulation::operation_retries_at(std::uint32_t client, Time at) {
  queue_.add(at, EventKind::operation_retries, client);
}

void Simulation::operation_granted(std::uint32_t client, const Operation& operation, Time begun,
                                   bool cached) {
  const double use = observer_.granted(client, operation, now() - begun, now(), cached);
  if (use >= 0) queue_.add(now() + from_ns(use), EventKind::operation_ends, client);
}

void Simulation::pinned(df_u64 key, std::uint32_t mode, int change) {
  auto& pins = pins_[key];
  pins[mode] += change;
  if (change < 0) return;
  for (std::uint32_t other = DF_IS; other < DF_MODES; ++other)
    if (pins[other] > (other == mode ? 1 : 0) && df_compatible(mode, other) == 0)
      throw std::runtime_error("incompatible modes are in use at once");
}

void Simulation::check_at_rest(std::optional<df_u64> only) {
  std::unordered_map<df_u64, df_u64> words;
  for (const auto& client : clients_) {
    if (lost_[client.node() - 1]) continue;
    if (client.waiting())
      throw std::runtime_error("node " + std::to_string(client.node()) + " waits for ever");
    client.for_each_held(
        [&](df_u64 key, std::uint32_t mode) { words[key] += df_unit(mode, client.node()); });
  }
  for (auto& lockd : lockds_) {
    for (std::uint32_t i = 0; i < lockd->nic().slots(); ++i) {
      const df_slot& slot = lockd->nic().slot(i);
      if (slot.key != 0 && (!only || slot.key == *only) && slot.word != words[slot.key])
        throw std::runtime_error("a word says what nobody holds");
    }
  }
}

}  // namespace distfuse::scale
