// SPDX-License-Identifier: Apache-2.0
// fabric.h's contract, held against every implementation in one process: `ucx` over shared memory and over TCP, and
// `verbs` on a fake device. With DISTFUSE_VERBS_DEVICE and DISTFUSE_VERBS_HOST (its address): against `verbs` on that device alone.
#include <dirent.h>

#include <cstdlib>
#include <cstring>
#include <random>

#include "rdma/fabric/contract_fixture.h"
#include "rdma/fabric/verbs_fabric.h"
#include "rdma/fabric/verbs_fake.h"

namespace distfuse::fabric::test {
namespace {

std::unique_ptr<Fabric> open_ucx(const char* transports) {
  if (transports == nullptr) {
    unsetenv("UCX_TLS");
  } else {
    setenv("UCX_TLS", transports, 1);
  }
  return must(open({"ucx", "lo"}));
}

std::vector<Kind> kinds() {
  const char* device = std::getenv("DISTFUSE_VERBS_DEVICE");
  const char* host = std::getenv("DISTFUSE_VERBS_HOST");
  if (device != nullptr && host != nullptr) {
    return {{"verbs_device", [device] { return must(open({"verbs", device})); }, host}};
  }
  return {
      {"ucx_shared", [] { return open_ucx(nullptr); }},
      {"ucx_sysv", [] { return open_ucx("sysv"); }},
      {"ucx_tcp", [] { return open_ucx("tcp"); }},
      {"verbs",
       [] {
         return must(verbs::open_verbs({"verbs", ""}, verbs::fake_table()));
       }},
  };
}

class FabricContract : public testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(All, FabricContract, testing::ValuesIn(kinds()),
                         [](const auto& param) { return param.param.name; });

std::uint32_t seed() {
  const char* set = std::getenv("DISTFUSE_SEED");
  const auto value = set != nullptr ? static_cast<std::uint32_t>(std::strtoul(set, nullptr, 0))
                                    : std::random_device{}();
  std::printf("DISTFUSE_SEED=%u\n", value);
  return value;
}

int open_descriptors() {
  int count = 0;
  DIR* dir = opendir("/proc/self/fd");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

TEST_P(FabricContract, ConnectsWithPrivateDataBothWays) {
  Pair pair(GetParam());
  pair.server.answer = Bytes(kMaxAcceptData, std::byte{0x5a});
  pair.server.start();
  const Bytes hello(kMaxConnectData, std::byte{0x17});
  pair.connection = must(pair.client.worker->connect(pair.address, hello, 5s));
  ASSERT_TRUE(pair.client.drive([&] { return pair.client.connects > 0; }));
  EXPECT_EQ(pair.client.welcome, pair.server.answer);
  EXPECT_EQ(pair.connection->remote_region_length(), Pair::kRegion);
  EXPECT_FALSE(pair.connection->peer().empty());
  pair.server.stop();
  EXPECT_EQ(pair.server.hello, hello);
}

TEST_P(FabricContract, RefusesTooMuchPrivateData) {
  Pair pair(GetParam());
  const auto refused = pair.client.worker->connect(pair.address, Bytes(kMaxConnectData + 1), 5s);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, EINVAL);
}

TEST_P(FabricContract, RejectReachesTheCallerWithItsReason) {
  Pair pair(GetParam());
  pair.server.policy = Node::Policy::reject;
  pair.server.start();
  pair.connection = must(pair.client.worker->connect(pair.address, {}, 5s));
  ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }));
  EXPECT_EQ(pair.client.reason.code, ECONNREFUSED);
  EXPECT_NE(pair.client.reason.message.find("no room here"), std::string::npos);
  EXPECT_EQ(pair.client.connects, 0);
}

TEST_P(FabricContract, DroppedRequestIsRejected) {
  Pair pair(GetParam());
  pair.server.policy = Node::Policy::drop;
  pair.server.start();
  pair.connection = must(pair.client.worker->connect(pair.address, {}, 5s));
  ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }));
  EXPECT_EQ(pair.client.reason.code, ECONNREFUSED);
}

TEST_P(FabricContract, ConnectGivesUpInTime) {
  Pair pair(GetParam());
  pair.server.policy = Node::Policy::hold;
  pair.server.start();
  const auto start = Clock::now();
  pair.connection = must(pair.client.worker->connect(pair.address, {}, 300ms));
  ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }, 3s));
  EXPECT_GE(Clock::now() - start, 290ms);
  EXPECT_EQ(pair.client.reason.code, ETIMEDOUT);
  pair.connection.reset();
  // The late accept finds nobody, and harms nobody.
  pair.server.stop();
  pair.server.drive([] { return false; }, 50ms);
  ASSERT_EQ(pair.server.held.size(), 1U);
  auto late =
      pair.server.worker->accept(std::move(pair.server.held[0]), {}, pair.server.region.get());
  if (late) {
    EXPECT_TRUE(pair.server.drive([&] { return pair.server.disconnects > 0; }));
  }
}

TEST_P(FabricContract, NobodyThereIsAnError) {
  Pair pair(GetParam());
  auto connection = pair.client.worker->connect(GetParam().host + ":1", {}, 2s);
  if (!connection) return;
  ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }));
  EXPECT_EQ(pair.client.connects, 0);
}

TEST_P(FabricContract, EveryOperation) {
  Pair pair(GetParam());
  pair.connect();
  auto* local = pair.local.data();
  for (int i = 0; i < 1024; ++i) local[i] = static_cast<std::byte>(i * 7);
  const Operation write{Op::write, 2048, local, 1024, 0, 0};
  ASSERT_EQ(pair.run({&write, 1}), 0);
  EXPECT_EQ(std::memcmp(pair.server.region->bytes().data() + 2048, local, 1024), 0);
  const Operation read{Op::read, 2048 + 3, local + 4096 + 1, 1000, 0, 0};  // Nothing aligned.
  ASSERT_EQ(pair.run({&read, 1}), 0);
  EXPECT_EQ(std::memcmp(local + 4096 + 1, local + 3, 1000), 0);

  pair.remote(64) = 40;
  const Operation add{Op::fetch_add, 64, local, 0, 2, 0};
  ASSERT_EQ(pair.run({&add, 1}), 0);
  EXPECT_EQ(pair.word(0), 40U);
  EXPECT_EQ(pair.remote(64), 42U);
  const Operation swap{Op::compare_swap, 64, local, 0, 99, 42};
  ASSERT_EQ(pair.run({&swap, 1}), 0);
  EXPECT_EQ(pair.word(0), 42U);
  EXPECT_EQ(pair.remote(64), 99U);
  ASSERT_EQ(pair.run({&swap, 1}), 0);  // Expects 42, finds 99.
  EXPECT_EQ(pair.word(0), 99U);
  EXPECT_EQ(pair.remote(64), 99U);
}

TEST_P(FabricContract, WholeRegionInOneRead) {
  Pair pair(GetParam());
  pair.connect();
  for (std::size_t i = 0; i < Pair::kRegion; i += 8) pair.remote(i) = i * 3 + 1;
  const Operation read{Op::read, 0, pair.local.data(), Pair::kRegion, 0, 0};
  ASSERT_EQ(pair.run({&read, 1}), 0);
  for (std::size_t i = 0; i < Pair::kRegion; i += 8) ASSERT_EQ(pair.word(i), i * 3 + 1);
}

TEST_P(FabricContract, RefusesWhatIsOutOfBounds) {
  Pair pair(GetParam());
  pair.connect();
  auto* local = pair.local.data();
  const Operation bad[] = {
      {Op::read, Pair::kRegion - 4, local, 8, 0, 0},
      {Op::write, ~std::uint64_t{0} - 3, local, 8, 0, 0},
      {Op::fetch_add, Pair::kRegion, local, 0, 1, 0},
      {Op::fetch_add, 4, local, 0, 1, 0},
      {Op::read, 0, nullptr, 8, 0, 0},
  };
  for (const auto& op : bad) EXPECT_EQ(pair.run({&op, 1}), EINVAL);
  EXPECT_EQ(pair.run({}), EINVAL);
  const std::vector<Operation> long_chain(kMaxChain + 1, {Op::read, 0, local, 8, 0, 0});
  EXPECT_EQ(pair.run(long_chain), EINVAL);
  EXPECT_EQ(pair.run({long_chain.data(), kMaxChain}), 0);
}

/// Random chains against a model of the region: each operation sees exactly what those before it left.
TEST_P(FabricContract, ChainsTakeEffectInOrder) {
  Pair pair(GetParam());
  pair.connect();
  std::mt19937 random(seed());
  constexpr std::size_t kWords = 4;  // Few, so that the operations of a chain meet.
  std::uint64_t model[kWords] = {};
  for (int round = 0; round < 2000; ++round) {
    std::vector<Operation> chain;
    std::vector<std::pair<std::size_t, std::uint64_t>> expected;  // Of local memory, when complete.
    const std::size_t length = 1 + random() % kMaxChain;
    for (std::size_t i = 0; i < length; ++i) {
      const std::size_t word = random() % kWords;
      const std::size_t at = i * 64;
      Operation op{
          static_cast<Op>(random() % 4), word * 8, pair.local.data() + at, 8, random() % 9, 0};
      if (op.op == Op::compare_swap) op.expected = random() % 2 == 0 ? model[word] : random() % 9;
      if (op.op == Op::write) {
        const std::uint64_t value = random();
        std::memcpy(op.local, &value, 8);
        model[word] = value;
      } else {
        expected.emplace_back(at, model[word]);
        if (op.op == Op::fetch_add) model[word] += op.operand;
        if (op.op == Op::compare_swap && model[word] == op.expected) model[word] = op.operand;
      }
      chain.push_back(op);
    }
    ASSERT_EQ(pair.run(chain, random()), 0);
    for (const auto& [at, value] : expected) ASSERT_EQ(pair.word(at), value) << "round " << round;
  }
  for (std::size_t i = 0; i < kWords; ++i) EXPECT_EQ(pair.remote(i * 8), model[i]);
}

TEST_P(FabricContract, ChainsOfAConnectionAreInOrderAndBounded) {
  Pair pair(GetParam());
  pair.connect();
  for (int round = 0; round < 20; ++round) {
    pair.client.completions.clear();
    for (std::size_t i = 0; i < kMaxOutstanding; ++i) {
      const Operation add{Op::fetch_add, 0, pair.local.data() + i * 8, 0, 1, 0};
      ASSERT_TRUE(pair.connection->post({&add, 1}, i).ok());
    }
    const Operation one_more{Op::read, 0, pair.local.data() + 4096, 8, 0, 0};
    const auto status = pair.connection->post({&one_more, 1}, 0);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, EAGAIN);
    ASSERT_TRUE(
        pair.client.drive([&] { return pair.client.completions.size() == kMaxOutstanding; }));
    const std::uint64_t first = pair.word(0);
    for (std::size_t i = 0; i < kMaxOutstanding; ++i) {
      EXPECT_EQ(pair.client.completions[i].cookie, i);
      EXPECT_EQ(pair.client.completions[i].code, 0);
      EXPECT_EQ(pair.word(i * 8), first + i);
    }
  }
}

TEST_P(FabricContract, MessagesArriveWholeAndInOrder) {
  Pair pair(GetParam());
  pair.server.echo = true;
  pair.connect();
  std::mt19937 random(seed());
  std::vector<Bytes> sent;
  std::size_t seen = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::size_t length = i % 10 == 0 ? kMaxMessage : random() % 300;
    Bytes message(length);
    for (auto& byte : message) byte = static_cast<std::byte>(random());
    // The echo side must not find its queue full: 32 of the largest messages are under way at most.
    ASSERT_TRUE(pair.client.drive([&] { return sent.size() - pair.client.messages.size() < 32; }));
    Status status;
    ASSERT_TRUE(pair.client.drive([&] {
      status = pair.connection->send(message);
      return status.ok() || status.error().code != EAGAIN;
    }));
    ASSERT_TRUE(status.ok()) << status.error().message;
    sent.push_back(std::move(message));
  }
  ASSERT_TRUE(pair.client.drive([&] { return pair.client.messages.size() == sent.size(); }));
  for (; seen < sent.size(); ++seen) ASSERT_EQ(pair.client.messages[seen], sent[seen]) << seen;
  const auto status = pair.connection->send(Bytes(kMaxMessage + 1));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, EMSGSIZE);
}

TEST_P(FabricContract, FullSendQueueSaysSoAndLosesNothing) {
  Pair pair(GetParam());
  pair.connect();
  pair.server.stop();  // Nobody reads.
  std::uint32_t sent = 0;
  Bytes message(kMaxMessage);
  for (bool full = false; !full; ++sent) {
    ASSERT_LT(sent, 100'000U) << "the send queue has no bound";
    std::memcpy(message.data(), &sent, sizeof(sent));
    const auto status = pair.connection->send(message);
    if (!status) {
      ASSERT_EQ(status.error().code, EAGAIN);
      --sent;
      full = true;
    }
    (void)pair.client.worker->progress();
  }
  pair.server.start();
  ASSERT_TRUE(
      pair.client.drive([&] { return pair.server.message_count == static_cast<int>(sent); }));
  pair.server.stop();
  for (std::uint32_t i = 0; i < sent; ++i) {
    std::uint32_t value = 0;
    std::memcpy(&value, pair.server.messages[i].data(), sizeof(value));
    ASSERT_EQ(value, i);
  }
}

TEST_P(FabricContract, AtomicsOfManyConnectionsAndTheLoopbackAddUp) {
  Pair pair(GetParam());
  pair.server.start();
  constexpr int kThreads = 3;
  constexpr int kRounds = 2000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      Node node(*pair.fabric);
      auto local = must(node.worker->allocate(64));
      auto connection = must(node.worker->connect(pair.address, {}, 5s));
      ASSERT_TRUE(node.drive([&] { return node.connects > 0; }));
      std::uint64_t guess = 0;
      for (int i = 0; i < kRounds; ++i) {
        const Operation add{Op::fetch_add, 0, local.data(), 0, 1, 0};
        ASSERT_TRUE(connection->post({&add, 1}, 0).ok());
        const auto before = node.completions.size();
        ASSERT_TRUE(node.drive([&] { return node.completions.size() > before; }));
        for (bool done = false; !done;) {
          const Operation swap{Op::compare_swap, 8, local.data() + 8, 0, guess + 1, guess};
          ASSERT_TRUE(connection->post({&swap, 1}, 0).ok());
          const auto seen = node.completions.size();
          ASSERT_TRUE(node.drive([&] { return node.completions.size() > seen; }));
          std::uint64_t old = 0;
          std::memcpy(&old, local.data() + 8, 8);
          done = old == guess;
          guess = done ? guess + 1 : old;
        }
      }
    });
  }
  Node owner(*pair.fabric);
  auto local = must(owner.worker->allocate(64));
  auto loopback = must(owner.worker->connect_loopback(*pair.server.region));
  EXPECT_EQ(loopback->remote_region_length(), Pair::kRegion);
  for (int i = 0; i < kRounds; ++i) {
    const Operation add{Op::fetch_add, 0, local.data(), 0, 1, 0};
    ASSERT_TRUE(loopback->post({&add, 1}, 0).ok());
    const auto before = owner.completions.size();
    ASSERT_TRUE(owner.drive([&] { return owner.completions.size() > before; }));
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(pair.remote(0), static_cast<std::uint64_t>((kThreads + 1) * kRounds));
  EXPECT_EQ(pair.remote(8), static_cast<std::uint64_t>(kThreads * kRounds));
  loopback.reset();
}

TEST_P(FabricContract, EndOfAConnectionCompletesWhatIsPostedAndIsToldOnce) {
  Pair pair(GetParam());
  pair.connect();
  pair.server.stop();
  // Posted to a target that does nothing any more: over shared memory they run all the same, else they fail.
  for (std::uint64_t i = 0; i < 10; ++i) {
    const Operation read{Op::read, 0, pair.local.data() + i * 8, 8, 0, 0};
    ASSERT_TRUE(pair.connection->post({&read, 1}, i).ok());
  }
  pair.server.accepted.clear();
  ASSERT_TRUE(pair.client.drive([&] { return pair.client.disconnects > 0; }));
  ASSERT_EQ(pair.client.completions.size(), 10U);
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_EQ(pair.client.completions[i].cookie, i);
  EXPECT_FALSE(pair.client.drive([&] { return pair.client.disconnects > 1; }, 50ms));
  const Operation read{Op::read, 0, pair.local.data(), 8, 0, 0};
  EXPECT_EQ(pair.run({&read, 1}), ENOTCONN);
  const auto sent = pair.connection->send(bytes_of("x"));
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().code, ENOTCONN);
}

/// A fence: from the moment the server has destroyed its connection no chain of that client changes the region.
TEST_P(FabricContract, DestroyedConnectionChangesNothingMore) {
  Pair pair(GetParam());
  pair.connect();
  pair.server.stop();
  pair.server.accepted.clear();
  pair.server.start();
  const Operation add{Op::fetch_add, 0, pair.local.data(), 0, 1, 0};
  // The client has not looked at its events: it believes the connection to live.
  EXPECT_NE(pair.run({&add, 1}), 0);
  EXPECT_EQ(pair.remote(0), 0U);
  EXPECT_TRUE(pair.client.drive([&] { return pair.client.disconnects == 1; }));
}

TEST_P(FabricContract, ServerHearsOfAClientThatLeaves) {
  Pair pair(GetParam());
  pair.server.drop_ended = true;
  pair.connect();
  pair.connection.reset();
  EXPECT_TRUE(pair.client.drive([&] { return pair.server.disconnects == 1; }));
  pair.server.stop();
  EXPECT_TRUE(pair.server.accepted.empty());
}

TEST_P(FabricContract, WakeEndsAWait) {
  Pair pair(GetParam());
  (void)pair.client.drive([] { return false; }, 20ms);
  const auto start = Clock::now();
  std::thread waker([&] {
    std::this_thread::sleep_for(50ms);
    pair.client.worker->wake();
  });
  pair.client.worker->wait(10s);
  waker.join();
  EXPECT_LT(Clock::now() - start, 5s);
  const auto timed = Clock::now();
  (void)pair.client.worker->progress();
  pair.client.worker->wait(30ms);
  EXPECT_LT(Clock::now() - timed, 2s);
}

TEST_P(FabricContract, NoDescriptorIsLeftBehind) {
  Pair pair(GetParam());
  pair.server.drop_ended = true;
  pair.server.start();
  int before = 0;
  constexpr int kCycles = 200;
  for (int i = 0; i < kCycles; ++i) {
    auto connection = must(pair.client.worker->connect(pair.address, {}, 5s));
    const int connects = pair.client.connects;
    ASSERT_TRUE(pair.client.drive([&] { return pair.client.connects > connects; }));
    const Operation add{Op::fetch_add, 0, pair.local.data(), 0, 1, 0};
    ASSERT_TRUE(connection->post({&add, 1}, 1).ok());
    const auto completions = pair.client.completions.size();
    ASSERT_TRUE(pair.client.drive([&] { return pair.client.completions.size() > completions; }));
    connection.reset();
    ASSERT_TRUE(pair.client.drive([&] { return pair.server.disconnects == i + 1; }));
    if (i == 9) before = open_descriptors();
  }
  (void)pair.client.drive([] { return false; }, 100ms);
  EXPECT_LE(open_descriptors(), before);
  EXPECT_EQ(pair.remote(0), static_cast<std::uint64_t>(kCycles));
}

TEST(Fabric, UnknownKindIsRefused) {
  const auto fabric = open({"carrier pigeon", ""});
  ASSERT_FALSE(fabric.ok());
  EXPECT_EQ(fabric.error().code, EINVAL);
}

}  // namespace
}  // namespace distfuse::fabric::test
