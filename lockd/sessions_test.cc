// SPDX-License-Identifier: Apache-2.0
#include "lockd/sessions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

namespace distfuse::lockd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

const SessionToken kToken{1, 2, 3};

TEST(SessionTable, IdsAreNeverUsedTwice) {
  SessionTable first(1, {});
  SessionTable second(2, {});
  const auto a = first.open(10, "a", "peer", kToken);
  ASSERT_TRUE(a.ok());
  const auto id = (*a)->id;
  EXPECT_EQ((*a)->node, 1);
  first.remove(id);
  const auto b = first.open(11, "b", "peer", kToken);
  ASSERT_TRUE(b.ok());
  EXPECT_NE((*b)->id, id);
  EXPECT_EQ((*b)->node, 2) << "a node id is not reused while fresh ones are left";
  const auto c = second.open(12, "c", "peer", kToken);
  ASSERT_TRUE(c.ok());
  EXPECT_NE((*c)->id, id);
}

TEST(SessionTable, LossDropsEveryConnectionThenFences) {
  SessionTable table(1, {});
  const auto id = (*table.open(1, "m", "p", kToken))->id;
  ASSERT_TRUE(table.add_lane(2, id, kToken).ok());
  ASSERT_TRUE(table.add_lane(3, id, kToken).ok());
  EXPECT_EQ(table.connection_ended(2).was, SessionTable::Ended::Was::lane);
  const auto ended = table.connection_ended(1);
  EXPECT_EQ(ended.was, SessionTable::Ended::Was::control);
  EXPECT_EQ(ended.session->id, id);
  EXPECT_THAT(table.lose(id), ElementsAre(3));
  EXPECT_THAT(table.lose(id), IsEmpty());
  EXPECT_EQ(table.find(id)->state, SessionState::fencing);
  EXPECT_EQ(table.connection_ended(3).was, SessionTable::Ended::Was::unknown);
  const auto late = table.add_lane(4, id, kToken);
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ESTALE);
  EXPECT_THAT(table.remove(id), IsEmpty());
  EXPECT_EQ(table.find(id), nullptr);
}

TEST(SessionTable, ByeHandsBackWhatIsStillConnected) {
  SessionTable table(1, {});
  const auto id = (*table.open(1, "m", "p", kToken))->id;
  ASSERT_TRUE(table.add_lane(2, id, kToken).ok());
  EXPECT_EQ(table.find_connection(2)->id, id);
  EXPECT_EQ(table.find_node(1)->id, id);
  EXPECT_THAT(table.remove(id), UnorderedElementsAre(1, 2));
  EXPECT_EQ(table.find_connection(2), nullptr);
  EXPECT_EQ(table.find_node(1), nullptr);
}

TEST(SessionTable, ANodeIdComesBackOnlyWhenNoSlotNamesIt) {
  SessionTable table(1, {.node_ids = 3});
  std::vector<SessionId> ids;
  for (ConnectionId c = 1; c <= 3; ++c) ids.push_back((*table.open(c, "m", "p", kToken))->id);
  table.remove(ids[0]);
  table.remove(ids[1]);
  const auto none = table.open(9, "m", "p", kToken);
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, EAGAIN);
  std::vector<bool> in_table(0x8000, false);
  in_table[1] = true;
  table.reclaim_node_ids(in_table);
  const auto second = table.open(9, "m", "p", kToken);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ((*second)->node, 2);
  EXPECT_FALSE(table.open(10, "m", "p", kToken).ok());
  in_table[1] = false;
  table.reclaim_node_ids(in_table);
  EXPECT_TRUE(table.open(10, "m", "p", kToken).ok());
}

TEST(SessionTable, LimitsAreKept) {
  SessionTable table(1, {.sessions = 2, .lanes = 1});
  const auto id = (*table.open(1, "m", "p", kToken))->id;
  ASSERT_TRUE(table.open(2, "m", "p", kToken).ok());
  EXPECT_EQ(table.open(3, "m", "p", kToken).error().code, ENOSPC);
  ASSERT_TRUE(table.add_lane(4, id, kToken).ok());
  EXPECT_EQ(table.add_lane(5, id, kToken).error().code, ENOSPC);
  EXPECT_EQ(table.add_lane(5, 0x1234, kToken).error().code, ESTALE);
}

TEST(SessionTable, TooManyLossesEndTheIncarnation) {
  SessionTable table(1, {.losses = 2});
  for (ConnectionId c = 1; c <= 2; ++c) {
    const auto id = (*table.open(c, "m", "p", kToken))->id;
    table.lose(id);
    table.remove(id);
  }
  EXPECT_EQ(table.losses(), 2U);
  EXPECT_EQ(table.open(3, "m", "p", kToken).error().code, ENOSPC);
}

}  // namespace
}  // namespace distfuse::lockd
