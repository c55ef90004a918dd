// SPDX-License-Identifier: Apache-2.0
#include "tests/fault_table.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <thread>

namespace distfuse::tests {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

using Step = FaultStep;

constexpr double kOverslept = 2.5;  ///< Leases that a daemon stands still.
constexpr double kGrace = 1.2;      ///< Leases that lockd waits for those that do not come back.

}  // namespace

const std::vector<Fault>& fault_table() {
  static const std::vector<Fault> table{
      {.name = "client_killed",
       .text = "kill -9 of the client of a mount",
       .steps = {{Step::kill, "mount-0"}},
       .hit = 0,
       .told = Told::no_client,
       .may_lose = true,
       .waits = "the fence: milliseconds; its death is seen by its kernel"},
      {.name = "client_stopped",
       .text =
           "the client of a mount stands still for longer than the lease (SIGSTOP), and goes on",
       .steps = {{Step::stop, "mount-0"}, {Step::wait, "", kOverslept}, {Step::resume, "mount-0"}},
       .hit = 0,
       .told = Told::once,
       .may_lose = true,
       .leases = 1,
       .waits = "1 lease and the fence"},
      {.name = "client_paused",
       .text = "the client of a mount stands still for less than its trust lasts (half a lease)",
       .steps = {{Step::stop, "mount-0"}, {Step::wait, "", 0.5}, {Step::resume, "mount-0"}},
       .away = true,
       .waits = "until it goes on"},
      {.name = "lockd_killed",
       .text = "kill -9 of lockd, started again",
       .steps = {{Step::kill, "lockd"}, {Step::wait, "", 0.2}, {Step::restart, "lockd"}},
       .away = true,
       .leases = kGrace,
       .waits = "until lockd is back and every mount has re-asserted; 1.2 leases after its start "
                "at most"},
      {.name = "lockd_stopped",
       .text = "lockd stands still for longer than the lease, and goes on",
       .steps = {{Step::stop, "lockd"}, {Step::wait, "", kOverslept}, {Step::resume, "lockd"}},
       .away = true,
       .waits = "until it goes on"},
      {.name = "meta_killed",
       .text = "kill -9 of the storaged with role meta (and data), started again",
       .steps = {{Step::kill, "storaged-0"}, {Step::wait, "", 0.2}, {Step::restart, "storaged-0"}},
       .away = true,
       .waits = "until it is back and lockd has told it who lives"},
      {.name = "data_killed",
       .text = "kill -9 of a storaged with role data, started again",
       .steps = {{Step::kill, "storaged-1"}, {Step::wait, "", 0.2}, {Step::restart, "storaged-1"}},
       .away = true,
       .waits = "until it is back and lockd has told it who lives"},
      {.name = "meta_stopped",
       .text = "the storaged with role meta stands still for longer than the lease, and goes on",
       .steps = {{Step::stop, "storaged-0"},
                 {Step::wait, "", kOverslept},
                 {Step::resume, "storaged-0"}},
       .away = true,
       .waits = "until it goes on"},
      {.name = "data_stopped",
       .text = "a storaged with role data stands still for longer than the lease, and goes on",
       .steps = {{Step::stop, "storaged-1"},
                 {Step::wait, "", kOverslept},
                 {Step::resume, "storaged-1"}},
       .away = true,
       .waits = "until it goes on"},
      {.name = "data_machine_restarted",
       .text = "the machine of a storaged with role data restarts",
       .steps = {{Step::machine, "storaged-1"}},
       .away = true,
       .roles = 1,
       .waits = "until the storaged is back and lockd has told it who lives"},
      {.name = "meta_machine_restarted",
       .text = "the machine of the storaged with role meta (and data) restarts",
       .steps = {{Step::machine, "storaged-0"}},
       .away = true,
       .roles = 2,
       .waits = "until the storaged is back and lockd has told it who lives"},
      {.name = "client_killed_while_lockd_is_away",
       .text = "kill -9 of a client and of lockd; lockd is started again",
       .steps = {{Step::kill, "lockd"},
                 {Step::kill, "mount-0"},
                 {Step::restart, "lockd"},
                 {Step::seen, "mount-0", 0, "absent"}},
       .hit = 0,
       .told = Told::no_client,
       .may_lose = true,
       .away = true,
       .leases = kGrace,
       .waits = "until lockd is back, then 1.2 leases (grace: the dead one does not come) and the "
                "fence"},
      {.name = "client_killed_while_a_storaged_is_away",
       .text = "kill -9 of a client while a storaged stands still; the storaged goes on",
       .steps = {{Step::stop, "storaged-1"},
                 {Step::kill, "mount-0"},
                 {Step::seen, "mount-0", 0, "fencing"},
                 {Step::wait, "", 0.5},
                 {Step::resume, "storaged-1"}},
       .hit = 0,
       .told = Told::no_client,
       .may_lose = true,
       .away = true,
       .waits = "until the storaged goes on: no lock of a lost client is given away before every "
                "storaged refuses it"},
      {.name = "lockd_killed_while_a_client_is_paused",
       .text = "kill -9 of lockd, started again, while a client stands still; it goes on within "
               "the grace period",
       .steps = {{Step::stop, "mount-1"},
                 {Step::kill, "lockd"},
                 {Step::restart, "lockd"},
                 {Step::seen, "mount-0", 0, "reclaiming"},
                 {Step::resume, "mount-1"}},
       .away = true,
       .leases = kGrace,
       .waits = "until the client goes on, 1.2 leases after lockd's start at most"},
      {.name = "all_daemons_killed",
       .text = "kill -9 of lockd and every storaged, all started again",
       .steps = {{Step::kill, "storaged-1"},
                 {Step::kill, "storaged-0"},
                 {Step::kill, "lockd"},
                 {Step::restart, "storaged-0"},
                 {Step::restart, "storaged-1"},
                 {Step::restart, "lockd"}},
       .away = true,
       .leases = kGrace,
       .waits = "until all are back, as after a kill of lockd"},
  };
  return table;
}

const std::vector<Fault>& network_fault_table() {
  static const std::vector<Fault> table{
      {.name = "network_cut",
       .text = "the machine of a mount is cut off for longer than the lease, and comes back",
       .steps = {{Step::network, "mount-1", 0, "cut", "on"},
                 {Step::seen, "mount-1", 0, ""},
                 {Step::wait, "", 1},
                 {Step::network, "mount-1", 0, "cut", "off"}},
       .hit = 1,
       .told = Told::once,
       .may_lose = true,
       .leases = 1,
       .waits = "1 lease and the fence"},
      {.name = "network_gap",
       .text = "the machine of a mount is cut off for less than a lease, and for longer than "
               "an RDMA connection sends again (1.9 s)",
       .steps = {{Step::network, "mount-1", 0, "cut", "on"},
                 {Step::wait, "", 0.8},
                 {Step::network, "mount-1", 0, "cut", "off"}},
       .hit = 1,
       .told = Told::once,
       .may_lose = true,
       .away = true,
       .leases = 1,
       .waits = "1 lease and the fence"},
      {.name = "network_blink",
       .text = "the machine of a mount is cut off for 0.9 s",
       .steps = {{Step::network, "mount-1", 0, "cut", "on"},
                 {Step::wait, "", 0.3},
                 {Step::network, "mount-1", 0, "cut", "off"}},
       .away = true,
       .waits = "until it is back, and what was lost is sent again"},
      {.name = "network_drops",
       .text = "5 % of the frames to and from the machine of a mount are lost, for two leases",
       .steps = {{Step::network, "mount-1", 0, "drop", "5"},
                 {Step::wait, "", 2},
                 {Step::network, "mount-1", 0, "drop", "0"}},
       .away = true,
       .waits = "what sending again takes"},
      {.name = "network_delay",
       .text = "each frame to and from the machine of a mount takes 20 ms longer, for two leases",
       .steps = {{Step::network, "mount-1", 0, "delay", "20"},
                 {Step::wait, "", 2},
                 {Step::network, "mount-1", 0, "delay", "0"}},
       .away = true,
       .waits = "what the round trips take"},
  };
  return table;
}

namespace {

Fault row_in_kernel(Fault fault) {
  const auto of_client = [](const Step& step) {
    return std::string(step.daemon).starts_with("mount-");
  };
  std::string killed;
  for (const Step& step : fault.steps)
    if (step.what == Step::kill && of_client(step)) killed = step.daemon;
  // Its session does not end: nobody sees it fenced or missed, and all reclaim at once.
  std::erase_if(fault.steps, [](const Step& step) { return step.what == Step::seen; });
  if (fault.hit < 0) return fault;
  if (!killed.empty()) fault.steps.push_back({Step::restart, "mount-0"});
  fault.hit = -1;
  fault.told = Told::nothing;
  fault.may_lose = false;
  fault.away = true;
  return fault;
}

}  // namespace

std::vector<Fault> faults_of_mode() {
  std::vector<Fault> faults;
  for (const Fault& fault : fault_table())
    faults.push_back(in_kernel() ? row_in_kernel(fault) : fault);
  if (far::nodes().size() > 1)
    faults.insert(faults.end(), network_fault_table().begin(), network_fault_table().end());
  return faults;
}

std::string fault_table_markdown(const std::vector<Fault>& faults) {
  static const char* const kTold[] = {
      "nothing: its calls wait",
      "EIO, once for each file written to: at fsync, close, or in a call under way; then "
      "it goes on in a new session",
      "ENOTCONN, until it is mounted again"};
  static const char* const kMachine =
      "EIO, once for each file and directory with changes that were not synced: at fsync or close";
  static const char* const kWait = "nothing: their calls wait";
  std::string text =
      "| fault | applications on that mount see | on the other mounts | what may be lost | a call "
      "waits at most |\n"
      "|---|---|---|---|---|\n";
  for (const auto& fault : faults) {
    text += std::string("| ") + fault.text + " | ";
    text += fault.roles != 0 ? kMachine
            : fault.hit < 0  ? kWait
                             : kTold[static_cast<int>(fault.told)];
    text += " | ";
    text += fault.roles != 0 ? "the same" : kWait;
    text += " | ";
    text += fault.roles != 0 ? "what no fsync has answered for"
            : fault.may_lose ? "what that mount wrote and no fsync or close has answered for"
                             : "nothing";
    text += std::string(" | ") + fault.waits + " |\n";
  }
  return text;
}

// ---- injection

namespace {

class Injection {
 public:
  Injection(Cluster& cluster, Load& load, const Fault& fault)
      : cluster_(cluster), load_(load), fault_(fault) {}

  milliseconds run() {
    auto* hit = fault_.hit < 0 ? nullptr : &load_.state(static_cast<std::size_t>(fault_.hit));
    if (hit != nullptr && fault_.may_lose) hit->may_lose = true;
    if (hit != nullptr && fault_.told == Told::no_client) hit->unmounted = true;
    load_.reset_waits();
    const auto began = steady_clock::now();
    for (const auto& step : fault_.steps) perform(step);
    const auto away = std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);
    if (hit != nullptr && fault_.told == Told::no_client) {
      cluster_.restart_daemon("mount-" + std::to_string(fault_.hit));
      hit->unmounted = false;
    }
    return away;
  }

 private:
  void perform(const Step& step) {
    switch (step.what) {
      case Step::kill:
        return cluster_.kill_daemon(step.daemon);
      case Step::stop:
        return cluster_.signal_daemon(step.daemon, SIGSTOP);
      case Step::resume:
        return cluster_.signal_daemon(step.daemon, SIGCONT);
      case Step::restart:
        return cluster_.restart_daemon(step.daemon);
      case Step::machine:
        return cluster_.restart_machine(step.daemon);
      case Step::wait:
        std::this_thread::sleep_for(milliseconds(
            static_cast<int>(step.leases * static_cast<double>(cluster_.lease().count()))));
        return;
      case Step::seen:
        return wait_for_state(step);
      case Step::network:
        return cluster_.network(step.daemon, step.state, step.value);
    }
  }

  void wait_for_state(const Step& step) {
    const auto deadline = steady_clock::now() + kSlack;
    std::string states;
    do {
      states = cluster_.session_states(step.daemon);
      if ((" " + states + " ").find(std::string(" ") + step.state + " ") != std::string::npos)
        return;
    } while (steady_clock::now() < deadline);
    ADD_FAILURE() << fault_.name << ": status does not show " << step.daemon << " " << step.state
                  << " but " << states;
  }

  Cluster& cluster_;
  Load& load_;
  const Fault& fault_;
};

}  // namespace

milliseconds inject(Cluster& cluster, Load& load, const Fault& fault) {
  return Injection(cluster, load, fault).run();
}

}  // namespace distfuse::tests
