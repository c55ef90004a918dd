// SPDX-License-Identifier: Apache-2.0
// The client's side of connecting: a TCP stream, Hello out, Welcome or Refused in. Never blocks.
#pragma once

#include <poll.h>

#include "rpc/stream.h"

namespace distfuse::rpc {

class Handshake {
 public:
  enum class State { pending, done, failed };

  /// `hello`: all but the address fields.
  static Result<Handshake> start(const std::string& address, wire::Hello hello,
                                 std::span<const std::byte> worker_address);
  State step();
  /// What step() waits for.
  [[nodiscard]] pollfd wants() const {
    return {stream_.get(), static_cast<short>(sent_ ? POLLIN : POLLOUT), 0};
  }

  [[nodiscard]] const Error& error() const { return error_; }  ///< After failed.
  [[nodiscard]] bool refused() const { return refused_; }      ///< error() is the server's word.
  [[nodiscard]] const wire::Welcome& welcome() const { return welcome_; }  ///< After done.
  [[nodiscard]] std::span<const std::byte> server_address() const {
    return reader_.body().subspan(sizeof(wire::Welcome));
  }
  Descriptor take_stream() { return std::move(stream_); }

 private:
  State fail(int code, std::string message);
  State finish();

  Descriptor stream_;
  std::vector<std::byte> hello_;
  FrameReader reader_;
  bool sent_ = false;
  bool refused_ = false;
  wire::Welcome welcome_{};
  Error error_;
};

}  // namespace distfuse::rpc
