/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* lockd's core with many sessions and waiters: whom it asks, in which order it serves, who may leave the middle of a queue. */
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "rdma/lock/lockd.h"

namespace
{

constexpr df_u64 kKey = 7ull << DF_KEY_EXTENT_BITS;
constexpr df_u64 kOld = 8ull << DF_KEY_EXTENT_BITS;

struct Sent {
	df_u32 node;
	df_msg message;
};

class Walks : public testing::Test
{
      protected:
	void start(df_u32 sessions, const std::set<df_u32> &live)
	{
		df_lockd_config config{1, 1, sessions, 4, 2 * sessions + 16, 4};
		df_lockd_shell shell{};
		shell.context = this;
		shell.post = [](void *context, df_u64 cookie, const df_chain *chain) {
			static_cast<Walks *>(context)->chains_.push_back({cookie, *chain});
		};
		shell.send = [](void *context, df_u32 node, const df_msg *message) {
			static_cast<Walks *>(context)->sent_.push_back({node, *message});
		};
		shell.drop = [](void *context, df_u32 node, int reason) {
			static_cast<Walks *>(context)->drops_.push_back({node, reason});
		};
		chains_.clear();
		sent_.clear();
		slots_.assign(DF_BUCKET_SLOTS + 1, df_slot{});
		for (df_u32 i = 0; i < slots_.size(); i++)
			df_lockd_prepare_slot(&slots_[i], i);
		slots_[0].key = kKey;
		memory_.assign(df_lockd_memory(&config) / 8, 0);
		lockd_ = df_lockd_init(memory_.data(), &config, &shell);
		for (df_u32 node : live)
			ASSERT_EQ(df_lockd_session_joined(lockd_, node), 0);
	}
	void complete()
	{
		const auto [cookie, chain] = chains_.front();
		chains_.pop_front();
		df_u64 old = 0, word = 0;
		df_slot image{};
		bool reads = false;
		for (df_u32 i = 0; i < chain.count; i++) {
			const df_op &op = chain.op[i];
			auto *at = reinterpret_cast<df_u8 *>(slots_.data()) + op.offset;
			if (op.kind == DF_OP_READ) {
				std::memcpy(&image, at, sizeof(image));
				reads = true;
			} else if (op.kind == DF_OP_WRITE) {
				std::memcpy(at, chain.bytes + op.data, op.length);
			} else {
				std::memcpy(&old, at, sizeof(old));
				word = op.kind == DF_OP_FAA ? old + op.operand
				       : old == op.expected ? op.operand
							    : old;
				std::memcpy(at, &word, sizeof(word));
			}
		}
		df_lockd_chain_done(lockd_, cookie, old, reads ? &image : nullptr);
	}
	void settle()
	{
		while (!chains_.empty())
			complete();
	}
	void ask(df_u32 node, df_u32 want, df_u64 key = kKey)
	{
		df_msg message;
		df_msg_init(&message, DF_MSG_ASK, 0, key, node);
		message.ask.want = static_cast<df_u8>(want);
		df_lockd_message(lockd_, node, &message);
	}
	void cancel(df_u32 node)
	{
		df_msg message;
		df_msg_init(&message, DF_MSG_CANCEL, 0, kKey, node);
		df_lockd_message(lockd_, node, &message);
	}
	void released(df_u32 node, df_u64 seq)
	{
		df_msg message;
		df_msg_init(&message, DF_MSG_RELEASED, 0, kKey, seq);
		df_lockd_message(lockd_, node, &message);
	}
	/* Takes what was sent; each session may get a type once. */
	std::set<df_u32> take(df_u32 type)
	{
		std::set<df_u32> nodes;
		for (const Sent &sent : sent_) {
			if (sent.message.head.type != type)
				continue;
			EXPECT_TRUE(nodes.insert(sent.node).second) << sent.node;
		}
		return nodes;
	}
	void answer_revokes()
	{
		for (const Sent &sent : std::exchange(sent_, {}))
			if (sent.message.head.type == DF_MSG_REVOKE)
				released(sent.node, sent.message.head.seq);
	}
	std::vector<df_u32> queue()
	{
		std::vector<df_u32> nodes(1000);
		nodes.resize(df_lockd_slot_waiters(lockd_, 0, nodes.data(), 1000));
		return nodes;
	}
	std::mt19937_64 seeded()
	{
		const char *given = std::getenv("DISTFUSE_SEED");
		seed_ = given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
		return std::mt19937_64(seed_);
	}

	struct Chain {
		df_u64 cookie;
		df_chain chain;
	};
	struct Drop {
		df_u32 node;
		int reason;
	};
	std::uint64_t seed_ = 0;
	std::vector<df_u64> memory_;
	std::vector<df_slot> slots_;
	std::deque<Chain> chains_;
	std::deque<Sent> sent_;
	std::vector<Drop> drops_;
	df_lockd *lockd_ = nullptr;
};

TEST_F(Walks, AnOwnerAloneIsAsked)
{
	start(200, {1, 2, 66, 130, 200});
	slots_[0].word = df_unit(DF_X, 66);
	std::memset(slots_[0].hints, 1, DF_HINTS);
	ask(2, DF_S);
	settle();
	EXPECT_EQ(take(DF_MSG_REVOKE), std::set<df_u32>{66});
}

/* Against the plain definition: each live session whose hint is set; then each live session; never the head that keeps its S. */
TEST_F(Walks, HintedSessionsThenAll)
{
	auto random = seeded();
	SCOPED_TRACE("DISTFUSE_SEED=" + std::to_string(seed_));

	for (int turn = 0; turn < 200; turn++) {
		df_u32 sessions = 1 + static_cast<df_u32>(random() % 1000);
		df_u32 sparse = 1 + static_cast<df_u32>(random() % 40);
		std::set<df_u32> live{sessions}, hinted, others;
		for (df_u32 node = 1; node <= sessions; node++)
			if (random() % sparse == 0)
				live.insert(node);
		start(sessions, live);
		for (df_u8 &hint : slots_[0].hints)
			hint = random() % 1024 < 1024u / (1 + turn % 64);
		slots_[0].word = df_unit(DF_S, 0) * 2;
		for (df_u32 node : live) {
			if (node == sessions)
				continue;
			others.insert(node);
			if (slots_[0].hints[node % DF_HINTS])
				hinted.insert(node);
		}
		df_msg message;
		df_msg_init(&message, DF_MSG_ASK, 0, kKey, 1);
		message.ask.want = DF_X;
		message.ask.held = DF_S;
		df_lockd_message(lockd_, sessions, &message);
		settle();
		if (!hinted.empty()) {
			EXPECT_EQ(take(DF_MSG_REVOKE), hinted);
			answer_revokes();
			settle();
		}
		if (!others.empty()) {
			EXPECT_EQ(take(DF_MSG_REVOKE), others);
			answer_revokes();
			settle();
		}
		EXPECT_EQ(take(DF_MSG_FREEZE), live) << "then what is in the word is a dead one's";
	}
}

/* Asks, cancels and ends of sessions at random against a plain list: order, answers, duplicates. */
TEST_F(Walks, TheMiddleOfAQueueAgainstAPlainList)
{
	auto random = seeded();
	SCOPED_TRACE("DISTFUSE_SEED=" + std::to_string(seed_));
	constexpr df_u32 kSessions = 300;
	std::set<df_u32> live;
	for (df_u32 node = 1; node <= kSessions; node++)
		live.insert(node);
	start(kSessions, live);
	slots_[0].word = df_unit(DF_X, 1); /* keeps it: its answer never comes */
	std::vector<df_u32> expected;

	for (int turn = 0; turn < 20000; turn++) {
		const df_u32 node = 2 + static_cast<df_u32>(random() % (kSessions - 1));
		const auto at = std::find(expected.begin(), expected.end(), node);
		switch (random() % 8) {
		case 0: /* ends, and its node id comes again */
			df_lockd_session_gone(lockd_, node, 1);
			ASSERT_EQ(df_lockd_session_joined(lockd_, node), 0);
			if (at != expected.end())
				expected.erase(at);
			break;
		case 1:
		case 2:
			sent_.clear();
			cancel(node);
			ASSERT_EQ(take(DF_MSG_GRANT).count(node), at != expected.end());
			if (at != expected.end())
				expected.erase(at);
			break;
		default:
			if (at != expected.end())
				break;
			ask(node, DF_X);
			expected.push_back(node);
			break;
		}
		if (random() % 2)
			settle();
		ASSERT_EQ(queue(), expected);
	}
	ASSERT_TRUE(drops_.empty());
	settle();
	ASSERT_FALSE(expected.empty());
	ask(expected.back(), DF_S);
	ASSERT_EQ(drops_.size(), 1u);
	EXPECT_EQ(drops_[0].reason, DF_DROP_DUPLICATE);
}

TEST_F(Walks, WhoAskedForAnotherKeyIsToldWhereverItStands)
{
	start(100, {1, 2, 3, 4, 5, 6});
	slots_[0].word = df_unit(DF_X, 1);
	ask(2, DF_X);
	ask(3, DF_X, kOld);
	ask(4, DF_X);
	settle();
	EXPECT_EQ(take(DF_MSG_GRANT), std::set<df_u32>{3});
	ask(5, DF_X, kOld); /* after the first look */
	ask(6, DF_X);
	settle();
	EXPECT_EQ(take(DF_MSG_GRANT), (std::set<df_u32>{3, 5}));
	EXPECT_EQ(queue(), (std::vector<df_u32>{2, 4, 6}));
	slots_[0].key = kOld; /* the key changes */
	slots_[0].word &= DF_CONTENDED;
	sent_.clear();
	released(6, 0);
	settle();
	EXPECT_EQ(take(DF_MSG_GRANT), (std::set<df_u32>{2, 4, 6}));
	for (const Sent &sent : sent_)
		EXPECT_EQ(sent.message.grant.status, DF_GRANT_STALE);
}

} // namespace
