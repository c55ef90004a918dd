/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The policy of extents: its patterns with their messages counted, then everything at once against the oracle. */
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>

#include "rdma/lock/extents_world.h"

namespace
{

using namespace distfuse::extents_test;

df_extents_policy policy()
{
	df_extents_policy result = df_extents_default;
	result.shift = kShift;
	return result;
}

df_u64 seed()
{
	const char *given = std::getenv("DISTFUSE_SEED");
	df_u64 value = given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
	std::printf("DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(value));
	return value;
}

/* --- patterns: which locks, how many messages --------------------------------------------- */

TEST(Extents, LoneWriterTakesOneLock)
{
	World world(2, policy(), 16);
	df_u64 first = world.run(0, DF_ACCESS_WRITE, 0, 10);
	df_u64 later = 0;
	for (df_u64 at = 0; at < kFile; at += 32)
		later += world.run(0, DF_ACCESS_WRITE, at, at + 32);
	later += world.run(0, DF_ACCESS_READ, 0, 100) + world.run(0, DF_ACCESS_GETATTR, 0, 0) +
		 world.run(0, DF_ACCESS_APPEND, 0, 0) + world.run(0, DF_ACCESS_WHOLE, 100, 0);
	EXPECT_EQ(first, 1U);
	EXPECT_EQ(later, 0U);
	EXPECT_EQ(world.on_inode(0), DF_X);
}

TEST(Extents, ReadersShareTheFile)
{
	World world(3, policy(), 16);
	world.run(0, DF_ACCESS_WRITE, 0, 600);
	world.run(1, DF_ACCESS_READ, 0, 100);
	world.run(2, DF_ACCESS_READ, 0, 100);
	df_u64 messages = 0;
	for (df_u64 round = 0; round < 50; round++)
		for (std::size_t i = 0; i < 3; i++)
			messages += world.run(i, DF_ACCESS_READ, round, round + 100);
	EXPECT_EQ(messages, 0U);
	for (std::size_t i = 0; i < 3; i++)
		EXPECT_EQ(world.on_inode(i), DF_S) << i;
}

TEST(Extents, SecondWriterLeavesTheFirstItsExtents)
{
	World world(2, policy(), 32);
	for (df_u32 extent = 0; extent < 10; extent++)
		world.run(0, DF_ACCESS_WRITE, extent * kExtent, extent * kExtent + 8);
	world.run(1, DF_ACCESS_WRITE, 20 * kExtent, 20 * kExtent + 8);
	EXPECT_EQ(world.on_inode(0), DF_IX);
	EXPECT_EQ(world.on_inode(1), DF_IX);
	EXPECT_EQ(world.conversions, 10U);
	for (df_u32 extent = 0; extent < 10; extent++)
		EXPECT_EQ(world.on_extent(0, extent), DF_X) << extent;
	EXPECT_EQ(world.on_extent(1, 20), DF_X);
	EXPECT_TRUE(world.node(0).cells[0].dirty) << "flushed without need";
}

TEST(Extents, NoMoreConversionsThanThePolicyAllows)
{
	df_extents_policy few = policy();
	few.convert = 3;
	World world(2, few, 32);
	for (df_u32 extent = 0; extent < 10; extent++)
		world.run(0, DF_ACCESS_WRITE, extent * kExtent, extent * kExtent + 8);
	world.run(1, DF_ACCESS_WRITE, 20 * kExtent, 20 * kExtent + 8);
	EXPECT_EQ(world.conversions, 3U);
	for (df_u32 extent = 0; extent < 10; extent++)
		EXPECT_EQ(world.on_extent(0, extent), extent < 7 ? DF_NL : DF_X) << extent;
	world.run(1, DF_ACCESS_READ, 0, 10 * kExtent); /* given up whole, and not lost */
}

TEST(Extents, IdleHolderGivesTheFileAway)
{
	World world(2, policy(), 16);
	world.run(0, DF_ACCESS_WRITE, 0, 10);
	df_extents_closed(&world.node(0).file, 1);
	world.run(1, DF_ACCESS_WRITE, 0, 10);
	EXPECT_EQ(world.on_inode(0), DF_NL);
	world.pass(policy().calm_ms);
	EXPECT_EQ(world.run(1, DF_ACCESS_WRITE, 0, 10), 1U);
	EXPECT_EQ(world.on_inode(1), DF_X);
}

/* Segments of 8 extents, one a node, four writes an extent: IOR-easy with a shared file. */
TEST(Extents, SegmentsBecomeExtentsWithoutMessages)
{
	constexpr std::size_t kNodes = 4;
	World world(kNodes, policy(), 32);
	df_u64 messages = 0, second = 0;
	for (int pass = 0; pass < 2; pass++) {
		for (df_u64 at = 0; at < 8 * kExtent; at += kExtent / 4)
			for (std::size_t i = 0; i < kNodes; i++) {
				df_u64 offset = i * 8 * kExtent + at;
				df_u64 cost =
					world.run(i, DF_ACCESS_WRITE, offset, offset + kExtent / 4);
				(pass == 0 ? messages : second) += cost;
			}
		world.now++;
	}
	std::printf("segments: %.2f messages a write in the first pass, %.2f in the second\n",
		    static_cast<double>(messages) / 128, static_cast<double>(second) / 128);
	EXPECT_LE(messages, 32 + 15 * kNodes)
		<< "one chain an extent, and the arrival of each node";
	EXPECT_EQ(second, 0U);
	for (df_u32 extent = 0; extent < 8 * kNodes; extent++)
		EXPECT_EQ(world.on_extent(extent / 8, extent), DF_X) << extent;
}

/* Records much smaller than an extent, dealt out in turn: IOR-hard. */
struct Interleaved {
	explicit Interleaved(std::size_t nodes) : world(nodes, policy(), 32) {}
	World world;

	df_u64 round(df_u64 records)
	{
		df_u64 before = world.messages;
		for (df_u64 record = 0; record < records; record++) {
			world.run(record % world.size(), DF_ACCESS_WRITE, record * 8,
				  record * 8 + 8);
			if (record % 16 == 0)
				world.now++;
		}
		return world.messages - before;
	}
};

TEST(Extents, InterleavedWritersGoUncached)
{
	constexpr df_u64 kRecords = 8 * 32; /* 32 extents of 8 records */
	Interleaved hard(4);
	df_u64 first = hard.round(kRecords);
	df_u64 second = hard.round(kRecords);
	std::printf("interleaved: %.2f messages a write in the first pass, %.2f in the second\n",
		    static_cast<double>(first) / kRecords, static_cast<double>(second) / kRecords);
	EXPECT_LE(first, 2 * kRecords) << "extents that are new here begin uncached";
	df_u64 uncached_before = hard.world.node(0).uncached + hard.world.node(1).uncached;
	df_u64 third = hard.round(kRecords);
	df_u64 uncached = hard.world.node(0).uncached + hard.world.node(1).uncached;
	EXPECT_LE(third, kRecords / 16) << "a try now and then, no more";
	EXPECT_GE(uncached - uncached_before, kRecords / 2) << "every write goes to the server";
	for (std::size_t i = 0; i < 4; i++)
		EXPECT_EQ(hard.world.on_extent(i, 3), DF_IX);
}

TEST(Extents, WriterAndReaderGoUncached)
{
	World world(2, policy(), 16);
	df_u64 last = 0;
	for (int i = 0; i < 40; i++) {
		world.now++;
		last = world.run(0, DF_ACCESS_WRITE, 0, 8);
		last += world.run(1, DF_ACCESS_READ, 0, 8);
	}
	EXPECT_EQ(world.on_inode(0), DF_IX);
	EXPECT_EQ(world.on_extent(0, 0), DF_IX);
	EXPECT_EQ(world.on_extent(1, 0), DF_IS);
	EXPECT_EQ(last, 0U);
}

/* One extent bounces, another goes from hand to hand and is worth it each time: only the first falls. */
TEST(Extents, OnlyWhatBouncesGoesUncached)
{
	World world(2, policy(), 16);
	for (int round = 0; round < 8; round++)
		for (std::size_t i = 0; i < 2; i++) {
			for (df_u32 hit = 0; hit < 2 * policy().worth; hit++)
				world.run(i, DF_ACCESS_WRITE, kExtent, kExtent + 8);
			world.run(i, DF_ACCESS_WRITE, 0, 8);
			world.now++;
		}
	EXPECT_EQ(world.on_extent(0, 0), DF_IX);
	EXPECT_EQ(world.on_extent(1, 0), DF_IX);
	EXPECT_EQ(world.on_extent(1, 1), DF_X);
}

TEST(Extents, CachingReturnsWhenContentionEnds)
{
	Interleaved hard(4);
	for (int i = 0; i < 3; i++)
		hard.round(64);
	ASSERT_EQ(hard.world.on_extent(0, 0), DF_IX);
	/* Node 0 goes on alone; the others have the file open and do nothing. */
	df_u64 last = 0;
	for (int i = 0; i < 400; i++) {
		hard.world.pass(20);
		last = hard.world.run(0, DF_ACCESS_WRITE, 0, 8);
		if (hard.world.on_inode(0) == DF_X)
			break;
		if (i == 50) {
			EXPECT_EQ(hard.world.on_extent(0, 0), DF_X) << "the extent returns first";
		}
	}
	EXPECT_EQ(hard.world.on_inode(0), DF_X) << "and the file, when the others have left";
	EXPECT_GT(last, 0U);
	EXPECT_EQ(hard.world.run(0, DF_ACCESS_WRITE, 0, 2000), 0U);
}

TEST(Extents, HysteresisBoundsTheTries)
{
	Interleaved hard(2);
	for (int i = 0; i < 3; i++)
		hard.round(8);
	df_u64 before = hard.world.messages;
	constexpr df_u64 kWrites = 2000; /* 20 s of contention on one extent */
	for (df_u64 i = 0; i < kWrites; i++) {
		hard.world.now += 10;
		hard.world.run(i % 2, DF_ACCESS_WRITE, 0, 8);
	}
	double cost = static_cast<double>(hard.world.messages - before) / kWrites;
	std::printf("contended for 20 s: %.4f messages a write\n", cost);
	EXPECT_LT(cost, 0.05);
}

TEST(Extents, EntriesAreBounded)
{
	World world(2, policy(), DF_EXTENTS_MIN);
	world.run(0, DF_ACCESS_WRITE, 0, 8);
	world.run(1, DF_ACCESS_WRITE, kFile - 8, kFile);
	for (int pass = 0; pass < 2; pass++)
		for (df_u64 at = 0; at < kFile - kExtent; at += 8)
			world.run(0, DF_ACCESS_WRITE, at, at + 8);
	df_u32 held = 0;
	for (df_u32 extent = 0; extent < kFile / kExtent; extent++)
		held += world.on_extent(0, extent) != DF_NL ? 1 : 0;
	EXPECT_LE(held, DF_EXTENTS_MIN);
	std::array<df_extent, DF_EXTENTS_MIN> entries{};
	df_extents file{};
	EXPECT_EQ(df_extents_init(&file, 1, nullptr, entries.data(), DF_EXTENTS_MIN - 1), -1);
	EXPECT_EQ(df_extents_init(&file, 1, nullptr, entries.data(), DF_EXTENTS_MIN), 0);
}

TEST(Extents, BeyondTheLastExtentByTheWholeFile)
{
	std::array<df_extent, DF_EXTENTS_MIN> entries{};
	df_extents file{};
	df_access access{};
	df_step step{};
	ASSERT_EQ(df_extents_init(&file, 1, nullptr, entries.data(), DF_EXTENTS_MIN), 0);
	df_extents_held(&file, df_key_inode(1), DF_IX);
	df_u64 far = (df_u64{DF_EXTENT_LAST} + 1) << 22;
	df_access_begin(&file, &access, DF_ACCESS_WRITE, far, far + 100, 5);
	df_access_next(&file, &access, 5, &step);
	EXPECT_EQ(step.kind, DF_STEP_LOCK);
	EXPECT_EQ(step.mode, DF_X);
	EXPECT_EQ(step.key, df_key_inode(1));
	df_extents_held(&file, step.key, DF_X);
	df_extents_pinned(&file, &access, &step);
	df_access_next(&file, &access, 5, &step);
	EXPECT_EQ(step.kind, DF_STEP_READY);
	EXPECT_EQ(access.end, far + 100);
	df_access_end(&file, &access, 1, 5);
}

/* --- everything at once, against the oracle ----------------------------------------------- */

void start_random(World &world, std::size_t node, std::mt19937_64 &random)
{
	/* Within a node the shell excludes (as the kernel does) what needs the whole file or its end. */
	bool alone = world.node(node).tasks.empty();
	for (const Task &task : world.node(node).tasks)
		if (task.kind == DF_ACCESS_WHOLE || task.kind == DF_ACCESS_APPEND)
			return;
	df_u64 offset = random() % (kFile - 600);
	if (random() % 2 == 0)
		offset = random() % (4 * kExtent);
	df_u64 length = 1 + random() % (random() % 4 == 0 ? 150 : 20);
	df_u32 dice = static_cast<df_u32>(random() % 100);
	if (dice < 45)
		world.begin(node, DF_ACCESS_WRITE, offset, offset + length);
	else if (dice < 85)
		world.begin(node, DF_ACCESS_READ, offset, offset + length);
	else if (dice < 93)
		world.begin(node, DF_ACCESS_GETATTR, 0, 0);
	else if (!alone)
		return;
	else if (dice < 98)
		world.begin(node, DF_ACCESS_WHOLE, offset / 4, 0);
	else if (world.length() < kFile - 400) /* room for every append under way */
		world.begin(node, DF_ACCESS_APPEND, 0, 1 + length % 8);
}

void random_step(World &world, std::mt19937_64 &random, std::size_t most)
{
	std::size_t i = random() % world.size();
	Node &node = world.node(i);
	switch (random() % 6) {
	case 0:
		if (node.tasks.size() < most)
			start_random(world, i, random);
		break;
	case 1:
		world.serve_all(i);
		break;
	case 2:
		if (random() % 8 == 0)
			world.tick(i);
		break;
	default:
		if (!node.tasks.empty()) {
			auto task = std::next(node.tasks.begin(),
					      static_cast<long>(random() % node.tasks.size()));
			world.advance(i, *task);
			if (task->over)
				node.tasks.erase(task);
		}
	}
	if (random() % 64 == 0)
		world.now += random() % (random() % 100 == 0 ? 7000 : 20);
}

TEST(Extents, EveryReadReturnsTheLastWrite)
{
	df_u64 base = seed();
	df_u64 operations = 0, uncached = 0, cached = 0, conversions = 0;
	for (df_u64 run = 0; run < 150 && !testing::Test::HasFailure(); run++) {
		std::mt19937_64 random(base + run);
		df_extents_policy drawn = policy();
		drawn.worth = 1 + static_cast<df_u32>(random() % 8);
		drawn.bounces = 1 + static_cast<df_u32>(random() % 4);
		drawn.calm_ms = 1 + static_cast<df_u32>(random() % 300);
		drawn.calm_max_ms = drawn.calm_ms * 8;
		drawn.idle_ms = 1 + static_cast<df_u32>(random() % 100);
		drawn.leave_ms = 1 + static_cast<df_u32>(random() % 3000);
		drawn.convert = static_cast<df_u32>(random() % 20);
		World world(2 + random() % 4, drawn,
			    DF_EXTENTS_MIN + static_cast<df_u32>(random() % 40));
		world.fail_conversions = random() % 8 == 0;
		std::size_t most = 1 + random() % 4;
		for (int i = 0; i < 8000 && !testing::Test::HasFailure(); i++)
			random_step(world, random, most);
		if (!testing::Test::HasFailure())
			world.settle();
		operations += world.operations;
		conversions += world.conversions;
		for (std::size_t i = 0; i < world.size(); i++) {
			uncached += world.node(i).uncached;
			cached += world.node(i).cached;
		}
		ASSERT_FALSE(testing::Test::HasFailure())
			<< "DISTFUSE_SEED=" << base + run << " repeats it in its first run";
	}
	std::printf("%llu operations, extents %llu cached, %llu uncached, %llu conversions\n",
		    static_cast<unsigned long long>(operations),
		    static_cast<unsigned long long>(cached),
		    static_cast<unsigned long long>(uncached),
		    static_cast<unsigned long long>(conversions));
	EXPECT_GT(operations, 10000U);
	EXPECT_GT(cached, 1000U);
	EXPECT_GT(uncached, 1000U);
	EXPECT_GT(conversions, 100U);
}

} // namespace
