// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "rdma/fabric/address.h"
#include "rdma/fabric/ucx_wire.h"

namespace distfuse::fabric::ucx {

namespace {

// The first is enough for all but large chains; the second for two frames of the largest kind.
constexpr std::size_t kSmallInput = 16384;
constexpr std::size_t kLargeInput = 2 * (kHeaderSize + kMaxBody);

Result<Descriptor> make_socket(const SocketAddress& address) {
  Descriptor fd(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return system_failure("socket");
  const int one = 1;
  (void)setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

}  // namespace

Status Stream::send(std::span<const std::byte> frame) {
  if (queued() + frame.size() > kMaxQueued) return Error{EAGAIN, "send queue is full"};
  return send_always(frame);
}

Status Stream::send_always(std::span<const std::byte> frame) {
  out_.insert(out_.end(), frame.begin(), frame.end());
  return flush();
}

Status Stream::flush() {
  while (out_start_ < out_.size()) {
    const ssize_t n = ::send(fd_.get(), out_.data() + out_start_, out_.size() - out_start_,
                             MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) break;
      if (errno == EPIPE) errno = ECONNRESET;  // The peer's end was seen before.
      return system_failure("send");
    }
    out_start_ += static_cast<std::size_t>(n);
  }
  // Keeps the queue's memory within twice its bound, and moves each byte at most once on average.
  if (out_start_ == out_.size() || out_start_ >= kMaxQueued) {
    out_.erase(out_.begin(), out_.begin() + static_cast<std::ptrdiff_t>(out_start_));
    out_start_ = 0;
  }
  return {};
}

std::span<const std::byte> Stream::input() const {
  return {in_.data() + in_start_, in_end_ - in_start_};
}

Status Stream::receive() {
  if (in_.empty()) in_.resize(kSmallInput);
  if (in_start_ > 0) {
    std::memmove(in_.data(), in_.data() + in_start_, in_end_ - in_start_);
    in_end_ -= in_start_;
    in_start_ = 0;
  }
  if (in_end_ == in_.size()) {
    if (in_.size() >= kLargeInput) return {};
    in_.resize(kLargeInput);
  }
  ssize_t n = 0;
  do {
    n = ::recv(fd_.get(), in_.data() + in_end_, in_.size() - in_end_, MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  if (n == 0) return Error{ECONNRESET, "the peer closed the connection"};
  if (n < 0) {
    if (errno == EAGAIN) return {};
    return system_failure("receive");
  }
  in_end_ += static_cast<std::size_t>(n);
  return {};
}

Result<Descriptor> listen_socket(std::string_view address) {
  auto found = resolve(address, true);
  if (!found) return found.error();
  auto fd = make_socket(*found);
  if (!fd) return fd.error();
  const int one = 1;
  (void)setsockopt(fd->get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (::bind(fd->get(), found->get(), found->length) != 0 || ::listen(fd->get(), 1024) != 0) {
    return system_failure("cannot listen on " + std::string(address));
  }
  return fd;
}

Result<Descriptor> connect_socket(std::string_view address) {
  auto found = resolve(address, false);
  if (!found) return found.error();
  auto fd = make_socket(*found);
  if (!fd) return fd.error();
  if (::connect(fd->get(), found->get(), found->length) != 0 && errno != EINPROGRESS) {
    return system_failure("cannot connect to " + std::string(address));
  }
  return fd;
}

Result<Descriptor> accept_socket(int listener) {
  Descriptor fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd) return system_failure("accept");
  const int one = 1;
  (void)setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

std::string local_name(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "unknown";
  return to_string(reinterpret_cast<const sockaddr*>(&address), length);
}

std::string peer_name(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "unknown";
  return to_string(reinterpret_cast<const sockaddr*>(&address), length);
}

}  // namespace distfuse::fabric::ucx
