// SPDX-License-Identifier: Apache-2.0
// The agent's program as seen from inside a guest: run something on another guest, ask the host for something.
#pragma once

#include <string>
#include <vector>

namespace distfuse::vm {

/// Runs `command` by sh on the guest `host` with this process's input, output, errors and environment. Answers its exit status;
/// 255: the guest cannot be reached.
[[nodiscard]] int run_on_guest(const std::string& host, const std::string& port,
                               const std::string& command);

/// Sends `question` to the host through this guest's agent and prints the answer. Answers 0, or 1 if the answer begins with "error".
[[nodiscard]] int ask_host(const std::string& local_socket, const std::string& question);

}  // namespace distfuse::vm
