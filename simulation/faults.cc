// SPDX-License-Identifier: Apache-2.0
// What an environment does to a cluster.
#include <algorithm>

#include "simulation/client_node.h"
#include "simulation/lockd_node.h"
#include "simulation/storaged_node.h"
#include "simulation/world.h"

namespace distfuse::simulation {

namespace {

void kill(World& world, Process& process) {
  if (!process.alive()) return;
  process.crash(world.random.percent(world.options.power_percent));
  // Mostly soon; sometimes only after leases have run out.
  const auto away = world.random.percent(70) ? world.random.below(world.lease_us() / 4)
                                             : world.random.below(3 * world.lease_us());
  world.scheduler.hardware(1000 + away, [&process] {
    if (!process.alive()) process.start();
  });
}

void stall(World& world, Process& process) {
  if (!process.alive()) return;
  const auto length = world.random.percent(50) ? world.random.below(world.lease_us() / 2)
                                               : world.random.below(3 * world.lease_us());
  world.note(process, "stalls", length);
  process.stall_until(std::max(process.stalled_until(), world.now() + length));
  if (length > world.lease_us()) world.reached(Branch::stalled_past_lease);
}

template <class Nodes>
Process& any(World& world, Nodes& nodes) {
  return *nodes[world.random.below(nodes.size())];
}

void cut(World& world) {
  auto& process = world.process(
      static_cast<unsigned>(world.random.below(world.clients.size() + world.lockds.size())));
  const auto found = world.network.between(process, nullptr);
  if (found.empty()) return;
  const auto connection = found[world.random.below(found.size())];
  const auto notice = [&world] { return world.random.below(world.options.connection_timeout); };
  world.note(process, "a connection is cut", connection);
  // One side sees it first; the one that did not connect perhaps never.
  world.network.cut(connection, notice(), world.random.percent(30) ? kNever : notice());
}

void partition(World& world) {
  const auto count =
      static_cast<unsigned>(world.clients.size() + world.lockds.size() + world.storageds.size());
  auto& one = world.process(static_cast<unsigned>(world.random.below(count)));
  const auto length = world.random.percent(50) ? world.random.below(world.lease_us() / 2)
                                               : world.random.below(3 * world.lease_us());
  const bool alone = world.random.percent(40);
  auto& other = world.process(static_cast<unsigned>(world.random.below(count)));
  world.note(one, "partitioned", alone ? count : other.index(), length);
  for (unsigned i = 0; i < count; ++i)
    if (i != one.index() && (alone || i == other.index()))
      world.network.partition(one, world.process(i), length);
}

void jump(World& world) {
  auto& process = world.process(
      static_cast<unsigned>(world.random.below(world.clients.size() + world.lockds.size())));
  process.clock.jump(world.now(),
                     world.random.below(world.lease_us() * world.options.jump_permille / 1000 + 1));
  world.note(process, "its clock jumps");
  if (auto* client = dynamic_cast<ClientNode*>(&process); client != nullptr && client->alive())
    world.scheduler.later(*client, 0, [client] { client->clock_jumped(); });
}

}  // namespace

void World::next_fault() {
  scheduler.hardware(1 + random.spread(options.fault_every), [this] {
    if (!faulty) return;
    fault();
    next_fault();
  });
}

void World::fault() {
  const auto& o = options;
  const unsigned weights[] = {o.kill_client, o.stall_client, o.cut,           o.partition,
                              o.kill_lockd,  o.stall_lockd,  o.kill_storaged, o.stall_storaged,
                              o.jump,        o.leave};
  unsigned sum = 0;
  for (const auto weight : weights) sum += weight;
  if (sum == 0) return;
  auto dice = random.below(sum);
  unsigned which = 0;
  while (dice >= weights[which]) dice -= weights[which++];
  switch (which) {
    case 0:
      return kill(*this, any(*this, clients));
    case 1:
      return stall(*this, any(*this, clients));
    case 2:
      return cut(*this);
    case 3:
      return partition(*this);
    case 4:
      return kill(*this, any(*this, lockds));
    case 5:
      return stall(*this, any(*this, lockds));
    case 6:
      return kill(*this, any(*this, storageds));
    case 7:
      return stall(*this, any(*this, storageds));
    case 8:
      return jump(*this);
    default:
      return clients[random.below(clients.size())]->leave(
          static_cast<unsigned>(random.below(lockds.size())));
  }
}

void World::end_faults() {
  network.heal_all();
  for (unsigned i = 0; i < clients.size() + lockds.size() + storageds.size(); ++i) {
    auto& each = process(i);
    if (!each.alive()) each.start();
  }
}

}  // namespace distfuse::simulation
