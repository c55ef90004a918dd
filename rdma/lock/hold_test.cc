/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#include "rdma/lock/hold.h"
#include "rdma/lock/slot.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>

namespace
{

class Hold : public testing::Test
{
      protected:
	/*
	 * Granted, used until it is served, revoked `after` us later, given up in `give` us, wanted again `again` us after, granted `wait` us
	 * after that. Answers how long it was held back.
	 */
	df_u64 tenure(df_u64 after, df_u64 again, bool use = true, df_u64 wait = 10000,
		      df_u64 give = 0)
	{
		if (use)
			df_hold_used(&hold);
		now += after;
		df_u64 from = now;
		for (df_u64 at; (at = df_hold_revoked(&hold, DF_X, now)) > now; now = at)
			df_hold_used(&hold);
		df_u64 back = now - from;
		df_hold_shed(&hold, now);
		now += give;
		if (give)
			df_hold_given(&hold, now);
		now += again;
		df_hold_wanted(&hold, now);
		now += wait;
		df_hold_granted(&hold, now);
		return back;
	}

	df_u64 now = 1000000;
	df_hold hold{};
};

TEST_F(Hold, FirstRevokeIsServedAtOnce)
{
	df_hold_granted(&hold, now);
	df_hold_used(&hold);
	EXPECT_EQ(df_hold_revoked(&hold, DF_X, now), now);
}

TEST_F(Hold, DoublesWhileItBouncesUpToTheBound)
{
	const df_u64 expected[] = {0,	 100,  200,   400,   800,   1600,
				   3200, 6400, 12800, 20000, 20000, 20000};

	df_hold_granted(&hold, now);
	for (df_u64 held : expected)
		EXPECT_EQ(tenure(0, 0), held);
	EXPECT_EQ(tenure(15000, 0), 5000u) << "counted from the grant, not from the revoke";
}

TEST_F(Hold, AtMostEightHandOvers)
{
	df_hold_granted(&hold, now);
	for (int i = 0; i < 10; i++)
		tenure(0, 0, true, 40);
	EXPECT_EQ(tenure(0, 0, true, 40), 320u);
	EXPECT_EQ(tenure(0, 0, true, 9000), 320u) << "others' holds are no cost of a hand-over";
}

TEST_F(Hold, AQueueOfManyDoesNotMakeItLonger)
{
	df_hold_granted(&hold, now);
	for (int i = 0; i < 20; i++)
		tenure(0, 0, true, 40000, 20);
	EXPECT_EQ(tenure(0, 0, true, 40000, 20), 320u);
}

TEST_F(Hold, AtLeastTheMinimum)
{
	df_hold_granted(&hold, now);
	for (int i = 0; i < 10; i++)
		tenure(0, 0, true, 1);
	EXPECT_EQ(tenure(0, 0, true, 1), DF_HOLD_LEAST_US);
}

TEST_F(Hold, EndsEarlyWhenNobodyUsesIt)
{
	df_hold_granted(&hold, now);
	for (int i = 0; i < 20; i++)
		tenure(0, 0);
	ASSERT_EQ(hold.hold_us, DF_HOLD_MAX_US);
	df_hold_used(&hold);
	df_u64 look = df_hold_revoked(&hold, DF_X, now);
	EXPECT_EQ(look, now + DF_HOLD_MAX_US / DF_HOLD_LOOKS);
	df_hold_used(&hold);
	df_u64 second = df_hold_revoked(&hold, DF_X, look);
	EXPECT_GT(second, look) << "was used";
	EXPECT_EQ(df_hold_revoked(&hold, DF_X, second), second) << "was not";
	df_hold_shed(&hold, second);
	df_hold_wanted(&hold, second);
	EXPECT_EQ(hold.hold_us, DF_HOLD_MAX_US / 2) << "it was no use";
}

TEST_F(Hold, ReadersAreNeverHeldBack)
{
	df_hold_granted(&hold, now);
	for (int i = 0; i < 20; i++)
		tenure(0, 0);
	df_hold_used(&hold);
	EXPECT_EQ(df_hold_revoked(&hold, DF_S, now), now);
	EXPECT_EQ(df_hold_revoked(&hold, DF_IS, now), now);
	EXPECT_GT(df_hold_revoked(&hold, DF_IX, now), now);
}

TEST_F(Hold, UnusedIsNeverHeldBack)
{
	df_hold_granted(&hold, now);
	for (int i = 0; i < 20; i++)
		tenure(0, 0);
	EXPECT_EQ(tenure(0, 0, false), 0u);
	EXPECT_EQ(hold.hold_us, DF_HOLD_MAX_US / 2) << "nor does it count as a bounce";
}

TEST_F(Hold, DecaysWhenTheTenureWasLong)
{
	df_hold_granted(&hold, now);
	for (int i = 0; i < 20; i++)
		tenure(0, 0);
	EXPECT_EQ(tenure(DF_HOLD_MAX_US + DF_HOLD_BRIEF_US + 1, 0), 0u);
	EXPECT_EQ(hold.hold_us, 10000u);
}

TEST_F(Hold, DecaysWithQuiet)
{
	df_hold_granted(&hold, now);
	for (int i = 0; i < 20; i++)
		tenure(0, 0);
	tenure(0, DF_HOLD_AGAIN_US + 1);
	EXPECT_EQ(hold.hold_us, 10000u);
	tenure(0, DF_HOLD_QUIET_US);
	EXPECT_EQ(hold.hold_us, 2500u);
	tenure(0, 2000 * df_u64{DF_HOLD_QUIET_US});
	EXPECT_EQ(hold.hold_us, 0u);
	EXPECT_EQ(hold.wait_us, 0u);
}

TEST_F(Hold, ManyWaitersOfOneTenureCountOnce)
{
	df_hold_granted(&hold, now);
	tenure(0, 0);
	for (int i = 0; i < 10; i++)
		df_hold_wanted(&hold, now);
	EXPECT_EQ(hold.hold_us, DF_HOLD_LEAST_US);
}

TEST_F(Hold, WantedWithoutARevokeBeforeChangesNothing)
{
	df_hold_granted(&hold, now);
	tenure(0, 0);
	df_hold_wanted(&hold, now + 1); /* an upgrade */
	EXPECT_EQ(hold.hold_us, DF_HOLD_LEAST_US);
}

TEST_F(Hold, AlwaysBounded)
{
	const char *given = std::getenv("DISTFUSE_SEED");
	std::uint64_t seed = given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
	std::mt19937_64 random(seed);
	SCOPED_TRACE("DISTFUSE_SEED=" + std::to_string(seed));

	for (int i = 0; i < 100000; i++) {
		now += random() % 8 ? random() % 3000 : random() % 300000;
		switch (random() % 6) {
		case 0:
			df_hold_granted(&hold, now);
			break;
		case 1:
			df_hold_used(&hold);
			break;
		case 2:
			df_hold_shed(&hold, now);
			break;
		case 3:
			df_hold_wanted(&hold, now);
			break;
		case 4:
			df_hold_given(&hold, now);
			break;
		default:
			break;
		}
		df_u64 at = df_hold_revoked(&hold, DF_X, now);
		ASSERT_GE(at, now);
		ASSERT_LE(at, now + DF_HOLD_MAX_US);
		ASSERT_LE(at, hold.granted_us + DF_HOLD_MAX_US > now
				      ? hold.granted_us + DF_HOLD_MAX_US
				      : now);
		ASSERT_TRUE(hold.hold_us == 0 || hold.hold_us >= DF_HOLD_LEAST_US);
	}
}

} // namespace
