// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <string>
#include <system_error>

#include "common/result.h"

namespace distfuse::fabric {

/// An errno value as an Error, with what was tried.
[[nodiscard]] inline Error failure(int code, const std::string& what) {
  return Error{code, what + ": " + std::generic_category().message(code)};
}

/// The same of errno.
[[nodiscard]] inline Error system_failure(const std::string& what) {
  const int code = errno != 0 ? errno : EIO;
  return failure(code, what);
}

}  // namespace distfuse::fabric
