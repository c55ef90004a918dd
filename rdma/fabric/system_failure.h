// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <cstring>
#include <string>

#include "common/result.h"

namespace distfuse::fabric {

/// errno as an Error, with what was tried.
[[nodiscard]] inline Error system_failure(const std::string& what) {
  const int code = errno != 0 ? errno : EIO;
  return Error{code, what + ": " + std::strerror(code)};
}

}  // namespace distfuse::fabric
