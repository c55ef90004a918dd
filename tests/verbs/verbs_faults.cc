// SPDX-License-Identifier: Apache-2.0
// verbs_faults local: what breaks a connection over a real device, and what comes of it: a stated error within a stated time, every
// posted chain completed, nothing left behind (`rdma resource` is the caller's to look at).
// verbs_faults serve: a region for other guests; prints its address, runs until its standard input ends.
// verbs_faults reach ADDRESS: all sizes of chains and messages to it and back, such as between path MTUs that differ.
// verbs_faults die: as serve, and dies as soon as chains have begun to arrive; prints how many had begun.
// verbs_faults cut ADDRESS FILE: chains to that peer, which dies in the middle of one; FILE is what it prints.
// verbs_faults hold ADDRESS SECONDS: chains until something ends the connection; prints what and when.
// verbs_faults device NETDEV: link down and up; the device goes away and comes back. Needs root; the device must be nobody else's.
#include <signal.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <vector>

#include "rdma/fabric/fabric.h"
#include "tests/verbs/bare.h"
#include "tests/verbs/rig.h"

namespace distfuse::verbs_tests {
namespace {

using namespace std::chrono_literals;
using namespace fabric;
using Clock = std::chrono::steady_clock;
using lockd::testing::Process;
using lockd::testing::Talk;

constexpr std::size_t kRegion = 1 << 20;

template <typename T>
T must(Result<T> result) {
  if (result) return std::move(*result);
  std::fprintf(stderr, "%s\n", result.error().message.c_str());
  std::exit(1);
}

/// Accepts everybody and echoes messages; or the one that connects.
class End : public Handler {
 public:
  explicit End(Fabric& fabric) : worker(must(fabric.create_worker(*this))) {}
  void on_connect_request(std::unique_ptr<ConnectRequest> request) override {
    auto one = worker->accept(std::move(request), {}, region.get());
    if (one) accepted.push_back(std::move(*one));
  }
  void on_connected(Connection&, std::span<const std::byte>) override { connected = true; }
  void on_message(Connection& from, std::span<const std::byte> message) override {
    if (region != nullptr) (void)from.send(message);
    received.assign(message.begin(), message.end());
    ++messages;
  }
  void on_completion(Connection&, std::uint64_t, const Status& status) override {
    ++(status ? done : failed);
  }
  void on_disconnect(Connection& from, const Error& why) override {
    ended = why;
    std::erase_if(accepted, [&](const auto& one) { return one.get() == &from; });
  }
  bool drive(const std::function<bool()>& until, std::chrono::milliseconds limit) {
    const auto deadline = Clock::now() + limit;
    while (!until()) {
      if (Clock::now() > deadline) return false;
      if (!worker->progress()) worker->wait(10ms);
    }
    return true;
  }
  bool connect(const std::string& address) {
    connection = must(worker->connect(address, {}, 5s));
    return drive([&] { return connected || ended.code != 0; }, 10s) && connected;
  }

  std::unique_ptr<Region> region;
  std::unique_ptr<Worker> worker;
  std::vector<std::unique_ptr<Connection>> accepted;
  std::unique_ptr<Connection> connection;
  std::vector<std::byte> received;
  bool connected = false;
  int messages = 0, done = 0, failed = 0;
  Error ended{0, {}};
};

std::unique_ptr<Fabric> open_fabric() {
  return must(fabric::open({"verbs", place().device}));
}

/// A server in a process of its own, with the fabric.
Process server() {
  return Process::fork_child([](Talk& talk) {
    const auto fabric = open_fabric();
    End end(*fabric);
    end.region = must(fabric->create_region(kRegion));
    talk.say(must(end.worker->listen(place().host + ":0")));
    while (true) {
      if (!end.worker->progress()) end.worker->wait(-1ms);
    }
    return 0;
  });
}

Process bare_server(const Manners& manners) {
  return Process::fork_child([manners](Talk& talk) -> int {
    static auto* out = &talk;
    serve_bare(manners, [](const std::string& port) { out->say(place().host + ":" + port); });
  });
}

/// 64 chains, each FAA and a large READ.
int post_many(End& end, std::span<std::byte> local) {
  int posted = 0;
  for (std::size_t i = 0; i < kMaxOutstanding; ++i) {
    const Operation chain[] = {{Op::fetch_add, 0, local.data(), 0, 1, 0},
                               {Op::read, 0, local.data() + 64, 32768, 0, 0}};
    if (end.connection->post(chain, i)) ++posted;
  }
  return posted;
}

std::string text_of(const Error& error) {
  return std::to_string(error.code) + " (" + error.message + ")";
}

void ends_with(End& end, int posted, std::initializer_list<int> codes, Clock::duration most,
               const std::string& what) {
  const auto began = Clock::now();
  const bool ended = end.drive([&] { return end.ended.code != 0; }, 30s);
  const auto took = Clock::now() - began;
  const bool right = std::find(codes.begin(), codes.end(), end.ended.code) != codes.end();
  check(ended && right && took < most && end.done + end.failed == posted,
        what + ": " + text_of(end.ended) + " after " +
            std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(took).count()) +
            " ms; of " + std::to_string(posted) + " chains " + std::to_string(end.done) +
            " done, " + std::to_string(end.failed) + " failed");
}

int local() {
  auto good = server();
  auto wrong_key = bare_server({.wrong_key = true});
  auto no_receives = bare_server({.no_receives = true});
  const auto good_address = good.talk().hear();
  const auto wrong_address = wrong_key.talk().hear();
  const auto deaf_address = no_receives.talk().hear();
  const auto fabric = open_fabric();
  {
    End end(*fabric);
    auto memory = must(end.worker->allocate(65536));
    check(end.connect(wrong_address), "connects");
    const Operation add{Op::fetch_add, 0, memory.data(), 0, 1, 0};
    const int posted = end.connection->post({&add, 1}, 0) ? 1 : 0;
    ends_with(end, posted, {EIO}, 5s, "a key that is refused");
    check(end.connection->post({&add, 1}, 0).error().code == ENOTCONN, "then ENOTCONN");
  }
  {
    End end(*fabric);
    check(end.connect(deaf_address), "connects");
    check(end.connection->send(std::array<std::byte, 8>{}).ok(),
          "sends to a peer without receives");
    ends_with(end, 0, {EIO}, 10s, "receiver not ready");
  }
  {
    End end(*fabric), other(*fabric);
    auto memory = must(end.worker->allocate(65536));
    check(end.connect(good_address) && other.connect(good_address), "connects");
    const int posted = post_many(end, memory);
    (void)end.worker->progress();
    good.kill_hard();
    ends_with(end, posted, {ECONNRESET, EIO}, 10s, "a peer that dies in the middle of chains");
    ends_with(other, 0, {ECONNRESET}, 10s, "a peer that dies, idle connection");
  }
  auto again = server();
  {
    End end(*fabric);
    const auto address = again.talk().hear();
    check(end.connect(address), "connects");
    again.send_signal(SIGSTOP);
    auto memory = must(end.worker->allocate(65536));
    const int posted = post_many(end, memory);
    const bool served = end.drive([&] { return end.done == posted; }, 10s) && posted == 64;
    check(served, "a peer that stands still serves one-sided operations: " +
                      std::to_string(end.done) + " of " + std::to_string(posted) + " chains done");
    again.send_signal(SIGCONT);
  }
  return exit_status();
}

int serve() {
  auto one = server();
  std::printf("%s\n", one.talk().hear().c_str());
  std::fflush(stdout);
  char byte = 0;
  while (::read(0, &byte, 1) > 0) {
  }
  return 0;
}

int reach(const std::string& address) {
  const auto fabric = open_fabric();
  End end(*fabric);
  auto memory = must(end.worker->allocate(kMaxTransfer));
  if (!check(end.connect(address), "connects to " + address)) return exit_status();
  const std::size_t sizes[] = {1, 8, 1023, 1024, 1025, 2048, 4095, 4096, 4097, 8192, 65536};
  for (const auto size : sizes) {
    for (std::size_t i = 0; i < size; ++i) memory[i] = static_cast<std::byte>(i * 31 + size);
    const std::vector<std::byte> sent(memory.begin(), memory.begin() + static_cast<long>(size));
    const auto length = static_cast<std::uint32_t>(size);
    const Operation write{Op::write, 128, memory.data(), length, 0, 0};
    const Operation read{Op::read, 128, memory.data(), length, 0, 0};
    bool same = end.connection->post({&write, 1}, 0).ok();
    const auto before = end.done;
    same = same && end.drive([&] { return end.done > before; }, 10s);
    std::memset(memory.data(), 0, size);
    same = same && end.connection->post({&read, 1}, 0).ok() &&
           end.drive([&] { return end.done > before + 1; }, 10s) &&
           std::memcmp(memory.data(), sent.data(), size) == 0;
    if (size <= kMaxMessage) {
      const auto heard = end.messages;
      same = same && end.connection->send(sent).ok() &&
             end.drive([&] { return end.messages > heard; }, 10s) && end.received == sent;
    }
    check(same, std::to_string(size) + " bytes there and back");
    if (!same) break;
  }
  return exit_status();
}

/// Its answers must be on their way for longer than it looks on, or the caller's next requests come before it dies: kLook.
constexpr auto kLook = 10ms;

int die() {
  const auto fabric = open_fabric();
  End end(*fabric);
  end.region = must(fabric->create_region(kRegion));
  std::printf("%s\n", must(end.worker->listen(place().host + ":0")).c_str());
  std::fflush(stdout);
  // The device adds to it behind the compiler's back.
  const auto* begun = reinterpret_cast<const volatile std::uint64_t*>(end.region->bytes().data());
  while (*begun == 0) {
    if (!end.worker->progress()) end.worker->wait(1ms);
  }
  usleep(std::chrono::microseconds(kLook).count());
  std::printf("%llu\n", static_cast<unsigned long long>(*begun));
  std::fflush(stdout);
  return raise(SIGKILL);
}

/// The second line of what the peer printed, once it is there.
int begun_at_peer(const std::string& file) {
  for (const auto deadline = Clock::now() + 20s; Clock::now() < deadline; usleep(10000)) {
    std::ifstream in(file);
    std::string address;
    int begun = 0;
    if (in >> address >> begun && in.get() == '\n') return begun;
  }
  return -1;
}

/// Chains of an addition and two long READs. Only so many requests may be under way at a time, no whole number of chains: the peer has added for one
/// chain more than it can have answered in full.
int cut(const std::string& address, const std::string& file) {
  const auto fabric = open_fabric();
  End end(*fabric);
  auto memory = must(end.worker->allocate(kMaxTransfer));
  if (!check(end.connect(address), "connects to " + address)) return exit_status();
  int posted = 0;
  for (std::size_t i = 0; i < kMaxOutstanding; ++i) {
    const Operation chain[] = {{Op::fetch_add, 0, memory.data(), 0, 1, 0},
                               {Op::read, 64, memory.data() + 64, 16384, 0, 0},
                               {Op::read, 64, memory.data() + 32768, 16384, 0, 0}};
    if (end.connection->post(chain, i)) ++posted;
  }
  ends_with(end, posted, {ECONNRESET, EHOSTUNREACH, EIO}, 15s, "a peer that dies in a chain");
  const int begun = begun_at_peer(file);
  check(end.done < begun && begun < posted, "cut in two: the peer had begun " +
                                                std::to_string(begun) + " chains, " +
                                                std::to_string(end.done) + " are known as done");
  return exit_status();
}

int hold(const std::string& address, int seconds) {
  const auto fabric = open_fabric();
  End end(*fabric);
  auto memory = must(end.worker->allocate(4096));
  if (!check(end.connect(address), "connects to " + address)) return exit_status();
  const auto until = Clock::now() + std::chrono::seconds(seconds);
  int posted = 0;
  auto last = Clock::now();
  while (end.ended.code == 0 && Clock::now() < until) {
    const Operation add{Op::fetch_add, 8, memory.data(), 0, 1, 0};
    if (!end.connection->post({&add, 1}, 0)) break;
    ++posted;
    if (!end.drive([&] { return end.done + end.failed == posted; }, 30s)) break;
    if (end.failed == 0) last = Clock::now();
    usleep(1000);
  }
  const bool ended = end.drive([&] { return end.ended.code != 0; }, 30s);
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - last).count();
  check(ended && ms < 10000 && end.failed <= 1 && end.done + end.failed == posted,
        "the connection ended: " + text_of(end.ended) + ", " + std::to_string(ms) +
            " ms after the last chain that was done; " + std::to_string(end.done) + " chains done");
  return exit_status();
}

bool shell(const std::string& line) {
  return std::system(line.c_str()) == 0;
}

int device(const std::string& netdev) {
  {
    const auto fabric = open_fabric();
    End end(*fabric), listener(*fabric);
    listener.region = must(fabric->create_region(kRegion));
    auto loopback = must(listener.worker->connect_loopback(*listener.region));
    const auto address = must(listener.worker->listen(place().host + ":0"));
    auto memory = must(end.worker->allocate(65536));
    end.connection = must(end.worker->connect(address, {}, 5s));
    check(end.drive(
              [&] {
                (void)listener.worker->progress();
                return end.connected;
              },
              10s),
          "connects");
    check(shell("ip link set " + netdev + " down"), "link down");
    const int posted = post_many(end, memory);
    const auto began = Clock::now();
    const bool told = end.drive(
        [&] {
          (void)listener.worker->progress();
          return end.done + end.failed == posted;
        },
        20s);
    check(told && Clock::now() - began < 10s,
          "link down: " + std::to_string(posted) + " chains posted, " + std::to_string(end.done) +
              " done, " + std::to_string(end.failed) + " failed; " + text_of(end.ended));
    check(shell("ip link set " + netdev + " up"), "link up");
    usleep(500000);
    End second(*fabric);
    second.connection = must(second.worker->connect(address, {}, 5s));
    check(second.drive(
              [&] {
                (void)listener.worker->progress();
                return second.connected;
              },
              10s),
          "connects after link down and up");
    // The device goes away under three connections, a listener and a loopback.
    const pid_t remover = fork();
    if (remover == 0) {
      execlp("rdma", "rdma", "link", "del", place().device.c_str(), nullptr);
      _exit(127);
    }
    const bool gone = second.drive(
        [&] {
          (void)listener.worker->progress();
          (void)end.worker->progress();
          return second.ended.code != 0 && listener.ended.code != 0;
        },
        10s);
    check(gone && second.ended.code == ENODEV, "the device goes away: " + text_of(second.ended));
  }
  return exit_status();
}

}  // namespace
}  // namespace distfuse::verbs_tests

int main(int argc, char** argv) {
  using namespace distfuse::verbs_tests;
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "local") return local();
  if (what == "serve") return serve();
  if (what == "reach" && argc == 3) return reach(argv[2]);
  if (what == "die") return die();
  if (what == "cut" && argc == 4) return cut(argv[2], argv[3]);
  if (what == "hold" && argc == 4) return hold(argv[2], std::atoi(argv[3]));
  if (what == "device" && argc == 3) return device(argv[2]);
  std::fprintf(
      stderr,
      "usage: verbs_faults local | serve | reach ADDRESS | die | cut ADDRESS FILE | hold ADDRESS "
      "SECONDS | device NETDEV\n");
  return 2;
}
