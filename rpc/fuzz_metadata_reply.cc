// SPDX-License-Identifier: Apache-2.0
// Whatever decodes must encode (or be too large to), and decode to the same bytes again.
#include <cerrno>
#include <cstdlib>

#include "rpc/metadata_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace distfuse::rpc;
  auto decoded = decode_reply({reinterpret_cast<const std::byte*>(data), size});
  if (!decoded) return 0;
  auto encoded = encode_reply(*decoded);
  if (!encoded) {
    if (encoded.error().code != E2BIG) std::abort();
    return 0;
  }
  auto again = decode_reply(*encoded);
  if (!again) std::abort();
  auto twice = encode_reply(*again);
  if (!twice || *twice != *encoded) std::abort();
  return 0;
}
