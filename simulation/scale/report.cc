// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/report.h"

#include <nlohmann/json.hpp>
#include <string>

namespace distfuse::scale {

nlohmann::ordered_json json_of(const LoadOptions& options, const LoadResult& result) {
  return {{"workload", std::string(name_of(options.workload))},
          {"clients", options.clients},
          {"lockds", options.lockds},
          {"seed", options.seed},
          {"think_ns", options.details.think_ns},
          {"create_share", options.details.create_share},
          {"operations", result.operations},
          {"acquires", result.acquires},
          {"seconds", result.seconds},
          {"operations_per_second", result.operations_per_second},
          {"acquires_per_second", result.acquires_per_second},
          {"p50_us", result.p50_us},
          {"p99_us", result.p99_us},
          {"max_us", result.max_us},
          {"messages_per_operation", result.messages_per_operation},
          {"lockd_cpu_ns_per_operation", result.lockd_cpu_ns_per_operation},
          {"busy",
           {{"lockd_cpu", result.lockd_cpu},
            {"receiver", result.receiver},
            {"atomics", result.atomics},
            {"word", result.word},
            {"sender", result.sender}}},
          {"longest_queue", result.longest_queue},
          {"longest_backlog", result.longest_backlog},
          {"asks", result.asks},
          {"revokes", result.revokes},
          {"freezes", result.freezes},
          {"repairs", result.repairs},
          {"finds", result.finds},
          {"begun", result.begun},
          {"granted", result.granted},
          {"events", result.events},
          {"lockd_memory_bytes", result.lockd_memory_bytes}};
}

nlohmann::ordered_json json_of(const StormOptions& options, const StormResult& result) {
  return {{"sessions", options.sessions},
          {"readers", options.readers},
          {"lost", options.lost},
          {"seed", options.seed},
          {"revoke_us", result.revoke_us},
          {"revokes", result.revokes},
          {"freezes", result.freezes},
          {"repairs", result.repairs},
          {"messages", result.messages},
          {"lockd_cpu_us", result.lockd_cpu_us},
          {"herd_p50_us", result.herd_p50_us},
          {"herd_all_us", result.herd_all_us},
          {"herd_messages", result.herd_messages},
          {"herd_cpu_us", result.herd_cpu_us},
          {"events", result.events},
          {"lockd_memory_bytes", result.lockd_memory_bytes},
          {"object_bytes", result.object_bytes}};
}

}  // namespace distfuse::scale
