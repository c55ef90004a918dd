// SPDX-License-Identifier: Apache-2.0
// Logging: spdlog's default logger, set up once per process. The first that decides an error logs
// it; nobody above logs it again.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

#include "common/result.h"

namespace distfuse::log {

struct Options {
  std::string program;         ///< Name in front of each line, e.g. "lockd".
  std::string level = "info";  ///< trace, debug, info, warn, error.
  std::string file;            ///< Empty: standard error.
};

/// Installs the process's logger. Error: an unknown level, a file that cannot be written.
[[nodiscard]] Status init(const Options& options);

}  // namespace distfuse::log
