// SPDX-License-Identifier: Apache-2.0
// Random valid messages, for the codec's property test.
#pragma once

#include <random>

#include "rpc/metadata.h"

namespace distfuse::rpc::test {

RequestContext random_context(std::mt19937_64& random);
/// Every alternative of the variant in turn, by `kind` mod their number.
MetadataRequest random_request(std::mt19937_64& random, std::size_t kind);
MetadataReply random_reply(std::mt19937_64& random);

}  // namespace distfuse::rpc::test
