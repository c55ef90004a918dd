// SPDX-License-Identifier: Apache-2.0
#include "rpc/handshake.h"

#include <sys/socket.h>

#include <cstring>

#include "rpc/data.h"
#include "rpc/ucx.h"

namespace distfuse::rpc {

Result<Handshake> Handshake::start(const std::string& address, wire::Hello hello,
                                   std::span<const std::byte> worker_address) {
  auto stream = start_connect(address);
  if (!stream) return stream.error();
  Handshake handshake;
  handshake.stream_ = std::move(*stream);
  hello.address_length = static_cast<std::uint32_t>(worker_address.size());
  hello.address_hash = address_hash(worker_address);
  handshake.hello_ =
      make_frame(wire::Kind::hello, std::as_bytes(std::span(&hello, 1)), worker_address);
  return handshake;
}

Handshake::State Handshake::fail(int code, std::string message) {
  error_ = {code, std::move(message)};
  return State::failed;
}

Handshake::State Handshake::step() {
  if (!sent_) {
    pollfd fd = wants();
    if (poll(&fd, 1, 0) <= 0) return State::pending;
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(stream_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return fail(error, std::strerror(error));
    tune(stream_.get());
    if (!send_frame(stream_.get(), hello_)) return fail(ECONNRESET, "the connection broke");
    sent_ = true;
  }
  switch (reader_.read(stream_.get())) {
    case FrameReader::State::incomplete:
      return State::pending;
    case FrameReader::State::complete:
      return finish();
    case FrameReader::State::broken:
      break;
  }
  if (reader_.saw_bytes()) return fail(EPROTO, "what listens there is no DistFUSE storage server");
  return fail(ECONNRESET, "the connection was closed");
}

Handshake::State Handshake::finish() {
  const wire::FrameHead head = reader_.head();
  const auto body = reader_.body();
  const auto kind = static_cast<wire::Kind>(head.kind);
  if (kind == wire::Kind::refused && body.size() >= sizeof(wire::Refused)) {
    wire::Refused refusal{};
    std::memcpy(&refusal, body.data(), sizeof refusal);
    const auto text = body.subspan(sizeof refusal);
    refused_ = true;
    const bool known = refusal.error == EPROTO || refusal.error == kFenced ||
                       refusal.error == EAGAIN || refusal.error == EHOSTUNREACH;
    return fail(known ? refusal.error : EPROTO, {reinterpret_cast<const char*>(text.data()),
                                                 std::min(text.size(), wire::kMaxReason)});
  }
  if (head.version != wire::kProtocolVersion)
    return fail(EPROTO, "the server speaks protocol " + std::to_string(head.version) +
                            ", this client " + std::to_string(wire::kProtocolVersion) +
                            ": upgrade the older one");
  if (kind == wire::Kind::welcome && body.size() > sizeof welcome_) {
    std::memcpy(&welcome_, body.data(), sizeof welcome_);
    const auto address = body.subspan(sizeof welcome_);
    if (welcome_.address_length == address.size() && welcome_.credits > 0 &&
        welcome_.address_hash == address_hash(address))
      return State::done;
  }
  return fail(EPROTO, "the server's welcome is malformed");
}

}  // namespace distfuse::rpc
