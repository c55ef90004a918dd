/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Downgrades, upgrades, intention modes, who is asked to give up, and that everybody is served. */
#include "rdma/lock/core_fixture.h"

#include <algorithm>

namespace
{

using distfuse::lock_core::Core;
using distfuse::lock_core::kKey;

class Modes : public Core
{
      protected:
	void give_up(df_u32 node, const df_value *changed = nullptr)
	{
		ASSERT_EQ(df_lock_drop(&mount_[node].lock, &mount_[node].out), 0);
		mount_[node].shed(DF_NL, changed);
		chains(mount_[node]);
		ASSERT_EQ(mount_[node].lock.held, DF_NL);
	}
	df_u32 revokes(df_u32 node)
	{
		return static_cast<df_u32>(std::count_if(
			mount_[node].to_client.begin(), mount_[node].to_client.end(),
			[](const df_msg &message) { return message.head.type == DF_MSG_REVOKE; }));
	}
};

TEST_F(Modes, HolderOfXAskedForIxKeepsIx)
{
	df_value value{100, 0, 0, 0};

	hold(1, DF_X);
	mount_[2].want(DF_IX);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	ASSERT_EQ(mount_[1].keep, DF_IX);
	mount_[1].shed(DF_IX, &value);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_IX);
	EXPECT_EQ(mount_[2].lock.held, DF_IX);
	EXPECT_EQ(df_word_ix(slot().word), 2u);
	EXPECT_EQ(df_word_owner(slot().word), 0u);
	EXPECT_EQ(df_lock_pin(&mount_[1].lock, DF_IX), DF_PIN_OK);
	EXPECT_EQ(df_lock_pin(&mount_[1].lock, DF_S), DF_PIN_WANT);
	EXPECT_FALSE(df_slot_value_counts(&slot()));
	expect_idle();
}

TEST_F(Modes, MayGiveUpMoreThanAskedFor)
{
	hold(1, DF_X);
	mount_[2].want(DF_IX);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	ASSERT_EQ(df_lock_close_gate(&mount_[1].lock), 0);
	EXPECT_EQ(df_lock_shed_done(&mount_[1].lock, DF_S, nullptr, &mount_[1].out), -1)
		<< "S is not beside IX";
	mount_[1].shed(DF_IS);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_IS);
	EXPECT_EQ(mount_[2].lock.held, DF_IX);
	expect_idle();
}

TEST_F(Modes, DowngradedHolderComesBackToX)
{
	hold(1, DF_X);
	mount_[2].want(DF_IX);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	mount_[1].shed(DF_IX);
	settle();
	mount_[1].want(DF_X); /* IX -> X beside another's IX: asks; the other is revoked */
	chains(mount_[1]);
	lockd();
	receive(mount_[2]);
	ASSERT_EQ(mount_[2].sheds, 1u);
	EXPECT_EQ(mount_[2].keep, DF_NL);
	mount_[2].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_X);
	EXPECT_EQ(slot().word, df_unit(DF_X, 1));
	expect_idle();
}

/* What was done under X need not show in the block: attributes of before must not pass for those of now. */
TEST_F(Modes, ReleaseOfXRaisesTheVersionWhateverTheBlockSays)
{
	df_value value{100, 1, 2, DF_VALUE_EXACT};

	hold(3, DF_S);
	EXPECT_EQ(mount_[3].lock.version, df_initial_version(mount_[3].lock.slot));
	give_up(3);
	hold(1, DF_X);
	give_up(1, &value);
	hold(3, DF_S);
	df_u64 version = mount_[3].lock.version;
	EXPECT_EQ(mount_[3].lock.value.flags, DF_VALUE_PUBLISHED | DF_VALUE_EXACT);
	EXPECT_NE(version, df_initial_version(mount_[3].lock.slot));
	give_up(3);
	hold(1, DF_X);
	give_up(1);
	hold(3, DF_S);
	EXPECT_EQ(mount_[3].lock.version, df_version_next(version));
	EXPECT_EQ(mount_[3].lock.value.size, 100u);
	EXPECT_EQ(mount_[3].lock.value.flags, DF_VALUE_PUBLISHED);
}

/* What is done under IX goes past the value block: nobody may believe it, or pages of before, afterwards. */
TEST_F(Modes, ReleaseOfIxTakesTheValueBlockBack)
{
	df_value value{100, 0, 0, 0};

	hold(1, DF_X);
	give_up(1, &value);
	hold(3, DF_S);
	ASSERT_TRUE(mount_[3].lock.value.flags & DF_VALUE_PUBLISHED);
	df_u64 version = mount_[3].lock.version;
	give_up(3);
	hold(2, DF_IX);
	EXPECT_FALSE(mount_[2].lock.value.flags & DF_VALUE_PUBLISHED);
	hold(1, DF_IS);
	EXPECT_FALSE(mount_[1].lock.value.flags & DF_VALUE_PUBLISHED) << "beside IX";
	give_up(2);
	give_up(1);
	hold(3, DF_S);
	EXPECT_FALSE(mount_[3].lock.value.flags & DF_VALUE_PUBLISHED);
	EXPECT_NE(mount_[3].lock.version, version);
	df_u64 later = mount_[3].lock.version;
	give_up(3);
	hold(3, DF_S);
	EXPECT_EQ(mount_[3].lock.version, later) << "S changes nothing";
}

TEST_F(Modes, IxRaisedToXTakesItBackTooUnlessItPublishes)
{
	df_value value{100, 0, 0, 0}, newer{200, 0, 0, 0};

	hold(1, DF_X);
	give_up(1, &value);
	hold(2, DF_IX);
	hold(2, DF_X);
	EXPECT_FALSE(mount_[2].lock.value.flags & DF_VALUE_PUBLISHED)
		<< "its own IX went past the block";
	give_up(2);
	hold(3, DF_S);
	EXPECT_FALSE(mount_[3].lock.value.flags & DF_VALUE_PUBLISHED);
	give_up(3);
	hold(2, DF_IX);
	hold(2, DF_X);
	give_up(2, &newer);
	hold(3, DF_S);
	EXPECT_TRUE(mount_[3].lock.value.flags & DF_VALUE_PUBLISHED);
	EXPECT_EQ(mount_[3].lock.value.size, 200u);
}

TEST_F(Modes, DeadHolderOfIxTakesItBackByRepair)
{
	df_value value{100, 0, 0, 0};

	hold(1, DF_X);
	give_up(1, &value);
	hold(3, DF_S);
	df_u64 version = mount_[3].lock.version;
	give_up(3);
	hold(2, DF_IX);
	df_lockd_session_gone(lockd_, 2, 0);
	mount_[3].want(DF_S);
	settle();
	EXPECT_EQ(mount_[3].lock.held, DF_S);
	EXPECT_FALSE(mount_[3].lock.value.flags & DF_VALUE_PUBLISHED);
	EXPECT_NE(mount_[3].lock.version, version);
	expect_idle();
}

TEST_F(Modes, LoneUpgradeIsOneAtomicAndLosesToAnyoneInTheWord)
{
	hold(1, DF_S);
	mount_[1].want(DF_X);
	ASSERT_EQ(mount_[1].chain.op[0].kind, DF_OP_CAS);
	EXPECT_EQ(mount_[1].chain.op[0].expected, df_unit(DF_S, 1));
	hold(2, DF_S); /* between the post and its effect */
	df_u64 old = 0;
	std::vector<df_u8> image;
	effect(mount_[1], old, image);
	EXPECT_EQ(slot().word, 2 * df_unit(DF_S, 1)) << "S is never given up on the way";
	complete(mount_[1], old, image);
	ASSERT_EQ(mount_[1].to_lockd.size(), 1u);
	EXPECT_EQ(mount_[1].to_lockd[0].ask.held, DF_S);
	lockd();
	receive(mount_[2]);
	mount_[2].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_X);
	EXPECT_EQ(mount_[1].sheds, 0u);
	expect_idle();
}

/* Readers that come all the time do not keep an upgrader out: the contended bit sends them behind it. */
TEST_F(Modes, UpgraderIsNotStarvedByReaders)
{
	hold(1, DF_S);
	hold(2, DF_S);
	mount_[1].want(DF_X);
	chains(mount_[1]);
	lockd();
	receive(mount_[2]);
	mount_[2].shed(DF_NL);
	for (int round = 0; round < 3; round++) {
		mount_[3].want(DF_S);
		mount_[2].want(DF_S);
		chains(mount_[3]);
		chains(mount_[2]);
	}
	EXPECT_EQ(mount_[3].lock.held, DF_NL);
	lockd();
	receive(mount_[1]);
	EXPECT_EQ(mount_[1].lock.held, DF_X);
	EXPECT_EQ(mount_[1].woken & DF_WAKE_GRANTED, DF_WAKE_GRANTED);
	settle();
	mount_[1].shed(DF_S);
	settle();
	EXPECT_EQ(mount_[2].lock.held, DF_S) << "compatible waiters come together";
	EXPECT_EQ(mount_[3].lock.held, DF_S);
	expect_idle();
}

TEST_F(Modes, SeveralHoldersAreRevokedAtOnce)
{
	hold(1, DF_S);
	hold(2, DF_S);
	mount_[3].want(DF_X);
	chains(mount_[3]);
	lockd();
	EXPECT_EQ(revokes(1), 1u);
	EXPECT_EQ(revokes(2), 1u);
	EXPECT_EQ(mount_[1].to_client[0].head.seq, mount_[2].to_client[0].head.seq)
		<< "in one stage, before any answer";
}

/* A hint that says nothing (its byte was lost, or 64 nodes share it) costs a second stage, not the lock. */
TEST_F(Modes, WithoutHintsAllSessionsAreAsked)
{
	hold(1, DF_S);
	std::memset(slot().hints, 0, sizeof(slot().hints));
	mount_[3].want(DF_X);
	chains(mount_[3]);
	lockd();
	EXPECT_EQ(revokes(1), 1u);
	EXPECT_EQ(revokes(2), 1u) << "everybody";
	receive(mount_[2]);
	receive(mount_[1]);
	mount_[1].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[3].lock.held, DF_X);
	df_lockd_counters counters;
	df_lockd_read_counters(lockd_, &counters);
	EXPECT_EQ(counters.freezes, 0u);
	expect_idle();
}

TEST_F(Modes, HintedOnesAreAskedFirstAndAlone)
{
	hold(1, DF_S);
	mount_[3].want(DF_X);
	chains(mount_[3]);
	lockd();
	EXPECT_EQ(revokes(1), 1u);
	EXPECT_EQ(revokes(2), 0u);
}

/* The counts at their limit: 32766 live sessions beside 32768 dead ones fill no field. */
TEST_F(Modes, FieldsDoNotCarry)
{
	hold(1, DF_S);
	df_u64 &word = slot().word;
	word = (df_u64{0x7ffe} + 0x8000 - 1) << DF_WORD_S_SHIFT;
	EXPECT_LT(df_word_s(word), 0xffffu);
	mount_[2].want(DF_S);
	chains(mount_[2]);
	EXPECT_EQ(df_word_s(word), 0xfffeu);
	EXPECT_EQ(df_word_owner(word), 0u);
	EXPECT_EQ(df_word_ix(word), 0u);
	EXPECT_EQ(df_unit(DF_X, DF_NODE_LOCKD) & DF_CONTENDED, 0u);
}

TEST_F(Modes, SessionsAreRefusedWhenTooManyDied)
{
	for (df_u32 died = 0; died < 32768; died++) {
		df_lockd_session_gone(lockd_, 3, 0);
		ASSERT_EQ(df_lockd_session_joined(lockd_, 3), died + 1 < 32768 ? 0 : -1) << died;
	}
	df_lockd_session_gone(lockd_, 1, 1);
	EXPECT_EQ(df_lockd_session_joined(lockd_, 1), -1);
}

/* Node ids come again: what the dead one left as owner is not taken for the new session's. */
TEST_F(Modes, OwnerLeftUnderANodeIdThatIsUsedAgain)
{
	df_value value{100, 0, 0, 0};

	hold(2, DF_X);
	give_up(2, &value);
	hold(2, DF_X);
	df_lockd_session_gone(lockd_, 2, 0);
	ASSERT_EQ(df_lockd_session_joined(lockd_, 2), 0);
	df_lock_init(&mount_[2].lock, &mount_[2].table, kKey);
	mount_[2].want(DF_X);
	settle();
	EXPECT_EQ(mount_[2].lock.held, DF_X);
	EXPECT_FALSE(mount_[2].lock.value.flags & DF_VALUE_PUBLISHED);
	EXPECT_EQ(slot().word, df_unit(DF_X, 2));
	expect_idle();
	EXPECT_TRUE(drops_.empty());
}

/* A Released for a Revoke of an earlier life of the queue answers nothing of the present one. */
TEST_F(Modes, OldReleasedAnswersNothingNew)
{
	hold(1, DF_X);
	mount_[2].want(DF_X);
	chains(mount_[2]);
	lockd();
	ASSERT_EQ(revokes(1), 1u);
	df_u64 first = mount_[1].to_client[0].head.seq;
	receive(mount_[1]);
	mount_[1].shed(DF_NL);
	settle();
	ASSERT_EQ(mount_[2].lock.held, DF_X);
	expect_idle();
	mount_[1].want(DF_X);
	chains(mount_[1]);
	lockd();
	ASSERT_EQ(revokes(2), 1u);
	df_msg old;
	df_msg_init(&old, DF_MSG_RELEASED, mount_[2].lock.slot, kKey, first);
	df_lockd_message(lockd_, 2, &old);
	lockd();
	EXPECT_EQ(mount_[1].lock.held, DF_NL);
	df_lockd_counters counters;
	df_lockd_read_counters(lockd_, &counters);
	EXPECT_EQ(counters.freezes, 0u) << "the Revoke is still owed";
	receive(mount_[2]);
	mount_[2].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_X);
	EXPECT_TRUE(drops_.empty());
}

} // namespace
