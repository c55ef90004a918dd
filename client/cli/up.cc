// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <set>

#include "client/cli/local_cluster.h"
#include "client/cli/progress.h"

namespace distfuse::client {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr milliseconds kReadyTimeout{60000};

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

  Status start(const std::string& name, const std::string& kind, const std::string& program,
               std::vector<std::string> arguments, const std::string& mountpoint = {}) {
    DaemonCommand command{name, {program_path(program)}, local_.run_file(name, ".err")};
    for (std::string& argument : arguments) command.arguments.push_back(std::move(argument));
    for (const auto& [flag, value] :
         {std::pair{"--log-file", local_.run_file(name, ".log")},
          std::pair{"--log-level", options_.log_level},
          std::pair{"--admin-socket", local_.run_file(name, ".sock")}}) {
      command.arguments.emplace_back(flag);
      command.arguments.push_back(value);
    }
    auto started =
        start_daemon(command, kReadyTimeout, [&](milliseconds) { progress_.show(name); });
    if (!started) return started.error();
    progress_.step();
    daemons_.push_back({name, kind, mountpoint, started->process});
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

Result<std::vector<std::string>> check_mounts(const std::vector<std::string>& mounts) {
  if (mounts.empty())
    return Error{EINVAL, "no mount point given: add --mount DIR, once for each mount"};
  if (access("/dev/fuse", R_OK | W_OK) != 0) {
    return Error{
        ENODEV,
        fmt::format(
            "/dev/fuse cannot be opened ({}): load the module (modprobe fuse) and check its "
            "permissions",
            std::generic_category().message(errno))};
  }
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

Status up(const UpOptions& options) {
  auto local = open_local_cluster(options.root, false);
  if (!local) return local.error();
  auto mounts = check_mounts(options.mounts);
  if (!mounts) return mounts.error();
  DISTFUSE_TRY(check_not_running(*local));
  auto cluster = prepare_local_cluster(*local, options.storageds);
  if (!cluster) return cluster.error();

  Startup startup(*local, options, 1 + cluster->storaged.size() + mounts->size());
  for (const config::Storaged& storaged : cluster->storaged) {
    DISTFUSE_TRY(startup.start(storaged.name, "storaged", "distfuse-storaged",
                               {"--config", local->config_path(), "--name", storaged.name}));
  }
  DISTFUSE_TRY(
      startup.start("lockd", "lockd", "distfuse-lockd", {"--config", local->config_path()}));
  for (std::size_t i = 0; i < mounts->size(); ++i) {
    const std::string name = fmt::format("mount-{}", i);
    DISTFUSE_TRY(startup.start(
        name, "mount", "distfuse",
        {"mount", "--foreground", "--config", local->config_path(), "--name", name, (*mounts)[i]},
        (*mounts)[i]));
  }
  startup.keep();
  return {};
}

}  // namespace distfuse::client
