// SPDX-License-Identifier: Apache-2.0
// A whole cluster under one seed. run(): a busy phase with faults; then the faults stop and everything must go on in a bounded
// time; then all work ends and nothing may be left over.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "simulation/network.h"
#include "simulation/options.h"
#include "simulation/oracle.h"
#include "simulation/process.h"
#include "simulation/random.h"
#include "simulation/trace.h"

namespace distfuse::simulation {

class ClientNode;
class LockdNode;
class StoragedNode;

struct World {
  explicit World(const Options& chosen);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  /// Throws Violation.
  void run();

  [[nodiscard]] Time now() const { return scheduler.now(); }
  void note(const Process& who, const char* what, std::uint64_t a = 0, std::uint64_t b = 0,
            std::uint64_t c = 0) {
    trace.note(scheduler.now(), who.index(), what, a, b, c);
  }
  void reached(Branch branch) { trace.reached(branch); }

  [[nodiscard]] PageId pages() const { return PageId{options.keys} * options.pages; }
  [[nodiscard]] unsigned storaged_of(PageId page) const {
    return static_cast<unsigned>(page % options.storageds);
  }
  [[nodiscard]] unsigned lockd_of(unsigned key) const { return key % options.lockds; }
  /// How long an operation may take once no fault is left.
  [[nodiscard]] Time bound() const;
  [[nodiscard]] Time workers() const { return Time{options.clients} * options.threads; }
  [[nodiscard]] std::uint64_t lease_us() const { return options.lease_ms * 1000; }
  [[nodiscard]] std::vector<std::string> names() const;
  [[nodiscard]] Process& process(unsigned index);

  const Options options;
  Random random;
  Scheduler scheduler;
  Trace trace;
  Network network;
  Oracle oracle;
  std::vector<std::unique_ptr<LockdNode>> lockds;
  std::vector<std::unique_ptr<StoragedNode>> storageds;
  std::vector<std::unique_ptr<ClientNode>> clients;
  bool working = true;       ///< New operations begin.
  bool faulty = true;        ///< New faults begin.
  Time longest = 0;          ///< Operation in the calm.
  Time calm_since = kNever;  ///< No fault was left from here on.

 private:
  void run_until(Time end);
  void fault();
  void next_fault();
  void end_faults();
  void wait_for_rest(const char* phase);
  void audit() const;
  void drop_everything();
  void sweep();
};

}  // namespace distfuse::simulation
