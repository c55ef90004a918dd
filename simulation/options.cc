// SPDX-License-Identifier: Apache-2.0
#include "simulation/options.h"

#include <fmt/format.h>

#include "simulation/random.h"

namespace distfuse::simulation {

const char* mutant_name(Mutant mutant) {
  switch (mutant) {
    case Mutant::undo_forgets:
      return "undo-forgets";
    case Mutant::disarm_races:
      return "disarm-races";
    case Mutant::reclaim_before_fence:
      return "reclaim-before-fence";
    case Mutant::trust_whole_lease:
      return "trust-whole-lease";
    case Mutant::grace_ends_early:
      return "grace-ends-early";
    default:
      return "none";
  }
}

bool mutant_of(const std::string& name, Mutant& mutant) {
  for (const auto each : kMutants)
    if (name == mutant_name(each)) {
      mutant = each;
      return true;
    }
  return false;
}

namespace {

void draw_shape(Options& o, Random& random) {
  const bool crowd = random.once_in(6);
  o.clients = static_cast<unsigned>(crowd ? random.between(12, 32) : random.between(2, 8));
  o.threads = static_cast<unsigned>(random.between(1, 4));
  o.keys = static_cast<unsigned>(random.percent(50) ? random.between(1, 4) : random.between(9, 40));
  o.pages = static_cast<unsigned>(random.between(1, 4));
  o.lockds = static_cast<unsigned>(random.percent(60) ? 1 : random.between(2, 3));
  o.storageds = static_cast<unsigned>(random.between(1, 3));
  o.lanes = static_cast<unsigned>(random.between(1, 3));
  // Small enough that buckets fill, slots are re-keyed and objects run out.
  o.buckets = static_cast<unsigned>(random.between(1, 3));
  o.overflow = static_cast<unsigned>(random.between(0, 6));
  o.objects =
      static_cast<unsigned>(random.percent(30) ? random.between(2, 6) : random.between(12, 64));
  o.waiters =
      static_cast<unsigned>(random.percent(30) ? random.between(3, 10) : random.between(32, 256));
  // A node id stands in a slot until somebody needs the slot; so many can be out of use, and no more are there in half of the runs.
  o.node_ids = 3 * o.clients + o.buckets * 8 + o.overflow + (random.percent(50) ? 4 : 400);
}

void draw_times(Options& o, Random& random) {
  o.latency = random.percent(70) ? random.between(3, 60) : random.between(200, 2000);
  o.disk = random.between(20, 800);
  o.hold = random.percent(70) ? random.between(1, 500) : random.between(2000, 12000);
  o.min_hold = random.percent(30) ? random.between(200, 4000) : 0;
  o.lease_ms = random.between(80, 400);
  // A lease must be long against the fabric; the ratio of real ones is far greater.
  while (o.lease_ms * 1000 < 100 * o.latency) o.lease_ms += 50;
  o.give_up_ms = random.percent(20) ? random.between(o.lease_ms, 4 * o.lease_ms)
                                    : random.between(20, 60) * o.lease_ms;
  o.connection_timeout = o.lease_ms * random.between(100, 1500);
  const unsigned rates[] = {0, 200, 10'000, 100'000};
  o.drift_ppm = rates[random.below(4)];
  o.jump_permille = static_cast<unsigned>(random.percent(40) ? random.between(1, 40) : 0);
  o.busy = o.lease_ms * 1000 * random.between(4, 16);
  o.operations = static_cast<unsigned>(random.between(500, 5000));
}

void draw_work(Options& o, Random& random) {
  o.write_percent = static_cast<unsigned>(random.between(0, 90));
  o.fsync_percent = static_cast<unsigned>(random.between(0, 20));
  o.direct_percent = static_cast<unsigned>(random.percent(30) ? random.between(5, 60) : 0);
  o.try_percent = static_cast<unsigned>(random.between(0, 20));
  o.stat_percent = static_cast<unsigned>(random.between(0, 20));
  o.cancel_percent = static_cast<unsigned>(random.between(0, 15));
  o.drop_percent = static_cast<unsigned>(random.between(0, 40));
  o.hot = random.percent(40);
  o.keep_pages = random.percent(70);
  o.writeback = random.percent(60);
}

void draw_faults(Options& o, Random& random) {
  o.fault_every = random.percent(15) ? 0 : o.lease_ms * random.between(50, 1000);
  auto weight = [&random] {
    return static_cast<unsigned>(random.percent(45) ? 0 : random.between(1, 8));
  };
  o.kill_client = weight();
  o.stall_client = weight();
  o.cut = weight();
  o.partition = weight();
  o.kill_lockd = weight();
  o.stall_lockd = weight();
  o.kill_storaged = weight();
  o.stall_storaged = weight();
  o.jump = o.jump_permille != 0 ? weight() : 0;
  o.leave = weight();
  o.power_percent = static_cast<unsigned>(random.percent(30) ? 0 : random.between(10, 80));
  o.liars = random.once_in(12) ? 1 : 0;
}

}  // namespace

Options Options::draw(std::uint64_t seed) {
  Random random(seed ^ 0x5157a44dULL);
  Options o;
  o.seed = seed;
  draw_shape(o, random);
  draw_times(o, random);
  draw_work(o, random);
  draw_faults(o, random);
  o.file_percent = static_cast<unsigned>(random.percent(50) ? random.between(2, 25) : 0);
  return o;
}

std::string Options::text() const {
  return fmt::format(
      "seed {} mutant {}: clients {} × threads {}, keys {} × pages {}{}, lockds {}, storageds {}, "
      "lanes {}\n"
      "  table: buckets {}, overflow {}, objects {}, waiters {}, node ids {}\n"
      "  µs: busy {}, operations {}, hold {}, latency {}, disk {}, least hold {}, connection "
      "timeout {}\n"
      "  lease {} ms, give up {} ms, drift {} ppm, jumps {} ‰ of the lease\n"
      "  work %: write {}, fsync {}, direct {}, try {}, stat {}, cancel {}, drop {}, file locks "
      "{}; keep pages "
      "{}, writeback {}\n"
      "  a fault every {} µs, weights: kill client {}, stall client {}, cut {}, partition {}, kill "
      "lockd {}, "
      "stall lockd {}, kill storaged {}, stall storaged {}, jump {}, leave {}; power {} %; liars "
      "{}",
      seed, mutant_name(mutant), clients, threads, keys, pages, hot ? " (one hot)" : "", lockds,
      storageds, lanes, buckets, overflow, objects, waiters, node_ids, busy, operations, hold,
      latency, disk, min_hold, connection_timeout, lease_ms, give_up_ms, drift_ppm, jump_permille,
      write_percent, fsync_percent, direct_percent, try_percent, stat_percent, cancel_percent,
      drop_percent, file_percent, keep_pages, writeback, fault_every, kill_client, stall_client,
      cut, partition, kill_lockd, stall_lockd, kill_storaged, stall_storaged, jump, leave,
      power_percent, liars);
}

}  // namespace distfuse::simulation
