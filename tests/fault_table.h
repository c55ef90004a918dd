// SPDX-License-Identifier: Apache-2.0
// What each fault leaves, as data: the tests assert these rows, `scripts/faults` draws from them, and docs/faults.md prints them.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "tests/cluster.h"
#include "tests/load.h"

namespace distfuse::tests {

/// What an application on the mount whose client was hit is told.
enum class Told {
  nothing,  ///< Its calls wait, and go on.
  once,  ///< EIO, once for each file that was written to, at fsync or close, or in a call that was under way; then all is well.
  no_client,  ///< ENOTCONN until it is mounted again.
};

struct FaultStep {
  enum What {
    kill,     ///< kill -9.
    stop,     ///< SIGSTOP.
    resume,   ///< SIGCONT.
    restart,  ///< `distfuse restart`.
    machine,  ///< kill -9 and restart, as if the storaged's machine had been restarted (Cluster::restart_machine).
    wait,     ///< `leases` × the lease.
    seen,  ///< Until `distfuse status --json` shows the session of that mount in `state`; "": it is gone.
    network,  ///< Cluster::network: `state` of the guest of that mount is `value`.
  } what;
  const char* daemon = "";
  double leases = 0;
  const char* state = "";
  const char* value = "";
};

struct Fault {
  const char* name;
  const char* text;  ///< For the page.
  std::vector<FaultStep> steps;
  int hit = -1;  ///< The mount whose client is hit; -1: none.
  Told told = Told::nothing;
  bool may_lose = false;  ///< What that mount wrote and no fsync or close answered for.
  /// A call on another mount (on any, without `hit`) takes at most as long as the daemon was away, `leases` × the lease, and
  /// kSlack for a busy machine.
  bool away = false;
  double leases = 0;
  /// Of a storaged whose machine restarts: every mount is told EIO, once for each role and file with changes that were not synced, at
  /// fsync or close.
  unsigned roles = 0;
  const char* waits;  ///< For the page: how long, at most.
};

/// A busy machine's: a test fails on an endless wait, not on a slow one.
inline constexpr std::chrono::seconds kSlack{8};

/// Three mounts, two storageds.
[[nodiscard]] const std::vector<Fault>& fault_table();
/// Of the network between several guests, in both modes: the session is the kernel's or the client's, and is lost in the same way.
[[nodiscard]] const std::vector<Fault>& network_fault_table();
/// What is asserted on the mounts of this run (in_kernel()): there the session is the kernel's, and the death of a client, which is followed by another,
/// is a pause like any other daemon's. Without the rows that do not hold there (docs/faults.md), and with those of the network where mounts are on several guests.
[[nodiscard]] std::vector<Fault> faults_of_mode();
/// As they stand in docs/faults.md.
[[nodiscard]] std::string fault_table_markdown(const std::vector<Fault>& faults);

/// Runs the steps; a mount that was killed is mounted again after all others. What did not come as expected is a test failure.
/// Answers with how long the cluster was without a daemon or client, mounting again not counted.
std::chrono::milliseconds inject(Cluster& cluster, Load& load, const Fault& fault);

}  // namespace distfuse::tests
