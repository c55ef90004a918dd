// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_chain.h"

#include <cstring>

namespace distfuse::fabric::ucx {

Status serve_chain(std::span<std::byte> region, const ChainRequest& request,
                   std::vector<std::byte>& reply) {
  auto chain = request.operations;
  const std::span used(chain.data(), request.count);
  const std::size_t size = result_size(used);
  auto* results = begin_results(size, reply);
  // `const` is lost because an Operation's memory serves both ways; a write's is only read.
  auto* data = const_cast<std::byte*>(request.data.data());
  std::byte none{};
  for (auto& op : used) {
    op.local = op.op == Op::write ? data : results;
    if (op.local == nullptr) op.local = &none;  // Of no length.
    if (op.op == Op::write) {
      data += op.length;
    } else {
      results += op.op == Op::read ? op.length : 8;
    }
  }
  DISTFUSE_TRY(check_chain(used, region.size()));
  run_chain(region.data(), used);
  return {};
}

Status store_results(std::span<const Operation> chain, std::span<const std::byte> results) {
  if (results.size() != result_size(chain)) return Error{EPROTO, "malformed results of a chain"};
  for (const auto& op : chain) {
    if (op.op == Op::write) continue;
    const std::size_t length = op.op == Op::read ? op.length : 8;
    if (length > 0) std::memcpy(op.local, results.data(), length);
    results = results.subspan(length);
  }
  return {};
}

}  // namespace distfuse::fabric::ucx
