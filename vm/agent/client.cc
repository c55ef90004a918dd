// SPDX-License-Identifier: Apache-2.0
#include "vm/agent/client.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string_view>

#include "common/descriptor.h"
#include "vm/agent/frame.h"
#include "vm/agent/tcp.h"

namespace distfuse::vm {
namespace {

constexpr std::uint32_t kChannel = 1;

Descriptor connect_to(const std::string& host, const std::string& port) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    fprintf(stderr, "vm-agent: %s: %s\n", host.c_str(), gai_strerror(error));
    return {};
  }
  Descriptor fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  watch_peer(fd.get());
  if (connect(fd.get(), found->ai_addr, found->ai_addrlen) != 0) {
    fprintf(stderr, "vm-agent: %s: %s\n", host.c_str(), strerror(errno));
    fd.reset();
  }
  freeaddrinfo(found);
  return fd;
}

bool write_all(int fd, const std::string& data) {
  for (std::size_t done = 0; done < data.size();) {
    const ssize_t n = write(fd, data.data() + done, data.size() - done);
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

/// Appends what the peer sent; false: it has ended.
bool read_more(int fd, std::string& received) {
  char buffer[65536];
  const ssize_t n = read(fd, buffer, sizeof(buffer));
  if (n > 0) received.append(buffer, static_cast<std::size_t>(n));
  return n > 0;
}

/// What holds on every guest: all have one root. Not which guest it is, nor where this process stands.
std::vector<std::string> environment_for_others() {
  std::vector<std::string> kept;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const bool local = text.starts_with("DISTFUSE_VM_NODE=") || text.starts_with("PWD=") ||
                       text.starts_with("OLDPWD=") || text.starts_with("SHLVL=");
    if (!local) kept.emplace_back(text);
  }
  return kept;
}

bool forward_input(int link, bool& open) {
  std::string data;
  open = read_more(0, data);
  std::string frame;
  encode_frame(frame, kChannel, FrameType::input, data);
  return write_all(link, frame);
}

}  // namespace

int run_on_guest(const std::string& host, const std::string& port, const std::string& command) {
  Descriptor link = connect_to(host, port);
  if (!link) return 255;
  std::string out;
  encode_frame(
      out, kChannel, FrameType::start,
      encode_job({false, true, "/", environment_for_others(), {"/bin/sh", "-c", command}}));
  bool alive = write_all(link.get(), out);
  std::string received;
  bool input_open = true;
  while (alive) {
    pollfd fds[2] = {{link.get(), POLLIN, 0}, {input_open ? 0 : -1, POLLIN, 0}};
    poll(fds, 2, -1);
    if (fds[1].revents != 0) alive = forward_input(link.get(), input_open);
    if (fds[0].revents == 0) continue;
    bool broken = !read_more(link.get(), received);
    while (auto frame = decode_frame(received, broken)) {
      if (frame->type == FrameType::output) (void)write_all(1, frame->payload);
      if (frame->type == FrameType::errors) (void)write_all(2, frame->payload);
      if (frame->type == FrameType::exit && frame->payload.size() == 4)
        return static_cast<int>(decode_u32(frame->payload));
    }
    alive = alive && !broken;
  }
  fprintf(stderr, "vm-agent: %s ended the connection\n", host.c_str());
  return 255;
}

int ask_host(const std::string& local_socket, const std::string& question) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  local_socket.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const Descriptor link(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  std::string out;
  encode_frame(out, 0, FrameType::ask, question);
  if (connect(link.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      !write_all(link.get(), out)) {
    fprintf(stderr, "vm-agent: %s: %s\n", local_socket.c_str(), strerror(errno));
    return 1;
  }
  std::string received;
  bool broken = false;
  while (!broken) {
    broken = !read_more(link.get(), received);
    if (const auto frame = decode_frame(received, broken)) {
      const bool failed = frame->payload.starts_with("error");
      (void)write_all(failed ? 2 : 1, frame->payload + "\n");
      return failed ? 1 : 0;
    }
  }
  fprintf(stderr, "vm-agent: no answer\n");
  return 1;
}

}  // namespace distfuse::vm
