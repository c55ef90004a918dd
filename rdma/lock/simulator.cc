/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#include "rdma/lock/simulator.h"

#include <cstring>

namespace distfuse::lock_simulator
{

void Simulator::start_lockd()
{
	df_lockd_shell shell{};

	shell.context = this;
	shell.post = [](void *context, df_u64 cookie, const df_chain *chain) {
		Chain posted;
		posted.chain = *chain;
		posted.cookie = cookie;
		static_cast<Simulator *>(context)->loop_.push_back(std::move(posted));
	};
	shell.send = [](void *context, df_u32 node, const df_msg *message) {
		for (Client &client : static_cast<Simulator *>(context)->clients_)
			if (client.node == node && !client.gone)
				client.to_client.push_back(*message);
	};
	shell.drop = [](void *context, df_u32, int reason) {
		static_cast<Simulator *>(context)->dropped_ = df_drop_text(reason);
	};
	table_.assign(shape_.lockd.buckets * DF_BUCKET_SLOTS + shape_.lockd.overflow, df_slot{});
	for (df_u32 i = 0; i < table_.size(); i++)
		df_lockd_prepare_slot(&table_[i], i);
	memory_.assign(df_lockd_memory(&shape_.lockd) / 8, 0);
	lockd_ = df_lockd_init(memory_.data(), &shape_.lockd, &shell);
}

Simulator::Simulator(std::uint64_t seed, const Shape &shape)
    : seed_(seed), shape_(shape), random_(seed), clients_(shape.clients), content_(shape.keys)
{
	start_lockd();
	for (Client &client : clients_)
		join(client);
}

void Simulator::fail(const std::string &what) const
{
	throw std::runtime_error("seed " + std::to_string(seed_) + ", step " +
				 std::to_string(stats_.steps) + ": " + what);
}

std::string Simulator::describe(const Client &client, unsigned key) const
{
	const df_lock &lock = client.locks[key].core;
	auto field = [](const char *name, df_u64 value) {
		return std::string(" ") + name + "=" + std::to_string(value);
	};

	return " (node " + std::to_string(client.node) + field("key", key) +
	       field("slot", lock.slot) + field("held", lock.held) + field("target", lock.target) +
	       field("want", lock.want) + field("gate", lock.gate) + field("chain", lock.chain) +
	       field("asked", lock.asked) + field("finding", lock.finding) +
	       field("cancelling", lock.cancelling) + field("frozen", client.frozen.size()) +
	       field("freezes", client.freezes.size()) + ")";
}

/* --- sessions ----------------------------------------------------------------------------- */

void Simulator::join(Client &client)
{
	df_u32 node = 1 + below(shape_.lockd.sessions);
	auto used = [&] {
		for (const Client &other : clients_)
			if (!other.gone && other.node == node)
				return true;
		return false;
	};

	while (used())
		node = node % shape_.lockd.sessions + 1;
	client = Client();
	client.node = node;
	client.gone = false; /* a Freeze may come with the call */
	if (df_lockd_session_joined(lockd_, node))
		fail("a free node id is refused");
	client.table = {shape_.lockd.buckets, shape_.lockd.overflow, node};
	client.alive = true;
	client.locks.resize(shape_.keys);
	client.threads.resize(shape_.threads);
	for (unsigned key = 0; key < shape_.keys; key++) {
		df_lock_init(&client.locks[key].core, &client.table, key_of(key));
		client.locks[key].pins.resize(DF_MODES);
	}
}

/* Its operations end where they are; what it sent may still arrive. What it held counts until lockd was told. */
void Simulator::kill(Client &client)
{
	client.alive = false;
	for (unsigned key = 0; key < shape_.keys; key++) {
		Lock &lock = client.locks[key];
		if (lock.dirty)
			content_[key].lost = true;
		lock.chain.reset();
	}
}

void Simulator::gone(Client &client)
{
	client.gone = true;
	client.to_lockd.clear();
	client.to_client.clear();
	df_lockd_session_gone(lockd_, client.node, 0);
}

/* --- the fabric --------------------------------------------------------------------------- */

/* One operation; true after the last one. */
bool Simulator::execute(Chain &chain)
{
	const df_op &op = chain.chain.op[chain.next++];
	auto *bytes = reinterpret_cast<df_u8 *>(table_.data()) + op.offset;
	df_u64 word = 0;

	if (op.offset + op.length > table_.size() * DF_SLOT_SIZE)
		fail("an operation outside of the table");
	switch (op.kind) {
	case DF_OP_READ:
		chain.image.assign(bytes, bytes + op.length);
		break;
	case DF_OP_WRITE:
		std::memcpy(bytes, chain.chain.bytes + op.data, op.length);
		break;
	case DF_OP_CAS:
		std::memcpy(&chain.old, bytes, 8);
		if (chain.old == op.expected)
			std::memcpy(bytes, &op.operand, 8);
		break;
	default:
		std::memcpy(&chain.old, bytes, 8);
		word = chain.old + op.operand;
		std::memcpy(bytes, &word, 8);
		break;
	}
	return chain.next == chain.chain.count;
}

void Simulator::chain_step(Client &client, unsigned key)
{
	Lock &lock = client.locks[key];

	if (lock.chain->next < lock.chain->chain.count) {
		execute(*lock.chain);
		return;
	}
	std::unique_ptr<Chain> done = std::move(lock.chain);
	df_out out;
	df_lock_chain_done(&lock.core, done->old,
			   done->image.empty() ? nullptr : done->image.data(), &out);
	if (!out.post || out.chain.kind != DF_CHAIN_UNDO)
		lock.gate_slot = DF_NO_SLOT;
	output(client, key, out);
}

void Simulator::loop_step()
{
	if (execute(loop_.front())) {
		loop_done_.push_back(std::move(loop_.front()));
		loop_.pop_front();
	}
}

/* --- the schedule ------------------------------------------------------------------------- */

void Simulator::collect(std::vector<Move> &moves)
{
	auto add = [&](unsigned what, unsigned who, unsigned which) {
		moves.push_back({what, {who, which}});
	};
	for (unsigned c = 0; c < clients_.size(); c++) {
		Client &client = clients_[c];
		if (!client.to_lockd.empty() && !client.gone)
			add(kToLockd, c, 0);
		if (!client.alive) {
			if (!client.gone || !grace_)
				add(client.gone ? kJoin : kGone, c, 0);
			continue;
		}
		if (!client.to_client.empty() && !client.resuming)
			add(kToClient, c, 0);
		for (unsigned i = 0; i < client.freezes.size(); i++)
			if (freeze_ready(client, client.freezes[i]))
				add(kFreeze, c, i);
		for (unsigned key = 0; key < shape_.keys; key++) {
			Lock &lock = client.locks[key];
			if (lock.chain && !lock.parked)
				add(kChain, c, key);
			if (lock.shedding && !lock.core.pins)
				add(kShed, c, key);
		}
		for (unsigned t = 0; t < client.threads.size(); t++) {
			Thread::State state = client.threads[t].state;
			if (state == Thread::holding || state == Thread::retry ||
			    (state == Thread::idle && active_))
				add(kThread, c, t);
		}
	}
	collect_grace(moves);
	if (!loop_.empty())
		add(kLoop, 0, 0);
	if (!loop_done_.empty())
		add(kLoopDone, 0, 0);
}

void Simulator::perform(const Move &move)
{
	Client &client = clients_[move.second.first];
	unsigned which = move.second.second;

	switch (move.first) {
	case kToLockd: {
		df_msg message = client.to_lockd.front();
		client.to_lockd.pop_front();
		df_lockd_message(lockd_, client.node, &message);
		break;
	}
	case kToClient:
		message(client);
		break;
	case kChain:
		chain_step(client, which);
		break;
	case kShed:
		shed(client, which);
		break;
	case kFreeze:
		freeze_answer(client, which);
		break;
	case kLoop:
		loop_step();
		break;
	case kLoopDone: {
		Chain done = std::move(loop_done_.front());
		loop_done_.pop_front();
		df_lockd_chain_done(lockd_, done.cookie, done.old,
				    done.image.empty() ? nullptr : done.image.data());
		break;
	}
	case kThread:
		if (client.threads[which].state == Thread::holding)
			unpin(client, which);
		else if (client.threads[which].state == Thread::retry)
			want(client, which);
		else
			start(client, which);
		break;
	case kGone:
		gone(client);
		break;
	case kReassert:
		reassert(client, which);
		break;
	case kResume:
		resume();
		break;
	case kClientResume:
		resume(client);
		break;
	default:
		join(client);
		break;
	}
}

/* What an environment does to us. */
void Simulator::disturb()
{
	Client &client = clients_[below(shape_.clients)];
	unsigned key = below(shape_.keys), thread = below(shape_.threads);

	if (!client.alive)
		return;
	switch (below(12)) {
	case 0:
		if (shape_.kills && !grace_ && below(8) == 0)
			kill(client);
		else if (shape_.restarts && below(12) == 0)
			restart();
		break;
	case 1:
	case 2:
	case 3:
		if (client.threads[thread].state == Thread::waiting)
			cancel(client, thread);
		break;
	case 4:
	case 5:
		if (df_lock_quiet(&client.locks[key].core)) { /* the shell forgets the inode */
			unsigned detached = client.locks[key].core.detached;
			df_lock_init(&client.locks[key].core, &client.table, key_of(key));
			if (detached)
				df_lock_detach(&client.locks[key].core);
			client.locks[key].seen = false;
		}
		break;
	case 6:
	case 7:
	case 8:
		glimpse(client, key);
		break;
	default:
		drop(client, key);
		break;
	}
}

bool Simulator::step(bool active)
{
	std::vector<Move> moves;

	active_ = active;
	stats_.steps++;
	if (active && below(20) == 0)
		disturb();
	collect(moves);
	if (moves.empty())
		return false;
	perform(moves[below(static_cast<unsigned>(moves.size()))]);
	if (!dropped_.empty())
		fail("an honest client is dropped: it " + dropped_);
	return true;
}

/* Nothing new begins; what has begun must end. */
void Simulator::rest(const char *phase)
{
	for (unsigned steps = 0; step(false); steps++)
		if (steps > 300000)
			fail(std::string("no rest: ") + phase);
	for (const Client &client : clients_) {
		for (const Thread &thread : client.threads)
			if (thread.state != Thread::idle)
				fail(std::string("a waiter is forgotten: ") + phase +
				     describe(client, thread.key));
		for (const Lock &lock : client.locks)
			if (lock.shedding || lock.chain || lock.core.want || lock.core.target)
				fail(std::string("something is left undone: ") + phase);
		if (client.glimpses)
			fail(std::string("a glimpse is forgotten: ") + phase);
	}
}

void Simulator::drop_everything()
{
	bool held = true;

	while (held) {
		held = false;
		for (Client &client : clients_) {
			for (unsigned key = 0; key < shape_.keys; key++) {
				held = held || client.locks[key].core.held != DF_NL;
				drop(client, key);
			}
		}
		rest("dropping");
	}
}

Stats Simulator::run()
{
	for (unsigned i = 0; i < shape_.steps; i++)
		step(true);
	rest("after work");
	drop_everything();
	/* What the dead left is put right when somebody needs it: need everything. */
	for (unsigned key = 0; key < shape_.keys; key++) {
		Thread &thread = clients_[0].threads[0];
		thread.key = key;
		thread.mode = DF_X;
		want(clients_[0], 0);
		rest("sweeping");
		drop_everything();
	}
	df_lockd_read_counters(lockd_, &stats_.lockd);
	if (stats_.lockd.objects || stats_.lockd.waiters)
		fail("objects or waiters are left at lockd");
	for (const df_slot &slot : table_)
		if (slot.word)
			fail("a count is left in a word");
	return stats_;
}

} // namespace distfuse::lock_simulator
