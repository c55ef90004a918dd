// SPDX-License-Identifier: Apache-2.0
// What the contract tests stand on: a node (a worker with a handler that records) that is driven by hand or by a thread.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rdma/fabric/fabric.h"

namespace distfuse::fabric::test {

using namespace std::chrono_literals;
using Bytes = std::vector<std::byte>;
using Clock = std::chrono::steady_clock;

inline Bytes bytes_of(std::string_view text) {
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  return {first, first + text.size()};
}

template <typename T>
T must(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << result.error().message;
    std::abort();
  }
  return std::move(*result);
}

class Node : public Handler {
 public:
  struct Completion {
    std::uint64_t cookie;
    int code;  // 0: success.
  };

  explicit Node(Fabric& fabric) : worker(must(fabric.create_worker(*this))) {}
  ~Node() override { stop(); }

  void on_connect_request(std::unique_ptr<ConnectRequest> request) override {
    hello.assign(request->private_data().begin(), request->private_data().end());
    if (policy == Policy::hold) {
      held.push_back(std::move(request));
    } else if (policy == Policy::reject) {
      worker->reject(std::move(request), "no room here");
    } else if (policy == Policy::accept) {
      auto connection = worker->accept(std::move(request), answer, region.get());
      if (connection) accepted.push_back(std::move(*connection));
    }
    ++requests;
  }
  void on_connected(Connection&, std::span<const std::byte> data) override {
    welcome.assign(data.begin(), data.end());
    ++connects;
  }
  void on_message(Connection& connection, std::span<const std::byte> message) override {
    if (echo) {
      // A full queue would lose it: the tests that echo keep few messages under way.
      const auto status = connection.send(message);
      EXPECT_TRUE(status.ok()) << status.error().message;
    } else {
      messages.emplace_back(message.begin(), message.end());
    }
    ++message_count;
  }
  void on_completion(Connection&, std::uint64_t cookie, const Status& status) override {
    completions.push_back({cookie, status.ok() ? 0 : status.error().code});
  }
  void on_disconnect(Connection& connection, const Error& error) override {
    reason = error;
    if (drop_ended) {
      std::erase_if(accepted, [&](const auto& held_one) { return held_one.get() == &connection; });
    }
    ++disconnects;
  }

  /// Drives until `done`; false after ten seconds.
  bool drive(const std::function<bool()>& done, std::chrono::milliseconds limit = 10s) {
    const auto until = Clock::now() + limit;
    while (!done()) {
      if (Clock::now() > until) return false;
      if (!worker->progress()) worker->wait(5ms);
    }
    return true;
  }
  void start() {
    thread = std::thread([this] {
      while (!stopping) {
        if (!worker->progress()) worker->wait(-1ms);
      }
    });
  }
  void stop() {
    if (!thread.joinable()) return;
    stopping = true;
    worker->wake();
    thread.join();
    stopping = false;
  }

  enum class Policy { accept, reject, hold, drop } policy = Policy::accept;
  Bytes answer;
  bool echo = false;
  bool drop_ended = false;
  Bytes hello;
  Bytes welcome;
  std::vector<Bytes> messages;
  std::vector<Completion> completions;
  Error reason{0, {}};
  std::atomic<int> requests = 0;
  std::atomic<int> connects = 0;
  std::atomic<int> disconnects = 0;
  std::atomic<int> message_count = 0;
  std::atomic<bool> stopping = false;
  std::shared_ptr<Region> region;
  std::unique_ptr<Worker> worker;
  std::vector<std::unique_ptr<ConnectRequest>> held;
  std::vector<std::unique_ptr<Connection>> accepted;
  std::thread thread;
};

/// A kind of fabric to hold against the contract.
struct Kind {
  std::string name;
  std::function<std::unique_ptr<Fabric>()> open;
  std::string host = "127.0.0.1";  ///< Of this machine, where the fabric listens.
};

/// A server in a thread of its own, a client driven by the test.
class Pair {
 public:
  static constexpr std::size_t kRegion = 64 * 1024;

  explicit Pair(const Kind& kind) : fabric(kind.open()), server(*fabric), client(*fabric) {
    server.region = must(fabric->create_region(kRegion));
    address = must(server.worker->listen(kind.host + ":0"));
    local = must(client.worker->allocate(64 * 1024));
  }
  ~Pair() {
    connection.reset();
    server.stop();
  }
  /// Starts the server's thread and connects.
  void connect() {
    server.start();
    connection = must(client.worker->connect(address, {}, 5s));
    ASSERT_TRUE(client.drive([&] { return client.connects + client.disconnects > 0; }));
    ASSERT_EQ(client.connects, 1) << client.reason.message;
  }
  /// Posts and drives until it is complete; the code of its completion.
  int run(std::span<const Operation> chain, std::uint64_t cookie = 7) {
    const auto before = client.completions.size();
    if (auto status = connection->post(chain, cookie); !status) return status.error().code;
    if (!client.drive([&] { return client.completions.size() > before; })) return ETIMEDOUT;
    EXPECT_EQ(client.completions.back().cookie, cookie);
    return client.completions.back().code;
  }
  std::uint64_t word(std::size_t at) const {
    std::uint64_t value = 0;
    std::memcpy(&value, local.data() + at, 8);
    return value;
  }
  std::atomic_ref<std::uint64_t> remote(std::size_t at) {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(server.region->bytes().data() + at));
  }

  std::unique_ptr<Fabric> fabric;
  Node server;
  Node client;
  std::string address;
  std::span<std::byte> local;
  std::unique_ptr<Connection> connection;
};

}  // namespace distfuse::fabric::test
