/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Clients, lockd and a fabric in one thread, under a seed. Each step does one thing that could happen next: one operation
 * of a chain, one completion, one message, one move of a simulated application thread or revoker, a death.
 *
 * Order: operations of a lock's chain in order; messages per session and direction in order; nothing else.
 * Checked at every step: modes held and pinned by different clients are compatible, dead clients' included until lockd was
 * told; what a slot's value block and version promise is so; no honest client is dropped or breaks off.
 */
#ifndef DISTFUSE_SIMULATOR_H
#define DISTFUSE_SIMULATOR_H

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "rdma/lock/client.h"
#include "rdma/lock/lockd.h"

namespace distfuse::lock_simulator
{

/* What may happen next. */
enum {
	kToLockd,
	kToClient,
	kChain,
	kShed,
	kFreeze,
	kLoop,
	kLoopDone,
	kThread,
	kGone,
	kJoin,
	kReassert,
	kResume,
	kClientResume,
};

struct Shape {
	unsigned clients = 3, threads = 2, keys = 4, steps = 1500;
	df_lockd_config lockd{1, 2, 8, 8, 32, 16};
	bool kills = true, intentions = true, restarts = true;
};

struct Chain {
	df_chain chain{};
	df_u32 next = 0;
	df_u64 old = 0, cookie = 0;
	std::vector<df_u8> image;
};

struct Thread {
	enum State { idle, waiting, trying, retry, holding } state = idle;
	unsigned key = 0;
	df_u32 mode = 0;
};

struct Lock {
	df_lock core{};
	std::unique_ptr<Chain> chain;
	bool parked = false, shedding = false;
	bool pending = false;	       /* lockd has restarted; not yet re-asserted */
	df_u32 gate_slot = DF_NO_SLOT; /* the stay inside the gate */
	df_u32 keep = 0;
	std::vector<unsigned> pins; /* by mode */
	bool dirty = false, unpublished = false;
	df_u64 seen_version = 0, seen_content = 0; /* what "old pages" are of */
	bool seen = false;
};

struct Client {
	df_table table{};
	df_u32 node = 0;
	bool alive = false, gone = true;
	bool resuming = false; /* Resume is on its way */
	std::vector<Lock> locks;
	std::vector<Thread> threads;
	std::deque<df_msg> to_lockd, to_client;
	std::set<df_u32> frozen;
	std::vector<df_msg> freezes; /* not yet answered */
	unsigned glimpses = 0;
	df_u64 next_request = 1ull << 40;
};

struct Stats {
	df_u64 grants = 0, would_block = 0, busy = 0, steps = 0, guests = 0, glimpsed = 0,
	       versions = 0, restarts = 0, reasserted = 0;
	df_lockd_counters lockd{};
};

class Simulator
{
      public:
	Simulator(std::uint64_t seed, const Shape &shape);
	/* Random phase, then everything must come to rest with nothing left. Throws std::runtime_error. */
	Stats run();

      private:
	struct Content {
		df_u64 number = 1; /* of the last write */
		bool lost = true;  /* nobody published it */
	};
	using Move = std::pair<unsigned, std::pair<unsigned, unsigned>>;

	[[noreturn]] void fail(const std::string &what) const;
	std::string describe(const Client &client, unsigned key) const;
	unsigned below(unsigned n) { return n ? static_cast<unsigned>(random_() % n) : 0; }
	df_u64 key_of(unsigned index) const { return df_key_inode(index + 1); }
	void start_lockd();
	void restart();
	void reassert(Client &client, unsigned key);
	void resume();
	void resume(Client &client);
	void collect_grace(std::vector<Move> &moves);
	void join(Client &client);
	void kill(Client &client);
	void gone(Client &client);
	void collect(std::vector<Move> &moves);
	void perform(const Move &move);
	bool step(bool active);
	void rest(const char *phase);
	void disturb();
	bool execute(Chain &chain);
	void chain_step(Client &client, unsigned key);
	void loop_step();
	void output(Client &client, unsigned key, const df_out &out);
	void wake(Client &client, unsigned key, df_u32 wake);
	void message(Client &client);
	void freeze_answer(Client &client, unsigned index);
	bool freeze_ready(const Client &client, const df_msg &freeze) const;
	void shed(Client &client, unsigned key);
	void start(Client &client, unsigned thread);
	void want(Client &client, unsigned thread);
	void cancel(Client &client, unsigned thread);
	void drop(Client &client, unsigned key);
	void glimpse(Client &client, unsigned key);
	void pinned(Client &client, unsigned thread);
	void unpin(Client &client, unsigned thread);
	void granted(Client &client, unsigned key);
	void check_key(unsigned key) const;
	void drop_everything();
	df_value value_of(unsigned key) const;
	const df_value *to_publish(Client &client, unsigned key, df_value &value);

	std::uint64_t seed_;
	Shape shape_;
	std::mt19937_64 random_;
	std::vector<df_slot> table_;
	std::vector<df_u64> memory_;
	df_lockd *lockd_ = nullptr;
	std::deque<Chain> loop_;
	std::deque<Chain> loop_done_;
	std::vector<Client> clients_;
	std::vector<Content> content_;
	bool active_ = true, grace_ = false;
	std::string dropped_;
	Stats stats_;
};

} // namespace distfuse::lock_simulator

#endif
