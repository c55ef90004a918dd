// SPDX-License-Identifier: Apache-2.0
// What a data request must be before anyone believes it: asked by the client before it sends, and by the server before it acts.
#pragma once

#include <cstddef>
#include <span>

#include "common/result.h"
#include "rpc/data.h"

namespace distfuse::rpc {

/// `bulk`: bytes of payload that come with it. Error: EINVAL with the field's name.
[[nodiscard]] Status check_data_request(const DataRequest& request, std::size_t bulk);

/// The reply's error and lengths against its request; `bulk` as above. Error: EPROTO.
[[nodiscard]] Status check_data_reply(const DataRequest& request, const DataReply& reply,
                                      std::size_t bulk);

}  // namespace distfuse::rpc
