/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#include "rdma/lock/hold.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>

namespace
{

class Hold : public testing::Test
{
      protected:
	/* Granted, used, revoked `after` us later, served when allowed, wanted again `again` us after. Answers how long it was held back. */
	df_u64 tenure(df_u64 after, df_u64 again, bool use = true)
	{
		df_hold_granted(&hold, now);
		if (use)
			df_hold_used(&hold);
		now += after;
		df_u64 at = df_hold_revoked(&hold, now), back = at - now;
		now = at;
		df_hold_shed(&hold, now);
		now += again;
		df_hold_wanted(&hold, now);
		return back;
	}

	df_u64 now = 1000000;
	df_hold hold{};
};

TEST_F(Hold, FirstRevokeIsServedAtOnce)
{
	df_hold_granted(&hold, now);
	df_hold_used(&hold);
	EXPECT_EQ(df_hold_revoked(&hold, now), now);
}

TEST_F(Hold, DoublesWhileItBouncesUpToTheBound)
{
	const df_u64 expected[] = {0, 1000, 2000, 4000, 8000, 16000, 20000, 20000};

	for (df_u64 held : expected)
		EXPECT_EQ(tenure(0, 0), held);
	EXPECT_EQ(tenure(15000, 0), 5000u) << "counted from the grant, not from the revoke";
}

TEST_F(Hold, UnusedIsNeverHeldBack)
{
	for (int i = 0; i < 10; i++)
		tenure(0, 0);
	EXPECT_EQ(tenure(0, 0, false), 0u);
	EXPECT_EQ(hold.hold_us, DF_HOLD_MAX_US / 2) << "nor does it count as a bounce";
}

TEST_F(Hold, DecaysWhenTheTenureWasLong)
{
	for (int i = 0; i < 10; i++)
		tenure(0, 0);
	EXPECT_EQ(tenure(DF_HOLD_MAX_US + DF_HOLD_BRIEF_US + 1, 0), 0u);
	EXPECT_EQ(hold.hold_us, 10000u);
}

TEST_F(Hold, DecaysWithQuiet)
{
	for (int i = 0; i < 10; i++)
		tenure(0, 0);
	tenure(0, DF_HOLD_AGAIN_US + 1);
	EXPECT_EQ(hold.hold_us, 10000u);
	tenure(0, DF_HOLD_QUIET_US);
	EXPECT_EQ(hold.hold_us, 2500u);
	tenure(0, 2000 * df_u64{DF_HOLD_QUIET_US});
	EXPECT_EQ(hold.hold_us, 0u);
}

TEST_F(Hold, ManyWaitersOfOneTenureCountOnce)
{
	tenure(0, 0);
	for (int i = 0; i < 10; i++)
		df_hold_wanted(&hold, now);
	EXPECT_EQ(hold.hold_us, DF_HOLD_FIRST_US);
}

TEST_F(Hold, WantedWithoutARevokeBeforeChangesNothing)
{
	tenure(0, 0);
	df_hold_granted(&hold, now);
	df_hold_wanted(&hold, now + 1); /* an upgrade */
	EXPECT_EQ(hold.hold_us, DF_HOLD_FIRST_US);
}

TEST_F(Hold, AlwaysBounded)
{
	const char *given = std::getenv("DISTFUSE_SEED");
	std::uint64_t seed = given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
	std::mt19937_64 random(seed);
	SCOPED_TRACE("DISTFUSE_SEED=" + std::to_string(seed));

	for (int i = 0; i < 100000; i++) {
		now += random() % 8 ? random() % 3000 : random() % 300000;
		switch (random() % 5) {
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
		default:
			break;
		}
		df_u64 at = df_hold_revoked(&hold, now);
		ASSERT_GE(at, now);
		ASSERT_LE(at, now + DF_HOLD_MAX_US);
		ASSERT_LE(at, hold.granted_us + DF_HOLD_MAX_US > now
				      ? hold.granted_us + DF_HOLD_MAX_US
				      : now);
		ASSERT_TRUE(hold.hold_us == 0 || hold.hold_us >= DF_HOLD_FIRST_US);
	}
}

} // namespace
