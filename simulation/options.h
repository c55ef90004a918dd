// SPDX-License-Identifier: Apache-2.0
// What a seed draws: shape of the cluster, work, delays, faults. Some seeds lack whole kinds of faults or work (swarm testing):
// what is always there can hide what is rare. Times in microseconds unless the name says otherwise.
#pragma once

#include <cstdint>
#include <string>

namespace distfuse::simulation {

/// A deliberate bug; the names are those of the model beside the lock core.
enum class Mutant : std::uint8_t {
  none,
  undo_forgets,
  disarm_races,
  reclaim_before_fence,
  trust_whole_lease,
  grace_ends_early,
};
inline constexpr Mutant kMutants[] = {Mutant::undo_forgets, Mutant::disarm_races,
                                      Mutant::reclaim_before_fence, Mutant::trust_whole_lease,
                                      Mutant::grace_ends_early};
const char* mutant_name(Mutant mutant);
/// False: no such name.
bool mutant_of(const std::string& name, Mutant& mutant);

struct Options {
  std::uint64_t seed = 1;
  Mutant mutant = Mutant::none;
  unsigned events = 256;  ///< Kept for a failure's report.

  unsigned clients = 3;
  unsigned threads = 2;  ///< Of each client.
  unsigned keys = 4;
  unsigned pages = 2;  ///< Of each key's file.
  unsigned lockds = 1;
  unsigned storageds = 2;
  unsigned lanes = 1;

  unsigned buckets = 1;
  unsigned overflow = 2;
  unsigned objects = 16;
  unsigned waiters = 64;
  unsigned node_ids = 64;

  unsigned operations = 3000;      ///< Of all threads, about, in the busy phase.
  std::uint64_t busy = 4'000'000;  ///< Length of the busy phase.
  std::uint64_t hold = 200;        ///< A lock is used for about that long.
  std::uint64_t latency = 30;      ///< One way over the fabric.
  std::uint64_t disk = 200;
  std::uint64_t min_hold = 0;  ///< A revoke is served that long after the grant at the earliest.

  std::uint64_t lease_ms = 200;
  std::uint64_t give_up_ms = 5000;
  std::uint64_t connection_timeout =
      60'000;                  ///< Until pending operations of a broken connection fail.
  unsigned drift_ppm = 0;      ///< Clocks run fast or slow by up to this.
  unsigned jump_permille = 0;  ///< Of the lease: a clock jumps ahead by up to this.

  // Work, in parts of 100.
  unsigned write_percent = 40;
  unsigned fsync_percent = 10;
  unsigned direct_percent = 0;  ///< Under IS and IX, nothing cached.
  unsigned file_percent = 0;    ///< File locks (fcntl), held for a while.
  unsigned try_percent = 5;
  unsigned stat_percent = 5;
  unsigned cancel_percent = 3;
  unsigned drop_percent = 10;  ///< Locks given up by the holder's own will.
  bool hot = false;            ///< Half of all work goes to the first key.
  bool keep_pages = true;      ///< Beyond the lock, trusted again if the version stayed.
  bool writeback = true;       ///< In the background.

  // Faults; weights, 0: never. One about every `fault_every`, 0: none at all.
  std::uint64_t fault_every = 100'000;
  unsigned kill_client = 1;
  unsigned stall_client = 1;
  unsigned cut = 1;  ///< One connection.
  unsigned partition = 1;
  unsigned kill_lockd = 1;
  unsigned stall_lockd = 1;
  unsigned kill_storaged = 1;
  unsigned stall_storaged = 1;
  unsigned jump = 0;
  unsigned leave = 1;           ///< A mount ends in order and comes again.
  unsigned power_percent = 30;  ///< Of the kills: with the machine; what was not synced is gone.
  unsigned liars = 0;           ///< Clients that re-assert a lock which they do not hold.

  static Options draw(std::uint64_t seed);
  [[nodiscard]] std::string text() const;
};

}  // namespace distfuse::simulation
