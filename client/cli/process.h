// SPDX-License-Identifier: Apache-2.0
// Starting, watching and stopping the daemons of a cluster on one machine.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "common/result.h"

namespace distfuse::client {

/// A process that cannot be mistaken for a later one with the same pid.
struct ProcessId {
  pid_t pid = 0;
  std::uint64_t start_time = 0;  ///< Field 22 of /proc/PID/stat, clock ticks since boot.
};

[[nodiscard]] Result<ProcessId> identify(pid_t pid);
[[nodiscard]] bool alive(const ProcessId& process);

struct DaemonCommand {
  std::string name;  ///< For messages.
  std::vector<std::string> arguments;
  std::string error_file;  ///< Standard error; its end is shown when the daemon does not come up.
};

struct StartedDaemon {
  ProcessId process;
  std::string ready_line;  ///< What it said after `ready`.
};

/// Called now and then while waiting, with the time waited so far.
using Progress = std::function<void(std::chrono::milliseconds)>;

/// Starts a daemon in a session of its own and waits until it prints `ready ...` on its standard output. Error: it ended or said
/// nothing for `timeout` (it is killed then); the message has what it wrote to standard error.
[[nodiscard]] Result<StartedDaemon> start_daemon(const DaemonCommand& command,
                                                 std::chrono::milliseconds timeout,
                                                 const Progress& progress);

/// Waits until it is gone. False: it is still there after `timeout`.
[[nodiscard]] bool wait_gone(const ProcessId& process, std::chrono::milliseconds timeout,
                             const Progress& progress);

/// Clients of a mount at this absolute path, in our own mount namespace, as far as we may look: by the arguments that they were started with.
[[nodiscard]] std::vector<ProcessId> clients_of(const std::string& mountpoint);

/// The folder of the running program, where the other programs of the same build or prefix are looked for.
[[nodiscard]] std::string program_path(const std::string& program);

}  // namespace distfuse::client
