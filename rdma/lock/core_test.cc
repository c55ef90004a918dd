/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* One race or rule a test. */
#include "rdma/lock/core_fixture.h"

namespace
{

using distfuse::lock_core::Core;
using distfuse::lock_core::kKey;
using distfuse::lock_core::Mount;

TEST_F(Core, FreeTakeSendsNothing)
{
	hold(1, DF_X);
	EXPECT_TRUE(mount_[1].to_lockd.empty());
	EXPECT_EQ(slot().word, df_unit(DF_X, 1));
	EXPECT_EQ(df_lock_pin(&mount_[1].lock, DF_X), DF_PIN_OK);
	EXPECT_EQ(df_lock_pin(&mount_[1].lock, DF_S), DF_PIN_OK);
}

TEST_F(Core, RevokeOvertakesTheCompletionOfATake)
{
	Mount &late = mount_[1], &other = mount_[2];
	df_u64 old = 0;
	std::vector<df_u8> image;

	late.want(DF_S);
	while (late.chain.kind != DF_CHAIN_TAKE) {
		df_u64 o = 0;
		std::vector<df_u8> i;
		effect(late, o, i);
		complete(late, o, i);
	}
	effect(late, old, image); /* S is in the word, and nobody here knows yet */
	other.want(DF_X);
	chains(other);
	lockd();
	receive(late);
	EXPECT_TRUE(late.to_lockd.empty()) << "an answer now would say that nothing is held";
	complete(late, old, image);
	EXPECT_EQ(late.woken, DF_WAKE_GRANTED);
	EXPECT_EQ(df_lock_pin_granted(&late.lock, DF_S), DF_PIN_OK) << "who waited is served first";
	EXPECT_EQ(late.sheds, 1u);
	EXPECT_EQ(df_lock_close_gate(&late.lock), -1);
	df_lock_unpin(&late.lock);
	late.shed(DF_NL);
	settle();
	EXPECT_EQ(other.lock.held, DF_X);
	expect_idle();
}

TEST_F(Core, RevokeOfWhatIsNotHeldIsAnsweredAtOnce)
{
	df_msg revoke;

	hold(1, DF_S);
	Mount &other = mount_[2];
	df_msg_init(&revoke, DF_MSG_REVOKE, mount_[1].lock.slot, kKey, 5);
	revoke.revoke.wanted = DF_X;
	ASSERT_EQ(df_lock_message(&other.lock, &revoke, nullptr, &other.out), 0);
	ASSERT_EQ(other.out.messages, 1);
	EXPECT_EQ(other.out.message[0].head.type, DF_MSG_RELEASED);
	EXPECT_EQ(other.out.message[0].head.seq, 5u);
	EXPECT_EQ(other.out.message[0].released.kept, DF_NL);
	df_msg reply;
	ASSERT_EQ(df_client_unknown(&revoke, &reply), 1);
	EXPECT_EQ(std::memcmp(&reply, &other.out.message[0], reply.head.length), 0);
}

TEST_F(Core, AccessAdmittedDuringTheSweepHoldsTheRelease)
{
	hold(1, DF_X);
	mount_[2].want(DF_X);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	df_lock &lock = mount_[1].lock;
	EXPECT_EQ(df_lock_pin(&lock, DF_X), DF_PIN_WANT) << "no new users";
	EXPECT_EQ(df_lock_pin_guest(&lock, DF_X), DF_PIN_OK)
		<< "but page I/O that the sweep waits for";
	EXPECT_EQ(df_lock_close_gate(&lock), -1);
	df_lock_unpin(&lock);
	EXPECT_EQ(df_lock_shed_done(&lock, DF_NL, nullptr, &mount_[1].out), -1)
		<< "the gate is open";
	EXPECT_EQ(df_lock_close_gate(&lock), 0);
	EXPECT_EQ(df_lock_pin_guest(&lock, DF_X), DF_PIN_WANT);
	EXPECT_EQ(df_word_owner(slot().word), 1u);
}

TEST_F(Core, HolderOfXAskedForSKeepsS)
{
	df_value value{4711, 1, 2, 0};

	hold(1, DF_X);
	mount_[2].want(DF_S);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	ASSERT_EQ(mount_[1].keep, DF_S);
	df_u64 version = mount_[1].lock.version;
	mount_[1].shed(DF_S, &value);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_S);
	EXPECT_EQ(mount_[2].lock.held, DF_S);
	EXPECT_EQ(mount_[2].lock.value.size, 4711u);
	EXPECT_TRUE(mount_[2].lock.value.flags & DF_VALUE_PUBLISHED);
	EXPECT_EQ(mount_[2].lock.version, df_version_next(version));
	EXPECT_EQ(df_word_s(slot().word), 2u);
	expect_idle();
}

TEST_F(Core, LoneHolderOfSUpgradesWithoutLockd)
{
	hold(1, DF_S);
	hold(1, DF_X);
	EXPECT_TRUE(mount_[1].to_lockd.empty());
	EXPECT_EQ(slot().word, df_unit(DF_X, 1));
}

TEST_F(Core, OfTwoUpgradersTheFirstKeepsItsS)
{
	hold(1, DF_S);
	hold(2, DF_S);
	mount_[1].want(DF_X);
	mount_[2].want(DF_X);
	chains(mount_[1]);
	chains(mount_[2]);
	lockd();
	receive(mount_[1]);
	receive(mount_[2]);
	EXPECT_EQ(mount_[1].sheds, 0u);
	EXPECT_EQ(mount_[2].sheds, 1u);
	mount_[2].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_X);
	ASSERT_EQ(mount_[1].sheds, 1u) << "the second one waits in the queue";
	mount_[1].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[2].lock.held, DF_X);
	expect_idle();
}

TEST_F(Core, TryNeverAsks)
{
	hold(1, DF_X);
	EXPECT_EQ(mount_[2].want(DF_S, 1), DF_WANT_STARTED);
	chains(mount_[2]);
	EXPECT_EQ(mount_[2].woken, DF_WAKE_WOULD_BLOCK);
	EXPECT_TRUE(mount_[2].to_lockd.empty());
	EXPECT_EQ(slot().word, df_unit(DF_X, 1));
}

TEST_F(Core, TryThatMetTheContendedBitWakesLockd)
{
	hold(1, DF_S);
	mount_[2].want(DF_X);
	chains(mount_[2]);
	lockd();
	mount_[3].want(DF_S, 1);
	chains(mount_[3]);
	ASSERT_EQ(mount_[3].to_lockd.size(), 1u);
	EXPECT_EQ(mount_[3].to_lockd[0].head.type, DF_MSG_RELEASED);
	EXPECT_EQ(mount_[3].to_lockd[0].head.seq, 0u);
}

TEST_F(Core, NobodyOvertakesAWaitingWriter)
{
	hold(1, DF_S);
	mount_[2].want(DF_X);
	chains(mount_[2]);
	mount_[3].want(DF_S);
	lockd();
	chains(mount_[3]);
	settle();
	EXPECT_EQ(mount_[3].lock.held, DF_NL);
	mount_[1].shed(DF_NL);
	settle();
	EXPECT_EQ(mount_[2].lock.held, DF_X);
	EXPECT_EQ(mount_[3].lock.held, DF_NL);
}

TEST_F(Core, CountOfADeadSessionIsPutRight)
{
	hold(1, DF_S);
	hold(2, DF_S);
	df_lockd_session_gone(lockd_, 2, 0);
	mount_[1].want(DF_X);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_X);
	EXPECT_EQ(slot().word, df_unit(DF_X, 1));
	expect_idle();
}

TEST_F(Core, DeadOwnersValueBlockIsNotTrusted)
{
	df_value value{100, 0, 0, 0};

	hold(2, DF_X);
	ASSERT_EQ(df_lock_drop(&mount_[2].lock, &mount_[2].out), 0);
	mount_[2].shed(DF_NL, &value);
	chains(mount_[2]);
	hold(2, DF_X);
	df_u64 version = mount_[2].lock.version;
	df_lockd_session_gone(lockd_, 2, 0);
	mount_[1].want(DF_S);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_S);
	EXPECT_NE(mount_[1].lock.version, version);
	EXPECT_FALSE(mount_[1].lock.value.flags & DF_VALUE_PUBLISHED);
}

TEST_F(Core, NothingOfAnUnfencedSessionIsReclaimed)
{
	hold(2, DF_X);
	mount_[1].want(DF_S);
	chains(mount_[1]);
	lockd();
	mount_[2].to_client.clear(); /* silent, and nobody has fenced it */
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_NL);
	df_lockd_session_gone(lockd_, 2, 0);
	settle();
	EXPECT_EQ(mount_[1].lock.held, DF_S);
}

TEST_F(Core, GlimpseMakesNobodyFlush)
{
	df_value value{5, 6, 7, 0};
	df_msg glimpse;

	hold(1, DF_X);
	df_msg_init(&glimpse, DF_MSG_GLIMPSE, mount_[1].lock.slot, kKey, 99);
	mount_[2].to_lockd.push_back(glimpse);
	lockd();
	receive(mount_[1], &value);
	chains(mount_[1]);
	lockd();
	ASSERT_EQ(mount_[2].to_client.size(), 1u);
	const df_msg_glimpse_reply &reply = mount_[2].to_client[0].glimpse_reply;
	EXPECT_EQ(reply.head.seq, 99u);
	EXPECT_EQ(reply.fresh, 1);
	EXPECT_EQ(reply.value.size, 5u);
	EXPECT_EQ(mount_[1].sheds, 0u);
	EXPECT_EQ(mount_[1].lock.held, DF_X);
}

TEST_F(Core, CancelledWaiterLeavesTheQueue)
{
	hold(1, DF_X);
	mount_[2].want(DF_X);
	chains(mount_[2]);
	lockd();
	df_lock_cancel(&mount_[2].lock, &mount_[2].out);
	mount_[2].perform();
	settle();
	EXPECT_TRUE(df_lock_quiet(&mount_[2].lock));
	mount_[1].shed(DF_NL);
	settle();
	expect_idle();
	EXPECT_EQ(slot().word, 0u);
}

TEST_F(Core, LiarsAreDropped)
{
	df_msg message;

	df_msg_init(&message, DF_MSG_RELEASED, 0, kKey, 1ull << 60); /* of a Revoke never sent */
	df_lockd_message(lockd_, 1, &message);
	df_msg_init(&message, DF_MSG_ASK, 9, kKey, 1); /* no such slot */
	message.ask.want = DF_S;
	df_lockd_message(lockd_, 2, &message);
	for (unsigned i = 0; i < 5; i++) { /* four are allowed */
		df_msg_init(&message, DF_MSG_FIND, 0, df_key_inode(i + 1), i);
		df_lockd_message(lockd_, 3, &message);
	}
	std::vector<std::pair<df_u32, int>> expected{
		{1, DF_DROP_ANSWER}, {2, DF_DROP_SLOT}, {3, DF_DROP_FLOOD}};
	EXPECT_EQ(drops_, expected);
}

TEST_F(Core, KeepingWhatMustGoIsALie)
{
	hold(1, DF_S);
	mount_[2].want(DF_X);
	chains(mount_[2]);
	lockd();
	ASSERT_EQ(mount_[1].to_client.size(), 1u);
	df_msg message;
	df_msg_init(&message, DF_MSG_RELEASED, mount_[1].lock.slot, kKey,
		    mount_[1].to_client[0].head.seq);
	message.released.kept = DF_S;
	df_lockd_message(lockd_, 1, &message);
	ASSERT_EQ(drops_.size(), 1u);
	EXPECT_EQ(drops_[0].second, DF_DROP_ANSWER);
	df_lockd_session_gone(lockd_, 1, 0);
	settle();
	EXPECT_EQ(mount_[2].lock.held, DF_X) << "its count is repaired away";
}

TEST_F(Core, SessionLostEndsEverything)
{
	hold(1, DF_X);
	ASSERT_EQ(df_lock_pin(&mount_[1].lock, DF_X), DF_PIN_OK);
	df_lock_session_lost(&mount_[1].lock, &mount_[1].out);
	EXPECT_EQ(mount_[1].out.wake, DF_WAKE_LOST);
	EXPECT_EQ(df_lock_pin(&mount_[1].lock, DF_S), DF_PIN_LOST);
	EXPECT_FALSE(df_lock_quiet(&mount_[1].lock));
	df_lock_unpin(&mount_[1].lock);
	EXPECT_TRUE(df_lock_quiet(&mount_[1].lock));
}

TEST(Slot, ModesAndWord)
{
	for (df_u32 a = 0; a < DF_MODES; a++) {
		for (df_u32 b = 0; b < DF_MODES; b++) {
			EXPECT_EQ(df_compatible(a, b), df_compatible(b, a));
			EXPECT_TRUE(df_covers(df_join(a, b), a) && df_covers(df_join(a, b), b));
			EXPECT_TRUE(df_compatible(df_keep(a, b), b));
			EXPECT_TRUE(df_covers(a, df_keep(a, b)));
			if (a) {
				EXPECT_EQ(df_word_admits(df_unit(a, 0x7ffe), b),
					  df_compatible(a, b));
			}
		}
	}
	df_u32 extent = 0;
	EXPECT_FALSE(df_key_split_extent(df_key_inode(5), &extent));
	EXPECT_TRUE(df_key_split_extent(df_key_extent(5, DF_KEY_EXTENT_MAX), &extent));
	EXPECT_EQ(extent, DF_KEY_EXTENT_MAX);
	EXPECT_EQ(df_key_split_inode(df_key_extent(5, DF_KEY_EXTENT_MAX)), 5u);
}

TEST(Wire, EveryTruncationAndEveryReservedByteIsRefused)
{
	for (df_u32 type = 0; type < 300; type++) {
		df_msg message;
		df_msg_init(&message, type, 0, kKey, 1);
		if (type == DF_MSG_ASK)
			message.ask.want = DF_X;
		if (type == DF_MSG_REVOKE)
			message.revoke.wanted = DF_X;
		if (type == DF_MSG_GRANT)
			message.grant.mode = DF_X;
		if (type == DF_MSG_FILE_UNLOCK)
			message.file.type = DF_FILE_NONE;
		df_u32 size = df_msg_size(type);
		EXPECT_EQ(df_msg_check(&message, size) == DF_CHECK_OK,
			  type >= 1 && type < DF_MSG_TYPES)
			<< type;
		for (df_u32 length = 0; length < size; length++)
			EXPECT_NE(df_msg_check(&message, length), DF_CHECK_OK) << type;
		if (size == 32) {
			message.bytes[31] = 1;
			EXPECT_EQ(df_msg_check(&message, size), DF_CHECK_RESERVED) << type;
		}
	}
}

/*
 * A holder waits for its upgrade while a Find takes the slot. Its release is done in the word and not yet known to it when the slot
 * gets another key: STALE must not overtake the completion.
 */
TEST_F(Core, StaleWaitsForTheAnswerToARevoke)
{
	config_.buckets = 1;
	config_.overflow = 0;
	start(shell_of());
	for (df_u32 node = 1; node <= 3; node++) {
		mount_[node].table = {config_.buckets, config_.overflow, node};
		df_lock_init(&mount_[node].lock, &mount_[node].table, kKey);
		ASSERT_EQ(df_lockd_session_joined(lockd_, node), 0);
	}
	hold(1, DF_S);
	hold(2, DF_S);
	for (df_u32 i = 1; i < DF_BUCKET_SLOTS; i++) {
		slots_[i].key = df_key_inode(100 + i);
		slots_[i].word = df_unit(DF_S, 3);
	}
	df_msg find;
	df_msg_init(&find, DF_MSG_FIND, 0, df_key_inode(50), 1);
	df_lockd_message(lockd_, 3, &find);
	lockd();
	mount_[1].want(DF_X);
	chains(mount_[1]);
	lockd();
	receive(mount_[1]);
	mount_[1].shed(DF_NL);
	df_u64 old = 0;
	std::vector<df_u8> image;
	effect(mount_[1], old, image);
	receive(mount_[2]);
	mount_[2].shed(DF_NL);
	chains(mount_[2]);
	lockd();
	ASSERT_EQ(slots_[0].key, df_key_inode(50));
	EXPECT_TRUE(mount_[1].to_client.empty()) << df_msg_name(mount_[1].to_client[0].head.type);
	receive(mount_[1]);
	complete(mount_[1], old, image);
	lockd();
	ASSERT_EQ(mount_[1].to_client.size(), 1u);
	EXPECT_EQ(mount_[1].to_client[0].grant.status, DF_GRANT_STALE);
	receive(mount_[1]);
	EXPECT_TRUE(mount_[1].posted) << "it finds its key again";
	EXPECT_TRUE(drops_.empty());
}

} // namespace
