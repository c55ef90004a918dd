// SPDX-License-Identifier: Apache-2.0
#include "common/admin.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <system_error>

namespace distfuse {
namespace {

constexpr std::size_t kMaxCommand = 256;
constexpr int kClientPatienceMs = 2000;

std::string error_text(int code) {
  return std::generic_category().message(code);
}

Result<sockaddr_un> socket_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return Error{ENAMETOOLONG,
                 fmt::format("socket path {} is longer than {} bytes: choose a shorter directory",
                             path, sizeof(address.sun_path) - 1)};
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

int connect_to(const sockaddr_un& address) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
  const int code = errno;
  close(fd);
  return -code;
}

void send_all(int fd, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = send(fd, text.data() + done, text.size() - done, MSG_NOSIGNAL);
    if (n <= 0) return;  // the asker left: its business
    done += static_cast<std::size_t>(n);
  }
}

bool readable(int fd, int timeout_ms) {
  pollfd p{fd, POLLIN, 0};
  return poll(&p, 1, timeout_ms) == 1;
}

}  // namespace

Result<std::unique_ptr<AdminServer>> AdminServer::create(const std::string& path, Answer answer) {
  auto address = socket_address(path);
  if (!address) return address.error();
  if (const int fd = connect_to(*address); fd >= 0) {
    close(fd);
    return Error{EADDRINUSE,
                 fmt::format("admin socket {} is in use by a running daemon: stop it first", path)};
  }
  unlink(path.c_str());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool bound =
      fd >= 0 && fchmod(fd, 0600) == 0 &&
      bind(fd, reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) == 0 &&
      listen(fd, 16) == 0;
  if (!bound) {
    const int code = errno;
    if (fd >= 0) close(fd);
    return Error{code, fmt::format("admin socket {} cannot be made: {}", path, error_text(code))};
  }
  const int stop = eventfd(0, EFD_CLOEXEC);
  return std::unique_ptr<AdminServer>(new AdminServer(path, fd, stop, std::move(answer)));
}

AdminServer::AdminServer(std::string path, int socket, int stop, Answer answer)
    : path_(std::move(path)),
      socket_(socket),
      stop_(stop),
      answer_(std::move(answer)),
      thread_([this] { serve(); }) {}

AdminServer::~AdminServer() {
  eventfd_write(stop_, 1);
  thread_.join();
  close(socket_);
  close(stop_);
  unlink(path_.c_str());
}

void AdminServer::serve() {
  for (;;) {
    pollfd p[2] = {{socket_, POLLIN, 0}, {stop_, POLLIN, 0}};
    if (poll(p, 2, -1) < 0) continue;
    if (p[1].revents != 0) return;
    const int connection = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) continue;
    serve_one(connection);
    close(connection);
  }
}

void AdminServer::serve_one(int connection) {
  std::string command;
  while (command.find('\n') == std::string::npos) {
    char buffer[kMaxCommand];
    if (command.size() > kMaxCommand || !readable(connection, kClientPatienceMs)) return;
    const ssize_t n = recv(connection, buffer, sizeof(buffer), 0);
    if (n <= 0) return;
    command.append(buffer, static_cast<std::size_t>(n));
  }
  command.resize(command.find('\n'));
  send_all(connection, answer_(command) + "\n");
}

Result<std::string> admin_query(const std::string& path, const std::string& command,
                                std::chrono::milliseconds timeout) {
  auto address = socket_address(path);
  if (!address) return address.error();
  const int fd = connect_to(*address);
  if (fd < 0) return Error{-fd, fmt::format("no daemon answers at {}: {}", path, error_text(-fd))};
  send_all(fd, command + "\n");
  std::string answer;
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    char buffer[65536];
    if (left.count() <= 0 || !readable(fd, static_cast<int>(left.count()))) {
      close(fd);
      return Error{ETIMEDOUT, fmt::format("the daemon at {} did not answer within {} ms", path,
                                          timeout.count())};
    }
    const ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
    if (n <= 0) break;
    answer.append(buffer, static_cast<std::size_t>(n));
  }
  close(fd);
  return answer;
}

}  // namespace distfuse
