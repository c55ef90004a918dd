// SPDX-License-Identifier: Apache-2.0
#include "lockd/daemon.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "lockd/testing/array_shell.h"

namespace distfuse::lockd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr df_table kTable{8, 16, DF_NODE_LOCKD};
constexpr std::uint64_t kMax = ~0ULL;

class DaemonTest : public ::testing::Test {
 protected:
  void SetUp() override {
    DaemonOptions options;
    options.incarnation = 3;
    options.cluster.fill(7);
    options.table = kTable;
    options.limits.sessions = {.sessions = 4, .lanes = 2, .node_ids = 16};
    options.limits.asks = 4;
    options.limits.waiters = 32;
    options.limits.objects = 16;
    auto created = Daemon::create(options, shell_);
    ASSERT_TRUE(created.ok()) << created.error().message;
    daemon_ = std::move(created).value();
  }

  static df_hello hello() {
    df_hello made{};
    made.magic = DF_WIRE_MAGIC;
    made.version = DF_WIRE_VERSION;
    made.role = DF_ROLE_CONTROL;
    std::memset(made.cluster, 7, sizeof made.cluster);
    std::memcpy(made.name, "mount\x01", 6);
    return made;
  }
  /// With the token that it was welcomed with.
  df_hello lane_hello(SessionId session) {
    auto made = hello();
    df_hello_join(&made, DF_ROLE_LANE, session, tokens_[session].data());
    return made;
  }
  Daemon::Greeting greet(ConnectionId connection, const df_hello& hello) {
    auto greeting = daemon_->hello(connection, std::as_bytes(std::span(&hello, 1)), "peer");
    if (greeting.verdict == Daemon::Verdict::control)
      tokens_[greeting.welcome.session] = std::to_array(greeting.welcome.token);
    return greeting;
  }
  SessionId join(ConnectionId connection) {
    const auto greeting = greet(connection, hello());
    EXPECT_EQ(greeting.verdict, Daemon::Verdict::control) << greeting.reason;
    return greeting.welcome.session;
  }
  void send(ConnectionId connection, const df_msg& message) {
    daemon_->message(connection, std::as_bytes(std::span(message.bytes, message.head.length)));
  }
  void send_file(ConnectionId connection, df_msg_type type, std::uint64_t seq, df_file_type lock,
                 std::uint8_t flags = 0, std::uint64_t start = 0, std::uint64_t end = kMax) {
    df_msg message;
    df_msg_init(&message, type, 0, df_key_inode(5), seq);
    message.file.owner = 1;
    message.file.start = start;
    message.file.end = end;
    message.file.pid = static_cast<df_s32>(connection);
    message.file.type = lock;
    message.file.flags = flags;
    send(connection, message);
  }
  /// The only message sent since the last call: a FileReply to `connection`.
  df_msg_file_reply file_reply(ConnectionId connection) {
    const auto sent = std::exchange(shell_.sent, {});
    EXPECT_EQ(sent.size(), 1U);
    if (sent.size() != 1) return {};
    EXPECT_EQ(sent[0].first, connection);
    EXPECT_EQ(sent[0].second.head.type, DF_MSG_FILE_REPLY);
    return sent[0].second.file_reply;
  }

  testing::ArrayShell shell_{kTable};
  std::unique_ptr<Daemon> daemon_;
  std::map<SessionId, SessionToken> tokens_;
};

TEST_F(DaemonTest, WelcomeTellsTheTable) {
  const auto greeting = greet(1, hello());
  ASSERT_EQ(greeting.verdict, Daemon::Verdict::control);
  df_welcome read;
  ASSERT_EQ(df_welcome_check(&greeting.welcome, sizeof greeting.welcome, &read), DF_CHECK_OK);
  EXPECT_EQ(read.slots, 80U);
  EXPECT_EQ(read.incarnation, 3U);
  EXPECT_EQ(read.node, 1U);
  EXPECT_EQ(read.asks, 4U);
  EXPECT_EQ(read.lease_ms, 0U);
  // One of another version is told from a torn one, whatever its length; one without a token is nobody's.
  auto other = greeting.welcome;
  other.version = DF_WIRE_VERSION - 1;
  EXPECT_EQ(df_welcome_check(&other, 72, &read), DF_CHECK_VERSION);
  EXPECT_EQ(read.version, DF_WIRE_VERSION - 1);
  EXPECT_EQ(df_welcome_check(&greeting.welcome, 72, &read), DF_CHECK_SHORT);
  other = greeting.welcome;
  std::memset(other.token, 0, sizeof other.token);
  EXPECT_EQ(df_welcome_check(&other, sizeof other, &read), DF_CHECK_FIELD);
  read = greeting.welcome;
  const auto lane = greet(2, lane_hello(read.session));
  EXPECT_EQ(lane.verdict, Daemon::Verdict::lane);
  EXPECT_EQ(lane.welcome.node, 1U);
  EXPECT_EQ(daemon_->sessions().find(read.session)->name, "mount?");
}

TEST_F(DaemonTest, WrongHellosAreRefusedOrRejected) {
  auto version = hello();
  version.version = DF_WIRE_VERSION + 1;
  EXPECT_EQ(greet(1, version).welcome.refusal, DF_REFUSED_VERSION);
  auto cluster = hello();
  cluster.cluster[15] = 8;
  EXPECT_EQ(greet(2, cluster).welcome.refusal, DF_REFUSED_CLUSTER);
  EXPECT_EQ(greet(3, lane_hello(99)).welcome.refusal, DF_REFUSED_SESSION);
  auto magic = hello();
  magic.magic = 1;
  EXPECT_EQ(greet(4, magic).verdict, Daemon::Verdict::reject);
  const auto whole = hello();
  for (std::size_t length = 0; length < sizeof whole; ++length)
    EXPECT_EQ(daemon_->hello(5, std::as_bytes(std::span(&whole, 1)).first(length), "p").verdict,
              Daemon::Verdict::reject);
  for (ConnectionId c = 10; c < 14; ++c) join(c);
  EXPECT_EQ(greet(14, hello()).welcome.refusal, DF_REFUSED_NO_NODE_ID);
  EXPECT_EQ(daemon_->sessions().all().size(), 4U);
}

TEST_F(DaemonTest, LossClosesThenFencesThenFrees) {
  const auto first = join(1);
  greet(11, lane_hello(first));
  join(2);
  send_file(1, DF_MSG_FILE_LOCK, 1, DF_FILE_WRITE);
  EXPECT_EQ(file_reply(1).error, 0);
  send_file(2, DF_MSG_FILE_LOCK, 7, DF_FILE_WRITE, DF_FILE_WAIT);
  EXPECT_THAT(shell_.sent, IsEmpty());
  daemon_->connection_ended(1, "killed");
  EXPECT_THAT(shell_.closed, UnorderedElementsAre(11));
  EXPECT_THAT(shell_.to_fence, ElementsAre(first));
  EXPECT_THAT(shell_.sent, IsEmpty()) << "given away before the fence";
  EXPECT_EQ(greet(12, lane_hello(first)).welcome.refusal, DF_REFUSED_SESSION);
  daemon_->fenced(first);
  const auto reply = file_reply(2);
  EXPECT_EQ(reply.error, 0);
  EXPECT_EQ(reply.head.seq, 7U);
  EXPECT_EQ(df_key_split_inode(reply.head.key), 5U);
  EXPECT_EQ(daemon_->sessions().find(first), nullptr);
}

TEST_F(DaemonTest, ByeNeedsNoFence) {
  const auto first = join(1);
  greet(11, lane_hello(first));
  join(2);
  send_file(1, DF_MSG_FILE_LOCK, 1, DF_FILE_READ);
  (void)file_reply(1);
  send_file(2, DF_MSG_FILE_LOCK, 7, DF_FILE_WRITE, DF_FILE_WAIT);
  df_msg bye;
  df_msg_init(&bye, DF_MSG_BYE, 0, 0, 0);
  send(1, bye);
  EXPECT_THAT(shell_.closed, UnorderedElementsAre(1, 11));
  EXPECT_THAT(shell_.to_fence, IsEmpty());
  EXPECT_EQ(file_reply(2).error, 0);
}

TEST_F(DaemonTest, FileLocksAnswerAsAsked) {
  join(1);
  join(2);
  send_file(1, DF_MSG_FILE_LOCK, 1, DF_FILE_WRITE, 0, 10, 19);
  EXPECT_EQ(file_reply(1).error, 0);
  send_file(2, DF_MSG_FILE_LOCK, 2, DF_FILE_READ, 0, 15, 15);
  EXPECT_EQ(file_reply(2).error, EAGAIN);
  send_file(2, DF_MSG_FILE_TEST, 3, DF_FILE_READ);
  const auto conflict = file_reply(2);
  EXPECT_EQ(conflict.type, DF_FILE_WRITE);
  EXPECT_EQ(conflict.start, 10U);
  EXPECT_EQ(conflict.end, 19U);
  EXPECT_EQ(conflict.pid, 1);
  send_file(2, DF_MSG_FILE_LOCK, 4, DF_FILE_READ, DF_FILE_WAIT);
  df_msg cancel;
  df_msg_init(&cancel, DF_MSG_FILE_CANCEL, 0, 0, 4);
  send(2, cancel);
  EXPECT_EQ(file_reply(2).error, EINTR);
  send(2, cancel);  // Too late: nothing.
  EXPECT_THAT(shell_.sent, IsEmpty());
  send_file(1, DF_MSG_FILE_UNLOCK, 5, DF_FILE_NONE);
  EXPECT_EQ(file_reply(1).error, 0);
  send_file(2, DF_MSG_FILE_TEST, 6, DF_FILE_WRITE);
  EXPECT_EQ(file_reply(2).type, DF_FILE_NONE);
  EXPECT_THAT(shell_.to_fence, IsEmpty());
}

TEST_F(DaemonTest, RuleBreakersAloneAreLost) {
  const auto bad = join(1);
  join(2);
  std::vector<std::byte> junk(33, std::byte{0xee});
  daemon_->message(1, junk);
  EXPECT_THAT(shell_.closed, UnorderedElementsAre(1));
  EXPECT_THAT(shell_.to_fence, ElementsAre(bad));
  daemon_->message(1, junk);  // Nobody listens any more.
  EXPECT_EQ(daemon_->counters().malformed, 1U);
  send_file(2, DF_MSG_FILE_LOCK, 1, DF_FILE_WRITE);
  EXPECT_EQ(file_reply(2).error, 0);
}

TEST_F(DaemonTest, AMessageForClientsLosesTheSession) {
  const auto first = join(1);
  df_msg grant;
  df_msg_init(&grant, DF_MSG_REVOKE, 0, 1 << 24, 1);
  grant.revoke.wanted = DF_X;
  send(1, grant);
  EXPECT_THAT(shell_.to_fence, ElementsAre(first));
}

TEST_F(DaemonTest, AMessageOnALaneLosesTheSession) {
  const auto session = join(1);
  greet(12, lane_hello(session));
  df_msg bye;
  df_msg_init(&bye, DF_MSG_BYE, 0, 0, 0);
  send(12, bye);
  EXPECT_THAT(shell_.closed, UnorderedElementsAre(1, 12));
  EXPECT_THAT(shell_.to_fence, ElementsAre(session));
  EXPECT_EQ(daemon_->counters().malformed, 1U);
}

TEST_F(DaemonTest, ALaneNeedsTheSessionsToken) {
  const auto mine = join(1), other = join(2);
  EXPECT_NE(tokens_[mine], tokens_[other]);
  EXPECT_NE(tokens_[mine], SessionToken{});
  std::vector<SessionToken> wrong{SessionToken{}, tokens_[other]};
  for (std::size_t byte = 0; byte < wrong[0].size(); ++byte)
    for (const int bit : {0x01, 0x80}) {
      wrong.push_back(tokens_[mine]);
      wrong.back()[byte] = static_cast<std::uint8_t>(wrong.back()[byte] ^ bit);
    }
  ConnectionId lane = 100;
  for (const auto& token : wrong) {
    auto bad = hello();
    df_hello_join(&bad, DF_ROLE_LANE, mine, token.data());
    const auto greeting = greet(lane++, bad);
    EXPECT_EQ(greeting.verdict, Daemon::Verdict::refuse);
    EXPECT_EQ(greeting.welcome.refusal, DF_REFUSED_SESSION);
    EXPECT_EQ(std::to_array(greeting.welcome.token), SessionToken{}) << "a refusal tells nothing";
    EXPECT_NE(greeting.reason.find("token"), std::string::npos) << greeting.reason;
  }
  EXPECT_TRUE(daemon_->sessions().find(mine)->lanes.empty());
  EXPECT_THAT(shell_.closed, IsEmpty());
  EXPECT_THAT(shell_.to_fence, IsEmpty());
  // Nor does it take up the room of the true ones.
  EXPECT_EQ(greet(lane++, lane_hello(mine)).verdict, Daemon::Verdict::lane);
  EXPECT_EQ(greet(lane++, lane_hello(mine)).verdict, Daemon::Verdict::lane);
  // A session that is live is not re-asserted, whoever asks.
  auto again = hello();
  df_hello_join(&again, DF_ROLE_CONTROL, mine, tokens_[mine].data());
  EXPECT_EQ(greet(lane++, again).welcome.refusal, DF_REFUSED_SESSION);
  EXPECT_EQ(daemon_->sessions().find(mine)->state, SessionState::live);
}

TEST_F(DaemonTest, AFloodOfRequestsLosesTheSession) {
  join(1);
  const auto flood = join(2);
  send_file(1, DF_MSG_FILE_LOCK, 1, DF_FILE_WRITE);
  for (std::uint64_t seq = 1; seq <= 4; ++seq)
    send_file(2, DF_MSG_FILE_LOCK, seq, DF_FILE_WRITE, DF_FILE_WAIT);
  EXPECT_THAT(shell_.to_fence, IsEmpty());
  send_file(2, DF_MSG_FILE_LOCK, 5, DF_FILE_WRITE, DF_FILE_WAIT);
  EXPECT_THAT(shell_.to_fence, ElementsAre(flood));
  const auto again = join(3);
  send_file(3, DF_MSG_FILE_LOCK, 1, DF_FILE_WRITE, DF_FILE_WAIT);
  send_file(3, DF_MSG_FILE_LOCK, 1, DF_FILE_WRITE, DF_FILE_WAIT);
  EXPECT_THAT(shell_.to_fence, ElementsAre(flood, again));
}

TEST_F(DaemonTest, AnAskForAFreeSlotIsGranted) {
  join(1);
  const auto key = df_key_inode(9);
  df_msg find;
  df_msg_init(&find, DF_MSG_FIND, 0, key, 1);
  send(1, find);
  shell_.run_chains(*daemon_);
  ASSERT_EQ(shell_.sent.size(), 1U);
  const auto found = std::exchange(shell_.sent, {})[0].second;
  ASSERT_EQ(found.head.type, DF_MSG_FOUND);
  ASSERT_EQ(found.found.status, DF_FOUND_SLOT);
  df_msg ask;
  df_msg_init(&ask, DF_MSG_ASK, found.head.slot, key, 2);
  ask.ask.want = DF_X;
  send(1, ask);
  shell_.run_chains(*daemon_);
  ASSERT_EQ(shell_.sent.size(), 1U);
  EXPECT_EQ(shell_.sent[0].second.head.type, DF_MSG_GRANT);
  EXPECT_EQ(shell_.sent[0].second.grant.mode, DF_X);
  EXPECT_EQ(df_word_owner(shell_.slots[found.head.slot].word), 1U);
}

TEST(ClusterIdText, IsReadOrRefused) {
  EXPECT_TRUE(parse_cluster_id("0123456789abcdefABCDEF0123456789").ok());
  EXPECT_EQ((*parse_cluster_id("0123456789abcdefABCDEF0123456789"))[1], 0x23);
  for (const char* bad :
       {"", "0123456789abcdefABCDEF012345678", "0123456789abcdefABCDEF012345678g"})
    EXPECT_FALSE(parse_cluster_id(bad).ok());
}

}  // namespace
}  // namespace distfuse::lockd
