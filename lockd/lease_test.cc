// SPDX-License-Identifier: Apache-2.0
// Leases and lockd's restart over the ucx fabric, with clients in this process and short leases.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "lockd/service.h"
#include "lockd/testing/raw_client.h"

namespace distfuse::lockd {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using testing::RawClient;
using testing::RawClientOptions;

const std::string kCluster = "00112233445566778899aabbccddeeff";
constexpr std::uint64_t kMax = ~0ULL;
constexpr std::uint32_t kLease = 800;

class TestStorage : public Storage {
 public:
  struct State {
    std::atomic<bool> away{false};
    std::atomic<int> fenced{0};
  };
  explicit TestStorage(std::shared_ptr<State> state) : state_(std::move(state)) {}
  Status fence(SessionId /*session*/) override {
    if (state_->away) return Error{ECONNREFUSED, "the test says no"};
    ++state_->fenced;
    return {};
  }

 private:
  std::shared_ptr<State> state_;
};

class LeaseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = (std::filesystem::temp_directory_path() / "distfuse-lease-XXXXXX").string();
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override {
    stop();
    std::filesystem::remove_all(directory_);
  }
  /// A lockd on the list that the one before has left.
  void start() {
    auto list = SessionLog::open(directory_, kCluster, kLease);
    ASSERT_TRUE(list.ok()) << list.error().message;
    ServiceOptions options;
    options.cluster_id = kCluster;
    options.fabric = {"ucx", "lo"};
    options.listen = "127.0.0.1:0";
    options.slots = 1024;
    options.incarnation = ++incarnation_;
    options.lease_ms = kLease;
    auto service =
        Service::create(options, std::make_unique<TestStorage>(storage_), std::move(list).value());
    ASSERT_TRUE(service.ok()) << service.error().message;
    service_ = std::move(service).value();
    thread_ = std::thread([this] { service_->run(); });
  }
  void stop() {
    if (!service_) return;
    service_->stop();
    thread_.join();
    service_.reset();
  }
  /// `session`: to come back as that one, with the token that it was given.
  RawClientOptions options(const std::string& name, std::uint64_t session = 0) {
    RawClientOptions options;
    options.lockd = service_->address();
    options.cluster_id = kCluster;
    options.name = name;
    options.session = session;
    if (session != 0) options.token = tokens_.at(session);
    return options;
  }
  std::unique_ptr<RawClient> client(const std::string& name, std::uint64_t session = 0) {
    auto client = RawClient::connect(options(name, session));
    EXPECT_TRUE(client.ok()) << (client.ok() ? "" : client.error().message);
    if (!client.ok()) return nullptr;
    (*client)->renew_lease();
    tokens_[(*client)->welcome().session] = (*client)->token();
    return std::move(client).value();
  }
  json status() { return json::parse(*service_->status()); }
  bool eventually(const std::function<bool(const json&)>& good) {
    for (int i = 0; i < 500; ++i) {
      if (good(status())) return true;
      std::this_thread::sleep_for(10ms);
    }
    ADD_FAILURE() << status().dump(2);
    return false;
  }
  /// A restart after a crash: nobody has said Bye.
  void crash_and_start() {
    stop();
    start();
  }

  std::string directory_;
  std::uint32_t incarnation_ = 0;
  std::map<std::uint64_t, SessionToken> tokens_;
  std::shared_ptr<TestStorage::State> storage_ = std::make_shared<TestStorage::State>();
  std::unique_ptr<Service> service_;
  std::thread thread_;
};

TEST_F(LeaseTest, WhoRenewsLivesAndWhoStandsStillLosesItsLocks) {
  start();
  const auto key = df_key_inode(42);
  auto stands = client("stands"), goes = client("goes");
  ASSERT_TRUE(stands && goes);
  ASSERT_TRUE(stands->acquire(key, DF_X));
  const auto began = std::chrono::steady_clock::now();
  // `stands` is connected and does nothing: no renewal, no answer to the Revoke.
  ASSERT_TRUE(goes->acquire(key, DF_X, 8s));
  const auto took = std::chrono::steady_clock::now() - began;
  EXPECT_GE(took, std::chrono::milliseconds(kLease) - 250ms) << "renewed a quarter before at most";
  EXPECT_EQ(storage_->fenced, 1);
  goes->run_for(std::chrono::milliseconds(3 * kLease));
  EXPECT_FALSE(goes->lost());
  const auto now = status();
  EXPECT_EQ(now["counters"]["expired"], 1);
  ASSERT_EQ(now["sessions"].size(), 1U);
  EXPECT_EQ(now["sessions"][0]["state"], "live");
  EXPECT_GT(now["sessions"][0]["lease_left_ms"], 0);
}

TEST_F(LeaseTest, AKilledClientIsNotWaitedFor) {
  start();
  auto a = client("a"), b = client("b");
  ASSERT_TRUE(a && b);
  ASSERT_TRUE(a->acquire(df_key_inode(1), DF_X));
  const auto began = std::chrono::steady_clock::now();
  a.reset();  // Closes its connections, as its kernel would.
  ASSERT_TRUE(b->acquire(df_key_inode(1), DF_X, 5s));
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(kLease / 2));
}

TEST_F(LeaseTest, AfterARestartLocksAreTakenAgainAndThenNewOnesGiven) {
  start();
  std::uint64_t session_a = 0, session_b = 0;
  {
    auto a = client("a"), b = client("b");
    ASSERT_TRUE(a && b);
    session_a = a->welcome().session;
    session_b = b->welcome().session;
    ASSERT_TRUE(a->acquire(df_key_inode(1), DF_X));
    stop();
  }
  start();
  EXPECT_EQ(status()["phase"], "grace");
  EXPECT_EQ(status()["missing"].size(), 2U);
  EXPECT_FALSE(RawClient::connect(options("new")).ok());
  auto liar = options("a", session_a);
  liar.token = tokens_[session_b];
  const auto refused = RawClient::connect(liar);
  ASSERT_FALSE(refused.ok()) << "another's session";
  EXPECT_NE(refused.error().message.find("refusal 4"), std::string::npos)
      << refused.error().message;
  auto a = client("a", session_a);
  ASSERT_TRUE(a);
  EXPECT_EQ(a->welcome().session, session_a);
  EXPECT_EQ(a->welcome().incarnation, 2U);
  EXPECT_GT(a->welcome().grace_ms, 0U);
  EXPECT_TRUE(a->reassert(df_key_inode(1), DF_X));
  const auto reply =
      a->file_reply(a->file_send(DF_MSG_FILE_LOCK, 5, 1, DF_FILE_WRITE, DF_FILE_RECLAIM, 0, kMax));
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->error, 0);
  a->reclaimed();
  a->run_for(50ms);
  EXPECT_FALSE(a->resumed()) << "b is awaited";
  auto b = client("b", session_b);
  ASSERT_TRUE(b);
  b->reclaimed();
  EXPECT_TRUE(b->run_until([&] { return b->resumed(); }, 2s));
  EXPECT_TRUE(a->run_until([&] { return a->resumed(); }, 2s));
  EXPECT_EQ(status()["phase"], "normal");
  EXPECT_EQ(storage_->fenced, 0);
  auto fresh = client("new");
  ASSERT_TRUE(fresh);
  EXPECT_FALSE(fresh->acquire(df_key_inode(1), DF_S, 300ms)) << "a has it, pinned";
  a->unpin(df_key_inode(1));
  ASSERT_TRUE(fresh->welcome().session > session_b);
}

TEST_F(LeaseTest, AnAbsenteeIsFencedBeforeResume) {
  start();
  std::uint64_t session_a = 0, session_b = 0;
  {
    auto a = client("a"), b = client("b");
    ASSERT_TRUE(a && b);
    session_a = a->welcome().session;
    session_b = b->welcome().session;
    stop();
  }
  storage_->away = true;
  start();
  auto a = client("a", session_a);
  ASSERT_TRUE(a);
  a->reclaimed();
  a->run_for(std::chrono::milliseconds(2 * kLease));
  EXPECT_FALSE(a->resumed()) << "b is not fenced yet";
  EXPECT_EQ(status()["phase"], "resuming");
  EXPECT_FALSE(RawClient::connect(options("b", session_b)).ok());
  storage_->away = false;
  EXPECT_TRUE(a->run_until([&] { return a->resumed(); }, 3s));
  EXPECT_EQ(storage_->fenced, 1);
  EXPECT_TRUE(a->acquire(df_key_inode(9), DF_X));
  EXPECT_EQ(status()["sessions"].size(), 1U);
}

TEST_F(LeaseTest, AByeLeavesNoGrace) {
  start();
  {
    auto a = client("a");
    ASSERT_TRUE(a);
    ASSERT_TRUE(a->bye());
  }
  crash_and_start();
  EXPECT_EQ(status()["phase"], "normal");
  EXPECT_TRUE(client("b"));
}

TEST_F(LeaseTest, ManyAtOnceShareTheSyncs) {
  start();
  std::vector<std::thread> threads;
  std::atomic<int> welcomed{0};
  for (int i = 0; i < 16; ++i)
    threads.emplace_back([&, i] {
      auto one = RawClient::connect(options("m" + std::to_string(i)));
      welcomed += one.ok() ? 1 : 0;
      if (one.ok()) (void)(*one)->bye();
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(welcomed, 16);
  EXPECT_TRUE(eventually([](const json& s) { return s["sessions"].empty(); }));
  crash_and_start();
  EXPECT_EQ(status()["phase"], "normal");
}

}  // namespace
}  // namespace distfuse::lockd
