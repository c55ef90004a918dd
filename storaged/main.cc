// SPDX-License-Identifier: Apache-2.0
// distfuse-storaged: the command line. Exit status 0: stopped by SIGTERM or SIGINT; 1: could not serve, the reason is on
// standard error; CLI11's for a bad command line.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <string>

#include "common/admin.h"
#include "common/config.h"
#include "common/log.h"
#include "storaged/daemon.h"

namespace {

struct CommandLine {
  std::string config;
  std::string name;
  std::string admin_socket;
  distfuse::log::Options log;
};

int fail(const distfuse::Error& error) {
  std::fprintf(stderr, "distfuse-storaged: %s\n", error.message.c_str());
  return 1;
}

std::string answer(distfuse::storaged::Daemon& daemon, const std::string& command) {
  if (command == "status") return daemon.status();
  return R"({"error":"unknown command; try: status"})";
}

int serve(const CommandLine& options) {
  if (auto status = distfuse::log::init(options.log); !status.ok()) return fail(status.error());
  auto cluster = distfuse::config::load_cluster(options.config);
  if (!cluster) return fail(cluster.error());

  // Blocked before the first thread is made, so that only sigwait below sees them.
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGHUP, SIG_IGN);

  auto daemon = distfuse::storaged::Daemon::start(*cluster, options.name);
  if (!daemon) return fail(daemon.error());
  std::unique_ptr<distfuse::AdminServer> admin;
  if (!options.admin_socket.empty()) {
    auto server = distfuse::AdminServer::create(
        options.admin_socket,
        [&daemon](const std::string& command) { return answer(**daemon, command); });
    if (!server) return fail(server.error());
    admin = std::move(*server);
  }
  spdlog::info("storaged {} {}", options.name, (*daemon)->ready_line());
  std::printf("%s\n", (*daemon)->ready_line().c_str());
  std::fflush(stdout);

  int signal = 0;
  sigwait(&stop, &signal);
  spdlog::info("stopping on signal {}", signal);
  admin.reset();
  daemon->reset();
  spdlog::info("stopped");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine options;
  options.log.program = "storaged";
  CLI::App app("Serves metadata, data, or both, of a DistFUSE cluster", "distfuse-storaged");
  app.set_version_flag("--version", "distfuse-storaged " DISTFUSE_VERSION);
  app.add_option("--config", options.config, "The cluster file (TOML)")->required();
  app.add_option("--name", options.name, "Which storaged of the cluster file this is")->required();
  app.add_option("--log-file", options.log.file, "Log there instead of to standard error");
  app.add_option("--log-level", options.log.level, "trace, debug, info, warn or error")
      ->capture_default_str();
  app.add_option("--admin-socket", options.admin_socket, "Answer 'status' on this unix socket");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  return serve(options);
}
