// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "rdma/fabric/ucx_chain.h"
#include "rdma/fabric/ucx_worker.h"

namespace distfuse::fabric::ucx {

UcxConnection::~UcxConnection() {
  if (has_deadline()) --worker_.waiting_;
  worker_.forget(*this);
  worker_.connections_.erase(id_);
}

Status UcxConnection::post(std::span<const Operation> chain, std::uint64_t cookie) {
  if (state_ != State::established) return Error{ENOTCONN, "not connected"};
  DISTFUSE_TRY(check_chain(chain, region_length_));
  if (outstanding_ >= kMaxOutstanding) return Error{EAGAIN, "too many chains outstanding"};
  if (stream_ && mapping_ == nullptr) return ask(chain, cookie);
  if (mapping_ != nullptr && !mapping_->open()) {
    worker_.fail(*this, Error{ECONNRESET, "the peer ended the connection"});
    return Error{ENOTCONN, "the peer ended the connection"};
  }
  run_chain(mapping_ != nullptr ? mapping_->base() : own_->bytes().data(), chain);
  ++outstanding_;
  worker_.connections_.completed(id_, cookie);
  return {};
}

Status UcxConnection::ask(std::span<const Operation> chain, std::uint64_t cookie) {
  std::vector<std::byte> frame;
  encode_request(chain, frame);
  DISTFUSE_TRY(transmit(frame));
  auto& asked = asked_.emplace_back();
  std::copy(chain.begin(), chain.end(), asked.operations.begin());
  asked.count = chain.size();
  asked.cookie = cookie;
  ++outstanding_;
  return {};
}

Status UcxConnection::send(std::span<const std::byte> message) {
  if (state_ != State::established || !stream_) return Error{ENOTCONN, "not connected"};
  if (message.size() > kMaxMessage) return Error{EMSGSIZE, "message is too long"};
  std::vector<std::byte> frame;
  frame.reserve(kHeaderSize + message.size());
  encode(Message{message}, frame);
  return transmit(frame);
}

Status UcxConnection::transmit(std::span<const std::byte> frame) {
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
