// SPDX-License-Identifier: Apache-2.0
// A non-blocking TCP connection that carries frames: whole ones out of what arrives, and a bounded queue of what the kernel
// does not take yet. No thread, no clock, no event loop of its own: the worker says when to read and write.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/descriptor.h"
#include "common/result.h"
#include "rdma/fabric/system_failure.h"

namespace distfuse::fabric::ucx {

class Stream {
 public:
  /// Queued and not yet taken by the kernel: 64 messages of kMaxMessage with their headers.
  static constexpr std::size_t kMaxQueued = std::size_t{64} * (4096 + 8);

  explicit Stream(Descriptor fd) : fd_(std::move(fd)) {}

  [[nodiscard]] int fd() const { return fd_.get(); }
  /// EAGAIN: the queue is full, nothing was taken. Else taken whole; ECONNRESET and the like: the peer is gone.
  [[nodiscard]] Status send(std::span<const std::byte> frame);
  /// Without the bound: for answers, where the sender stops reading when queued() is past it.
  [[nodiscard]] Status send_always(std::span<const std::byte> frame);
  [[nodiscard]] std::size_t queued() const { return out_.size() - out_start_; }
  [[nodiscard]] Status flush();
  [[nodiscard]] bool wants_to_write() const { return !out_.empty(); }
  /// Reads what is there, up to a bound. ECONNRESET: the end.
  [[nodiscard]] Status receive();
  [[nodiscard]] std::span<const std::byte> input() const;
  void consume(std::size_t length) { in_start_ += length; }

 private:
  Descriptor fd_;
  std::vector<std::byte> in_;
  std::size_t in_start_ = 0;
  std::size_t in_end_ = 0;
  std::vector<std::byte> out_;
  std::size_t out_start_ = 0;
};

/// "127.0.0.1:7000", "host:7000", "[::1]:7000". Sockets are non-blocking, close-on-exec, and without Nagle's delay.
[[nodiscard]] Result<Descriptor> listen_socket(std::string_view address);
[[nodiscard]] Result<Descriptor> connect_socket(std::string_view address);
[[nodiscard]] Result<Descriptor> accept_socket(int listener);  ///< EAGAIN: none waits.
[[nodiscard]] std::string local_name(int fd);
[[nodiscard]] std::string peer_name(int fd);

}  // namespace distfuse::fabric::ucx
