// SPDX-License-Identifier: Apache-2.0
// distfuse-scale: what the lock protocol does with up to 32,766 clients, by simulation. Prints one JSON object. docs/scale.md.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "simulation/scale/load_run.h"
#include "simulation/scale/measure.h"
#include "simulation/scale/report.h"
#include "simulation/scale/storm.h"

namespace distfuse::scale {
namespace {

using Json = nlohmann::ordered_json;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// The result is a function of the options; what the run itself took stands apart, under "run".
void print(Json json, std::uint64_t events, double seconds) {
  json["run"] = {{"seconds", seconds},
                 {"events_per_second", static_cast<double>(events) / seconds}};
  std::printf("%s\n", json.dump(2).c_str());
}

void load(const Parameters& parameters, const LoadOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  const LoadResult result = run_load(parameters, options);
  print(json_of(options, result), result.events, seconds_since(begin));
}

void storm(const Parameters& parameters, const StormOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  const StormResult result = run_storm(parameters, options);
  print(json_of(options, result), result.events, seconds_since(begin));
}

void measure() {
  Json rows = Json::array();
  for (const auto& [sessions, queue] :
       {std::pair{16u, 1u}, std::pair{1000u, 1u}, std::pair{10000u, 1u}, std::pair{10000u, 100u},
        std::pair{10000u, 1000u}, std::pair{10000u, 9000u}}) {
    const CoreTimes times = measure_hand_over(sessions, queue);
    rows.push_back({{"sessions", sessions},
                    {"queue", queue},
                    {"ask_ns", times.ask},
                    {"released_ns", times.released},
                    {"chain_ns", times.chain},
                    {"stage_ns", times.stage}});
  }
  const CoreCosts costs = measure_core();
  const Json json = {{"lockd_core_ns", costs.message_ns},
                     {"lockd_waiter_ns", costs.waiter_ns},
                     {"lockd_session_ns", costs.session_ns},
                     {"hand_overs", rows}};
  std::printf("%s\n", json.dump(2).c_str());
}

void print_parameters(const Parameters& parameters) {
  Json json;
  for (const auto& field : parameter_fields())
    json[std::string(field.name)] = parameters.*field.member;
  std::printf("%s\n", json.dump(2).c_str());
}

int run(int argc, char** argv) {
  CLI::App app(
      "The lock protocol at scale, by simulation: the real state machines on a fabric of stated "
      "costs");
  app.require_subcommand(1);
  Parameters parameters;
  LoadOptions options;
  StormOptions storms;
  std::vector<std::string> assignments;
  app.add_option("--set", assignments, "NAME=VALUE of a parameter, as `parameters` prints them")
      ->check([&parameters](const std::string& text) {
        return set_parameter(parameters, text) ? std::string() : "no parameter: " + text;
      });

  auto* loads = app.add_subcommand("load", "A workload at one number of clients");
  loads
      ->add_option_function<std::string>(
          "--workload",
          [&options](const std::string& name) {
            const auto workload = workload_of(name);
            if (!workload) throw CLI::ValidationError("--workload", "no workload: " + name);
            options.workload = *workload;
          },
          "private, directory, directory-intent, hot-write, hot-extents, hot-intent, hot-read")
      ->required();
  loads->add_option("--clients", options.clients)->check(CLI::Range(1, 32766));
  loads->add_option("--lockds", options.lockds)->check(CLI::Range(1, 64));
  loads->add_option("--seed", options.seed);
  loads->add_option("--acquires", options.acquires, "of each client, on average")
      ->check(CLI::Range(1, 1000000));
  loads->add_option("--events", options.events, "that end the measurement before that");
  loads->add_option("--think-ns", options.details.think_ns, "between two operations of a client");
  loads->add_option("--create-share", options.details.create_share)->check(CLI::Range(0.0, 1.0));
  loads->callback([&] { load(parameters, options); });

  auto* storm_command = app.add_subcommand("storm", "One writer revokes what many read");
  storm_command->add_option("--sessions", storms.sessions)->check(CLI::Range(2, 32766));
  storm_command->add_option("--readers", storms.readers);
  storm_command->add_option("--lost", storms.lost, "readers that die first");
  storm_command->add_option("--seed", storms.seed);
  storm_command->callback([&] { storm(parameters, storms); });

  app.add_subcommand("measure", "What lockd's core takes of this machine")->callback(measure);
  app.add_subcommand("parameters", "The parameters")->callback([&] {
    print_parameters(parameters);
  });
  CLI11_PARSE(app, argc, argv);
  return 0;
}

}  // namespace
}  // namespace distfuse::scale

int main(int argc, char** argv) {
  try {
    return distfuse::scale::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "distfuse-scale: %s\n", error.what());
    return 1;
  }
}
