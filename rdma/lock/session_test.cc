/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The session's machine: every state with every event, and the arithmetic of trust. */
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "rdma/lock/session.h"

namespace
{

constexpr df_u64 kLease = 1000, kGiveUp = 5000, kNever = ~df_u64{0};

df_welcome welcome(df_u64 incarnation, df_u32 grace_ms, df_u32 refusal = DF_ACCEPTED)
{
	df_welcome result{};

	result.magic = DF_WIRE_MAGIC;
	result.version = DF_WIRE_VERSION;
	result.refusal = refusal;
	result.session = df_u64{7} << 32 | 3;
	result.incarnation = incarnation;
	result.node = 5;
	result.lease_ms = kLease;
	result.lease_offset = 4096;
	result.grace_ms = grace_ms;
	std::memset(result.token, 0x5a, sizeof(result.token));
	return result;
}

class Session : public testing::Test
{
      protected:
	Session() { begin(kLease); }

	void begin(df_u32 lease)
	{
		df_welcome first = welcome(7, 0);
		first.lease_ms = lease;
		df_session_begin(&session, &first, 1000, kGiveUp, &out);
	}
	void tick(df_u64 now) { df_session_tick(&session, now, &out); }
	void renewed(df_u64 now) { df_session_renewed(&session, now, &out); }
	void cut(df_u64 now) { df_session_cut(&session, now, &out); }
	void answer(const df_welcome &with, df_u64 posted, df_u64 now)
	{
		df_session_welcome(&session, &with, posted, now, &out);
	}
	/* Into each state at time 2000, trusted until 2700 at least where that can be. */
	void reach(df_u8 state)
	{
		begin(kLease);
		tick(state == DF_SESSION_SUSPECT ? 2000 : 1990);
		if (state == DF_SESSION_SUSPECT) {
			ASSERT_EQ(session.state, DF_SESSION_SUSPECT);
			return;
		}
		renewed(1995);
		if (state != DF_SESSION_LIVE)
			cut(2000);
		if (state == DF_SESSION_RECLAIMING)
			answer(welcome(8, 1200), 2000, 2000);
		if (state == DF_SESSION_LOST)
			answer(welcome(8, 0, DF_REFUSED_SESSION), 2000, 2000);
		ASSERT_EQ(session.state, state);
	}

	df_session session{};
	df_session_out out{};
};

TEST_F(Session, BeginsLiveAndTrustedFromThePostOfHello)
{
	EXPECT_EQ(session.state, DF_SESSION_LIVE);
	EXPECT_TRUE(df_session_trusted(&session, 1699));
	EXPECT_FALSE(df_session_trusted(&session, 1700));
	EXPECT_EQ(out.wake_at, 1250u);
	EXPECT_FALSE(out.renew || out.suspect || out.connect);
}

TEST_F(Session, RenewalCountsFromItsPostAndNotFromItsCompletion)
{
	tick(1249);
	EXPECT_FALSE(out.renew);
	tick(1250);
	EXPECT_TRUE(out.renew);
	df_u64 value = out.renew_value;
	EXPECT_EQ(out.wake_at, 1700u) << "nothing to do but to suspect";
	renewed(1600);
	EXPECT_TRUE(df_session_trusted(&session, 1949));
	EXPECT_FALSE(df_session_trusted(&session, 1950));
	EXPECT_TRUE(out.renew) << "the next one was due at 1500";
	EXPECT_NE(out.renew_value, value);
}

TEST_F(Session, OneRenewalInFlight)
{
	tick(1250);
	EXPECT_TRUE(out.renew);
	tick(1500);
	EXPECT_FALSE(out.renew);
	tick(1699);
	EXPECT_FALSE(out.renew || out.suspect);
}

TEST_F(Session, SuspectOnceThenTrustByTheNextCompletion)
{
	tick(1250);
	tick(1700);
	EXPECT_TRUE(out.suspect);
	EXPECT_EQ(session.state, DF_SESSION_SUSPECT);
	tick(1701);
	EXPECT_FALSE(out.suspect);
	renewed(1949); /* posted at 1250: counts until 1950 */
	EXPECT_TRUE(out.trust);
	EXPECT_TRUE(out.renew);
	EXPECT_EQ(session.state, DF_SESSION_LIVE);
	tick(1950);
	EXPECT_TRUE(out.suspect) << "given out anew";
}

TEST_F(Session, RenewalThatCompletesTooLateTrustsNothing)
{
	tick(1250);
	tick(1700);
	renewed(1950);
	EXPECT_FALSE(out.trust);
	EXPECT_TRUE(out.renew) << "but the next one goes out at once";
	EXPECT_FALSE(df_session_trusted(&session, 1950));
	renewed(2100);
	EXPECT_TRUE(out.trust);
	EXPECT_FALSE(df_session_trusted(&session, 2650));
}

TEST_F(Session, SleptThroughTheLease)
{
	tick(900000);
	EXPECT_TRUE(out.suspect);
	EXPECT_TRUE(out.renew);
	renewed(900010);
	EXPECT_TRUE(out.trust);
	EXPECT_EQ(session.state, DF_SESSION_LIVE);
}

TEST_F(Session, CutWhileRenewing)
{
	tick(1250);
	cut(1300);
	EXPECT_TRUE(out.detach);
	EXPECT_TRUE(out.connect);
	EXPECT_FALSE(out.suspect) << "what is held is trusted while the lease counts";
	EXPECT_EQ(out.wake_at, 1700u);
	renewed(1310);
	EXPECT_FALSE(df_session_trusted(&session, 1700)) << "a completion after the end counts not";
	tick(1700);
	EXPECT_TRUE(out.suspect);
	EXPECT_FALSE(out.renew);
	EXPECT_EQ(session.state, DF_SESSION_CONNECTING);
	cut(1800);
	EXPECT_FALSE(out.detach) << "of a second lane";
}

TEST_F(Session, ConnectsAgainWithDoublingPauses)
{
	df_u64 now = 1300, pause = 50;

	cut(now);
	for (int i = 0; i < 8 && now < 6000; i++) {
		now += 10;
		df_session_unreachable(&session, now, &out);
		EXPECT_FALSE(out.connect);
		EXPECT_EQ(session.connect_at, now + pause);
		tick(now + pause - 1);
		EXPECT_FALSE(out.connect);
		now += pause;
		tick(now);
		EXPECT_TRUE(out.connect);
		pause = pause * 2 > 1000 ? 1000 : pause * 2;
	}
	EXPECT_EQ(session.connect_pause_ms, 1000u);
}

TEST_F(Session, GivesUp)
{
	cut(2000);
	tick(2000 + kGiveUp - 1);
	EXPECT_FALSE(out.lost);
	EXPECT_EQ(out.wake_at, 2000 + kGiveUp);
	tick(2000 + kGiveUp);
	EXPECT_EQ(out.lost, DF_LOSS_GIVEN_UP);
	EXPECT_EQ(session.state, DF_SESSION_LOST);
	EXPECT_EQ(out.wake_at, kNever);
	answer(welcome(8, 1200), 7000, 7001);
	EXPECT_EQ(session.state, DF_SESSION_LOST) << "lockd came too late";
	EXPECT_FALSE(out.reassert);
}

TEST_F(Session, GivesUpAConnectionThatNeitherWorksNorEnds)
{
	tick(1250);
	tick(1700);
	ASSERT_TRUE(out.suspect);
	EXPECT_EQ(out.wake_at, 1250 + kGiveUp);
	tick(1250 + kGiveUp - 1);
	EXPECT_FALSE(out.lost);
	tick(1250 + kGiveUp);
	EXPECT_EQ(out.lost, DF_LOSS_GIVEN_UP);
	EXPECT_FALSE(out.suspect) << "said already";
	begin(kLease);
	session.give_up_ms = 100; /* while caches are trusted nothing is given up */
	tick(1250);
	tick(1699);
	EXPECT_FALSE(out.lost);
	tick(1700);
	EXPECT_EQ(out.lost, DF_LOSS_GIVEN_UP);
	EXPECT_TRUE(out.suspect);
}

TEST_F(Session, ReclaimsInGrace)
{
	df_welcome next = welcome(8, 1200);

	next.lease_ms = 2000;
	next.lease_offset = 8192;
	cut(1300);
	tick(1700);
	answer(next, 1750, 1760);
	EXPECT_TRUE(out.trust) << "a Welcome counts like a renewal";
	EXPECT_TRUE(out.reassert);
	EXPECT_FALSE(out.resume || out.lost || out.reclaimed);
	EXPECT_EQ(session.incarnation, 8u);
	EXPECT_EQ(session.lease_offset, 8192u);
	EXPECT_FALSE(df_session_trusted(&session, 1750 + 1400));
	tick(2250);
	EXPECT_TRUE(out.renew) << "renewals go on";
	df_session_reasserted(&session, 2260, &out);
	EXPECT_TRUE(out.reclaimed);
	df_session_reasserted(&session, 2261, &out);
	EXPECT_FALSE(out.reclaimed) << "once";
	renewed(2300);
	df_session_resumed(&session, 2400, &out);
	EXPECT_TRUE(out.resume);
	EXPECT_EQ(session.state, DF_SESSION_LIVE);
}

TEST_F(Session, ResumedWhileSuspect)
{
	reach(DF_SESSION_RECLAIMING);
	tick(2900); /* posted at 2900, not complete; trust ended at 2700 */
	EXPECT_TRUE(out.suspect);
	EXPECT_EQ(session.state, DF_SESSION_RECLAIMING);
	df_session_reasserted(&session, 2910, &out);
	df_session_resumed(&session, 2920, &out);
	EXPECT_TRUE(out.resume);
	EXPECT_FALSE(out.trust);
	EXPECT_EQ(session.state, DF_SESSION_SUSPECT);
	renewed(2930);
	EXPECT_TRUE(out.trust);
	EXPECT_EQ(session.state, DF_SESSION_LIVE);
}

TEST_F(Session, FencedAtAStoragedIsLostWhateverIsTrusted)
{
	for (df_u32 state :
	     {DF_SESSION_LIVE, DF_SESSION_SUSPECT, DF_SESSION_CONNECTING, DF_SESSION_RECLAIMING}) {
		reach(static_cast<df_u8>(state));
		df_session_fenced(&session, 2015, &out);
		EXPECT_EQ(out.lost, DF_LOSS_FENCED) << state;
		EXPECT_FALSE(out.connect || out.renew || out.reassert) << state;
		EXPECT_EQ(session.state, DF_SESSION_LOST);
		EXPECT_FALSE(df_session_trusted(&session, 2015));
		EXPECT_EQ(out.wake_at, kNever);
		df_session_fenced(&session, 2016, &out);
		EXPECT_FALSE(out.lost || out.suspect) << "once";
	}
}

TEST_F(Session, LockdStartsAgainWhileReclaiming)
{
	reach(DF_SESSION_RECLAIMING);
	df_session_reasserted(&session, 2010, &out);
	cut(2020);
	EXPECT_TRUE(out.detach);
	EXPECT_TRUE(out.connect);
	answer(welcome(8, 1200), 2030, 2040);
	EXPECT_EQ(out.lost, DF_LOSS_GEOMETRY) << "the same table again: what is in it counts twice";
	reach(DF_SESSION_RECLAIMING);
	df_session_reasserted(&session, 2010, &out);
	cut(2020);
	answer(welcome(9, 1200), 2030, 2040);
	EXPECT_TRUE(out.reassert);
	df_session_resumed(&session, 2050, &out);
	EXPECT_EQ(out.lost, DF_LOSS_GEOMETRY) << "Reclaimed was said to another incarnation";
}

TEST_F(Session, RefusedForGoodOrForNow)
{
	for (df_u32 refusal :
	     {DF_REFUSED_SESSION, DF_REFUSED_VERSION, DF_REFUSED_CLUSTER, DF_REFUSED_MALFORMED}) {
		reach(DF_SESSION_CONNECTING);
		ASSERT_TRUE(df_session_trusted(&session, 2010));
		answer(welcome(7, 0, refusal), 2000, 2010);
		EXPECT_EQ(out.lost, DF_LOSS_REFUSED);
		EXPECT_TRUE(out.suspect);
		EXPECT_FALSE(df_session_trusted(&session, 2010)) << "though the lease still counts";
	}
	for (df_u32 refusal : {DF_REFUSED_GRACE, DF_REFUSED_NO_NODE_ID}) {
		reach(DF_SESSION_CONNECTING);
		answer(welcome(8, 0, refusal), 2000, 2010);
		EXPECT_FALSE(out.lost);
		EXPECT_EQ(session.connect_at, 2060u);
	}
}

TEST_F(Session, WelcomesThatMakeNoSense)
{
	for (int wrong = 0; wrong < 6; wrong++) {
		reach(DF_SESSION_CONNECTING);
		df_welcome next = welcome(8, 1200);
		next.session += wrong == 1;
		next.node += wrong == 2;
		next.incarnation = wrong == 3 ? 7 : wrong == 4 ? 6 : 8;
		next.grace_ms = wrong == 5 ? 0 : 1200;
		answer(next, 2000, 2010);
		EXPECT_EQ(out.lost, wrong ? DF_LOSS_GEOMETRY : DF_LOSS_NONE) << wrong;
	}
}

TEST_F(Session, NoLease)
{
	begin(0);
	EXPECT_EQ(out.wake_at, kNever);
	tick(kNever / 2);
	EXPECT_FALSE(out.suspect || out.renew);
	EXPECT_TRUE(df_session_trusted(&session, kNever / 2));
	begin(0);
	cut(2000);
	EXPECT_TRUE(out.suspect) << "trusted only while connected";
	EXPECT_FALSE(df_session_trusted(&session, 2000));
	df_welcome next = welcome(8, 1200);
	next.lease_ms = 0;
	answer(next, 2000, 2010);
	EXPECT_TRUE(out.trust);
}

TEST_F(Session, LimitsOfTheNumbers)
{
	begin(1);
	EXPECT_FALSE(df_session_trusted(&session, 1000));
	tick(1001);
	EXPECT_TRUE(out.renew) << "a lease below 4 ms is renewed every millisecond";
	EXPECT_EQ(session.renew_at, 1002u);
	begin(0xffffffffu);
	EXPECT_TRUE(df_session_trusted(&session, 1000 + 3006477105u));
	EXPECT_FALSE(df_session_trusted(&session, 1000 + 3006477106u));
	session.renew_value = kNever;
	tick(1000 + 0x3fffffff);
	EXPECT_TRUE(out.renew);
	EXPECT_EQ(out.renew_value, 0u) << "any other value renews";
}

/* Every event in every state; the state after it, ~0: as before. */
TEST_F(Session, EveryStateEveryEvent)
{
	enum {
		kTick,
		kRenewed,
		kCut,
		kWelcome,
		kRefused,
		kUnreachable,
		kReasserted,
		kResumed,
		kEvents
	};
	constexpr df_u8 L = DF_SESSION_LIVE, S = DF_SESSION_SUSPECT, C = DF_SESSION_CONNECTING,
			R = DF_SESSION_RECLAIMING, X = DF_SESSION_LOST;
	const df_u8 expected[5][kEvents] = {
		/* tick renewed cut welcome refused unreachable reasserted resumed */
		{L, L, C, L, L, L, L, L}, /* LIVE */
		{S, L, C, S, S, S, S, S}, /* SUSPECT; its renewal is in flight since 2000 */
		{C, C, C, R, X, C, C, C}, /* CONNECTING */
		{R, R, C, R, R, R, R, X}, /* RECLAIMING, not yet re-asserted */
		{X, X, X, X, X, X, X, X}, /* LOST */
	};

	for (df_u8 state = L; state <= X; state++) {
		for (int event = 0; event < kEvents; event++) {
			reach(state);
			switch (event) {
			case kTick:
				tick(2001);
				break;
			case kRenewed:
				renewed(2001);
				break;
			case kCut:
				cut(2001);
				break;
			case kWelcome:
				answer(welcome(8, 1200), 2000, 2001);
				break;
			case kRefused:
				answer(welcome(8, 0, DF_REFUSED_SESSION), 2000, 2001);
				break;
			case kUnreachable:
				df_session_unreachable(&session, 2001, &out);
				break;
			case kReasserted:
				df_session_reasserted(&session, 2001, &out);
				break;
			default:
				df_session_resumed(&session, 2001, &out);
				break;
			}
			EXPECT_EQ(session.state, expected[state - 1][event])
				<< "state " << int{state} << ", event " << event;
			EXPECT_EQ(out.lost != 0, session.state == X && state != X);
			if (state == X) {
				df_session_out nothing{};
				nothing.wake_at = kNever;
				EXPECT_EQ(std::memcmp(&out, &nothing, sizeof(out)), 0) << event;
			}
		}
	}
}

/* Whatever comes: trust is never later than 70 % of the lease after the last post that counted, and outputs fit the state. */
TEST_F(Session, RandomEvents)
{
	const char *given = std::getenv("DISTFUSE_SEED");
	std::uint64_t seed = given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
	std::mt19937_64 random(seed);
	SCOPED_TRACE("DISTFUSE_SEED=" + std::to_string(seed));

	for (int round = 0; round < 2000; round++) {
		df_u64 now = 1000, incarnation = 7, hello = 1000, newest = 1000;
		bool connecting = false, trusted_out = true;
		begin(kLease);
		for (int step = 0; step < 60 && session.state != DF_SESSION_LOST; step++) {
			now += random() % 5 ? random() % 120 : random() % 1500;
			df_u64 posted = session.posted_at;
			switch (random() % 9) {
			case 0:
				cut(now);
				break;
			case 1:
				if (session.renewing && posted > newest)
					newest = posted;
				renewed(now);
				break;
			case 2:
				if (!connecting)
					continue;
				if (session.state == DF_SESSION_CONNECTING && hello > newest)
					newest = hello;
				answer(welcome(++incarnation, 1200), hello, now);
				connecting = false;
				break;
			case 3:
				df_session_unreachable(&session, now, &out);
				connecting = false;
				break;
			case 4:
				df_session_reasserted(&session, now, &out);
				break;
			case 5:
				if (!session.reasserted)
					continue;
				df_session_resumed(&session, now, &out);
				break;
			default:
				tick(now);
				break;
			}
			if (out.connect)
				connecting = true, hello = now;
			ASSERT_FALSE(out.suspect && !trusted_out);
			ASSERT_FALSE(out.trust && trusted_out && !out.suspect);
			trusted_out = out.trust || (trusted_out && !out.suspect);
			ASSERT_EQ(trusted_out,
				  session.state != DF_SESSION_LOST && !session.suspected);
			ASSERT_LE(session.trusted_until, newest + kLease * 7 / 10);
			ASSERT_FALSE(df_session_trusted(&session, now) && session.suspected);
			ASSERT_GT(out.wake_at, now) << "else the shell spins";
			ASSERT_FALSE(out.renew && session.state == DF_SESSION_CONNECTING);
		}
	}
}

} // namespace
