// SPDX-License-Identifier: Apache-2.0
// Whatever decodes must encode, and decode to the same bytes again.
#include <cstdlib>

#include "rpc/metadata_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace distfuse::rpc;
  auto decoded = decode_request({reinterpret_cast<const std::byte*>(data), size});
  if (!decoded) return 0;
  auto encoded = encode_request(decoded->first, decoded->second);
  if (!encoded) std::abort();
  auto again = decode_request(*encoded);
  if (!again) std::abort();
  auto twice = encode_request(again->first, again->second);
  if (!twice || *twice != *encoded) std::abort();
  return 0;
}
