// SPDX-License-Identifier: Apache-2.0
// distfuse-lockd: the lock daemon's program.
#include <fmt/format.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "common/admin.h"
#include "common/config.h"
#include "common/log.h"
#include "lockd/cluster_storage.h"
#include "lockd/service.h"
#include "lockd/session_log.h"
#include "lockd/state_dir.h"

namespace distfuse::lockd {
namespace {

struct Command {
  std::string config;
  std::string log_file;
  std::string log_level = "info";
  std::string admin_socket;
};

int complain(const Error& error) {
  fmt::print(stderr, "distfuse-lockd: {}\n",
             error.message.empty() ? std::string(std::strerror(error.code)) : error.message);
  return 1;
}

std::string answer(Service& service, const std::string& command) {
  if (command != "status") return nlohmann::json{{"error", "unknown command: use status"}}.dump();
  const auto status = service.status();
  return status.ok() ? *status : nlohmann::json{{"error", status.error().message}}.dump();
}

ServiceOptions options_of(const config::Cluster& cluster, const StateDir& state) {
  ServiceOptions options;
  options.cluster_id = cluster.id;
  options.fabric = {cluster.fabric.kind, cluster.fabric.device};
  options.listen = cluster.lockd.listen;
  options.slots = static_cast<std::uint32_t>(cluster.lockd.slots);
  options.incarnation = state.incarnation();
  options.lease_ms = static_cast<std::uint32_t>(cluster.lockd.lease_ms);
  return options;
}

int run(const Command& command) {
  // Every thread inherits the mask: the signals come to sigwait alone.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  signal(SIGPIPE, SIG_IGN);

  if (const auto status = log::init({"lockd", command.log_level, command.log_file}); !status.ok())
    return complain(status.error());
  const auto cluster = config::load_cluster(command.config);
  if (!cluster.ok()) return complain(cluster.error());
  const auto state = StateDir::open(cluster->lockd.state_dir, cluster->id);
  if (!state.ok()) return complain(state.error());
  auto list = SessionLog::open(cluster->lockd.state_dir, cluster->id,
                               static_cast<std::uint32_t>(cluster->lockd.lease_ms));
  if (!list.ok()) return complain(list.error());
  auto storage = ClusterStorage::create(*cluster);
  if (!storage.ok()) return complain(storage.error());
  auto service = Service::create(options_of(*cluster, *state), std::move(storage).value(),
                                 std::move(list).value());
  if (!service.ok()) return complain(service.error());

  std::unique_ptr<AdminServer> admin;
  if (!command.admin_socket.empty()) {
    auto created = AdminServer::create(
        command.admin_socket, [&](const std::string& text) { return answer(**service, text); });
    if (!created.ok()) return complain(created.error());
    admin = std::move(created).value();
  }
  std::thread thread([&] { (*service)->run(); });
  spdlog::info("incarnation {}, {} slots, listening on {}", state->incarnation(),
               cluster->lockd.slots, (*service)->address());
  fmt::print("ready lockd={}\n", (*service)->address());
  std::fflush(stdout);

  int signal_number = 0;
  sigwait(&ends, &signal_number);
  spdlog::info("stopping on {}", strsignal(signal_number));
  admin.reset();
  (*service)->stop();
  thread.join();
  return 0;
}

}  // namespace
}  // namespace distfuse::lockd

int main(int argc, char** argv) {
  distfuse::lockd::Command command;
  CLI::App app("distfuse-lockd: the lock daemon of a DistFUSE cluster");
  app.set_version_flag("--version", "distfuse-lockd " DISTFUSE_VERSION);
  app.add_option("--config", command.config, "The cluster file (TOML)")->required();
  app.add_option("--log-file", command.log_file, "Log to this file (default: standard error)");
  app.add_option("--log-level", command.log_level, "trace, debug, info, warn or error")
      ->capture_default_str();
  app.add_option("--admin-socket", command.admin_socket, "Answer `status` on this unix socket");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  return distfuse::lockd::run(command);
}
