// SPDX-License-Identifier: Apache-2.0
// What libraries that use UCX must do once per process, not once each.
#pragma once

#include <mutex>

namespace distfuse {

/// Guards the taking away of UCX's signal handlers: UCX warns when it is asked a second time.
inline std::once_flag ucx_signals_once;

}  // namespace distfuse
