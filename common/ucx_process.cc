// SPDX-License-Identifier: Apache-2.0
#include "common/ucx_process.h"

#include <spdlog/spdlog.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string_view>

namespace distfuse {
namespace {

ucs_log_func_rc_t log_line(const char*, unsigned, const char*, ucs_log_level_t level,
                           const ucs_log_component_config_t*, const char* format, va_list args) {
  char text[512];
  va_list copy;
  va_copy(copy, args);
  (void)std::vsnprintf(text, sizeof(text), format, copy);
  va_end(copy);
  auto to = spdlog::level::debug;
  if (level <= UCS_LOG_LEVEL_ERROR) to = spdlog::level::err;
  if (level == UCS_LOG_LEVEL_WARN) to = spdlog::level::warn;
  // A peer that is gone: who waits for it says so, by its name. UCX says it a second time, as advice about the backlog.
  const std::string_view line(text);
  if (line.find("connect(") != line.npos && line.find("Connection refused") != line.npos)
    to = spdlog::level::debug;
  if (line.find("try to increase \"net.core.somaxconn\"") != line.npos) to = spdlog::level::debug;
  spdlog::log(to, "ucx: {}", text);
  return UCS_LOG_FUNC_RC_STOP;
}

}  // namespace

void settle_ucx_in_process() {
  static std::once_flag once;
  std::call_once(once, [] {
    ucs_log_push_handler(log_line);
    if (std::getenv("UCX_ERROR_SIGNALS") != nullptr) return;
    for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGHUP}) {
      ucs_debug_disable_signal(signal);
    }
  });
}

}  // namespace distfuse
