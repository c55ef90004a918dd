/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* lockd's restart: what each state of a lock becomes, and what the new lockd does in grace. */
#include "rdma/lock/core_fixture.h"

#include <algorithm>

namespace
{

using distfuse::lock_core::Core;
using distfuse::lock_core::kKey;
using distfuse::lock_core::Mount;

class Recover : public Core
{
      protected:
	/* Until the lock's TAKE is posted. */
	void find(Mount &mount)
	{
		while (mount.chain.kind != DF_CHAIN_TAKE)
			step(mount);
	}
	void step(Mount &mount)
	{
		df_u64 old = 0;
		std::vector<df_u8> image;
		effect(mount, old, image);
		complete(mount, old, image);
	}
	/* A liar has `word` of kKey in the new table. */
	void lie(df_u64 word)
	{
		df_slot &slot = slots_[df_hash_bucket(kKey, 1) * DF_BUCKET_SLOTS];
		slot.key = kKey;
		slot.word = word;
	}
	void reassert_until_forfeited(Mount &mount)
	{
		for (int tries = 0; df_lock_reassert(&mount.lock, &mount.out); tries++) {
			ASSERT_LT(tries, 100);
			mount.perform();
			chains(mount);
		}
		ASSERT_TRUE(mount.woken & DF_WAKE_FORFEITED);
	}
	void reassert_all()
	{
		for (df_u32 node = 1; node <= 3; node++) {
			reassert(node);
			chains(mount_[node]);
		}
	}
};

TEST_F(Recover, HeldLocksAreTakenAgainAndGoOn)
{
	hold(1, DF_S);
	hold(2, DF_S);
	ASSERT_EQ(df_lock_pin(&mount_[1].lock, DF_S), DF_PIN_OK);
	restart();
	EXPECT_EQ(df_lock_pin(&mount_[1].lock, DF_S), DF_PIN_OK) << "held all the time";
	reassert_all();
	EXPECT_EQ(mount_[1].woken, DF_WAKE_REASSERTED);
	EXPECT_EQ(mount_[3].woken, 0u) << "it held nothing";
	EXPECT_EQ(slot().word, 2 * df_unit(DF_S, 1));
	EXPECT_EQ(reassert(1), 0) << "once";
	resume();
	mount_[3].want(DF_X);
	chains(mount_[3]);
	settle();
	EXPECT_EQ(mount_[1].sheds, 1u);
	df_lock_unpin(&mount_[1].lock);
	df_lock_unpin(&mount_[1].lock);
	mount_[1].shed(DF_NL);
	mount_[2].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[3].lock.held, DF_X);
	expect_idle();
}

TEST_F(Recover, DirtyHolderOfXWritesItsValueIntoTheNewTable)
{
	df_value value{4711, 1, 2, 0};

	hold(1, DF_X);
	restart();
	reassert_all();
	EXPECT_EQ(slot().word, df_unit(DF_X, 1));
	EXPECT_FALSE(mount_[1].lock.value.flags & DF_VALUE_PUBLISHED);
	resume();
	mount_[2].want(DF_S);
	chains(mount_[2]);
	settle();
	ASSERT_EQ(mount_[1].keep, DF_S);
	mount_[1].shed(DF_S, &value);
	settle();
	EXPECT_EQ(mount_[2].lock.held, DF_S);
	EXPECT_EQ(mount_[2].lock.value.size, 4711u);
	EXPECT_TRUE(mount_[2].lock.value.flags & DF_VALUE_PUBLISHED);
}

TEST_F(Recover, AttemptInFlightIsNotHeld)
{
	mount_[1].want(DF_X);
	find(mount_[1]);
	df_u64 old = 0;
	std::vector<df_u8> image;
	effect(mount_[1], old, image); /* it is in the word; nobody here will learn it */
	restart();
	EXPECT_EQ(mount_[1].lock.held, DF_NL);
	EXPECT_EQ(reassert(1), 0);
	EXPECT_FALSE(df_lock_quiet(&mount_[1].lock)) << "somebody waits";
	resume();
	chains(mount_[1]);
	EXPECT_EQ(mount_[1].lock.held, DF_X);
	EXPECT_EQ(mount_[1].woken, DF_WAKE_GRANTED);
}

TEST_F(Recover, UpgradeInFlightLeavesS)
{
	hold(1, DF_S);
	mount_[1].want(DF_X);
	df_u64 old = 0;
	std::vector<df_u8> image;
	effect(mount_[1], old, image);
	restart();
	EXPECT_EQ(mount_[1].lock.held, DF_S);
	reassert_all();
	EXPECT_EQ(slot().word, df_unit(DF_S, 1));
	resume();
	chains(mount_[1]);
	EXPECT_EQ(mount_[1].lock.held, DF_X) << "the waiter is served in the new table";
}

TEST_F(Recover, ReleaseInFlightIsGivenUp)
{
	for (bool done : {false, true}) {
		hold(1, DF_X);
		ASSERT_EQ(df_lock_drop(&mount_[1].lock, &mount_[1].out), 0);
		mount_[1].shed(DF_NL);
		df_u64 old = 0;
		std::vector<df_u8> image;
		if (done)
			effect(mount_[1], old, image);
		restart();
		EXPECT_EQ(reassert(1), 0) << "nothing is left to take";
		EXPECT_EQ(df_lock_pin(&mount_[1].lock, DF_IS), DF_PIN_WANT);
		resume();
		EXPECT_EQ(mount_[1].woken, DF_WAKE_RELEASED);
		EXPECT_FALSE(mount_[1].posted);
		EXPECT_TRUE(df_lock_quiet(&mount_[1].lock));
	}
}

TEST_F(Recover, ReleaseToSInFlightTakesS)
{
	hold(1, DF_X);
	mount_[2].want(DF_S);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	mount_[1].shed(DF_S);
	ASSERT_TRUE(mount_[1].posted);
	restart();
	reassert_all();
	EXPECT_EQ(slot().word, df_unit(DF_S, 1));
	resume();
	EXPECT_EQ(mount_[1].woken, DF_WAKE_REASSERTED | DF_WAKE_RELEASED);
	EXPECT_TRUE(mount_[1].to_lockd.empty()) << "the old lockd's Revoke is void";
	settle();
	EXPECT_EQ(mount_[2].lock.held, DF_S);
}

TEST_F(Recover, ShedThatEndsInEachPhase)
{
	for (int phase = 0; phase < 4; phase++) {
		hold(1, DF_X);
		mount_[2].want(DF_X);
		chains(mount_[2]);
		lockd();
		receive(mount_[1]);
		df_value value{df_u64(phase) + 1, 0, 0, 0};
		restart();
		if (phase == 0)
			mount_[1].shed(DF_NL, &value);
		EXPECT_EQ(reassert(1), phase == 0 ? 0 : 1);
		if (phase == 1)
			mount_[1].shed(DF_NL, &value); /* its chain is in flight */
		chains(mount_[1]);
		if (phase == 2)
			mount_[1].shed(DF_NL, &value);
		EXPECT_FALSE(mount_[1].posted) << "the release waits for resume";
		resume();
		if (phase == 3)
			mount_[1].shed(DF_NL, &value);
		settle();
		EXPECT_TRUE(mount_[1].woken & DF_WAKE_RELEASED) << phase;
		EXPECT_EQ(mount_[1].lock.held, DF_NL) << phase;
		ASSERT_EQ(mount_[2].lock.held, DF_X) << phase;
		EXPECT_EQ(mount_[2].lock.value.size, phase ? df_u64(phase) + 1 : 0);
		ASSERT_EQ(df_lock_drop(&mount_[2].lock, &mount_[2].out), 0);
		mount_[2].shed(DF_NL);
		settle();
		expect_idle();
	}
}

TEST_F(Recover, WantCancelAndTryWhileDetached)
{
	hold(1, DF_X);
	mount_[3].want(DF_S, 1); /* a try in flight */
	restart();
	EXPECT_EQ(mount_[2].want(DF_S), DF_WANT_STARTED);
	EXPECT_EQ(mount_[2].want(DF_S, 1), DF_WANT_BUSY);
	EXPECT_FALSE(mount_[2].posted);
	df_lock_cancel(&mount_[2].lock, &mount_[2].out);
	EXPECT_EQ(mount_[2].out.messages, 0);
	EXPECT_TRUE(df_lock_quiet(&mount_[2].lock));
	EXPECT_FALSE(df_lock_quiet(&mount_[3].lock));
	reassert_all();
	resume();
	EXPECT_EQ(mount_[3].woken, DF_WAKE_WOULD_BLOCK);
	EXPECT_FALSE(mount_[2].posted || mount_[3].posted);
}

TEST_F(Recover, AskAndGlimpseOfTheOldLockdAreForgotten)
{
	df_value value{5, 6, 7, 0};
	df_msg glimpse;

	hold(1, DF_X);
	mount_[2].want(DF_X);
	chains(mount_[2]); /* asked */
	df_msg_init(&glimpse, DF_MSG_GLIMPSE, mount_[1].lock.slot, kKey, 9);
	ASSERT_EQ(df_lock_message(&mount_[1].lock, &glimpse, &value, &mount_[1].out), 0);
	mount_[1].perform();
	ASSERT_EQ(mount_[1].chain.kind, DF_CHAIN_PUBLISH);
	restart();
	reassert_all();
	resume();
	EXPECT_TRUE(mount_[1].to_lockd.empty());
	chains(mount_[2]);
	settle();
	EXPECT_EQ(mount_[1].sheds, 1u) << "asked anew";
	mount_[1].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[2].lock.held, DF_X);
}

TEST_F(Recover, SecondRestartWhileReasserting)
{
	hold(1, DF_X);
	restart();
	ASSERT_EQ(reassert(1), 1);
	find(mount_[1]);
	restart();
	EXPECT_EQ(mount_[1].lock.held, DF_X);
	reassert_all();
	EXPECT_EQ(mount_[1].woken, DF_WAKE_REASSERTED);
	restart();
	reassert_all();
	EXPECT_EQ(slot().word, df_unit(DF_X, 1));
}

TEST_F(Recover, PassingConflictIsTriedAgain)
{
	hold(1, DF_X);
	restart();
	reassert(1);
	find(mount_[1]);
	df_u64 &word = slots_[mount_[1].lock.slot].word;
	word = df_unit(DF_X, 9); /* of an attempt on another key */
	chains(mount_[1]);
	EXPECT_EQ(mount_[1].woken, DF_WAKE_BUSY);
	word = 0;
	mount_[1].woken = 0;
	ASSERT_EQ(reassert(1), 1);
	chains(mount_[1]);
	EXPECT_EQ(mount_[1].woken, DF_WAKE_REASSERTED);
}

/* Its session may stand still until its lease has run out: no reason to lose a lock. */
TEST_F(Recover, SharedAttemptOnAnotherKeyIsNoConflict)
{
	const df_u64 stray = df_unit(DF_S, 9);

	for (df_u32 mode : {DF_X, DF_IX}) {
		hold(1, mode);
		restart();
		slots_[df_hash_bucket(kKey, 1) * DF_BUCKET_SLOTS].key = kKey;
		df_u64 &word = slots_[df_hash_bucket(kKey, 1) * DF_BUCKET_SLOTS].word;
		word = stray | DF_CONTENDED;
		ASSERT_EQ(reassert(1), 1);
		chains(mount_[1]);
		EXPECT_EQ(mount_[1].woken, DF_WAKE_REASSERTED);
		EXPECT_EQ(word, (stray | DF_CONTENDED) + df_unit(mode, 1));
		word -= stray | DF_CONTENDED; /* undone */
		resume();
		ASSERT_EQ(df_lock_drop(&mount_[1].lock, &mount_[1].out), 0);
		mount_[1].shed(DF_NL);
		chains(mount_[1]);
		EXPECT_EQ(word, 0u);
	}
}

TEST_F(Recover, LiarsConflictForfeits)
{
	for (df_u32 mode : {DF_X, DF_S, DF_IX}) {
		hold(1, mode);
		ASSERT_EQ(df_lock_pin(&mount_[1].lock, mode), DF_PIN_OK);
		restart();
		slots_[df_hash_bucket(kKey, 1) * DF_BUCKET_SLOTS].key = kKey;
		df_u64 &word = slots_[df_hash_bucket(kKey, 1) * DF_BUCKET_SLOTS].word;
		word = df_unit(DF_X, 2);
		int tries = 0;
		while (reassert(1)) {
			chains(mount_[1]);
			ASSERT_LT(++tries, 100);
		}
		EXPECT_EQ(tries, 16);
		EXPECT_EQ(mount_[1].woken, DF_WAKE_BUSY | DF_WAKE_FORFEITED);
		EXPECT_EQ(word, df_unit(DF_X, 2)) << "nothing of ours is left in it";
		EXPECT_EQ(mount_[1].sheds, 1u);
		EXPECT_EQ(mount_[1].keep, DF_NL);
		EXPECT_EQ(df_lock_pin_guest(&mount_[1].lock, mode), DF_PIN_LOST);
		EXPECT_EQ(df_lock_close_gate(&mount_[1].lock), -1) << "pins are left";
		df_lock_unpin(&mount_[1].lock);
		resume();
		mount_[1].shed(DF_NL);
		EXPECT_FALSE(mount_[1].posted);
		EXPECT_TRUE(mount_[1].woken & DF_WAKE_RELEASED);
		EXPECT_TRUE(df_lock_quiet(&mount_[1].lock));
		word = 0;
		hold(1, DF_X); /* it can be had as any lock */
		ASSERT_EQ(df_lock_drop(&mount_[1].lock, &mount_[1].out), 0);
		mount_[1].shed(DF_NL);
		chains(mount_[1]);
	}
}

TEST_F(Recover, ForfeitedWhileShedding)
{
	hold(1, DF_X);
	mount_[2].want(DF_S);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	restart();
	slots_[df_hash_bucket(kKey, 1) * DF_BUCKET_SLOTS].key = kKey;
	slots_[df_hash_bucket(kKey, 1) * DF_BUCKET_SLOTS].word = df_unit(DF_X, 3);
	while (reassert(1))
		chains(mount_[1]);
	EXPECT_EQ(mount_[1].sheds, 0u) << "one is under way";
	ASSERT_EQ(df_lock_close_gate(&mount_[1].lock), 0);
	EXPECT_EQ(df_lock_shed_done(&mount_[1].lock, DF_S, nullptr, &mount_[1].out), -1)
		<< "what it began with";
	mount_[1].shed(DF_NL);
	resume();
	EXPECT_EQ(mount_[1].lock.held, DF_NL);
	EXPECT_TRUE(mount_[1].woken & DF_WAKE_RELEASED);
}

/* The shed has swept and writes back, nobody is admitted: what it keeps must go all the same, before the gate opens. */
TEST_F(Recover, ForfeitedBehindAClosedGate)
{
	df_lock &lock = mount_[1].lock;
	const df_value value{4711, 1, 2, 0};

	hold(1, DF_X);
	mount_[2].want(DF_S);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	ASSERT_EQ(mount_[1].keep, DF_S);
	ASSERT_EQ(df_lock_close_gate(&lock), 0);
	restart();
	lie(df_unit(DF_X, 3));
	reassert_until_forfeited(mount_[1]);
	EXPECT_EQ(mount_[1].sheds, 0u) << "one is under way";
	EXPECT_EQ(lock.keep, DF_NL);
	EXPECT_EQ(df_lock_shed_done(&lock, DF_S, &value, &mount_[1].out), -1)
		<< "S would stay cached";
	EXPECT_EQ(df_lock_shed_done(&lock, DF_NL, nullptr, &mount_[1].out), -1)
		<< "the gate is to be closed again, after a sweep";
	EXPECT_EQ(df_lock_pin_guest(&lock, DF_S), DF_PIN_LOST) << "this sweep may wait for it";
	resume();
	EXPECT_NE(lock.gate, DF_GATE_OPEN);
	EXPECT_FALSE(mount_[1].woken & DF_WAKE_RELEASED);
	mount_[1].shed(DF_NL);
	EXPECT_TRUE(mount_[1].woken & DF_WAKE_RELEASED);
	EXPECT_FALSE(mount_[1].posted);
	EXPECT_TRUE(df_lock_quiet(&lock));
}

/* The shed is over, for the shell; what it kept is forfeited before the release: it is shed once more. */
TEST_F(Recover, ForfeitedAfterTheShed)
{
	for (bool before : {true, false}) {
		df_lock &lock = mount_[1].lock;

		hold(1, DF_X);
		mount_[2].want(DF_S);
		chains(mount_[2]);
		lockd();
		receive(mount_[1]);
		ASSERT_EQ(mount_[1].keep, DF_S);
		if (before) {
			mount_[1].shed(DF_S);
			ASSERT_EQ(lock.chain, DF_CHAIN_RELEASE);
		}
		restart();
		if (!before)
			mount_[1].shed(DF_S);
		lie(df_unit(DF_X, 3));
		reassert_until_forfeited(mount_[1]);
		EXPECT_EQ(mount_[1].sheds, 1u);
		EXPECT_EQ(mount_[1].keep, DF_NL);
		EXPECT_EQ(df_lock_pin_guest(&lock, DF_S), DF_PIN_LOST);
		resume();
		EXPECT_NE(lock.gate, DF_GATE_OPEN) << "S is cached";
		mount_[1].shed(DF_NL);
		EXPECT_TRUE(mount_[1].woken & DF_WAKE_RELEASED);
		EXPECT_TRUE(df_lock_quiet(&lock));
		lie(0);
		df_lock_cancel(&mount_[2].lock, &mount_[2].out);
		restart();
		resume();
		settle();
	}
}

TEST_F(Recover, ResumeWithoutReassertForfeits)
{
	hold(1, DF_X);
	restart();
	resume();
	EXPECT_EQ(mount_[1].woken, DF_WAKE_FORFEITED);
	EXPECT_EQ(mount_[1].lock.held, DF_NL);
}

TEST_F(Recover, SessionLostWhileDetached)
{
	hold(1, DF_X);
	restart();
	reassert(1);
	df_lock_session_lost(&mount_[1].lock, &mount_[1].out);
	EXPECT_EQ(mount_[1].out.wake, DF_WAKE_LOST);
	EXPECT_TRUE(df_lock_quiet(&mount_[1].lock));
	df_lock_resume(&mount_[1].lock, &mount_[1].out);
	EXPECT_EQ(mount_[1].out.wake, 0);
}

TEST_F(Recover, GraceRefusesAskAndGlimpse)
{
	df_msg message;

	hold(1, DF_X);
	restart();
	reassert_all();
	df_msg_init(&message, DF_MSG_ASK, mount_[1].lock.slot, kKey, 1);
	message.ask.want = DF_S;
	df_lockd_message(lockd_, 2, &message);
	df_msg_init(&message, DF_MSG_GLIMPSE, mount_[1].lock.slot, kKey, 2);
	df_lockd_message(lockd_, 2, &message);
	lockd();
	ASSERT_EQ(mount_[2].to_client.size(), 2u);
	EXPECT_EQ(mount_[2].to_client[0].grant.status, DF_GRANT_BUSY);
	EXPECT_EQ(mount_[2].to_client[1].glimpse_reply.status, DF_GLIMPSE_BUSY);
	EXPECT_TRUE(mount_[1].to_client.empty());
	expect_idle();
	EXPECT_EQ(df_lockd_session_requests(lockd_, 2), 0u);
}

/* The bucket is full of what others hold: Find goes to the overflow area; when that is full too, BUSY and nobody is revoked. */
TEST_F(Recover, FindInGrace)
{
	std::vector<df_msg> found;

	hold(1, DF_X);
	hold(2, DF_NL);
	restart();
	for (df_u32 i = 0; i < DF_BUCKET_SLOTS; i++) {
		slots_[i].key = df_key_inode(1000 + i);
		slots_[i].word = df_unit(DF_S, 2);
	}
	ASSERT_EQ(reassert(1), 1);
	settle();
	EXPECT_EQ(mount_[1].woken, DF_WAKE_REASSERTED);
	EXPECT_EQ(mount_[1].lock.slot, DF_BUCKET_SLOTS);
	EXPECT_EQ(slots_[DF_BUCKET_SLOTS].word, df_unit(DF_X, 1));
	df_msg message;
	df_msg_init(&message, DF_MSG_FIND, 0, df_key_inode(2000), 1);
	mount_[2].to_lockd.push_back(message);
	lockd();
	ASSERT_EQ(mount_[2].to_client.size(), 1u);
	EXPECT_EQ(mount_[2].to_client[0].found.status, DF_FOUND_BUSY);
	EXPECT_TRUE(mount_[1].to_client.empty()) << "nobody is asked to give up";
	for (df_slot &slot : slots_)
		EXPECT_FALSE(df_word_contended(slot.word));
	/* A slot whose X it waits for is taken by a re-assertion meanwhile. */
	slots_[3].word = 0;
	mount_[2].to_client.clear();
	mount_[2].to_lockd.push_back(message);
	df_lockd_message(lockd_, 2, &message);
	mount_[2].to_lockd.clear();
	Loop read = loop_.front();
	loop_.pop_front();
	std::vector<df_u8> image;
	df_u64 old = 0;
	execute(read.chain, old, image);
	df_lockd_chain_done(lockd_, read.cookie, old, image.data());
	slots_[3].word += df_unit(DF_S, 3);
	lockd();
	ASSERT_EQ(mount_[2].to_client.size(), 1u);
	EXPECT_EQ(mount_[2].to_client[0].found.status, DF_FOUND_BUSY);
	EXPECT_EQ(slots_[3].word, df_unit(DF_S, 3));
	EXPECT_EQ(df_lockd_session_requests(lockd_, 2), 0u);
}

/* lockd's queue for a re-key has set the contended bit: X is taken over it, and the re-key goes elsewhere. */
TEST_F(Recover, TakesXBesideTheContendedBit)
{
	hold(1, DF_X);
	restart();
	reassert(1);
	find(mount_[1]);
	df_u64 &word = slots_[mount_[1].lock.slot].word;
	word |= DF_CONTENDED;
	step(mount_[1]);
	ASSERT_TRUE(mount_[1].posted);
	word &= ~DF_CONTENDED; /* and it goes again before the second try */
	chains(mount_[1]);
	EXPECT_EQ(mount_[1].woken, DF_WAKE_REASSERTED);
	EXPECT_EQ(word, df_unit(DF_X, 1));
}

TEST_F(Recover, SlotReKeyedUnderTheReassertion)
{
	hold(1, DF_S);
	restart();
	reassert(1);
	find(mount_[1]);
	df_u32 first = mount_[1].lock.slot;
	slots_[first].key = df_key_inode(99);
	chains(mount_[1]);
	EXPECT_EQ(mount_[1].woken, DF_WAKE_REASSERTED);
	EXPECT_NE(mount_[1].lock.slot, first);
	EXPECT_EQ(slots_[first].word, 0u);
}

} // namespace
