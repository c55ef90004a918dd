// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <set>
#include <utility>

#include "client/cli/local_cluster.h"
#include "client/cli/progress.h"
#include "client/kernel/device.h"

namespace distfuse::client {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr milliseconds kReadyTimeout{60000};
constexpr milliseconds kLeaveTimeout{5000};

std::vector<std::string> storaged_command(const LocalCluster& local, const std::string& name) {
  return {"distfuse-storaged", "--config", local.config_path(), "--name", name};
}

std::vector<std::string> lockd_command(const LocalCluster& local) {
  return {"distfuse-lockd", "--config", local.config_path()};
}

std::vector<std::string> mount_command(const LocalCluster& local, const std::string& name,
                                       const std::string& mountpoint,
                                       const std::string& coherence) {
  return {"distfuse",    "mount",   "--foreground", "--config", local.config_path(),
          "--coherence", coherence, "--name",       name,       mountpoint};
}

/// A mount of mode `kernel` that has not given up: a next client takes it over, from a dead one or from one that serves it.
bool can_attach(const RunningDaemon& daemon) {
  if (daemon.kind != "mount" || daemon.coherence != "kernel") return false;
  const auto state = kernel::Device::look(daemon.mountpoint);
  return state && !state->aborted;
}

/// What starts it again; a mount whose client is dead, and that no other can take over, is detached first.
Result<std::vector<std::string>> restart_command(const LocalCluster& local,
                                                 const RunningDaemon& daemon) {
  if (daemon.kind == "lockd") return lockd_command(local);
  if (daemon.kind == "storaged") return storaged_command(local, daemon.name);
  auto command = mount_command(local, daemon.name, daemon.mountpoint, daemon.coherence);
  if (can_attach(daemon)) {
    command.emplace_back("--attach");
    return command;
  }
  if (alive(daemon.process))
    return Error{EBUSY, fmt::format("{} is a mount and runs: use `distfuse umount {}` and "
                                    "`distfuse mount`",
                                    daemon.name, daemon.mountpoint)};
  if (is_mountpoint(daemon.mountpoint)) DISTFUSE_TRY(unmount(daemon.mountpoint, true));
  return command;
}

Status await_end(const RunningDaemon& daemon, const Progress& progress) {
  if (wait_gone(daemon.process, kReadyTimeout, progress)) return {};
  return Error{ETIMEDOUT, fmt::format("{} (pid {}) did not stop: see its log, then `kill -9 {}`",
                                      daemon.name, daemon.process.pid, daemon.process.pid)};
}

/// The next client has taken over. One that stands still (SIGSTOP) does not leave by itself.
Status await_leaving(const RunningDaemon& former, const Progress& progress) {
  if (wait_gone(former.process, kLeaveTimeout, progress)) return {};
  kill(former.process.pid, SIGKILL);
  return await_end(former, progress);
}

/// The daemons that were started so far; stops them again unless kept.
class Startup {
 public:
  Startup(const LocalCluster& local, const UpOptions& options, std::size_t total)
      : local_(local), options_(options), progress_("starting the cluster", total) {}
  Startup(const Startup&) = delete;
  Startup& operator=(const Startup&) = delete;
  ~Startup() {
    if (!kept_) stop_all();
  }

  Status start(const std::string& name, const std::string& kind, std::vector<std::string> command,
               const std::string& mountpoint = {}) {
    auto process = launch(local_, name, options_.log_level, std::move(command),
                          [&](milliseconds) { progress_.show(name); });
    if (!process) return process.error();
    progress_.step();
    daemons_.push_back(
        {name, kind, mountpoint, mountpoint.empty() ? "" : options_.coherence, *process});
    return local_.save_state(daemons_);
  }

  void keep() { kept_ = true; }

 private:
  void stop_all() {
    for (auto daemon = daemons_.rbegin(); daemon != daemons_.rend(); ++daemon) {
      if (!daemon->mountpoint.empty()) (void)unmount(daemon->mountpoint, true).ok();
      kill(daemon->process.pid, SIGTERM);
      if (!wait_gone(daemon->process, milliseconds(10000), {})) kill(daemon->process.pid, SIGKILL);
    }
    local_.remove_state();
  }

  const LocalCluster& local_;
  const UpOptions& options_;
  Progress2s progress_;
  std::vector<RunningDaemon> daemons_;
  bool kept_ = false;
};

Status check_not_running(const LocalCluster& local) {
  auto daemons = local.load_state();
  if (!daemons) return daemons.error();
  for (const RunningDaemon& daemon : *daemons) {
    if (!alive(daemon.process)) continue;
    return Error{
        EBUSY,
        fmt::format(
            "the cluster in {} is running ({} has pid {}): stop it with `distfuse down --root {}`",
            local.root, daemon.name, daemon.process.pid, local.root)};
  }
  return {};
}

Result<std::vector<std::string>> check_mounts(const std::vector<std::string>& mounts,
                                              const std::string& coherence) {
  if (mounts.empty())
    return Error{EINVAL, "no mount point given: add --mount DIR, once for each mount"};
  DISTFUSE_TRY(check_mount_device(coherence));
  std::set<std::string> seen;
  std::vector<std::string> absolute;
  for (const std::string& mount : mounts) {
    std::error_code error;
    std::string path = fs::weakly_canonical(fs::absolute(mount), error);
    if (error) path = fs::absolute(mount).lexically_normal();
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    if (!seen.insert(path).second)
      return Error{EINVAL, fmt::format("mount point {} is given twice", path)};
    DISTFUSE_TRY(check_mountpoint(path));
    absolute.push_back(std::move(path));
  }
  return absolute;
}

}  // namespace

Result<ProcessId> launch(const LocalCluster& local, const std::string& name,
                         const std::string& log_level, std::vector<std::string> command,
                         const Progress& progress) {
  DaemonCommand daemon{name, std::move(command), local.run_file(name, ".err")};
  daemon.arguments[0] = program_path(daemon.arguments[0]);
  for (const auto& [flag, value] :
       {std::pair<const char*, std::string>{"--log-file", local.run_file(name, ".log")},
        {"--log-level", log_level},
        {"--admin-socket", local.run_file(name, ".sock")}}) {
    daemon.arguments.emplace_back(flag);
    daemon.arguments.push_back(value);
  }
  auto started = start_daemon(daemon, kReadyTimeout, progress);
  if (!started) return started.error();
  return started->process;
}

Status restart(const std::string& root, const std::string& name) {
  auto local = open_local_cluster(root, true);
  if (!local) return local.error();
  auto daemons = local->load_state();
  if (!daemons) return daemons.error();
  for (RunningDaemon& daemon : *daemons) {
    if (daemon.name != name) continue;
    auto command = restart_command(*local, daemon);
    if (!command) return command.error();
    Progress2s progress("restarting", 1);
    const auto show = [&](milliseconds) { progress.show(name); };
    const bool attaches = command->back() == "--attach";
    if (!attaches) {
      if (alive(daemon.process)) kill(daemon.process.pid, SIGTERM);
      DISTFUSE_TRY(await_end(daemon, show));
    }
    auto process = launch(*local, name, "info", std::move(*command), show);
    if (!process) return process.error();
    const RunningDaemon former = std::exchange(
        daemon, {daemon.name, daemon.kind, daemon.mountpoint, daemon.coherence, *process});
    DISTFUSE_TRY(local->save_state(*daemons));
    return attaches ? await_leaving(former, show) : Status{};
  }
  return Error{
      ENOENT,
      fmt::format(
          "no daemon of the cluster in {} is named '{}': `distfuse status --root {}` lists them",
          local->root, name, local->root)};
}

Status up(const UpOptions& options) {
  auto local = open_local_cluster(options.root, false);
  if (!local) return local.error();
  auto mounts = check_mounts(options.mounts, options.coherence);
  if (!mounts) return mounts.error();
  DISTFUSE_TRY(check_not_running(*local));
  auto cluster = prepare_local_cluster(*local, options);
  if (!cluster) return cluster.error();

  Startup startup(*local, options, 1 + cluster->storaged.size() + mounts->size());
  for (const config::Storaged& storaged : cluster->storaged) {
    DISTFUSE_TRY(startup.start(storaged.name, "storaged", storaged_command(*local, storaged.name)));
  }
  DISTFUSE_TRY(startup.start("lockd", "lockd", lockd_command(*local)));
  for (std::size_t i = 0; i < mounts->size(); ++i) {
    const std::string name = fmt::format("mount-{}", i);
    DISTFUSE_TRY(startup.start(
        name, "mount", mount_command(*local, name, (*mounts)[i], options.coherence), (*mounts)[i]));
  }
  startup.keep();
  return {};
}

}  // namespace distfuse::client
