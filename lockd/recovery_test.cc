// SPDX-License-Identifier: Apache-2.0
// Leases, losses and grace of the Daemon, with times handed in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "lockd/daemon.h"
#include "lockd/testing/array_shell.h"

namespace distfuse::lockd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Kind = SessionChange::Kind;
using Phase = Daemon::Phase;

constexpr df_table kTable{8, 16, DF_NODE_LOCKD};
constexpr std::uint32_t kLease = 1000;
constexpr SessionId kOld = std::uint64_t{2} << 32 | 7;

class LeaseShell : public testing::ArrayShell {
 public:
  using ArrayShell::ArrayShell;
  void record(const SessionChange& change) override { records.push_back(change); }
  void greet(ConnectionId connection, const Greeting& greeting) override {
    greetings[connection] = greeting;
  }
  std::uint64_t lease_word(NodeId node) override { return words[node]; }

  std::vector<SessionChange> records;
  std::map<ConnectionId, Greeting> greetings;
  std::map<NodeId, std::uint64_t> words;
};

class RecoveryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    DaemonOptions options;
    options.incarnation = 3;
    options.table = kTable;
    options.limits.sessions = {.sessions = 8, .lanes = 2, .node_ids = 16};
    options.limits.objects = 16;
    options.limits.waiters = 32;
    options.limits.asks = 4;
    options.lease_ms = kLease;
    auto created = Daemon::create(options, shell_);
    ASSERT_TRUE(created.ok()) << created.error().message;
    daemon_ = std::move(created).value();
    at(5000);
  }
  void at(Milliseconds now) {
    now_ = now;
    daemon_->at(now);
    daemon_->tick();
  }
  /// Time goes on; those that live renew.
  void pass(Milliseconds time, const std::vector<NodeId>& renewing = {}) {
    const auto until = now_ + time;
    while (now_ < until) {
      for (const auto node : renewing) ++shell_.words[node];
      at(std::min(now_ + kLease / 8, until));
    }
  }
  /// Of a session on the list, as listed() makes it.
  static SessionToken token_of(SessionId session) {
    SessionToken token;
    token.fill(static_cast<std::uint8_t>(session + 0x40));
    return token;
  }
  static ListedSession listed(SessionId session, NodeId node, bool lost = false) {
    return {session, node, kLease, lost, "mount", token_of(session)};
  }
  Greeting hello(ConnectionId connection) { return hello(connection, 0, {}); }
  Greeting hello(ConnectionId connection, SessionId session, df_role role = DF_ROLE_CONTROL) {
    return hello(connection, session, token_of(session), role);
  }
  Greeting hello(ConnectionId connection, SessionId session, const SessionToken& token,
                 df_role role = DF_ROLE_CONTROL) {
    df_hello made{};
    made.magic = DF_WIRE_MAGIC;
    made.version = DF_WIRE_VERSION;
    made.role = DF_ROLE_CONTROL;
    std::memcpy(made.name, "mount", sizeof("mount"));
    if (session != 0) df_hello_join(&made, role, session, token.data());
    return daemon_->hello(connection, std::as_bytes(std::span(&made, 1)), "peer");
  }
  /// A new session, listed and welcomed.
  df_welcome join(ConnectionId connection) {
    EXPECT_EQ(hello(connection).verdict, Verdict::later);
    EXPECT_EQ(shell_.records.back().kind, Kind::begin);
    daemon_->recorded(Kind::begin, shell_.records.back().session.id, true);
    return shell_.greetings.at(connection).welcome;
  }
  void noted(SessionId id) { daemon_->recorded(Kind::lost, id, true); }
  void say(ConnectionId connection, df_msg_type type) {
    df_msg message;
    df_msg_init(&message, type, 0, 0, 0);
    daemon_->message(connection, std::as_bytes(std::span(message.bytes, message.head.length)));
  }
  void file_lock(ConnectionId connection, std::uint64_t seq, std::uint8_t flags) {
    df_msg message;
    df_msg_init(&message, DF_MSG_FILE_LOCK, 0, df_key_inode(5), seq);
    message.file.owner = 1;
    message.file.end = ~0ULL;
    message.file.type = DF_FILE_WRITE;
    message.file.flags = flags;
    daemon_->message(connection, std::as_bytes(std::span(message.bytes, message.head.length)));
  }
  std::vector<std::pair<ConnectionId, std::uint32_t>> sent() {
    std::vector<std::pair<ConnectionId, std::uint32_t>> types;
    for (const auto& [connection, message] : std::exchange(shell_.sent, {}))
      types.emplace_back(connection, message.head.type);
    return types;
  }
  void recover(const std::vector<ListedSession>& listed) { daemon_->recover(listed); }
  [[nodiscard]] SessionState state(SessionId id) const {
    return std::as_const(*daemon_).sessions().find(id)->state;
  }
  [[nodiscard]] bool gone(SessionId id) const { return daemon_->sessions().find(id) == nullptr; }

  LeaseShell shell_{kTable};
  std::unique_ptr<Daemon> daemon_;
  Milliseconds now_ = 0;
};

TEST_F(RecoveryTest, AWelcomeWaitsForTheListAndNamesTheLease) {
  EXPECT_EQ(hello(1).verdict, Verdict::later);
  EXPECT_THAT(shell_.greetings, IsEmpty());
  const auto id = shell_.records.at(0).session.id;
  daemon_->recorded(Kind::begin, id, true);
  const auto& welcome = shell_.greetings.at(1).welcome;
  EXPECT_EQ(welcome.lease_ms, kLease);
  EXPECT_EQ(welcome.grace_ms, 0U);
  EXPECT_EQ(welcome.lease_offset, df_table_bytes(&kTable) + 8ULL * welcome.node);
  EXPECT_LE(welcome.lease_offset + 8, region_bytes(kTable));
  // One that cannot be listed comes again.
  EXPECT_EQ(hello(2).verdict, Verdict::later);
  daemon_->recorded(Kind::begin, shell_.records.back().session.id, false);
  EXPECT_EQ(shell_.greetings.at(2).welcome.refusal, DF_REFUSED_GRACE);
  EXPECT_EQ(daemon_->sessions().all().size(), 1U);
}

TEST_F(RecoveryTest, ALeaseThatIsRenewedLivesAndOneThatIsNotEnds) {
  const auto good = join(1), bad = join(2);
  pass(10 * kLease, {static_cast<NodeId>(good.node), static_cast<NodeId>(bad.node)});
  EXPECT_THAT(shell_.to_fence, IsEmpty());
  pass(kLease - 1, {static_cast<NodeId>(good.node)});
  EXPECT_THAT(shell_.to_fence, IsEmpty()) << "before its deadline";
  pass(kLease / 8 + 1, {static_cast<NodeId>(good.node)});
  EXPECT_THAT(shell_.closed, ElementsAre(2));
  EXPECT_EQ(daemon_->counters().expired, 1U);
  EXPECT_THAT(shell_.to_fence, IsEmpty())
      << "before its loss is on the list: the next lockd would take it back";
  noted(bad.session);
  EXPECT_THAT(shell_.to_fence, ElementsAre(bad.session));
  EXPECT_FALSE(gone(bad.session)) << "before the fence";
  daemon_->fenced(bad.session);
  EXPECT_TRUE(gone(bad.session));
  EXPECT_EQ(shell_.records.back().kind, Kind::end);
  EXPECT_EQ(state(good.session), SessionState::live);
}

TEST_F(RecoveryTest, AfterADeathNobodyWaitsForTheDeadline) {
  const auto dead = join(1);
  daemon_->connection_ended(1, "closed", true);
  noted(dead.session);
  daemon_->fenced(dead.session);
  EXPECT_TRUE(gone(dead.session));
}

TEST_F(RecoveryTest, AfterAnUnknownEndTheDeadlinePassesFirst) {
  const auto cut = join(1);
  pass(kLease / 2, {static_cast<NodeId>(cut.node)});
  ++shell_.words[static_cast<NodeId>(cut.node)];  // Landed before the connections were destroyed.
  daemon_->at(now_ + 10);
  const auto deadline = now_ + 10 + kLease;
  daemon_->connection_ended(1, "timed out", false);
  noted(cut.session);
  daemon_->fenced(cut.session);
  EXPECT_EQ(state(cut.session), SessionState::waiting);
  EXPECT_EQ(daemon_->wake_at(), deadline);
  at(deadline - 1);
  EXPECT_FALSE(gone(cut.session));
  at(deadline);
  EXPECT_TRUE(gone(cut.session));
}

TEST_F(RecoveryTest, ARuleBreakerKeepsItsLocksUntilItsDeadline) {
  const auto bad = join(1);
  say(1, DF_MSG_RECLAIMED);  // Nothing was to be reclaimed.
  noted(bad.session);
  EXPECT_THAT(shell_.to_fence, ElementsAre(bad.session));
  daemon_->fenced(bad.session);
  EXPECT_EQ(state(bad.session), SessionState::waiting);
  pass(kLease + kLease / 8);
  EXPECT_TRUE(gone(bad.session));
}

TEST_F(RecoveryTest, WithoutAListThereIsNoGrace) {
  recover({});
  EXPECT_EQ(daemon_->phase(), Phase::normal);
  EXPECT_EQ(hello(1).verdict, Verdict::later);
}

TEST_F(RecoveryTest, GraceEndsWhenAllAreBack) {
  recover({listed(kOld, 3), listed(kOld + 1, 5)});
  EXPECT_EQ(daemon_->phase(), Phase::grace);
  EXPECT_EQ(daemon_->grace_left(), kLease + kLease / 5);
  EXPECT_EQ(hello(9).welcome.refusal, DF_REFUSED_GRACE);
  const auto live = daemon_->live_sessions();
  EXPECT_EQ(live.high, std::uint64_t{3} << 32);
  EXPECT_THAT(live.ids, ElementsAre(kOld, kOld + 1)) << "the absent may still write";

  auto back = hello(1, kOld);
  ASSERT_EQ(back.verdict, Verdict::control) << back.reason;
  EXPECT_EQ(back.welcome.session, kOld);
  EXPECT_EQ(back.welcome.node, 3U);
  EXPECT_EQ(back.welcome.incarnation, 3U);
  EXPECT_GT(back.welcome.grace_ms, 0U);
  EXPECT_EQ(hello(2, kOld).welcome.refusal, DF_REFUSED_SESSION) << "it is here already";
  EXPECT_EQ(hello(3, kOld + 1, token_of(kOld)).welcome.refusal, DF_REFUSED_SESSION)
      << "another's token";
  EXPECT_EQ(hello(4, kOld + 9).welcome.refusal, DF_REFUSED_SESSION);
  EXPECT_EQ(hello(5, kOld, DF_ROLE_LANE).verdict, Verdict::lane);

  file_lock(1, 1, 0);  // A new one: not now.
  ASSERT_EQ(shell_.sent.size(), 1U);
  EXPECT_EQ(shell_.sent[0].second.file_reply.error, EAGAIN);
  shell_.sent.clear();
  file_lock(1, 2, DF_FILE_RECLAIM);
  ASSERT_EQ(shell_.sent.size(), 1U);
  EXPECT_EQ(shell_.sent[0].second.file_reply.error, 0);
  shell_.sent.clear();
  say(1, DF_MSG_RECLAIMED);
  EXPECT_THAT(sent(), IsEmpty());

  ASSERT_EQ(hello(6, kOld + 1).verdict, Verdict::control);
  say(6, DF_MSG_RECLAIMED);
  EXPECT_THAT(sent(), ::testing::UnorderedElementsAre(std::pair{1U, DF_MSG_RESUME},
                                                      std::pair{6U, DF_MSG_RESUME}));
  EXPECT_EQ(daemon_->phase(), Phase::normal);
  EXPECT_EQ(state(kOld), SessionState::live);
  const auto fresh = join(10);
  EXPECT_NE(fresh.node, 3U);
  EXPECT_NE(fresh.node, 5U);
  file_lock(10, 1, 0);
  ASSERT_EQ(shell_.sent.size(), 1U);
  EXPECT_EQ(shell_.sent[0].second.file_reply.error, EAGAIN) << "reclaimed by the first";
}

TEST_F(RecoveryTest, OnlyItsTokenBringsASessionBack) {
  const auto kept = join(1);
  const auto record = shell_.records.back().session;
  EXPECT_EQ(record.token, std::to_array(kept.token)) << "the list has what the client was told";
  recover({listed(kOld, 3)});
  for (std::size_t byte = 0; byte < SessionToken{}.size(); ++byte) {
    auto wrong = token_of(kOld);
    wrong[byte] = static_cast<std::uint8_t>(wrong[byte] ^ 1);
    const auto greeting = hello(10 + byte, kOld, wrong);
    EXPECT_EQ(greeting.welcome.refusal, DF_REFUSED_SESSION);
    EXPECT_NE(greeting.reason.find("has not its token"), std::string::npos) << greeting.reason;
    EXPECT_EQ(hello(30 + byte, kOld, wrong, DF_ROLE_LANE).welcome.refusal, DF_REFUSED_SESSION);
  }
  EXPECT_EQ(state(kOld), SessionState::absent);
  EXPECT_THAT(shell_.closed, IsEmpty());
  EXPECT_THAT(shell_.to_fence, IsEmpty());
  const auto back = hello(60, kOld);
  ASSERT_EQ(back.verdict, Verdict::control) << back.reason;
  EXPECT_EQ(std::to_array(back.welcome.token), token_of(kOld)) << "the same over a restart";
  EXPECT_EQ(hello(61, kOld, token_of(kOld + 1), DF_ROLE_LANE).welcome.refusal, DF_REFUSED_SESSION);
  EXPECT_EQ(hello(62, kOld, DF_ROLE_LANE).verdict, Verdict::lane);
}

TEST_F(RecoveryTest, ASessionWithoutATokenIsNobodys) {
  auto old = listed(kOld, 3);
  old.token = {};
  recover({old});
  EXPECT_EQ(hello(1, kOld, SessionToken{}).welcome.refusal, DF_REFUSED_SESSION);
  EXPECT_EQ(state(kOld), SessionState::absent);
}

TEST_F(RecoveryTest, AbsenteesAreFencedBeforeResume) {
  recover({listed(kOld, 3), listed(kOld + 1, 5)});
  ASSERT_EQ(hello(1, kOld).verdict, Verdict::control);
  say(1, DF_MSG_RECLAIMED);
  pass(kLease + kLease / 5 - 1, {3});
  EXPECT_EQ(daemon_->phase(), Phase::grace);
  EXPECT_THAT(shell_.to_fence, IsEmpty());
  pass(1, {3});
  EXPECT_EQ(daemon_->phase(), Phase::resuming);
  EXPECT_EQ(hello(8, kOld + 1).welcome.refusal, DF_REFUSED_SESSION) << "too late";
  EXPECT_EQ(hello(9).welcome.refusal, DF_REFUSED_GRACE);
  EXPECT_THAT(sent(), IsEmpty());
  EXPECT_THAT(daemon_->live_sessions().ids, ElementsAre(kOld, kOld + 1))
      << "the next lockd would take it back";
  noted(kOld + 1);
  EXPECT_THAT(daemon_->live_sessions().ids, ElementsAre(kOld));
  EXPECT_THAT(shell_.to_fence, ElementsAre(kOld + 1));
  EXPECT_THAT(sent(), IsEmpty()) << "before the fence";
  daemon_->fenced(kOld + 1);
  EXPECT_THAT(sent(), ElementsAre(std::pair{1U, DF_MSG_RESUME}));
  EXPECT_EQ(daemon_->phase(), Phase::normal);
}

TEST_F(RecoveryTest, WhoCameButDidNotReclaimInTimeIsLostAfterItsOwnDeadline) {
  recover({listed(kOld, 3)});
  pass(kLease / 2);
  ASSERT_EQ(hello(1, kOld).verdict, Verdict::control);
  pass(kLease / 2 + kLease / 5, {3});
  noted(kOld);
  EXPECT_THAT(shell_.to_fence, ElementsAre(kOld));
  daemon_->fenced(kOld);
  EXPECT_EQ(daemon_->phase(), Phase::resuming) << "it renewed a moment ago";
  pass(kLease + kLease / 8);
  EXPECT_TRUE(gone(kOld));
  EXPECT_EQ(daemon_->phase(), Phase::normal);
}

TEST_F(RecoveryTest, ALostSessionOfTheListCannotComeBack) {
  recover({listed(kOld, 3, true)});
  EXPECT_THAT(shell_.to_fence, ElementsAre(kOld));
  EXPECT_EQ(hello(1, kOld).welcome.refusal, DF_REFUSED_SESSION);
  daemon_->fenced(kOld);
  EXPECT_EQ(hello(2).welcome.refusal, DF_REFUSED_GRACE) << "it may trust its caches yet";
  pass(kLease);
  EXPECT_TRUE(gone(kOld));
  EXPECT_EQ(hello(3).verdict, Verdict::later);
}

TEST_F(RecoveryTest, AByeInGraceIsAnAnswerToo) {
  recover({listed(kOld, 3)});
  ASSERT_EQ(hello(1, kOld).verdict, Verdict::control);
  say(1, DF_MSG_BYE);
  EXPECT_EQ(daemon_->phase(), Phase::normal);
  EXPECT_EQ(shell_.records.back().kind, Kind::end);
  EXPECT_THAT(shell_.to_fence, IsEmpty());
}

TEST_F(RecoveryTest, LiarsInGraceAreDroppedAlone) {
  recover({listed(kOld, 3), listed(kOld + 1, 5)});
  ASSERT_EQ(hello(1, kOld).verdict, Verdict::control);
  ASSERT_EQ(hello(2, kOld + 1).verdict, Verdict::control);
  say(1, DF_MSG_RECLAIMED);
  file_lock(1, 1, DF_FILE_RECLAIM);  // After it had said that this was all.
  noted(kOld);
  EXPECT_THAT(shell_.to_fence, ElementsAre(kOld));
  say(2, DF_MSG_RECLAIMED);
  say(2, DF_MSG_RECLAIMED);
  noted(kOld + 1);
  EXPECT_THAT(shell_.to_fence, ElementsAre(kOld, kOld + 1));
  EXPECT_EQ(daemon_->counters().lost, 2U);
}

TEST_F(RecoveryTest, ABrokenAcceptLeavesAListedSessionAbsent) {
  recover({listed(kOld, 3)});
  ASSERT_EQ(hello(1, kOld).verdict, Verdict::control);
  daemon_->withdraw(1);
  EXPECT_EQ(state(kOld), SessionState::absent);
  EXPECT_EQ(hello(2, kOld).verdict, Verdict::control);
}

}  // namespace
}  // namespace distfuse::lockd
