// SPDX-License-Identifier: Apache-2.0
// vm-switch CONTROL PORT...: the network between guests. Every argument is an inherited descriptor: CONTROL a stream, each
// PORT one end of a pair of datagram sockets whose other end is a guest's NIC (QEMU's -netdev dgram), a datagram an Ethernet frame.
//
// One thread. A frame goes to the port where its destination address was last seen as a source, or to all others; never
// out of the machine, for there is no port that leads there. Frames of one pair of ports stay in order.
//
// Bounds: a port's queue holds at most kQueueBytes, and a frame that would go beyond is dropped and counted, as a switch does:
// 40 MB/s (what two guests reach) × 200 ms (the longest sensible delay) = 8 MB. A guest that does not take its frames so costs only
// itself. While a frame cannot be dropped for being late, UDP's own loss recovery (rxe: retry) sees what a network would do.
// The address table holds kMaxAddresses; when full it is forgotten and learnt anew.
//
// CONTROL: lines in, one line out for each.
//   cut N on|off        nothing passes to or from port N (from 1)
//   delay N MS          each frame to or from port N takes MS milliseconds longer (0 to 10000)
//   drop N PERCENT      each frame to or from port N is lost with that chance
//   seed VALUE          of the losses
//   stats               per port: frames in, out, dropped
// The end of CONTROL ends the program.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace distfuse::vm {
namespace {

using Clock = std::chrono::steady_clock;
using Address = std::array<unsigned char, 6>;

constexpr std::size_t kQueueBytes = 8 << 20;
constexpr std::size_t kMaxFrame = 68 << 10;  // QEMU's own limit
constexpr std::size_t kBatch = 32;
constexpr std::size_t kMaxAddresses = 4096;
constexpr std::size_t kMaxLine = 4096;

struct Waiting {
  Clock::time_point due;
  std::string frame;
};

struct Port {
  int fd = -1;
  bool cut = false;
  std::chrono::milliseconds delay{0};
  double drop = 0;  ///< 0 to 1
  std::deque<Waiting> queue;
  std::size_t queued_bytes = 0;
  std::uint64_t in = 0;
  std::uint64_t out = 0;
  std::uint64_t dropped = 0;
};

class Switch {
 public:
  Switch(int control, const std::vector<int>& ports);
  /// Until the control stream ends.
  void run();

 private:
  void receive(std::size_t from);
  void forward(std::size_t from, std::string_view frame);
  void enqueue(std::size_t from, std::size_t to, std::string_view frame);
  bool lost(const Port& port);
  static void close_port(Port& port);
  static void send(Port& port, Clock::time_point now);
  bool read_control();
  std::string command(const std::string& line);
  std::string set_fault(const std::string& what, Port& port, const std::string& value);
  [[nodiscard]] std::string stats() const;

  int control_;
  std::string line_;
  std::vector<Port> ports_;
  std::map<Address, std::size_t> addresses_;
  std::mt19937_64 random_{1};
  std::vector<std::array<char, kMaxFrame>> buffers_{kBatch};
};

Switch::Switch(int control, const std::vector<int>& ports) : control_(control) {
  for (const int fd : ports) {
    ports_.emplace_back().fd = fd;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  }
}

void Switch::run() {
  std::vector<pollfd> fds(ports_.size() + 1);
  for (;;) {
    auto now = Clock::now();
    auto next = now + std::chrono::hours(1);
    fds[0] = {control_, POLLIN, 0};
    for (std::size_t i = 0; i < ports_.size(); ++i) {
      const Port& port = ports_[i];
      const bool due = !port.queue.empty() && port.queue.front().due <= now;
      if (!port.queue.empty() && !due) next = std::min(next, port.queue.front().due);
      fds[i + 1] = {port.fd, static_cast<short>(POLLIN | (due ? POLLOUT : 0)), 0};
    }
    const auto wait = std::chrono::duration_cast<std::chrono::nanoseconds>(next - now).count();
    const timespec timeout{wait / 1000000000, wait % 1000000000};
    ppoll(fds.data(), fds.size(), &timeout, nullptr);
    if (fds[0].revents != 0 && !read_control()) return;
    for (std::size_t i = 0; i < ports_.size(); ++i) {
      if ((fds[i + 1].revents & POLLIN) != 0) receive(i);
      if ((fds[i + 1].revents & (POLLHUP | POLLERR)) != 0) close_port(ports_[i]);
    }
    now = Clock::now();
    for (Port& port : ports_) send(port, now);
  }
}

void Switch::receive(std::size_t from) {
  std::array<mmsghdr, kBatch> messages{};
  std::array<iovec, kBatch> vectors{};
  for (std::size_t i = 0; i < kBatch; ++i) {
    vectors[i] = {buffers_[i].data(), kMaxFrame};
    messages[i].msg_hdr.msg_iov = &vectors[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  const int n = recvmmsg(ports_[from].fd, messages.data(), kBatch, MSG_DONTWAIT, nullptr);
  for (int i = 0; i < n; ++i) {
    const auto at = static_cast<std::size_t>(i);
    forward(from, {buffers_[at].data(), messages[at].msg_len});
  }
}

void Switch::forward(std::size_t from, std::string_view frame) {
  constexpr std::size_t kAddresses = 12;
  ++ports_[from].in;
  if (frame.size() < kAddresses || ports_[from].cut || lost(ports_[from])) {
    ++ports_[from].dropped;
    return;
  }
  Address destination;
  Address source;
  std::memcpy(destination.data(), frame.data(), 6);
  std::memcpy(source.data(), frame.data() + 6, 6);
  if (addresses_.size() >= kMaxAddresses) addresses_.clear();
  addresses_[source] = from;
  const auto known = addresses_.find(destination);
  for (std::size_t to = 0; to < ports_.size(); ++to) {
    if (to != from && (known == addresses_.end() || known->second == to)) enqueue(from, to, frame);
  }
}

void Switch::enqueue(std::size_t from, std::size_t to, std::string_view frame) {
  Port& port = ports_[to];
  if (port.fd < 0 || port.cut || lost(port) || port.queued_bytes + frame.size() > kQueueBytes) {
    ++port.dropped;
    return;
  }
  auto due = Clock::now() + ports_[from].delay + port.delay;
  if (!port.queue.empty()) due = std::max(due, port.queue.back().due);  // in order
  port.queued_bytes += frame.size();
  port.queue.push_back({due, std::string(frame)});
}

bool Switch::lost(const Port& port) {
  return port.drop > 0 && std::uniform_real_distribution<double>(0, 1)(random_) < port.drop;
}

/// A pair's other end that is closed shows as an error of a send, or as nothing at all while there is nothing to send.
void Switch::close_port(Port& port) {
  if (port.fd >= 0) close(port.fd);
  port.fd = -1;
  port.dropped += port.queue.size();
  port.queue.clear();
  port.queued_bytes = 0;
}

void Switch::send(Port& port, Clock::time_point now) {
  while (port.fd >= 0 && !port.queue.empty() && port.queue.front().due <= now) {
    std::array<mmsghdr, kBatch> messages{};
    std::array<iovec, kBatch> vectors{};
    unsigned count = 0;
    for (auto it = port.queue.begin(); it != port.queue.end() && count < kBatch && it->due <= now;
         ++it, ++count) {
      vectors[count] = {it->frame.data(), it->frame.size()};
      messages[count].msg_hdr.msg_iov = &vectors[count];
      messages[count].msg_hdr.msg_iovlen = 1;
    }
    const int n = sendmmsg(port.fd, messages.data(), count, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == ENOBUFS)) return;  // full: POLLOUT comes
    if (n < 0) return close_port(port);                          // its guest is gone
    port.out += static_cast<std::uint64_t>(n);
    for (int i = 0; i < n; ++i) {
      port.queued_bytes -= port.queue.front().frame.size();
      port.queue.pop_front();
    }
  }
}

bool Switch::read_control() {
  char buffer[1024];
  const ssize_t n = read(control_, buffer, sizeof(buffer));
  if (n <= 0) return n < 0 && errno == EINTR;
  line_.append(buffer, static_cast<std::size_t>(n));
  for (std::size_t end = 0; (end = line_.find('\n')) != std::string::npos;) {
    const std::string answer = command(line_.substr(0, end)) + "\n";
    line_.erase(0, end + 1);
    if (write(control_, answer.data(), answer.size()) < 0) return false;
  }
  return line_.size() < kMaxLine;
}

std::string Switch::command(const std::string& line) {
  std::istringstream words(line);
  std::string what;
  std::string value;
  std::size_t number = 0;
  words >> what;
  if (what == "stats") return stats();
  if (what == "seed") {
    std::uint64_t seed = 0;
    words >> seed;
    random_.seed(seed);
    return "ok";
  }
  if (!(words >> number >> value) || number < 1 || number > ports_.size())
    return "error: expected: cut N on|off, delay N MS, drop N PERCENT, with N from 1 to " +
           std::to_string(ports_.size());
  return set_fault(what, ports_[number - 1], value);
}

std::string Switch::set_fault(const std::string& what, Port& port, const std::string& value) {
  if (what == "cut" && (value == "on" || value == "off")) {
    port.cut = value == "on";
    if (port.cut) {  // what is under way is lost as well
      port.dropped += port.queue.size();
      port.queue.clear();
      port.queued_bytes = 0;
    }
    return "ok";
  }
  double number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  const bool valid = error == std::errc() && end == value.data() + value.size() && number >= 0;
  if (what == "delay" && valid && number <= 10000) {
    port.delay = std::chrono::milliseconds(static_cast<int>(number));
    return "ok";
  }
  if (what == "drop" && valid && number <= 100) {
    port.drop = number / 100;
    return "ok";
  }
  return "error: expected: cut N on|off, delay N 0..10000 (ms), drop N 0..100 (percent)";
}

std::string Switch::stats() const {
  std::ostringstream out;
  for (const Port& port : ports_) {
    if (&port != &ports_.front()) out << "; ";
    out << "in " << port.in << " out " << port.out << " dropped " << port.dropped;
  }
  return out.str();
}

}  // namespace
}  // namespace distfuse::vm

int main(int argc, char** argv) {
  std::vector<int> fds;
  for (int i = 1; i < argc; ++i) {
    int fd = -1;
    const std::string_view text = argv[i];
    if (std::from_chars(text.data(), text.data() + text.size(), fd).ec != std::errc() || fd < 0)
      break;
    fds.push_back(fd);
  }
  if (fds.size() < 2 || fds.size() + 1 != static_cast<std::size_t>(argc)) {
    fprintf(stderr, "usage: vm-switch CONTROL PORT...   (descriptors)\n");
    return 2;
  }
  distfuse::vm::Switch(fds[0], {fds.begin() + 1, fds.end()}).run();
}
