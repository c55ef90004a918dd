// SPDX-License-Identifier: Apache-2.0
// What UCX does to a process when it is loaded, settled once, by whichever part uses it first.
#pragma once

namespace distfuse {

/// Sends UCX's log lines to ours and takes its signal handlers away: they hide the core dump and a sanitizer's report, and SIGHUP
/// makes it trace. UCX_ERROR_SIGNALS in the environment keeps them. Call it before the first use of UCX; thread-safe.
void settle_ucx_in_process();

}  // namespace distfuse
