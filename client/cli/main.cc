// SPDX-License-Identifier: Apache-2.0
// distfuse: mounts, and whole clusters on one machine.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "client/cli/local_cluster.h"
#include "client/cli/progress.h"
#include "client/cli/status.h"
#include "client/kernel/mount.h"
#include "client/mount.h"
#include "common/log.h"

namespace distfuse::client {
namespace {

namespace fs = std::filesystem;

struct MountCommand {
  std::string config = "/etc/distfuse/cluster.toml";
  std::string mountpoint;
  std::string name;
  std::string log_file;
  std::string log_level = "info";
  std::string admin_socket;
  std::string coherence = "user";
  bool foreground = false;
  bool read_only = false;
  bool debug = false;
  bool attach = false;
};

int say(const Status& status) {
  if (status.ok()) return 0;
  fmt::print(stderr, "distfuse: {}\n", status.error().message);
  return 1;
}

std::string host_name() {
  char name[256] = "node";
  gethostname(name, sizeof(name) - 1);
  return name;
}

Status serve_mount(const MountCommand& command) {
  DISTFUSE_TRY(log::init({"client", command.log_level, command.log_file}));
  auto cluster = config::load_cluster(command.config);
  if (!cluster) return cluster.error();
  DISTFUSE_TRY(check_mount_device(command.coherence));
  if (!command.attach) DISTFUSE_TRY(check_mountpoint(command.mountpoint));
  MountOptions options;
  options.cluster = std::move(*cluster);
  options.mountpoint = command.mountpoint;
  options.name = command.name.empty() ? host_name() + ":" + command.mountpoint : command.name;
  options.admin_socket = command.admin_socket;
  options.read_only = command.read_only;
  options.debug = command.debug;
  options.ready = [&] {
    fmt::print("ready mount={}\n", command.mountpoint);
    std::fflush(stdout);
  };
  if (command.attach) return kernel::attach_mount(options);
  return command.coherence == "kernel" ? kernel::run_mount(options) : run_mount(options);
}

/// Starts this program again with --foreground and waits until the mount is usable.
Status mount_in_background(const MountCommand& command) {
  const std::string errors =
      fmt::format("{}/distfuse-mount-{}.err", fs::temp_directory_path().string(), getpid());
  DaemonCommand daemon{
      "the client", {fs::read_symlink("/proc/self/exe"), "mount", "--foreground"}, errors};
  const auto add = [&](const char* flag, const std::string& value) {
    if (!value.empty()) daemon.arguments.insert(daemon.arguments.end(), {flag, value});
  };
  add("--config", fs::absolute(command.config));
  add("--name", command.name);
  add("--log-file", command.log_file);
  add("--log-level", command.log_level);
  add("--admin-socket", command.admin_socket);
  add("--coherence", command.coherence);
  if (command.read_only) daemon.arguments.emplace_back("--read-only");
  if (command.attach) daemon.arguments.emplace_back("--attach");
  daemon.arguments.push_back(command.mountpoint);
  Progress2s progress("mounting", 1);
  auto started = start_daemon(daemon, std::chrono::seconds(60),
                              [&](auto) { progress.show(command.mountpoint); });
  unlink(errors.c_str());
  return started ? Status{} : Status{started.error()};
}

std::string absolute(const std::string& path) {
  std::error_code error;
  std::string plain = fs::absolute(path).lexically_normal();
  while (plain.size() > 1 && plain.back() == '/') plain.pop_back();
  if (is_mountpoint(plain)) return plain;  // nothing is asked of a mount whose client is away
  std::string result = fs::weakly_canonical(plain, error);
  if (error) result = fs::absolute(path).lexically_normal();  // a dead mount cannot be resolved
  while (result.size() > 1 && result.back() == '/') result.pop_back();
  return result;
}

void add_coherence(CLI::App& command, std::string& coherence) {
  command
      .add_option("--coherence", coherence,
                  "user: in-tree FUSE, locks taken by the client process; kernel: the distfuse "
                  "module")
      ->check(CLI::IsMember({"user", "kernel"}))
      ->capture_default_str();
}

void add_mount(CLI::App& app, MountCommand& command, int& exit_code) {
  CLI::App* mount =
      app.add_subcommand("mount", "Mount a cluster; returns when the mount is usable");
  mount->add_option("mountpoint", command.mountpoint, "An existing folder")->required();
  mount->add_option("-c,--config", command.config, "The cluster file")->capture_default_str();
  mount->add_option("--name", command.name, "Name in lockd's status (default: host:mountpoint)");
  mount->add_option("--log-file", command.log_file, "Log there instead of standard error");
  mount->add_option("--log-level", command.log_level, "trace, debug, info, warn or error")
      ->capture_default_str();
  mount->add_option("--admin-socket", command.admin_socket, "A unix socket that answers `status`");
  add_coherence(*mount, command.coherence);
  mount->add_flag("--foreground", command.foreground,
                  "Serve in this process, until it is unmounted");
  mount->add_flag("--read-only", command.read_only, "Refuse every change");
  mount->add_flag("--debug", command.debug, "Print every request (with --foreground)");
  mount->add_flag("--attach", command.attach,
                  "Take over a mount of coherence kernel: its client died, or is replaced by this "
                  "one");
  mount->callback([&] {
    if (command.attach) command.coherence = "kernel";
    command.mountpoint = absolute(command.mountpoint);
    exit_code = say(command.foreground ? serve_mount(command) : mount_in_background(command));
  });
}

void add_umount(CLI::App& app, std::string& mountpoint, bool& lazy, int& exit_code) {
  CLI::App* umount = app.add_subcommand(
      "umount", "Unmount; what was written is at the storage daemons when it returns");
  umount->add_option("mountpoint", mountpoint)->required();
  umount->add_flag("--lazy", lazy, "Detach now, finish when the last user is gone");
  umount->callback([&] { exit_code = say(unmount(absolute(mountpoint), lazy)); });
}

void add_cluster(CLI::App& app, UpOptions& up_options, DownOptions& down_options, bool& json,
                 std::string& daemon, int& exit_code) {
  CLI::App* up_command = app.add_subcommand(
      "up", "Start a cluster on this machine; returns when all mounts are usable");
  up_command
      ->add_option("--root", up_options.root, "Folder of the cluster; made if it is not there")
      ->required();
  up_command
      ->add_option("--mount", up_options.mounts,
                   "Mount point, an existing folder; once for each mount")
      ->required()
      ->take_all()
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  up_command
      ->add_option("--storage", up_options.storageds,
                   "Storage daemons of a new cluster (default 2)")
      ->check(CLI::PositiveNumber);
  up_command
      ->add_option(
          "--lease", up_options.lease_ms,
          "How long a mount that is not heard of keeps its locks, such as 10s or 500ms; 0: "
          "while it is connected (default: what the cluster file says)")
      ->transform(
          CLI::AsNumberWithUnit(std::map<std::string, std::uint64_t>{{"ms", 1}, {"s", 1000}}));
  up_command
      ->add_option("--fabric", up_options.fabric,
                   "How locks of a new cluster are reached: ucx (default) or verbs")
      ->check(CLI::IsMember({"ucx", "verbs"}));
  up_command->add_option("--device", up_options.device,
                         "Network device (ucx) or RDMA device (verbs) of a new cluster");
  up_command->add_option("--data-device", up_options.data_device,
                         "UCX's device for the storage of a new cluster (default: --device)");
  up_command->add_option("--address", up_options.address,
                         "This machine's IPv4 address that the daemons of a new cluster listen on "
                         "(default: 127.0.0.1)");
  add_coherence(*up_command, up_options.coherence);
  up_command->add_option("--log-level", up_options.log_level, "trace, debug, info, warn or error")
      ->capture_default_str();
  up_command->callback([&] { exit_code = say(up(up_options)); });

  CLI::App* down_command =
      app.add_subcommand("down", "Flush, unmount and stop a cluster on this machine");
  down_command->add_option("--root", down_options.root, "Folder of the cluster")->required();
  down_command->add_flag("--lazy", down_options.lazy, "Detach mounts that are in use");
  down_command->callback([&] { exit_code = say(down(down_options)); });

  CLI::App* restart_command =
      app.add_subcommand("restart", "Start a daemon of a local cluster again");
  restart_command->add_option("--root", down_options.root, "Folder of the cluster")->required();
  restart_command->add_option("daemon", daemon, "Its name in `distfuse status`")->required();
  restart_command->callback([&] { exit_code = say(restart(down_options.root, daemon)); });

  CLI::App* status_command =
      app.add_subcommand("status", "Daemons, mounts, sessions, capacity and locks");
  status_command->add_option("--root", up_options.root, "Folder of the cluster")->required();
  status_command->add_flag("--json", json, "For programs");
  status_command->callback([&] {
    bool complete = false;
    exit_code = say(print_status(up_options.root, json, complete));
    if (exit_code == 0 && !complete) exit_code = 3;
  });
}

int run(int argc, char** argv) {
  CLI::App app{
      "DistFUSE: a coherent cluster filesystem. Each command has its own --help; see distfuse(1).",
      "distfuse"};
  app.set_version_flag("--version", std::string("distfuse ") + DISTFUSE_VERSION);
  app.require_subcommand(1);
  int exit_code = 0;
  MountCommand mount_command;
  std::string mountpoint;
  UpOptions up_options;
  DownOptions down_options;
  bool lazy = false;
  bool json = false;
  std::string daemon;
  add_mount(app, mount_command, exit_code);
  add_umount(app, mountpoint, lazy, exit_code);
  add_cluster(app, up_options, down_options, json, daemon, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  return exit_code;
}

}  // namespace
}  // namespace distfuse::client

int main(int argc, char** argv) {
  return distfuse::client::run(argc, argv);
}
