// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "common/result.h"

namespace distfuse {

/// Replaces a small file as a whole, durably: PATH.new is written, synced and renamed, then the directory synced. A crash leaves the
/// old file or the new one, and at worst a torn PATH.new that means nothing. Error: errno, with the path and the step that failed.
[[nodiscard]] Status replace_file(const std::string& path, std::string_view text,
                                  mode_t mode = 0644);

}  // namespace distfuse
