// SPDX-License-Identifier: Apache-2.0
// The answer to a Hello, as a Result.
#pragma once

#include <span>

#include "common/result.h"
#include "rdma/lock/wire.h"

namespace distfuse::client {

/// Error: EPROTONOSUPPORT: another version; EINVAL: another cluster; EUSERS: no node id left; ENOTCONN: no such session; EPROTO.
/// `refusal`: enum df_refusal.
[[nodiscard]] Result<df_welcome> read_welcome(std::span<const std::byte> data,
                                              df_u32* refusal = nullptr);

}  // namespace distfuse::client
