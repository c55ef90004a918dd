// SPDX-License-Identifier: Apache-2.0
// The other process of ucx_process_test.
//   fabric_test_peer serve                    prints its address, then serves a region and sleeps
//   fabric_test_peer add ADDRESS ROUNDS       adds ROUNDS to word 0 by fetch_add and to word 1 by compare_swap, prints "done"
//   fabric_test_peer hold ADDRESS             connects, prints "connected", stays
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "common/log.h"
#include "rdma/fabric/fabric.h"

namespace {

using namespace distfuse;
using namespace distfuse::fabric;

[[noreturn]] void die(const Error& error) {
  std::fprintf(stderr, "fabric_test_peer: %s\n", error.message.c_str());
  std::exit(1);
}

template <typename T>
T must(Result<T> result) {
  if (!result) die(result.error());
  return std::move(*result);
}

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

class Peer : public Handler {
 public:
  void on_connect_request(std::unique_ptr<ConnectRequest> request) override {
    auto connection = worker->accept(std::move(request), {}, region.get());
    if (connection) accepted.push_back(std::move(*connection));
  }
  void on_connected(Connection&, std::span<const std::byte>) override { ++events; }
  void on_message(Connection& connection, std::span<const std::byte> message) override {
    if (auto status = connection.send(message); !status) die(status.error());
  }
  void on_completion(Connection&, std::uint64_t, const Status& status) override {
    if (!status) die(status.error());
    ++events;
  }
  void on_disconnect(Connection& connection, const Error& reason) override {
    if (accepted.empty()) die(reason);
    std::erase_if(accepted, [&](const auto& one) { return one.get() == &connection; });
  }
  void await() {
    for (const auto before = events; events == before;) {
      if (!worker->progress()) worker->wait(std::chrono::milliseconds(100));
    }
  }

  std::unique_ptr<Region> region;
  std::unique_ptr<Worker> worker;
  std::vector<std::unique_ptr<Connection>> accepted;
  std::uint64_t events = 0;
};

[[noreturn]] void serve(Peer& peer, Fabric& fabric) {
  peer.region = must(fabric.create_region(1 << 20));
  say(must(peer.worker->listen("127.0.0.1:0")));
  while (true) {
    if (!peer.worker->progress()) peer.worker->wait(std::chrono::milliseconds(-1));
  }
}

std::uint64_t run(Peer& peer, Connection& connection, const Operation& op) {
  if (auto status = connection.post({&op, 1}, 0); !status) die(status.error());
  peer.await();
  std::uint64_t old = 0;
  std::memcpy(&old, op.local, sizeof(old));
  return old;
}

void add(Peer& peer, Connection& connection, int rounds) {
  auto* local = must(peer.worker->allocate(64)).data();
  std::uint64_t guess = 0;
  for (int i = 0; i < rounds; ++i) {
    (void)run(peer, connection, {Op::fetch_add, 0, local, 0, 1, 0});
    while (true) {
      const auto old = run(peer, connection, {Op::compare_swap, 8, local, 0, guess + 1, guess});
      if (old == guess) break;
      guess = old;
    }
    ++guess;
  }
}

}  // namespace

int main(int argc, char** argv) {
  (void)log::init({"fabric_test_peer", "warn", ""});
  if (argc < 2) return 2;
  const std::string role = argv[1];
  Peer peer;
  auto fabric = must(open({}));
  peer.worker = must(fabric->create_worker(peer));
  if (role == "serve") serve(peer, *fabric);
  auto connection = must(peer.worker->connect(argv[2], {}, std::chrono::seconds(5)));
  peer.await();
  if (role == "add") add(peer, *connection, std::atoi(argv[3]));
  say(role == "add" ? "done" : "connected");
  while (role == "hold") {
    if (!peer.worker->progress()) peer.worker->wait(std::chrono::milliseconds(-1));
  }
  return 0;
}
