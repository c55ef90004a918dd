// SPDX-License-Identifier: Apache-2.0
// One program that the agent runs for somebody: its process group, its pipes or its terminal.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "common/descriptor.h"
#include "common/result.h"
#include "vm/agent/frame.h"

namespace distfuse::vm {

struct Job {
  pid_t pid = 0;
  Descriptor input;   ///< With a terminal: a duplicate of `output`.
  Descriptor output;  ///< Non-blocking, as `errors`; closed at its end.
  Descriptor errors;  ///< None with a terminal.
  std::string pending_input;
  bool close_input = false;  ///< When pending_input is empty.
  bool exited = false;
  std::uint32_t status = 0;
};

/// Starts it in a session of its own. Error: what keeps it from being started; a program that is not there exits with 127.
[[nodiscard]] Result<Job> start_job(const JobRequest& request);

/// Writes what the program takes now; closes its input when all was taken and the end was seen.
void feed(Job& job);

void resize(const Job& job, std::uint16_t rows, std::uint16_t columns);

}  // namespace distfuse::vm
