// SPDX-License-Identifier: Apache-2.0
#include "simulation/world.h"

#include <fmt/format.h>

#include <algorithm>

#include "simulation/client_node.h"
#include "simulation/lockd_node.h"
#include "simulation/storaged_node.h"

namespace distfuse::simulation {

World::World(const Options& chosen)
    : options(chosen),
      random(chosen.seed),
      trace(chosen.events),
      network(*this),
      oracle(PageId{chosen.keys} * chosen.pages) {
  unsigned index = 0;
  for (unsigned i = 0; i < options.clients; ++i)
    clients.push_back(std::make_unique<ClientNode>(*this, index++, i));
  for (unsigned i = 0; i < options.lockds; ++i)
    lockds.push_back(std::make_unique<LockdNode>(*this, index++, i));
  for (unsigned i = 0; i < options.storageds; ++i)
    storageds.push_back(std::make_unique<StoragedNode>(*this, index++, i));
  for (unsigned i = 0; i < options.liars && i < options.clients; ++i) clients[i]->liar = true;
  for (unsigned i = 0; i < index; ++i) {
    const auto ppm = static_cast<int>(random.below(2ULL * options.drift_ppm + 1)) -
                     static_cast<int>(options.drift_ppm);
    process(i).clock = Clock(random.below(1'000'000), ppm);
  }
  network.memory_of = [](Process& lockd) -> Memory& { return dynamic_cast<LockdNode&>(lockd); };
  oracle.visible = [this](PageId page) { return storageds[storaged_of(page)]->visible(page); };
  oracle.refused = [this](PageId page, const SessionName& session) {
    return storageds[storaged_of(page)]->refuses(session);
  };
}

World::~World() = default;

Process& World::process(unsigned index) {
  if (index < clients.size()) return *clients[index];
  index -= static_cast<unsigned>(clients.size());
  if (index < lockds.size()) return *lockds[index];
  return *storageds[index - lockds.size()];
}

std::vector<std::string> World::names() const {
  std::vector<std::string> names;
  for (const auto& each : clients) names.push_back(each->name());
  for (const auto& each : lockds) names.push_back(each->name());
  for (const auto& each : storageds) names.push_back(each->name());
  return names;
}

/// Everyone before us in the queue holds it, flushes and hands it over, with delays at the far end of what is drawn; before that, what
/// the faults left: a lease and its grace, fences, a pause of a second before a connection is tried again. Where the table or
/// lockd's memory is too small for the work, requests are answered BUSY and come again after up to 100 ms, in no order.
Time World::bound() const {
  const Time one = 8 * options.hold + 64 * options.latency * (4 + options.storageds) +
                   16 * options.pages * (options.disk + options.latency) + 2 * options.min_hold;
  const bool crowded = options.objects < options.keys || options.waiters < workers() ||
                       options.keys * 4 > options.lockds * (options.buckets * 8 + options.overflow);
  return 4 * workers() * one + 4 * lease_us() + 1'000'000 + (crowded ? 4'000'000 : 0);
}

void World::run_until(Time end) {
  while (scheduler.step(end)) {
  }
}

void World::run() {
  for (auto& each : storageds) each->start();
  for (auto& each : lockds) each->start();
  for (auto& each : clients) each->start();
  if (options.fault_every != 0) next_fault();
  run_until(options.busy);
  faulty = false;
  end_faults();
  calm_since = now();
  for (unsigned i = 0; i < names().size(); ++i)  // A stall that began ends when it was to.
    calm_since = std::max(calm_since, process(i).stalled_until());
  run_until(calm_since + std::max<Time>(options.busy / 4, 2 * lease_us()));
  working = false;
  wait_for_rest("after work");
  audit();
  drop_everything();
  sweep();
}

/// Nothing new begins; what has begun must end.
void World::wait_for_rest(const char* phase) {
  const auto end = now() + bound();
  std::string unrest;
  while (true) {
    unrest.clear();
    for (const auto& each : clients)
      if (unrest.empty()) unrest = each->unrest();
    for (const auto& each : lockds)
      if (unrest.empty()) unrest = each->unrest();
    if (unrest.empty()) return;
    if (now() >= end) throw Violation(fmt::format("no rest {}: {}", phase, unrest));
    run_until(std::min(end, now() + 1000));
  }
}

/// Every word is the sum of who holds, where nobody died that has held.
void World::audit() const {
  for (const auto& lockd : lockds) {
    if (lockd->counters().died != 0 || options.liars != 0) continue;
    std::vector<std::uint64_t> sums(lockd->slot_count());
    for (unsigned key = 0; key < options.keys; ++key) {
      if (lockds[lockd_of(key)] != lockd) continue;
      for (const auto& client : clients) {
        const auto& core = client->core(key);
        if (core.held != DF_NL) sums.at(core.slot) += df_unit(core.held, core.table->node);
      }
    }
    for (df_u32 i = 0; i < sums.size(); ++i)
      if (sums[i] != lockd->slots()[i].word)
        throw Violation(
            fmt::format("{}: the word of slot {} is {:#x} at rest, the holders' sum is {:#x}",
                        lockd->name(), i, lockd->slots()[i].word, sums[i]));
  }
}

void World::drop_everything() {
  const auto end = now() + bound();
  while (std::any_of(clients.begin(), clients.end(),
                     [](const auto& client) { return client->holds_anything(); })) {
    if (now() >= end) throw Violation("a lock is not given up");
    for (auto& client : clients)
      for (unsigned key = 0; key < options.keys; ++key) client->drop(key);
    run_until(now() + 1000);
  }
  wait_for_rest("after everything was given up");
}

/// What the dead left in words is put right when somebody needs the slot: need every key; then nothing is left.
void World::sweep() {
  for (unsigned key = 0; key < options.keys; ++key) {
    clients[0]->take(key);
    wait_for_rest("in the sweep");
    drop_everything();
  }
  for (const auto& each : lockds)
    for (df_u32 i = 0; i < each->slot_count(); ++i)
      if (each->slots()[i].word != 0)
        throw Violation(fmt::format("{}: a count is left in the word of slot {}: {:#x}",
                                    each->name(), i, each->slots()[i].word));
}

}  // namespace distfuse::simulation
