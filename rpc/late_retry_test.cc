// SPDX-License-Identifier: Apache-2.0
// A connection is cut while its request runs at the server; the channel connects anew, sends it again, and goes on. The run of
// before must not take effect after what came later.
#include <gtest/gtest.h>

#include "rpc/test_server.h"

namespace distfuse::rpc::test {
namespace {

using namespace std::chrono_literals;

/// The disk: a word per inode, which write sets to the first byte of its bulk, when it takes effect. A held write takes effect, and is
/// answered, when it is let go; everything else at once.
class SlowHandler final : public EchoHandler {
 public:
  void on_data(const Peer&, const DataRequest& request, std::byte* payload,
               DataResponder responder) override {
    ++arrived;
    Held held{request.ino, static_cast<int>(payload[0]), std::move(responder)};
    drop_write_buffer(payload);
    if (hold.load() == request.ino) {
      held_.push_back(std::move(held));
    } else {
      run(held);
    }
  }
  /// On the server's thread.
  void let_go() {
    hold = 0;
    for (Held& held : held_) run(held);
    held_.clear();
  }
  std::atomic<std::uint64_t> hold{0};
  std::atomic<int> arrived{0};
  std::atomic<int> disk[8]{};

 private:
  struct Held {
    std::uint64_t ino;
    int value;
    DataResponder responder;
  };
  void run(Held& held) {
    disk[held.ino] = held.value;
    held.responder.reply(0, 0, 1);
  }
  std::vector<Held> held_;
};

class LateRetry : public ::testing::Test {
 protected:
  std::unique_ptr<Client> make_client(unsigned channels, std::chrono::milliseconds give_up,
                                      std::uint64_t daemon = 0) {
    ClientOptions options;
    options.daemon = daemon;
    options.meta = server.address();
    options.data = {server.address()};
    options.cluster_id = kCluster;
    options.session = 7;
    options.device = "lo";
    options.channels = channels;
    options.give_up = give_up;
    auto client = Client::create(options);
    EXPECT_TRUE(client.ok());
    return std::move(*client);
  }
  static Status write(Client& client, std::uint64_t ino, int value) {
    auto byte = static_cast<std::byte>(value);
    DataCall call;
    call.request.op = static_cast<std::uint16_t>(DataOp::write);
    call.request.ino = ino;
    call.request.length = 1;
    call.request.chunk_size = kMaxBulk;
    call.buffer = &byte;
    return client.run({&call, 1});
  }
  void cut() {
    server.run([](Server& s) { s.disconnect_session(7); });
  }
  void let_go() {
    server.run([this](Server&) { handler.let_go(); });
  }
  void await_arrived(int count) {
    for (int i = 0; i < 10000 && handler.arrived < count; ++i) std::this_thread::sleep_for(1ms);
    ASSERT_GE(handler.arrived, count);
  }
  SlowHandler handler;
  ServerThread server{"127.0.0.1:0", &handler};
};

TEST_F(LateRetry, TheRunOfTheEarlierConnectionIsOverBeforeTheNextOneBegins) {
  auto client = make_client(1, 20s);
  ASSERT_TRUE(write(*client, 1, 1).ok());
  handler.hold = 1;
  std::atomic<bool> went_on{false};
  std::thread application([&] {
    EXPECT_TRUE(write(*client, 1, 2).ok());
    EXPECT_TRUE(write(*client, 1, 3).ok());
    went_on = true;
  });
  await_arrived(2);
  handler.hold = 0;  // the repetition would run at once
  cut();
  for (int i = 0; i < 500 && !went_on; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_FALSE(went_on) << "the repetition ran while the first run was still to come";
  let_go();
  application.join();
  EXPECT_EQ(handler.disk[1], 3);
  EXPECT_GE(client->counters().retries, 1U);
}

TEST_F(LateRetry, ARunThatDoesNotEndIsAnErrorAfterTheUsualTimeAndOnlyToItsChannel) {
  auto client = make_client(2, 1s);
  ASSERT_TRUE(write(*client, 1, 1).ok());
  handler.hold = 1;
  const auto began = std::chrono::steady_clock::now();
  std::thread application([&] {
    const Status status = write(*client, 1, 2);
    EXPECT_EQ(status.ok() ? 0 : status.error().code, EIO);
  });
  await_arrived(2);
  cut();
  EXPECT_TRUE(write(*client, 2, 5).ok());  // by the other channel, meanwhile
  application.join();
  EXPECT_LT(std::chrono::steady_clock::now() - began, 10s);
  EXPECT_EQ(handler.arrived, 3);  // it was never sent again
  let_go();
  for (int value = 6; value < 10; ++value) EXPECT_TRUE(write(*client, 1, value).ok());
  EXPECT_EQ(handler.disk[1], 9);
  // Nothing is left of those that waited.
  for (int i = 0; i < 3; ++i) {
    cut();
    EXPECT_TRUE(write(*client, 3, i).ok());
  }
}

TEST_F(LateRetry, AnotherClientDoesNotWait) {
  auto first = make_client(1, 20s);
  auto second = make_client(1, 20s);
  handler.hold = 1;
  std::thread application([&] { EXPECT_TRUE(write(*first, 1, 2).ok()); });
  await_arrived(1);
  cut();
  EXPECT_TRUE(write(*second, 2, 4).ok());
  EXPECT_EQ(handler.disk[2], 4);
  let_go();
  application.join();
  EXPECT_EQ(handler.disk[1], 2);
}

TEST_F(LateRetry, ASessionThatIsFencedWhileItWaitsIsRefused) {
  auto client = make_client(1, 20s);
  ASSERT_TRUE(write(*client, 1, 1).ok());
  handler.hold = 1;
  std::thread application([&] {
    const Status status = write(*client, 1, 2);
    EXPECT_EQ(status.ok() ? 0 : status.error().code, kFenced);
  });
  await_arrived(2);
  cut();
  std::this_thread::sleep_for(100ms);  // it has connected, and waits
  handler.fenced_ = 7;
  let_go();
  application.join();
}

TEST_F(LateRetry, ANextDaemonOfTheSessionWaitsForWhatTheFormerOneLeftRunning) {
  auto first = make_client(3, 20s, 1);
  handler.hold = 1;
  // Two runs that do not end, on two channels, and a third channel that is idle.
  std::thread one([&] { (void)write(*first, 1, 2); });
  std::thread two([&] { (void)write(*first, 1, 3); });
  await_arrived(2);
  EXPECT_TRUE(write(*first, 2, 5).ok());
  handler.hold = 0;
  auto second = make_client(2, 20s, 2);
  std::atomic<bool> went_on{false};
  std::thread application([&] {
    EXPECT_TRUE(write(*second, 1, 9).ok());
    went_on = true;
  });
  for (int i = 0; i < 500 && !went_on; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_FALSE(went_on) << "the next daemon's request ran while the former one's were to come";
  let_go();
  application.join();
  EXPECT_EQ(handler.disk[1], 9);
  // The former one tries again: refused, while the next one is there.
  one.join();
  two.join();
  const int before = handler.arrived;
  const Status late = write(*first, 1, 4);
  EXPECT_EQ(late.ok() ? 0 : late.error().code, EPROTO);
  EXPECT_EQ(handler.arrived, before);
  EXPECT_EQ(handler.disk[1], 9);
  EXPECT_TRUE(write(*second, 1, 6).ok());
}

TEST_F(LateRetry, ANextDaemonDoesNotWaitForAnotherSession) {
  auto first = make_client(1, 20s);  // of the same session, but not one of several daemons
  handler.hold = 1;
  std::thread application([&] { EXPECT_TRUE(write(*first, 1, 2).ok()); });
  await_arrived(1);
  ClientOptions options;
  options.data = {server.address()};
  options.cluster_id = kCluster;
  options.session = 8;
  options.daemon = 5;
  options.device = "lo";
  options.channels = 1;
  auto other = Client::create(options);
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(write(**other, 2, 4).ok());
  let_go();
  application.join();
}

}  // namespace
}  // namespace distfuse::rpc::test
