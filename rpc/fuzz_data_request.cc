// SPDX-License-Identifier: Apache-2.0
// A data request that passes the check stays within its chunk, whatever its bytes were.
#include <cstdlib>
#include <cstring>

#include "rpc/data_check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace distfuse::rpc;
  DataRequest request{};
  if (size < sizeof request) return 0;
  std::memcpy(&request, data, sizeof request);
  std::uint32_t bulk = 0;
  if (size >= sizeof request + sizeof bulk) std::memcpy(&bulk, data + sizeof request, sizeof bulk);
  if (!check_data_request(request, bulk).ok()) return 0;
  if (request.op == 0 || request.op > 11) std::abort();
  if (bulk > kMaxBulk) std::abort();
  if (request.op <= static_cast<std::uint16_t>(DataOp::seek) &&
      std::uint64_t{request.offset} + request.length > kMaxBulk)
    std::abort();
  return 0;
}
