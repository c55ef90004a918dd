/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Thousands of seeds of the simulator. DISTFUSE_SEED=n replays one seed. */
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <iostream>

#include "rdma/lock/simulator.h"

namespace distfuse::lock_simulator
{
namespace
{

/* Small limits, so that every one of them is met. */
Shape shape_of(std::uint64_t seed)
{
	std::mt19937_64 random(seed * 0x9e3779b97f4a7c15ull);
	auto between = [&](unsigned low, unsigned high) {
		return low + static_cast<unsigned>(random() % (high - low + 1));
	};
	Shape shape;

	shape.clients = between(2, 5);
	shape.threads = between(1, 4);
	shape.keys = between(0, 1) ? between(1, 3) : between(9, 20);
	shape.steps = between(500, 3000);
	shape.lockd.buckets = between(1, 2);
	shape.lockd.overflow = between(0, 4);
	shape.lockd.sessions = shape.clients + between(0, 2);
	shape.lockd.objects = between(2, 12);
	shape.lockd.waiters = between(2, 40);
	shape.lockd.asks = shape.keys + 8;
	shape.kills = between(0, 2) != 0;
	shape.intentions = between(0, 1) != 0;
	shape.restarts = between(0, 2) == 0;
	return shape;
}

void add(df_u64 &sum, df_u64 value)
{
	sum += value;
}

TEST(Simulator, ManySeeds)
{
	if (const char *replay = std::getenv("DISTFUSE_SEED")) {
		std::uint64_t seed = std::strtoull(replay, nullptr, 0);
		EXPECT_NO_THROW(Simulator(seed, shape_of(seed)).run());
		return;
	}
	auto begin = std::chrono::steady_clock::now();
	std::uint64_t first = std::random_device{}() * 1000000ull, seed = first;
	Stats total;
	while (std::chrono::steady_clock::now() - begin < std::chrono::seconds(15)) {
		for (int i = 0; i < 20; i++, seed++) {
			Stats stats;
			ASSERT_NO_THROW(stats = Simulator(seed, shape_of(seed)).run())
				<< "replay: DISTFUSE_SEED=" << seed;
			add(total.grants, stats.grants);
			add(total.steps, stats.steps);
			add(total.would_block, stats.would_block);
			add(total.busy, stats.busy);
			add(total.guests, stats.guests);
			add(total.glimpsed, stats.glimpsed);
			add(total.versions, stats.versions);
			add(total.restarts, stats.restarts);
			add(total.reasserted, stats.reasserted);
			add(total.lockd.grants, stats.lockd.grants);
			add(total.lockd.revokes, stats.lockd.revokes);
			add(total.lockd.rekeys, stats.lockd.rekeys);
			add(total.lockd.freezes, stats.lockd.freezes);
			add(total.lockd.repairs, stats.lockd.repairs);
			total.lockd.died += stats.lockd.died;
		}
	}
	std::cout << "seeds " << first << ".." << seed - 1 << ": steps " << total.steps
		  << ", grants " << total.grants << " (" << total.lockd.grants
		  << " by lockd), revokes " << total.lockd.revokes << ", re-keyed "
		  << total.lockd.rekeys << ", frozen " << total.lockd.freezes << ", repaired "
		  << total.lockd.repairs << ", died " << total.lockd.died << ", would block "
		  << total.would_block << ", busy " << total.busy << ", guests " << total.guests
		  << ", glimpses " << total.glimpsed << ", versions trusted " << total.versions
		  << ", restarts " << total.restarts << ", re-asserted " << total.reasserted
		  << '\n';
	/* A run that did not go there proves nothing. */
	for (df_u64 seen :
	     {total.lockd.grants, total.lockd.revokes, total.lockd.rekeys, total.lockd.freezes,
	      total.lockd.repairs, total.would_block, total.busy, total.guests, total.glimpsed,
	      total.versions, total.restarts, total.reasserted})
		EXPECT_GT(seen, 0u);
}

} // namespace
} // namespace distfuse::lock_simulator
