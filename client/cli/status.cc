// SPDX-License-Identifier: Apache-2.0
#include "client/cli/status.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "client/cli/local_cluster.h"

namespace distfuse::client {
namespace {

using nlohmann::json;

std::string size_text(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::uint64_t number(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<std::uint64_t>() : 0;
}

bool complete(const json& daemon) {
  return daemon["alive"].get<bool>() && daemon["status"].is_object();
}

/// Nothing in normal times.
std::string phase_text(const json& status) {
  const std::string phase = status.value("phase", "normal");
  if (phase == "normal") return {};
  std::string missing;
  for (const json& session : status.value("missing", json::array()))
    missing += (missing.empty() ? ", waits for " : " ") + session.value("name", "?");
  const std::string left =
      phase == "grace" ? fmt::format(" ({} ms left)", number(status, "grace_left_ms")) : "";
  return phase + left + missing + "; ";
}

/// One line a session: who, in which state, for how long.
void print_sessions(const json& status) {
  for (const json& session : status.value("sessions", json::array())) {
    std::string left;
    if (session.contains("lease_left_ms"))
      left = fmt::format(", lease ends in {} ms", number(session, "lease_left_ms"));
    if (session.contains("free_in_ms"))
      left = fmt::format(", its locks are free in {} ms at the earliest",
                         number(session, "free_in_ms"));
    fmt::print("  session {:x}  {:<12} {}{}\n", number(session, "session"),
               session.value("name", ""), session.value("state", "?"), left);
  }
}

/// One line on what matters of a daemon.
std::string summary(const json& daemon) {
  if (!daemon["alive"].get<bool>()) return "DEAD: see its log";
  const json& status = daemon["status"];
  if (!status.is_object()) return "does not answer";
  if (daemon["kind"] == "storaged") {
    std::string text;
    for (const char* role : {"meta", "data"}) {
      if (!status.contains(role)) continue;
      text += fmt::format("{}{}", text.empty() ? "" : "+", role);
      if (status[role].value("learning", false)) text += " (learning who lives, from lockd)";
    }
    if (const json data = status.value("data", json()); data.is_object()) {
      const json capacity = data.value("capacity", json::object());
      text += fmt::format(", {} of {} free", size_text(number(capacity, "available")),
                          size_text(number(capacity, "total")));
    }
    return text;
  }
  if (daemon["kind"] == "lockd") {
    const json held = status.value("held", json::object());
    return phase_text(status) +
           fmt::format(
               "{} sessions, held: {} IS {} IX {} S {} X, {} contended, {} of {} slots used",
               status.value("sessions", json::array()).size(), number(held, "is"),
               number(held, "ix"), number(held, "s"), number(held, "x"),
               number(status, "contended"), number(status, "slots_used"),
               number(status, "slots_total"));
  }
  const json locks = status.value("locks", json::object());
  return fmt::format("{}, session {:x}, {} locks held", daemon.value("mountpoint", ""),
                     number(status, "session"), number(locks, "held"));
}

}  // namespace

Status print_status(const std::string& root, bool as_json, bool& all_complete) {
  auto local = open_local_cluster(root, true);
  if (!local) return local.error();
  auto status = collect_status(*local);
  if (!status) return status.error();
  const json& daemons = (*status)["daemons"];
  all_complete = !daemons.empty();
  for (const json& daemon : daemons) all_complete = all_complete && complete(daemon);
  if (as_json) {
    fmt::print("{}\n", status->dump(2));
    return {};
  }
  fmt::print("cluster {} in {}\n", (*status)["cluster"].get<std::string>(), local->root);
  if (daemons.empty())
    fmt::print("not running: start it with `distfuse up --root {} --mount DIR`\n", local->root);
  for (const json& daemon : daemons) {
    fmt::print("{:<12} {:>8}  {}\n", daemon["name"].get<std::string>(), daemon["pid"].get<int>(),
               summary(daemon));
    if (daemon["kind"] == "lockd" && complete(daemon)) print_sessions(daemon["status"]);
  }
  return {};
}

}  // namespace distfuse::client
