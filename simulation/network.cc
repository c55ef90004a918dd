// SPDX-License-Identifier: Apache-2.0
#include "simulation/network.h"

#include <algorithm>
#include <cstring>

#include "simulation/world.h"

namespace distfuse::simulation {

bool RunningChain::execute(Memory& memory) {
  const df_op& op = chain.op[next++];
  df_u8* bytes = memory.at(op.offset, std::max<std::uint64_t>(op.length, 8));
  std::uint64_t word = 0;
  switch (op.kind) {
    case DF_OP_READ:
      image.assign(bytes, bytes + op.length);
      break;
    case DF_OP_WRITE:
      std::memcpy(bytes, chain.bytes + op.data, op.length);
      break;
    case DF_OP_CAS:
      std::memcpy(&old, bytes, 8);
      if (old == op.expected) std::memcpy(bytes, &op.operand, 8);
      break;
    default:
      std::memcpy(&old, bytes, 8);
      word = old + op.operand;
      std::memcpy(bytes, &word, 8);
      break;
  }
  return next == chain.count;
}

Time Network::delay() {
  return 1 + world_.random.spread(world_.options.latency);
}

Time Network::held_back(const Connection& connection) const {
  const auto low = std::min(connection.end[0]->index(), connection.end[1]->index());
  const auto high = std::max(connection.end[0]->index(), connection.end[1]->index());
  const auto it = heals_.find({low, high});
  return it == heals_.end() || it->second <= world_.now() ? 0 : it->second - world_.now();
}

int Network::side_of(const Connection& connection, const Process& process) const {
  return connection.end[0] == &process ? 0 : 1;
}

// ---- connecting

ConnectionId Network::connect(Process& from, Process& to, const Hello& hello) {
  const auto id = next_++;
  auto& connection = connections_[id];
  connection.end[0] = &from;
  connection.end[1] = &to;
  connection.life[0] = from.life();
  connection.life[1] = to.life();
  connection.hello = hello;
  connection.open[0] = true;
  world_.scheduler.hardware(delay(), [this, id] { arrive(id); });
  world_.scheduler.later(from, 2 * world_.options.connection_timeout, [this, id] { give_up(id); });
  return id;
}

/// No answer came.
void Network::give_up(ConnectionId id) {
  const auto it = connections_.find(id);
  if (it == connections_.end() || it->second.answered || !it->second.open[0]) return;
  auto& from = *it->second.end[0];
  close(id, from);
  from.not_connected(id, nullptr);
}

/// The first packet reaches the other machine.
void Network::arrive(ConnectionId id) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  auto& connection = it->second;
  auto& to = *connection.end[1];
  if (!to.alive() || held_back(connection) != 0) {
    const auto wait = to.alive() ? world_.options.connection_timeout : delay();
    world_.scheduler.later(*connection.end[0], wait, [this, id] { give_up(id); });
    return;
  }
  connection.life[1] = to.life();
  world_.scheduler.later(to, 0, [this, id] {
    const auto found = connections_.find(id);
    if (found == connections_.end() || found->second.broken) return;
    found->second.open[1] = true;
    Packet packet;
    const auto acceptance =
        found->second.end[1]->greeted(id, *found->second.end[0], found->second.hello, packet);
    if (acceptance != Acceptance::later)
      answer(id, acceptance == Acceptance::accepted, std::move(packet));
  });
}

void Network::answer(ConnectionId id, bool accepted, Packet packet) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  auto& connection = it->second;
  if (!accepted) connection.open[1] = false;
  // Behind it comes what the accepting side sent since: the answer goes first.
  const auto wait = delay() + held_back(connection);
  connection.last[0] = std::max(connection.last[0], world_.now() + wait);
  world_.scheduler.later(*connection.end[0], wait,
                         [this, id, accepted, packet = std::move(packet)] {
                           const auto found = connections_.find(id);
                           if (found == connections_.end() || !found->second.open[0]) return;
                           auto& from = *found->second.end[0];
                           found->second.answered = true;
                           if (accepted) {
                             from.connected(id, packet);
                           } else {
                             connections_.erase(found);
                             from.not_connected(id, &packet);
                           }
                         });
}

// ---- messages

void Network::send(ConnectionId id, const Process& from, Packet packet) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  auto& connection = it->second;
  const int side = side_of(connection, from), to = 1 - side;
  if (!connection.open[side] || connection.broken) return;
  connection.queue[to].push_back(std::move(packet));
  connection.last[to] = std::max(connection.last[to], world_.now() + delay());
  world_.scheduler.hardware(connection.last[to] - world_.now(),
                            [this, id, to] { deliver(id, to); });
}

/// ORDER: each event delivers the head, so a stall or a partition delays and does not reorder. Side 0 reads nothing before its answer: `last` sees to it.
void Network::deliver(ConnectionId id, int to) {
  const auto it = connections_.find(id);
  if (it == connections_.end() || it->second.life[to] != it->second.end[to]->life()) return;
  auto& connection = it->second;
  if (const auto wait = held_back(connection); wait != 0) {
    world_.scheduler.hardware(wait + delay(), [this, id, to] { deliver(id, to); });
    return;
  }
  world_.scheduler.later(*connection.end[to], 0, [this, id, to] {
    const auto found = connections_.find(id);
    if (found == connections_.end()) return;
    auto& queue = found->second.queue[to];
    if (to == 0 && !found->second.answered) {  // The answer comes first.
      world_.scheduler.hardware(delay(), [this, id, to] { deliver(id, to); });
      return;
    }
    if (!found->second.open[to] || queue.empty()) return;
    const Packet packet = std::move(queue.front());
    queue.pop_front();
    found->second.end[to]->received(id, packet);
  });
}

// ---- lanes

void Network::post(ConnectionId lane, const df_chain& chain, ChainDone done) {
  const auto it = connections_.find(lane);
  if (it == connections_.end() || it->second.broken || !it->second.open[0]) return;
  auto& connection = it->second;
  connection.running.emplace_back(RunningChain{chain, 0, 0, {}}, std::move(done));
  for (df_u32 i = 0; i < chain.count; ++i) {
    const auto gap = i == 0 ? delay() : world_.random.spread(world_.options.latency / 4 + 1);
    connection.last_operation = std::max(connection.last_operation, world_.now()) + gap;
    world_.scheduler.hardware(connection.last_operation - world_.now(),
                              [this, lane] { operation(lane); });
  }
}

void Network::operation(ConnectionId id) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  auto& connection = it->second;
  if (connection.running.empty() || !connection.open[1] ||
      connection.life[1] != connection.end[1]->life())
    return;
  if (const auto wait = held_back(connection); wait != 0) {
    world_.scheduler.hardware(wait + delay(), [this, id] { operation(id); });
    return;
  }
  if (!connection.running.front().first.execute(memory_of(*connection.end[1]))) return;
  connection.done.push_back(std::move(connection.running.front()));
  connection.running.pop_front();
  connection.last_completion = std::max(connection.last_completion, world_.now() + delay());
  world_.scheduler.hardware(connection.last_completion - world_.now(),
                            [this, id] { completion(id); });
}

void Network::completion(ConnectionId id) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  if (const auto wait = held_back(it->second); wait != 0) {
    world_.scheduler.hardware(wait + delay(), [this, id] { completion(id); });
    return;
  }
  if (it->second.life[0] != it->second.end[0]->life()) return;
  world_.scheduler.later(*it->second.end[0], 0, [this, id] {
    const auto found = connections_.find(id);
    if (found == connections_.end() || !found->second.open[0] || found->second.done.empty()) return;
    const auto done = std::move(found->second.done.front());
    found->second.done.pop_front();
    done.second(done.first.old, done.first.image.empty() ? nullptr : done.first.image.data());
  });
}

// ---- ends

void Network::forget_if_dead(ConnectionId id) {
  const auto it = connections_.find(id);
  if (it != connections_.end() && !it->second.open[0] && !it->second.open[1])
    connections_.erase(it);
}

void Network::see_end(ConnectionId id, int side, bool by_peer) {
  const auto it = connections_.find(id);
  if (it == connections_.end() || !it->second.open[side]) return;
  auto& process = *it->second.end[side];
  if (it->second.life[side] != process.life()) return;
  world_.scheduler.later(process, 0, [this, id, side, by_peer, &process] {
    const auto found = connections_.find(id);
    if (found == connections_.end() || !found->second.open[side]) return;
    found->second.open[side] = false;
    found->second.queue[side].clear();
    if (side == 1) found->second.running.clear();
    forget_if_dead(id);
    process.ended(id, by_peer);
  });
}

void Network::cut(ConnectionId id, Time notice0, Time notice1) {
  const auto it = connections_.find(id);
  if (it == connections_.end() || it->second.broken) return;
  it->second.broken = true;
  const Time notices[] = {notice0, notice1};
  for (int side = 0; side < 2; ++side)
    if (it->second.open[side] && notices[side] != kNever)
      world_.scheduler.hardware(notices[side], [this, id, side] { see_end(id, side, false); });
}

void Network::close(ConnectionId id, const Process& by) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  auto& connection = it->second;
  const int side = side_of(connection, by), other = 1 - side;
  connection.open[side] = false;
  connection.queue[side].clear();
  if (side == 1) connection.running.clear();
  const auto at = std::max(connection.last[other], world_.now() + delay()) + held_back(connection);
  connection.broken = true;
  if (connection.open[other])
    world_.scheduler.hardware(at - world_.now(), [this, id, other] { see_end(id, other, true); });
  else if (other == 0 || side == 1)
    forget_if_dead(id);
}

void Network::process_gone(Process& process, bool power) {
  std::vector<ConnectionId> gone;
  for (auto& [id, connection] : connections_) {
    for (int side = 0; side < 2; ++side) {
      if (connection.end[side] != &process || !connection.open[side]) continue;
      connection.open[side] = false;
      connection.queue[side].clear();
      if (side == 1) connection.running.clear();
      connection.broken = true;
      gone.push_back(id);
      const int other = 1 - side;
      // A kernel that lives on says so; a machine that is gone is noticed by who waits for it: the side that connected.
      Time notice = delay();
      if (power) notice = other == 0 ? world_.options.connection_timeout : kNever;
      if (connection.open[other] && notice != kNever)
        world_.scheduler.hardware(notice + held_back(connection),
                                  [this, id = id, other, power] { see_end(id, other, !power); });
    }
  }
  for (const auto id : gone) forget_if_dead(id);
}

void Network::partition(const Process& a, const Process& b, Time length) {
  heals_[{std::min(a.index(), b.index()), std::max(a.index(), b.index())}] = world_.now() + length;
  bool noticed = false;
  const auto timeout = world_.options.connection_timeout;
  for (const auto id : between(a, &b)) {
    // Who connected has pending operations; the other side may have nothing to send.
    const auto first = timeout / 2 + world_.random.below(timeout);
    const auto second =
        world_.random.percent(50) ? kNever : timeout / 2 + world_.random.below(timeout);
    if (first >= length && second >= length) continue;
    noticed = true;
    auto& connection = connections_.at(id);
    for (int side = 0; side < 2; ++side) {
      const auto notice = side == 0 ? first : second;
      if (connection.open[side])
        world_.scheduler.hardware(std::min(notice, first + timeout), [this, id, side, notice] {
          const auto it = connections_.find(id);
          if (it == connections_.end()) return;
          it->second.broken = true;
          if (side == 0 || notice != kNever) see_end(id, side, false);
        });
    }
  }
  if (!noticed) world_.trace.reached(Branch::partition_healed);
}

bool Network::partitioned(const Process& a, const Process& b) const {
  const auto it = heals_.find({std::min(a.index(), b.index()), std::max(a.index(), b.index())});
  return it != heals_.end() && it->second > world_.now();
}

std::vector<ConnectionId> Network::between(const Process& a, const Process* b) const {
  std::vector<ConnectionId> found;
  for (const auto& [id, connection] : connections_) {
    if (connection.broken || !connection.open[0] || !connection.open[1]) continue;
    const bool first = connection.end[0] == &a, second = connection.end[1] == &a;
    if (!first && !second) continue;
    const auto* other = connection.end[first ? 1 : 0];
    if (b == nullptr || other == b) found.push_back(id);
  }
  return found;
}

}  // namespace distfuse::simulation
