// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/cli/local_cluster.h"
#include "client/cli/progress.h"

namespace distfuse::client {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kStopTimeout{60000};

/// umount(2), or fusermount3 for a user who may not. Answers 0 or an errno value.
int detach(const std::string& mountpoint, bool lazy) {
  if (umount2(mountpoint.c_str(), UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0) return 0;
  const int code = errno;
  if (code != EPERM) return code;
  const pid_t child = fork();
  if (child == 0) {
    execlp("fusermount3", "fusermount3", "-u", lazy ? "-z" : "-q", mountpoint.c_str(),
           static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : EPERM;
}

Status await_end(const std::string& name, const ProcessId& process, Progress2s& progress) {
  if (wait_gone(process, kStopTimeout, [&](milliseconds) { progress.show(name); })) return {};
  return Error{ETIMEDOUT, fmt::format("{} (pid {}) did not stop within {} s: see its log, then "
                                      "`kill -9 {}`",
                                      name, process.pid, kStopTimeout.count() / 1000, process.pid)};
}

Status stop(const RunningDaemon& daemon, Progress2s& progress) {
  if (alive(daemon.process)) {
    // A client whose mount is gone ends by itself; the signal is for one that never mounted.
    if (daemon.kind != "mount" || !is_mountpoint(daemon.mountpoint))
      kill(daemon.process.pid, SIGTERM);
    DISTFUSE_TRY(await_end(daemon.name, daemon.process, progress));
  }
  progress.step();
  return {};
}

}  // namespace

Status unmount(const std::string& mountpoint, bool lazy) {
  if (!is_mountpoint(mountpoint))
    return Error{EINVAL, fmt::format("{} is not a mount point", mountpoint)};
  // A client ends after its mount, and one that is detached with the last user.
  const auto clients = lazy ? std::vector<ProcessId>{} : clients_of(mountpoint);
  const int code = detach(mountpoint, lazy);
  if (code == 0) {
    Progress2s progress("unmounting", clients.size());
    for (const ProcessId& client : clients) {
      DISTFUSE_TRY(await_end("the client of " + mountpoint, client, progress));
      progress.step();
    }
    return {};
  }
  if (code == EBUSY) {
    return Error{code, fmt::format("{} is in use: end the programs that use it (`fuser -vm {}` "
                                   "lists them), or give --lazy",
                                   mountpoint, mountpoint)};
  }
  return Error{code, fmt::format("{} cannot be unmounted: {}", mountpoint,
                                 std::generic_category().message(code))};
}

Status down(const DownOptions& options) {
  auto local = open_local_cluster(options.root, true);
  if (!local) return local.error();
  auto daemons = local->load_state();
  if (!daemons) return daemons.error();
  for (const RunningDaemon& daemon : *daemons) {
    if (daemon.kind == "mount" && is_mountpoint(daemon.mountpoint)) {
      DISTFUSE_TRY(unmount(daemon.mountpoint, options.lazy));
    }
  }
  Progress2s progress("stopping the cluster", daemons->size());
  for (const char* kind : {"mount", "lockd", "storaged"}) {
    for (const RunningDaemon& daemon : *daemons) {
      if (daemon.kind == kind) DISTFUSE_TRY(stop(daemon, progress));
    }
  }
  local->remove_state();
  return {};
}

}  // namespace distfuse::client
