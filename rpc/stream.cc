// SPDX-License-Identifier: Apache-2.0
#include "rpc/stream.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <memory>

namespace distfuse::rpc {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Result<AddressList> resolve(std::string_view address, int flags) {
  auto parts = split_address(address);
  if (!parts) return parts.error();
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  if (const int rc = getaddrinfo(parts->first.c_str(), parts->second.c_str(), &hints, &list))
    return Error{EINVAL, "address " + std::string(address) + ": " + gai_strerror(rc)};
  return AddressList(list, &freeaddrinfo);
}

std::string format(const sockaddr_storage& storage, socklen_t length) {
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&storage), length, host, sizeof host, port,
                  sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "?";
  const bool v6 = std::strchr(host, ':') != nullptr;
  return (v6 ? "[" : "") + std::string(host) + (v6 ? "]:" : ":") + port;
}

Error address_error(std::string_view address, int code) {
  std::string hint;
  if (code == EADDRINUSE) hint = "; another process listens there: stop it or name another port";
  if (code == EADDRNOTAVAIL) hint = "; this machine does not have that address";
  return Error{code, "address " + std::string(address) + ": " + std::strerror(code) + hint};
}

}  // namespace

Result<std::pair<std::string, std::string>> split_address(std::string_view address) {
  const std::size_t colon = address.rfind(':');
  const Error bad{EINVAL, "address '" + std::string(address) + "' is not host:port"};
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == address.size()) return bad;
  std::string_view host = address.substr(0, colon);
  const std::string_view port = address.substr(colon + 1);
  if (port.size() > 5 || port.find_first_not_of("0123456789") != std::string_view::npos ||
      std::stoul(std::string(port)) > 65535)
    return bad;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  return std::pair(std::string(host), std::string(port));
}

Result<Descriptor> listen_on(std::string_view address) {
  auto list = resolve(address, AI_PASSIVE);
  if (!list) return list.error();
  const addrinfo& a = *list.value();
  Descriptor socket(::socket(a.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return address_error(address, errno);
  const int one = 1;
  setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(socket.get(), a.ai_addr, a.ai_addrlen) != 0 || listen(socket.get(), 1024) != 0)
    return address_error(address, errno);
  return socket;
}

std::string local_address(int socket) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&storage), &length) != 0) return "?";
  return format(storage, length);
}

std::string peer_address(int socket) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&storage), &length) != 0) return "?";
  return format(storage, length);
}

Result<Descriptor> start_connect(std::string_view address) {
  auto list = resolve(address, 0);
  if (!list) return list.error();
  const addrinfo& a = *list.value();
  Descriptor socket(::socket(a.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return address_error(address, errno);
  if (connect(socket.get(), a.ai_addr, a.ai_addrlen) != 0 && errno != EINPROGRESS)
    return address_error(address, errno);
  return socket;
}

void tune(int socket) {
  const auto set = [socket](int level, int option, int value) {
    setsockopt(socket, level, option, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

FrameReader::State FrameReader::read(int socket) {
  for (;;) {
    std::size_t wanted = sizeof(wire::FrameHead);
    if (bytes_.size() >= wanted) {
      if (head().magic != wire::kMagic) return State::broken;
      wanted += head().length;
      if (wanted > wire::kMaxFrame) return State::broken;
      if (bytes_.size() == wanted) return State::complete;
    }
    const std::size_t have = bytes_.size();
    bytes_.resize(wanted);
    const ssize_t n = recv(socket, bytes_.data() + have, wanted - have, MSG_DONTWAIT);
    bytes_.resize(have + static_cast<std::size_t>(n > 0 ? n : 0));
    if (n > 0) continue;
    if (n < 0 && errno == EINTR) continue;
    return n < 0 && errno == EAGAIN ? State::incomplete : State::broken;
  }
}

wire::FrameHead FrameReader::head() const {
  wire::FrameHead head{};
  std::memcpy(&head, bytes_.data(), sizeof head);
  return head;
}

std::span<const std::byte> FrameReader::body() const {
  return std::span(bytes_).subspan(sizeof(wire::FrameHead));
}

std::vector<std::byte> make_frame(wire::Kind kind, std::span<const std::byte> fixed,
                                  std::span<const std::byte> tail) {
  const wire::FrameHead head{wire::kMagic, wire::kProtocolVersion, static_cast<std::uint16_t>(kind),
                             static_cast<std::uint16_t>(fixed.size() + tail.size())};
  const auto bytes = std::as_bytes(std::span(&head, 1));
  std::vector<std::byte> frame(bytes.begin(), bytes.end());
  frame.insert(frame.end(), fixed.begin(), fixed.end());
  frame.insert(frame.end(), tail.begin(), tail.end());
  return frame;
}

bool send_frame(int socket, std::span<const std::byte> frame) {
  return send(socket, frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL) ==
         static_cast<ssize_t>(frame.size());
}

bool has_ended(int socket) {
  char byte = 0;
  const ssize_t n = recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

std::uint64_t draw_token() {
  std::uint64_t token = 0;
  while (token == 0)
    if (getrandom(&token, sizeof token, 0) != sizeof token) token = 0;
  return token;
}

}  // namespace distfuse::rpc
