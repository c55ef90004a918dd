// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_stream.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "rdma/fabric/ucx_wire.h"

namespace distfuse::fabric::ucx {

namespace {

// The first is enough for all but large chains; the second for two frames of the largest kind.
constexpr std::size_t kSmallInput = 16 * 1024;
constexpr std::size_t kLargeInput = 2 * (kHeaderSize + kMaxBody);

Error system_error(std::string what) {
  const int code = errno;
  return Error{code, std::move(what) + ": " + std::strerror(code)};
}

struct Addresses {
  addrinfo* list = nullptr;
  Addresses() = default;
  Addresses(Addresses&& other) noexcept : list(std::exchange(other.list, nullptr)) {}
  Addresses(const Addresses&) = delete;
  Addresses& operator=(const Addresses&) = delete;
  ~Addresses() {
    if (list != nullptr) freeaddrinfo(list);
  }
};

Result<Addresses> resolve(std::string_view address, int flags) {
  const auto colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == address.size()) {
    return Error{EINVAL, "address '" + std::string(address) + "' is not HOST:PORT"};
  }
  std::string host(address.substr(0, colon));
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  Addresses found;
  const std::string port(address.substr(colon + 1));
  const int rc = getaddrinfo(host.c_str(), port.c_str(), &hints, &found.list);
  if (rc != 0) {
    return Error{EADDRNOTAVAIL,
                 "address '" + std::string(address) + "' is unknown: " + gai_strerror(rc)};
  }
  return found;
}

Result<Fd> make_socket(const addrinfo& address) {
  Fd fd(::socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return system_error("socket");
  const int one = 1;
  (void)setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

std::string name_of(const sockaddr_storage& address, socklen_t length) {
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  if (getnameinfo(generic, length, host, sizeof(host), port, sizeof(port),
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "unknown";
  }
  if (address.ss_family == AF_INET6) return std::string("[") + host + "]:" + port;
  return std::string(host) + ":" + port;
}

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

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
      return system_error("send");
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
    return system_error("receive");
  }
  in_end_ += static_cast<std::size_t>(n);
  return {};
}

Result<Fd> listen_socket(std::string_view address) {
  auto found = resolve(address, AI_PASSIVE);
  if (!found) return found.error();
  auto fd = make_socket(*found->list);
  if (!fd) return fd.error();
  const int one = 1;
  (void)setsockopt(fd->get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (::bind(fd->get(), found->list->ai_addr, found->list->ai_addrlen) != 0 ||
      ::listen(fd->get(), 1024) != 0) {
    return system_error("cannot listen on " + std::string(address));
  }
  return fd;
}

Result<Fd> connect_socket(std::string_view address) {
  auto found = resolve(address, 0);
  if (!found) return found.error();
  auto fd = make_socket(*found->list);
  if (!fd) return fd.error();
  if (::connect(fd->get(), found->list->ai_addr, found->list->ai_addrlen) != 0 &&
      errno != EINPROGRESS) {
    return system_error("cannot connect to " + std::string(address));
  }
  return fd;
}

Result<Fd> accept_socket(int listener) {
  Fd fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd.valid()) return system_error("accept");
  const int one = 1;
  (void)setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

std::string local_name(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "unknown";
  return name_of(address, length);
}

std::string peer_name(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "unknown";
  return name_of(address, length);
}

}  // namespace distfuse::fabric::ucx
