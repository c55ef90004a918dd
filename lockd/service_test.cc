// SPDX-License-Identifier: Apache-2.0
// The service over the ucx fabric (lo and shared memory), with clients in this process.
#include "lockd/service.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "lockd/testing/raw_client.h"

namespace distfuse::lockd {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using testing::RawClient;
using testing::RawClientOptions;

const std::string kCluster = "00112233445566778899aabbccddeeff";
constexpr std::uint64_t kMax = ~0ULL;

/// Refuses to fence while `away`; notes who was fenced.
class TestStorage : public Storage {
 public:
  struct State {
    std::atomic<bool> away{false};
    std::atomic<int> fenced{0};
    std::atomic<int> attempts{0};
  };
  explicit TestStorage(std::shared_ptr<State> state) : state_(std::move(state)) {}
  Status fence(SessionId /*session*/) override {
    ++state_->attempts;
    if (state_->away) return Error{ECONNREFUSED, "the test says no"};
    ++state_->fenced;
    return {};
  }

 private:
  std::shared_ptr<State> state_;
};

class ServiceTest : public ::testing::Test {
 protected:
  void start(std::uint32_t slots = 1024, DaemonLimits limits = {}) {
    ServiceOptions options;
    options.cluster_id = kCluster;
    options.fabric = {"ucx", "lo"};
    options.listen = "127.0.0.1:0";
    options.slots = slots;
    options.limits = limits;
    auto service = Service::create(options, std::make_unique<TestStorage>(storage_));
    ASSERT_TRUE(service.ok()) << service.error().message;
    service_ = std::move(service).value();
    thread_ = std::thread([this] { service_->run(); });
  }
  void TearDown() override {
    if (!service_) return;
    service_->stop();
    thread_.join();
  }
  RawClientOptions options(const std::string& name) {
    RawClientOptions options;
    options.lockd = service_->address();
    options.cluster_id = kCluster;
    options.name = name;
    return options;
  }
  std::unique_ptr<RawClient> client(const std::string& name = "raw") {
    auto client = RawClient::connect(options(name));
    EXPECT_TRUE(client.ok()) << (client.ok() ? "" : client.error().message);
    return client.ok() ? std::move(client).value() : nullptr;
  }
  json status() {
    const auto text = service_->status();
    EXPECT_TRUE(text.ok());
    return json::parse(*text);
  }
  /// Until `good` of the status holds.
  bool eventually(const std::function<bool(const json&)>& good) {
    for (int i = 0; i < 500; ++i) {
      if (good(status())) return true;
      std::this_thread::sleep_for(10ms);
    }
    ADD_FAILURE() << status().dump(2);
    return false;
  }

  /// Runs both clients, in turns, until `done`.
  static bool together(RawClient& a, RawClient& b, const std::function<bool()>& done) {
    const auto until = std::chrono::steady_clock::now() + 10s;
    while (!done() && std::chrono::steady_clock::now() < until) {
      a.run_for(0ms);
      b.run_for(1ms);
    }
    return done();
  }

  std::shared_ptr<TestStorage::State> storage_ = std::make_shared<TestStorage::State>();
  std::unique_ptr<Service> service_;
  std::thread thread_;
};

TEST_F(ServiceTest, UncontendedLocksSendNothing) {
  start();
  auto a = client();
  ASSERT_TRUE(a);
  const auto before = status()["counters"];
  for (std::uint64_t ino = 1; ino <= 200; ++ino) {
    const auto key = df_key_inode(ino);
    ASSERT_TRUE(a->acquire(key, ino % 2 == 0 ? DF_X : DF_S));
    a->unpin(key);
    ASSERT_TRUE(a->drop(key));
  }
  EXPECT_EQ(status()["counters"]["messages"], before["messages"]);
  EXPECT_EQ(status()["held"]["x"], 0);
  EXPECT_EQ(status()["slots_used"], 200);
}

TEST_F(ServiceTest, ExclusiveGoesToAndFroAndCarriesItsValue) {
  start();
  const auto key = df_key_inode(7);
  constexpr int kClients = 3, kRounds = 150;
  std::atomic<int> inside{0}, finished{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kClients; ++t)
    threads.emplace_back([&] {
      auto mine = client();
      ASSERT_TRUE(mine);
      for (int i = 0; i < kRounds; ++i) {
        ASSERT_TRUE(mine->acquire(key, DF_X));
        ASSERT_EQ(inside.fetch_add(1), 0);
        mine->set_value(key, mine->value(key) + 1);
        inside.fetch_sub(1);
        mine->unpin(key);
        if (i % 10 == 0) mine->run_for(0ms);
      }
      ++finished;
      // Serves the others' revokes until all are done.
      ASSERT_TRUE(mine->run_until([&] { return finished == kClients; }, 60s));
      if (!mine->bye()) ADD_FAILURE() << "bye";
    });
  for (auto& thread : threads) thread.join();
  auto last = client();
  ASSERT_TRUE(last->acquire(key, DF_S));
  EXPECT_EQ(last->value(key), static_cast<std::uint64_t>(kClients * kRounds));
  EXPECT_EQ(storage_->fenced, 0);
}

TEST_F(ServiceTest, SharersDoNotDisturbEachOtherAndAnUpgradeRevokesThem) {
  start();
  const auto key = df_key_inode(7);
  auto a = client("a"), b = client("b");
  ASSERT_TRUE(a->acquire(key, DF_S));
  ASSERT_TRUE(b->acquire(key, DF_S));
  EXPECT_EQ(a->asks + b->asks, 0U);
  EXPECT_EQ(status()["held"]["s"], 2);
  b->unpin(key);
  a->unpin(key);
  a->want(key, DF_X);
  ASSERT_TRUE(together(*a, *b, [&] { return a->pinned(key); }));
  EXPECT_EQ(b->held(key), DF_NL);
  EXPECT_EQ(status()["held"]["x"], 1);
  EXPECT_EQ(status()["held"]["s"], 0);
  // Back: the writer keeps S when a reader comes.
  a->set_value(key, 41);
  a->unpin(key);
  b->want(key, DF_S);
  ASSERT_TRUE(together(*a, *b, [&] { return b->pinned(key); }));
  EXPECT_EQ(a->held(key), DF_S);
  EXPECT_EQ(b->value(key), 41U);
  EXPECT_EQ(status()["held"]["s"], 2);
  EXPECT_TRUE(eventually([](const json& s) { return s["contended"] == 0; }));
}

TEST_F(ServiceTest, TwoUpgradersBothGetThrough) {
  start();
  const auto key = df_key_inode(3);
  auto a = client("a"), b = client("b");
  for (auto* each : {a.get(), b.get()}) {
    ASSERT_TRUE(each->acquire(key, DF_S));
    each->unpin(key);
  }
  a->want(key, DF_X);
  b->want(key, DF_X);
  ASSERT_TRUE(together(*a, *b, [&] { return a->pinned(key) || b->pinned(key); }));
  ASSERT_NE(a->pinned(key), b->pinned(key));
  auto* winner = a->pinned(key) ? a.get() : b.get();
  auto* loser = winner == a.get() ? b.get() : a.get();
  winner->unpin(key);
  ASSERT_TRUE(together(*a, *b, [&] { return loser->pinned(key); }));
  EXPECT_EQ(winner->held(key), DF_NL);
}

TEST_F(ServiceTest, WaitersAreServedInTheOrderTheyCame) {
  start();
  const auto key = df_key_inode(11);
  auto holder = client("holder");
  ASSERT_TRUE(holder->acquire(key, DF_X));
  std::vector<std::unique_ptr<RawClient>> waiters;
  for (int i = 0; i < 5; ++i) {
    waiters.push_back(client("w" + std::to_string(i)));
    waiters.back()->want(key, DF_X);
    waiters.back()->run_until([&] { return waiters.back()->asks == 1; }, 5s);
    ASSERT_TRUE(eventually([&](const json& s) { return s["waiters"] == i + 1; }));
    holder->run_for(2ms);
  }
  EXPECT_EQ(status()["contended"], 1);
  EXPECT_EQ(status()["contended_slots"][0]["waiters"], json({2, 3, 4, 5, 6}));
  holder->unpin(key);
  for (std::size_t turn = 0; turn < waiters.size(); ++turn) {
    for (int i = 0; i < 2000 && !waiters[turn]->pinned(key); ++i) {
      holder->run_for(0ms);
      for (auto& waiter : waiters) waiter->run_for(0ms);
      std::this_thread::sleep_for(1ms);
    }
    ASSERT_TRUE(waiters[turn]->pinned(key)) << "turn " << turn;
    for (std::size_t later = turn + 1; later < waiters.size(); ++later)
      ASSERT_FALSE(waiters[later]->pinned(key));
    waiters[turn]->unpin(key);
  }
}

TEST_F(ServiceTest, AGlimpseMakesTheWriterPublishAndKeepItsLock) {
  start();
  const auto key = df_key_inode(5);
  auto writer = client("writer"), reader = client("reader");
  // The reader learns the slot.
  ASSERT_TRUE(reader->acquire(key, DF_S));
  reader->unpin(key);
  ASSERT_TRUE(reader->drop(key));
  ASSERT_TRUE(writer->acquire(key, DF_X));
  writer->set_value(key, 1234);
  std::thread serving([&] { writer->run_for(1s); });
  const auto reply = reader->glimpse(key);
  serving.join();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->status, DF_GLIMPSE_OK);
  EXPECT_EQ(reply->fresh, 1);
  EXPECT_EQ(reply->value.size, 1234U);
  EXPECT_EQ(writer->held(key), DF_X);
}

TEST_F(ServiceTest, MoreKeysThanSlots) {
  start(64);  // 8 buckets of 8, 16 overflow slots.
  std::atomic<int> finished{0};
  constexpr int kClients = 2, kKeys = 400;
  std::vector<std::thread> threads;
  std::vector<std::uint64_t> sums(kClients, 0);
  for (int t = 0; t < kClients; ++t)
    threads.emplace_back([&, t] {
      auto mine = client();
      ASSERT_TRUE(mine);
      std::mt19937_64 random(static_cast<std::uint64_t>(t));
      for (int i = 0; i < 1200; ++i) {
        const auto key = df_key_inode(1 + random() % kKeys);
        ASSERT_TRUE(mine->acquire(key, random() % 2 == 0 ? DF_X : DF_S))
            << "client " << t << " step " << i;
        mine->unpin(key);
      }
      sums[static_cast<std::size_t>(t)] = mine->finds;
      ++finished;
      ASSERT_TRUE(mine->run_until([&] { return finished == kClients; }, 60s));
      EXPECT_TRUE(mine->bye());
    });
  for (auto& thread : threads) thread.join();
  EXPECT_GT(sums[0] + sums[1], 0U);
  const auto end = status();
  EXPECT_GT(end["counters"]["rekeys"], 0);
  EXPECT_GT(end["overflow_used"], 0);
  EXPECT_EQ(end["held"]["x"], 0) << end.dump(2);
  EXPECT_EQ(end["held"]["s"], 0);
}

TEST_F(ServiceTest, FileLocksAreFreedByDeathButOnlyAfterTheFence) {
  start();
  storage_->away = true;
  auto a = client("a"), b = client("b");
  const auto held = a->file_send(DF_MSG_FILE_LOCK, 5, 1, DF_FILE_WRITE, 0, 0, kMax);
  ASSERT_EQ(a->file_reply(held)->error, 0);
  EXPECT_EQ(b->file_reply(b->file_send(DF_MSG_FILE_LOCK, 5, 1, DF_FILE_WRITE, 0, 0, 9))->error,
            EAGAIN);
  const auto waiting = b->file_send(DF_MSG_FILE_LOCK, 5, 1, DF_FILE_WRITE, DF_FILE_WAIT, 0, 9);
  EXPECT_FALSE(b->file_reply(waiting, 50ms));
  a.reset();  // No Bye.
  ASSERT_TRUE(eventually([&](const json& s) {
    return s["sessions"].size() == 2 && s["sessions"][0]["state"] == "fencing" &&
           storage_->attempts > 1;
  }));
  EXPECT_FALSE(b->file_reply(waiting, 50ms)) << "given away before the fence";
  storage_->away = false;
  const auto granted = b->file_reply(waiting);
  ASSERT_TRUE(granted);
  EXPECT_EQ(granted->error, 0);
  EXPECT_EQ(storage_->fenced, 1);
  EXPECT_TRUE(eventually([](const json& s) { return s["sessions"].size() == 1; }));
}

TEST_F(ServiceTest, ALostHoldersLocksGoOnOnlyAfterTheFence) {
  start();
  storage_->away = true;
  const auto key = df_key_inode(5);
  auto a = client("a"), b = client("b");
  ASSERT_TRUE(a->acquire(key, DF_X));
  a->set_value(key, 99);
  a.reset();
  EXPECT_FALSE(b->acquire(key, DF_S, 200ms)) << "given away before the fence";
  storage_->away = false;
  ASSERT_TRUE(b->acquire(key, DF_X));
  EXPECT_EQ(b->value(key), 0U) << "the dead one's value was never published";
}

int dial(const std::string& address) {
  const auto colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(std::stoi(address.substr(colon + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) {
    ::close(fd);
    return -1;
  }
  return fd;
}

TEST_F(ServiceTest, GarbageOnThePortDisturbsNobody) {
  start();
  auto good = client("good");
  std::mt19937_64 random(20);
  std::vector<int> silent;
  for (int i = 0; i < 60; ++i) {
    const int fd = dial(service_->address());
    ASSERT_GE(fd, 0);
    std::vector<std::uint64_t> junk(1 + random() % 700);
    for (auto& word : junk) word = random();
    (void)!::send(fd, junk.data(), junk.size() * 8, MSG_NOSIGNAL);
    if (i % 6 == 0)
      silent.push_back(fd);
    else
      ::close(fd);
    const auto key = df_key_inode(1 + static_cast<std::uint64_t>(i));
    ASSERT_TRUE(good->acquire(key, DF_X));
    good->unpin(key);
  }
  for (const int fd : silent) ::close(fd);
  EXPECT_FALSE(good->lost());
  EXPECT_TRUE(client("another"));
}

TEST_F(ServiceTest, StrangersAreRefused) {
  start();
  auto other = options("other");
  other.cluster_id = "ff112233445566778899aabbccddeeff";
  const auto cluster = RawClient::connect(other);
  ASSERT_FALSE(cluster.ok());
  EXPECT_NE(cluster.error().message.find("refusal 2"), std::string::npos)
      << cluster.error().message;
  auto newer = options("newer");
  newer.version = DF_WIRE_VERSION + 1;
  const auto version = RawClient::connect(newer);
  ASSERT_FALSE(version.ok());
  EXPECT_NE(version.error().message.find("refusal 1"), std::string::npos)
      << version.error().message;
  EXPECT_TRUE(
      eventually([](const json& s) { return s["connections"] == 0 && s["sessions"].empty(); }));
}

TEST_F(ServiceTest, ALaneWithAWrongTokenIsRefusedAndItsSessionDoesNotNotice) {
  start();
  const auto key = df_key_inode(5);
  auto good = client("good"), other = client("other");
  ASSERT_TRUE(good->acquire(key, DF_X));
  EXPECT_NE(good->token(), other->token());
  auto wrong = options("thief");
  // Its own session and its own token would do; with any other it gets no lane.
  wrong.lane_token = good->token();
  for (int i = 0; i < 20; ++i) {
    const auto thief = RawClient::connect(wrong);
    ASSERT_FALSE(thief.ok());
    EXPECT_NE(thief.error().message.find("refusal 4"), std::string::npos) << thief.error().message;
    wrong.lane_session = good->welcome().session;
    wrong.lane_token = i % 2 == 0 ? SessionToken{} : other->token();
  }
  EXPECT_FALSE(good->lost());
  EXPECT_FALSE(other->acquire(key, DF_S, 200ms));
  good->unpin(key);
  ASSERT_TRUE(together(*good, *other, [&, wanted = false]() mutable {
    if (!std::exchange(wanted, true)) other->want(key, DF_S);
    return other->pinned(key);
  }));
  const auto now = status();
  EXPECT_EQ(now["sessions"].size(), 2U);
  for (const auto& session : now["sessions"]) EXPECT_EQ(session["lanes"], 1) << now.dump(2);
  EXPECT_EQ(now.dump().find("token"), std::string::npos) << "a secret has no place in the status";
}

TEST_F(ServiceTest, MalformedMessagesLoseTheirSenderAlone) {
  start();
  auto good = client("good");
  std::mt19937_64 random(21);
  for (int i = 0; i < 20; ++i) {
    auto bad = client("bad");
    ASSERT_TRUE(bad);
    std::vector<std::byte> junk(random() % 200);
    for (auto& byte : junk) byte = static_cast<std::byte>(random());
    if (i % 4 == 3)
      ASSERT_TRUE(bad->send_raw_on_lane(junk).ok());
    else
      ASSERT_TRUE(bad->send_raw(junk).ok());
    EXPECT_FALSE(bad->run_until([] { return false; }, 3s));
    EXPECT_TRUE(bad->lost());
    const auto key = df_key_inode(1 + static_cast<std::uint64_t>(i));
    ASSERT_TRUE(good->acquire(key, DF_X));
    good->unpin(key);
  }
  EXPECT_TRUE(eventually(
      [&](const json& s) { return s["sessions"].size() == 1 && storage_->fenced == 20; }));
}

TEST_F(ServiceTest, AFloodIsDroppedAndOthersGoOn) {
  DaemonLimits limits;
  limits.asks = 16;
  start(1024, limits);
  auto good = client("good"), bad = client("bad");
  ASSERT_EQ(
      good->file_reply(good->file_send(DF_MSG_FILE_LOCK, 5, 1, DF_FILE_WRITE, 0, 0, kMax))->error,
      0);
  for (int i = 0; i < 100; ++i)
    bad->file_send(DF_MSG_FILE_LOCK, 5, 1, DF_FILE_WRITE, DF_FILE_WAIT, 0, kMax);
  EXPECT_FALSE(bad->run_until([] { return false; }, 3s));
  EXPECT_TRUE(bad->lost());
  EXPECT_EQ(
      good->file_reply(good->file_send(DF_MSG_FILE_UNLOCK, 5, 1, DF_FILE_NONE, 0, 0, kMax))->error,
      0);
}

TEST_F(ServiceTest, AClientThatDoesNotReadIsDropped) {
  DaemonLimits limits;
  limits.asks = 16;
  limits.objects = 16;  // Outgoing: at most 144 messages beyond what the connection takes.
  start(1024, limits);
  auto good = client("good");
  // Each test is answered at once with a message that nobody takes: socket buffers first, then lockd's queue fills.
  df_msg message;
  df_msg_init(&message, DF_MSG_FILE_TEST, 0, df_key_inode(5), 1);
  message.file.end = kMax;
  const auto bytes = std::as_bytes(std::span(message.bytes, message.head.length));
  const auto flood_until_lost = [&](RawClient& deaf) {
    for (const auto end = std::chrono::steady_clock::now() + 5s;
         std::chrono::steady_clock::now() < end;) {
      const auto sent = deaf.send_raw(bytes);
      if (sent.ok()) continue;
      if (sent.error().code != EAGAIN || status()["sessions"].size() == 1) return true;
    }
    return false;
  };
  // Now and then TCP itself stands still once the deaf one's buffer of 30 MB is full: then nothing reaches lockd, and it has nothing to drop.
  bool lost = false;
  std::unique_ptr<RawClient> deaf;  // Still there when its session is gone.
  for (int attempt = 0; attempt < 5 && !lost; ++attempt) {
    deaf = client("deaf");
    lost = flood_until_lost(*deaf);
  }
  EXPECT_TRUE(lost);
  EXPECT_TRUE(eventually([](const json& s) { return s["sessions"].size() == 1; }));
  EXPECT_EQ(
      good->file_reply(good->file_send(DF_MSG_FILE_LOCK, 5, 1, DF_FILE_WRITE, 0, 0, kMax))->error,
      0);
}

TEST_F(ServiceTest, APortInUseIsSaid) {
  start();
  ServiceOptions options;
  options.cluster_id = kCluster;
  options.fabric = {"ucx", "lo"};
  options.listen = service_->address();
  const auto second = Service::create(options, std::make_unique<TestStorage>(storage_));
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, EADDRINUSE);
  EXPECT_NE(second.error().message.find(service_->address()), std::string::npos)
      << second.error().message;
}

}  // namespace
}  // namespace distfuse::lockd
