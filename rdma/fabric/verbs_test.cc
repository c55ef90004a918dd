// SPDX-License-Identifier: Apache-2.0
// What only `verbs` has, on the fake device: errors of the device, limits of its queues, hostile handshakes. The contract itself
// is fabric_contract_test's.
#include <arpa/inet.h>

#include <cstring>
#include <random>

#include "rdma/fabric/contract_fixture.h"
#include "rdma/fabric/verbs_counters.h"
#include "rdma/fabric/verbs_fabric.h"
#include "rdma/fabric/verbs_fake.h"
#include "rdma/fabric/verbs_handshake.h"

namespace distfuse::fabric::test {
namespace {

using verbs::FakeControl;

const Kind kFake = {"verbs", [] {
                      return must(verbs::open_verbs({"verbs", ""}, verbs::fake_table()));
                    }};

class Verbs : public testing::Test {
 protected:
  Verbs() { FakeControl::reset(); }
  ~Verbs() override {
    EXPECT_EQ(FakeControl::live_objects(), 0);
    EXPECT_EQ(FakeControl::overflows(), 0U);
  }
};

TEST_F(Verbs, NoDeviceSaysWhatToDo) {
  FakeControl::set_present(false);
  const auto fabric = verbs::open_verbs({"verbs", ""}, verbs::fake_table());
  ASSERT_FALSE(fabric.ok());
  EXPECT_EQ(fabric.error().code, ENODEV);
  EXPECT_NE(fabric.error().message.find("rdma_rxe"), std::string::npos);
  EXPECT_NE(fabric.error().message.find("ucx"), std::string::npos);
}

TEST_F(Verbs, UnknownDeviceIsNamed) {
  const auto fabric = verbs::open_verbs({"verbs", "mlx5_9"}, verbs::fake_table());
  ASSERT_FALSE(fabric.ok());
  EXPECT_EQ(fabric.error().code, ENODEV);
  EXPECT_NE(fabric.error().message.find("mlx5_9"), std::string::npos);
}

TEST_F(Verbs, ChainIsOnePost) {
  Pair pair(kFake);
  pair.connect();
  std::vector<Operation> chain(kMaxChain, {Op::fetch_add, 0, pair.local.data(), 0, 1, 0});
  const auto before = FakeControl::doorbells();
  ASSERT_EQ(pair.run(chain), 0);
  EXPECT_EQ(FakeControl::doorbells(), before + 1);
}

/// soft-RoCE can stand still when it sends a fenced WRITE again, so that none may wait for nothing.
TEST_F(Verbs, AWriteIsFencedBehindWhatItCouldOvertakeOnly) {
  Pair pair(kFake);
  pair.connect();
  const Operation write{Op::write, 64, pair.local.data() + 8, 8, 0, 0};
  const Operation add{Op::fetch_add, 0, pair.local.data(), 0, 1, 0};
  const Operation read{Op::read, 0, pair.local.data() + 16, 64, 0, 0};
  const auto fences_of = [&](const std::vector<std::vector<Operation>>& chains) {
    const auto before = FakeControl::fences();
    for (const auto& chain : chains) EXPECT_TRUE(pair.connection->post(chain, 1).ok());
    const auto done = pair.client.completions.size() + chains.size();
    EXPECT_TRUE(pair.client.drive([&] { return pair.client.completions.size() == done; }));
    return FakeControl::fences() - before;
  };
  EXPECT_EQ(fences_of({{write, add, read}}), 0U);
  EXPECT_EQ(fences_of({{write, write}}), 0U);
  EXPECT_EQ(fences_of({{read, write}}), 1U);
  EXPECT_EQ(fences_of({{add, write}}), 1U);
  EXPECT_EQ(fences_of({{write, add, read}, {write}}), 1U) << "the first is still under way";
  EXPECT_EQ(fences_of({{write}}), 0U) << "all before it are done";
}

/// An error in the middle of 20 chains: those before it succeed, it and those behind it fail, and then the connection ends.
TEST_F(Verbs, CompletionErrorEndsTheConnectionInOrder) {
  for (const auto status :
       {IBV_WC_RETRY_EXC_ERR, IBV_WC_REM_ACCESS_ERR, IBV_WC_RNR_RETRY_EXC_ERR}) {
    Pair pair(kFake);
    pair.connect();
    FakeControl::fail_send(7, status);
    const Operation chain[] = {{Op::fetch_add, 0, pair.local.data(), 0, 1, 0},
                               {Op::read, 0, pair.local.data() + 8, 8, 0, 0}};
    for (std::uint64_t i = 0; i < 20; ++i) {
      ASSERT_TRUE(pair.connection->post(chain, i).ok());
    }
    ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }));
    ASSERT_EQ(pair.client.completions.size(), 20U);
    for (std::uint64_t i = 0; i < 20; ++i) {
      EXPECT_EQ(pair.client.completions[i].cookie, i);
      EXPECT_EQ(pair.client.completions[i].code, i < 3 ? 0 : EIO) << i;
    }
    EXPECT_EQ(pair.run({chain, 1}), ENOTCONN);
    // Not by our will: the peer is told nothing before the owner destroys the connection.
    EXPECT_FALSE(pair.client.drive([&] { return pair.server.disconnects > 0; }, 50ms));
    pair.connection.reset();
    EXPECT_TRUE(pair.client.drive([&] { return pair.server.disconnects == 1; }));
    EXPECT_EQ(pair.server.reason.code, ECONNRESET);
  }
}

/// The listener is given up and the loopback ends, or the device could never be removed.
TEST_F(Verbs, RemovalOfTheDeviceEndsListenerAndLoopback) {
  Pair pair(kFake);
  auto loopback = must(pair.server.worker->connect_loopback(*pair.server.region));
  FakeControl::raise_on_all(RDMA_CM_EVENT_DEVICE_REMOVAL);
  ASSERT_TRUE(pair.server.drive([&] { return pair.server.disconnects == 1; }));
  EXPECT_EQ(pair.server.reason.code, ENODEV);
  const Operation add{Op::fetch_add, 0, nullptr, 0, 1, 0};
  EXPECT_EQ(loopback->post({&add, 1}, 0).error().code, ENOTCONN);
}

TEST_F(Verbs, CountersAreTheArithmeticOfAChain) {
  using verbs::Count;
  Pair pair(kFake);
  pair.connect();
  pair.server.stop();
  const auto before = verbs::counters();
  const Operation chain[] = {{Op::write, 64, pair.local.data() + 8, 8, 0, 0},
                             {Op::fetch_add, 0, pair.local.data(), 0, 1, 0},
                             {Op::read, 0, pair.local.data() + 16, 64, 0, 0}};
  ASSERT_EQ(pair.run(chain), 0);
  const auto used = verbs::counters() - before;
  EXPECT_EQ(used[Count::doorbells], 1U);
  EXPECT_EQ(used[Count::writes], 1U);
  EXPECT_EQ(used[Count::atomics], 1U);
  EXPECT_EQ(used[Count::reads], 1U);
  EXPECT_EQ(used[Count::completions], 1U);
  EXPECT_EQ(used[Count::sends] + used[Count::receives], 0U);
}

TEST_F(Verbs, DisconnectAndRemovalOfTheDeviceAreTold) {
  for (const auto event : {RDMA_CM_EVENT_DISCONNECTED, RDMA_CM_EVENT_DEVICE_REMOVAL}) {
    Pair pair(kFake);
    pair.connect();
    FakeControl::raise_on_all(event);
    ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }));
    EXPECT_EQ(pair.client.reason.code, event == RDMA_CM_EVENT_DISCONNECTED ? ECONNRESET : ENODEV);
  }
}

/// Credits: bursts both ways at once, of all sizes, without a receiver that is not ready and without a queue that overflows.
TEST_F(Verbs, CreditsKeepReceiversReady) {
  Pair pair(kFake);
  pair.connect();
  pair.server.stop();
  auto& server = *pair.server.accepted.at(0);
  std::uint32_t sent[2] = {};
  std::mt19937 random(42);
  for (int round = 0; round < 4000; ++round) {
    for (std::size_t side = 0; side < 2; ++side) {
      auto& connection = side == 0 ? *pair.connection : server;
      for (std::size_t burst = random() % 40; burst > 0; --burst) {
        const auto status = connection.send(Bytes(random() % 200, std::byte{1}));
        if (!status) {
          ASSERT_EQ(status.error().code, EAGAIN);
          break;
        }
        ++sent[side];
      }
    }
    if (random() % 3 != 0) (void)pair.server.worker->progress();
    if (random() % 3 != 0) (void)pair.client.worker->progress();
  }
  const auto done = [&] {
    (void)pair.server.worker->progress();
    return pair.server.messages.size() == sent[0] && pair.client.messages.size() == sent[1];
  };
  ASSERT_TRUE(pair.client.drive(done));
  EXPECT_GT(sent[0], 4000U);
  EXPECT_GT(sent[1], 4000U);
  EXPECT_EQ(FakeControl::receiver_not_ready(), 0U);
}

TEST_F(Verbs, OneWayTrafficGetsItsCreditsBack) {
  Pair pair(kFake);
  pair.connect();
  for (std::uint32_t i = 0; i < 10'000; ++i) {
    Status status;
    ASSERT_TRUE(pair.client.drive([&] {
      status = pair.connection->send(bytes_of("x"));
      return status.ok() || status.error().code != EAGAIN;
    })) << i;
    ASSERT_TRUE(status.ok());
  }
  ASSERT_TRUE(pair.client.drive([&] { return pair.server.message_count == 10'000; }));
  EXPECT_EQ(FakeControl::receiver_not_ready(), 0U);
}

TEST_F(Verbs, MalformedMessageCostsTheConnection) {
  // Credits that were never taken; unknown bits; a credit return with content.
  for (const auto& [immediate, length] : {std::pair{1U << 31 | 5U, 8U}, {1U << 20, 0U}, {0U, 8U}}) {
    Pair pair(kFake);
    pair.connect();
    FakeControl::send_raw(htonl(immediate), length);
    ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }));
    EXPECT_EQ(pair.client.reason.code, EPROTO);
    EXPECT_TRUE(pair.client.messages.empty());
  }
}

TEST_F(Verbs, MalformedAcceptIsRefused) {
  for (const std::size_t at : {0U, 4U, 7U, 8U, 28U}) {
    FakeControl::reset();
    FakeControl::corrupt_accept(at);
    Pair pair(kFake);
    pair.server.start();
    pair.connection = must(pair.client.worker->connect(pair.address, {}, 5s));
    ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }));
    EXPECT_EQ(pair.client.reason.code, EPROTO) << at;
    EXPECT_EQ(pair.client.connects, 0);
  }
}

TEST_F(Verbs, ACallerWithLongerPacketsIsRefusedAndToldWhy) {
  for (const auto& [mtu, fits] : {std::pair{IBV_MTU_256, true}, {IBV_MTU_4096, false}}) {
    FakeControl::reset();
    FakeControl::set_path_mtu(mtu);
    Pair pair(kFake);
    pair.server.start();
    pair.connection = must(pair.client.worker->connect(pair.address, {}, 5s));
    ASSERT_TRUE(
        pair.client.drive([&] { return pair.client.connects > 0 || pair.client.disconnects > 0; }));
    EXPECT_EQ(pair.client.connects > 0, fits);
    if (fits) continue;
    EXPECT_EQ(pair.client.reason.code, ECONNREFUSED);
    EXPECT_NE(pair.client.reason.message.find("path MTU 4096, but 1024 at fake0"),
              std::string::npos)
        << pair.client.reason.message;
  }
}

TEST_F(Verbs, ForeignLocalMemoryIsRefused) {
  Pair pair(kFake);
  pair.connect();
  std::uint64_t foreign = 0;
  const Operation read{Op::read, 0, reinterpret_cast<std::byte*>(&foreign), 8, 0, 0};
  EXPECT_EQ(pair.run({&read, 1}), EINVAL);
  const Operation over{Op::read, 0, pair.local.data() + pair.local.size() - 4, 8, 0, 0};
  EXPECT_EQ(pair.run({&over, 1}), EINVAL);
}

/// More connections than are polled one by one: completion events find those that have something to say.
TEST_F(Verbs, ManyConnectionsOnOneWorker) {
  Pair pair(kFake);
  pair.server.echo = true;
  pair.server.start();
  std::vector<std::unique_ptr<Connection>> connections;
  for (int i = 0; i < 40; ++i) {
    connections.push_back(must(pair.client.worker->connect(pair.address, {}, 5s)));
  }
  ASSERT_TRUE(pair.client.drive([&] { return pair.client.connects == 40; }));
  for (int round = 0; round < 50; ++round) {
    pair.client.messages.clear();
    pair.client.completions.clear();
    for (auto& connection : connections) {
      const Operation add{Op::fetch_add, 0, pair.local.data(), 0, 1, 0};
      ASSERT_TRUE(connection->post({&add, 1}, 1).ok());
      ASSERT_TRUE(connection->send(bytes_of("ping")).ok());
    }
    ASSERT_TRUE(pair.client.drive([&] {
      return pair.client.messages.size() == 40 && pair.client.completions.size() == 40;
    })) << round;
  }
  EXPECT_EQ(pair.remote(0), 2000U);
  connections.clear();
}

TEST(VerbsHandshake, AcceptRoundTripAndGarbage) {
  const Bytes data(kMaxAcceptData, std::byte{9});
  auto bytes = verbs::encode_accept({4096, 1 << 20, 77}, data);
  bytes.resize(196);
  auto decoded = verbs::decode_accept(bytes);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->data, data);
  EXPECT_EQ(decoded->region.rkey, 77U);
  EXPECT_EQ(decoded->region.length, 1U << 20);
  for (std::size_t length = 0; length < verbs::kAcceptHeader + kMaxAcceptData; ++length) {
    EXPECT_FALSE(verbs::decode_accept(std::span(bytes).first(length)).ok());
  }
}

}  // namespace
}  // namespace distfuse::fabric::test
