// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_worker.h"

namespace distfuse::fabric::ucx {

UcxConnection::~UcxConnection() {
  if (state_ == State::connecting || state_ == State::greeting) --worker_.waiting_;
  worker_.forget(*this);
  worker_.connections_.erase(id_);
}

Status UcxConnection::check(std::span<const Operation> chain) const {
  if (chain.empty() || chain.size() > kMaxChain) return Error{EINVAL, "chain length"};
  for (const auto& op : chain) {
    const bool atomic = op.op == Op::compare_swap || op.op == Op::fetch_add;
    const std::uint64_t length = atomic ? 8 : op.length;
    if (op.local == nullptr || (atomic && op.offset % 8 != 0)) {
      return Error{EINVAL, "operation's memory"};
    }
    if (op.offset > region_length_ || length > region_length_ - op.offset) {
      return Error{EINVAL, "operation beyond the remote region"};
    }
  }
  return {};
}

Status UcxConnection::post(std::span<const Operation> chain, std::uint64_t cookie) {
  if (state_ != State::established) return Error{ENOTCONN, "not connected"};
  DISTFUSE_TRY(check(chain));
  if (outstanding_ >= kMaxOutstanding) return Error{EAGAIN, "too many chains outstanding"};
  if (endpoint_ != nullptr && !endpoint_->direct()) {
    ++outstanding_;
    posted_.push_back(cookie);
    endpoint_->post(chain, cookie);
    return {};
  }
  if (endpoint_ == nullptr) {
    run_chain(own_->bytes().data(), chain);
  } else if (!endpoint_->run(chain)) {
    worker_.fail(*this, Error{ECONNRESET, "the peer ended the connection"});
    return Error{ENOTCONN, "the peer ended the connection"};
  }
  ++outstanding_;
  worker_.events_.push_back({UcxWorker::Event::Kind::completed, id_, cookie});
  return {};
}

Status UcxConnection::send(std::span<const std::byte> message) {
  if (state_ != State::established || !stream_) return Error{ENOTCONN, "not connected"};
  if (message.size() > kMaxMessage) return Error{EMSGSIZE, "message is too long"};
  std::vector<std::byte> frame;
  frame.reserve(kHeaderSize + message.size());
  encode(Message{message}, frame);
  const bool waited = stream_->wants_to_write();
  auto status = stream_->send(frame);
  if (!status && status.error().code != EAGAIN) {
    worker_.fail(*this, status.error());
    return Error{ENOTCONN, "not connected"};
  }
  if (stream_->wants_to_write() != waited) worker_.update_watch(id_, *stream_);
  return status;
}

}  // namespace distfuse::fabric::ucx
