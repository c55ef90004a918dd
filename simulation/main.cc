// SPDX-License-Identifier: Apache-2.0
// distfuse-simulate: seeds of whole clusters, one after another, on every core. See --help.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "simulation/options.h"
#include "simulation/world.h"

namespace distfuse::simulation {
namespace {

struct Arguments {
  double minutes = 0;
  std::uint64_t seeds = 0;
  std::optional<std::uint64_t> seed;
  std::optional<std::uint64_t> first;
  std::string mutant;
  std::string json;
  unsigned jobs = 1;
  unsigned events = 60;
  bool require_branches = false;
  bool mutants = false;
};

struct Outcome {
  std::uint64_t seed = 0;
  std::uint64_t hash = 0, events = 0, operations = 0;
  Time longest = 0;  ///< Of an operation, once the faults had stopped.
  Time simulated = 0;
  BranchCounts branches{};
  std::string violation;  ///< Empty: none.
  std::string report;
};

Outcome run_seed(std::uint64_t seed, Mutant mutant, unsigned events) {
  auto options = Options::draw(seed);
  options.mutant = mutant;
  options.events = events;
  World world(options);
  Outcome outcome;
  outcome.seed = seed;
  try {
    world.run();
  } catch (const Violation& violation) {
    outcome.violation = violation.what();
    outcome.report =
        fmt::format("{}\n{}at {} µs of simulated time: {}\n", options.text(),
                    world.trace.tail(events, world.names()), world.now(), violation.what());
  }
  outcome.hash = world.trace.hash();
  outcome.events = world.scheduler.events();
  outcome.operations = world.oracle.reads();
  outcome.simulated = world.now();
  outcome.longest = world.longest;
  outcome.branches = world.trace.branches();
  return outcome;
}

/// Seeds on every core until one fails or the time is over.
class Campaign {
 public:
  Campaign(const Arguments& arguments, Mutant mutant) : arguments_(arguments), mutant_(mutant) {
    first_ = arguments.first ? *arguments.first : std::random_device{}() * 1000ULL;
    next_ = first_;
  }

  void run() {
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < arguments_.jobs; ++i) threads.emplace_back([this] { work(); });
    for (auto& thread : threads) thread.join();
  }

  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }
  [[nodiscard]] std::uint64_t first() const { return first_; }
  Outcome total;
  std::uint64_t done = 0;
  std::optional<Outcome> failure;  ///< Of the lowest seed that failed.

 private:
  [[nodiscard]] bool over() const {
    if (arguments_.seeds != 0) return next_ >= first_ + arguments_.seeds;
    return seconds() >= arguments_.minutes * 60;
  }

  void work() {
    while (true) {
      std::uint64_t seed = 0;
      {
        const std::lock_guard lock(mutex_);
        if (failure || over()) return;
        seed = next_++;
      }
      const auto outcome = run_seed(seed, mutant_, arguments_.events);
      const std::lock_guard lock(mutex_);
      add(outcome);
    }
  }

  void add(const Outcome& outcome) {
    ++done;
    total.events += outcome.events;
    total.operations += outcome.operations;
    total.simulated += outcome.simulated;
    total.longest = std::max(total.longest, outcome.longest);
    for (std::size_t i = 0; i < kBranches; ++i) total.branches[i] += outcome.branches[i];
    if (!outcome.violation.empty() && (!failure || outcome.seed < failure->seed)) failure = outcome;
    if (const auto now = seconds(); now >= said_ + 10) {
      said_ = now;
      fmt::print("{} seeds, {:.1f} a second, {:.0f} s of simulated time\n", done,
                 static_cast<double>(done) / now, static_cast<double>(total.simulated) / 1e6);
      (void)std::fflush(stdout);
    }
  }

  const Arguments& arguments_;
  const Mutant mutant_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  double said_ = 0;
  std::mutex mutex_;
  std::uint64_t first_ = 0, next_ = 0;  // protected by mutex_, as are the results while running
};

std::vector<std::string> print_branches(const BranchCounts& branches) {
  std::vector<std::string> missing;
  for (std::size_t i = 0; i < kBranches; ++i) {
    fmt::print("  {:>12}  {:<26} {}\n", branches[i], kBranchNames[i], kBranchTexts[i]);
    if (branches[i] == 0) missing.emplace_back(kBranchNames[i]);
  }
  return missing;
}

std::string replay(std::uint64_t seed, Mutant mutant) {
  return fmt::format("scripts/simulate --seed {}{}{}", seed,
                     mutant == Mutant::none ? "" : " --mutant ",
                     mutant == Mutant::none ? "" : mutant_name(mutant));
}

int one_seed(const Arguments& arguments, Mutant mutant) {
  auto options = Options::draw(*arguments.seed);
  options.mutant = mutant;
  fmt::print("{}\n", options.text());
  const auto outcome = run_seed(*arguments.seed, mutant, arguments.events);
  print_branches(outcome.branches);
  fmt::print("{}", outcome.report);
  fmt::print("seed {}: trace {:016x}, {} events, {} reads checked, {} ms of simulated time: {}\n",
             outcome.seed, outcome.hash, outcome.events, outcome.operations,
             outcome.simulated / 1000, outcome.violation.empty() ? "right" : "VIOLATION");
  return outcome.violation.empty() ? 0 : 1;
}

void write_json(const std::string& path, const Campaign& campaign, Mutant mutant,
                const std::vector<std::string>& missing) {
  if (path.empty()) return;
  nlohmann::json json;
  json["mutant"] = mutant_name(mutant);
  json["first_seed"] = campaign.first();
  json["seeds"] = campaign.done;
  json["seconds"] = campaign.seconds();
  json["seeds_per_second"] = static_cast<double>(campaign.done) / campaign.seconds();
  json["events"] = campaign.total.events;
  json["simulated_seconds"] = static_cast<double>(campaign.total.simulated) / 1e6;
  json["longest_operation_without_faults_ms"] = campaign.total.longest / 1000;
  json["reads_checked"] = campaign.total.operations;
  for (std::size_t i = 0; i < kBranches; ++i)
    json["branches"][kBranchNames[i]] = campaign.total.branches[i];
  json["branches_missing"] = missing;
  if (campaign.failure) {
    json["failed_seed"] = campaign.failure->seed;
    json["violation"] = campaign.failure->violation;
  }
  std::ofstream(path) << json.dump(2) << '\n';
}

int many_seeds(const Arguments& arguments, Mutant mutant) {
  Campaign campaign(arguments, mutant);
  campaign.run();
  const auto missing = print_branches(campaign.total.branches);
  fmt::print(
      "{} seeds from {}, {:.1f} a second, {} events, {} reads checked, {:.0f} s of simulated "
      "time\n",
      campaign.done, campaign.first(), static_cast<double>(campaign.done) / campaign.seconds(),
      campaign.total.events, campaign.total.operations,
      static_cast<double>(campaign.total.simulated) / 1e6);
  fmt::print("the longest operation once the faults had stopped: {} ms\n",
             campaign.total.longest / 1000);
  write_json(arguments.json, campaign, mutant, missing);
  if (campaign.failure) {
    fmt::print("VIOLATION\n{}replay: {}\n", campaign.failure->report,
               replay(campaign.failure->seed, mutant));
    if (mutant != Mutant::none)
      fmt::print("mutant {} found by seed {}, the {}. of this run\n", mutant_name(mutant),
                 campaign.failure->seed, campaign.failure->seed - campaign.first() + 1);
    return 1;
  }
  if (arguments.require_branches && !missing.empty()) {
    fmt::print("not reached:");
    for (const auto& name : missing) fmt::print(" {}", name);
    fmt::print("\n");
    return 3;
  }
  return 0;
}

/// Each of the deliberate bugs must be found.
int all_mutants(const Arguments& arguments) {
  unsigned missed = 0;
  nlohmann::json json;
  for (const auto mutant : kMutants) {
    Campaign campaign(arguments, mutant);
    campaign.run();
    auto& entry = json[mutant_name(mutant)];
    entry["seeds"] = campaign.done;
    entry["found"] = campaign.failure.has_value();
    if (!campaign.failure) {
      ++missed;
      fmt::print("{:<22} NOT FOUND by {} seeds from {}\n", mutant_name(mutant), campaign.done,
                 campaign.first());
      continue;
    }
    const auto& failure = *campaign.failure;
    entry["seed"] = failure.seed;
    entry["violation"] = failure.violation;
    fmt::print("{:<22} found by seed {}, the {}. of this run, after {:.1f} s: {}\n  replay: {}\n",
               mutant_name(mutant), failure.seed, failure.seed - campaign.first() + 1,
               campaign.seconds(), failure.violation, replay(failure.seed, mutant));
    (void)std::fflush(stdout);
  }
  if (!arguments.json.empty()) std::ofstream(arguments.json) << json.dump(2) << '\n';
  return missed == 0 ? 0 : 1;
}

int main_with(const Arguments& arguments) {
  if (arguments.mutants) return all_mutants(arguments);
  Mutant mutant = Mutant::none;
  if (!arguments.mutant.empty() && !mutant_of(arguments.mutant, mutant)) {
    fmt::print(stderr, "distfuse-simulate: no such mutant: {}\n", arguments.mutant);
    return 2;
  }
  return arguments.seed ? one_seed(arguments, mutant) : many_seeds(arguments, mutant);
}

}  // namespace
}  // namespace distfuse::simulation

int main(int argc, char** argv) {
  using distfuse::simulation::Arguments;
  Arguments arguments;
  CLI::App app{
      "Simulates whole DistFUSE clusters: the real lock core and lockd's daemon on a simulated "
      "fabric, clock and disks, under "
      "seeds. Exit status: 0 right; 1 a violation was found; 2 bad arguments; 3 a branch was not "
      "reached."};
  app.add_option("--minutes", arguments.minutes,
                 "how long (default 0.2, if neither --seeds nor --seed)");
  app.add_option("--seeds", arguments.seeds, "how many seeds, in place of a time");
  app.add_option("--seed", arguments.seed, "replay this one, and print its options and trace hash");
  app.add_option("--first", arguments.first, "the first seed (default: random)");
  app.add_option("--mutant", arguments.mutant,
                 "with a deliberate bug: undo-forgets, disarm-races, reclaim-before-fence, "
                 "trust-whole-lease, grace-ends-early");
  app.add_flag("--mutants", arguments.mutants,
               "every deliberate bug, each until it is found or --minutes are over; 0 only if each "
               "is found");
  app.add_option("--json", arguments.json, "write the summary to this file");
  app.add_option("--jobs", arguments.jobs, "threads (default 1)")->check(CLI::Range(1, 1024));
  app.add_option("--events", arguments.events, "of a failed run to print (default 60)")
      ->check(CLI::Range(1, 100000000));
  app.add_flag("--require-branches", arguments.require_branches,
               "fail unless every branch of the list was reached");
  CLI11_PARSE(app, argc, argv);
  if (arguments.minutes == 0) arguments.minutes = 0.2;
  spdlog::set_level(spdlog::level::off);
  return distfuse::simulation::main_with(arguments);
}
