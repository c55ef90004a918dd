// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "rdma/fabric/chain.h"
#include "rdma/fabric/verbs_worker.h"

namespace distfuse::fabric::verbs {

VerbsConnection::~VerbsConnection() {
  if (has_deadline()) --worker_.waiting_;
  worker_.release(*this);
  worker_.connections_.erase(number_);
}

Status VerbsConnection::post(std::span<const Operation> chain, std::uint64_t cookie) {
  if (state_ != State::established) return Error{ENOTCONN, "not connected"};
  DISTFUSE_TRY(check_chain(chain, remote_.length));
  if (outstanding_ >= kMaxOutstanding) return Error{EAGAIN, "too many chains outstanding"};
  std::array<std::uint32_t, kMaxChain> keys;  // NOLINT(cppcoreguidelines-pro-type-member-init)
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const auto& op = chain[i];
    const bool atomic = op.op == Op::compare_swap || op.op == Op::fetch_add;
    const auto key = worker_.local_key(op.local, atomic ? 8 : op.length);
    if (!key) return Error{EINVAL, "local memory is not of Worker::allocate"};
    keys[i] = *key;
  }
  if (pair_->posted().empty()) moved_.reset();
  if (auto status = pair_->post_chain(chain, keys, remote_, cookie); !status) {
    worker_.fail(*this, status.error());
    return Error{ENOTCONN, status.error().message};
  }
  ++outstanding_;
  return {};
}

Status VerbsConnection::send(std::span<const std::byte> message) {
  const bool ready = state_ == State::established || state_ == State::accepted;
  if (!ready || id_ == nullptr) return Error{ENOTCONN, "not connected"};
  if (message.size() > kMaxMessage) return Error{EMSGSIZE, "message is too long"};
  auto status = pair_->post_message(message);
  if (status || status.error().code == EAGAIN) return status;
  worker_.fail(*this, status.error());
  return Error{ENOTCONN, status.error().message};
}

}  // namespace distfuse::fabric::verbs
