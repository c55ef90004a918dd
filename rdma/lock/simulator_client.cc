/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The simulated client: its shell around the locks, and the applications that use them. */
#include "rdma/lock/simulator.h"

namespace distfuse::lock_simulator
{

namespace
{
/* A lock in use keeps its client's earlier effects: a release that is posted may be done already. */
df_u32 effective(const df_lock &lock)
{
	return lock.chain == DF_CHAIN_RELEASE ? lock.kept : lock.held;
}
} // namespace

/* --- the client's shell ------------------------------------------------------------------- */

void Simulator::output(Client &client, unsigned key, const df_out &out)
{
	Lock &lock = client.locks[key];

	if (out.wake & DF_WAKE_RELEASED)
		lock.shedding = false;
	if (out.wake & DF_WAKE_FORFEITED)
		fail("nobody lies, and a lock is forfeited" + describe(client, key));
	if (out.wake & DF_WAKE_REASSERTED)
		lock.pending = false, stats_.reasserted++;
	if (out.wake && !lock.core.asserting) /* its BUSY is for df_lock_reassert */
		wake(client, key, out.wake);
	if (out.shed) {
		lock.shedding = true;
		lock.keep = out.keep;
	}
	for (unsigned i = 0; i < out.messages; i++) {
		if (df_msg_check(&out.message[i], out.message[i].head.length))
			fail("a client would send a malformed " +
			     std::string(df_msg_name(out.message[i].head.type)));
		client.to_lockd.push_back(out.message[i]);
	}
	if (out.post) {
		if (lock.chain)
			fail("a second chain in flight");
		lock.chain = std::make_unique<Chain>();
		lock.chain->chain = out.chain;
		lock.parked =
			(out.chain.kind == DF_CHAIN_TAKE || out.chain.kind == DF_CHAIN_RELEASE ||
			 out.chain.kind == DF_CHAIN_PUBLISH) &&
			client.frozen.count(out.chain.slot);
		if (!lock.parked && out.chain.slot != DF_NO_SLOT &&
		    out.chain.kind != DF_CHAIN_CLAIM)
			lock.gate_slot = out.chain.slot;
	}
	check_key(key);
}

void Simulator::wake(Client &client, unsigned key, df_u32 wake)
{
	Lock &lock = client.locks[key];

	if (wake & DF_WAKE_GRANTED)
		granted(client, key);
	for (unsigned i = 0; i < client.threads.size(); i++) {
		Thread &thread = client.threads[i];
		if (thread.key != key ||
		    (thread.state != Thread::waiting && thread.state != Thread::trying))
			continue;
		if (wake & DF_WAKE_GRANTED &&
		    df_lock_pin_granted(&lock.core, thread.mode) == DF_PIN_OK)
			pinned(client, i);
		else if (wake & DF_WAKE_WOULD_BLOCK && thread.state == Thread::trying)
			thread.state = Thread::idle, stats_.would_block++;
		else if (wake & DF_WAKE_BUSY)
			thread.state =
				thread.state == Thread::trying ? Thread::idle : Thread::retry,
			stats_.busy++;
	}
}

/* The cluster-wide promise of version and value block, seen by who has just been granted the lock. */
void Simulator::granted(Client &client, unsigned key)
{
	Lock &lock = client.locks[key];
	const Content &content = content_[key];

	stats_.grants++;
	if (lock.core.held != DF_S && lock.core.held != DF_X)
		return;
	if (lock.dirty)
		return; /* X all the time */
	if (lock.core.value.flags & DF_VALUE_PUBLISHED &&
	    (content.lost || lock.core.value.size != content.number))
		fail("a value block that is not the last writer's");
	if (lock.seen && lock.seen_version == lock.core.version) {
		stats_.versions++;
		if (lock.seen_content != content.number)
			fail("the version stayed and the content changed");
	}
	lock.seen = true;
	lock.seen_version = lock.core.version;
	lock.seen_content = content.number;
}

df_value Simulator::value_of(unsigned key) const
{
	return {content_[key].number, 0, 0, 0};
}

const df_value *Simulator::to_publish(Client &client, unsigned key, df_value &value)
{
	Lock &lock = client.locks[key];

	if (!lock.dirty || !lock.unpublished || effective(lock.core) != DF_X)
		return nullptr;
	lock.unpublished = false;
	value = value_of(key);
	return &value;
}

void Simulator::message(Client &client)
{
	df_msg message = client.to_client.front();

	client.to_client.pop_front();
	if (message.head.type == DF_MSG_GLIMPSE_REPLY) {
		client.glimpses--;
		stats_.glimpsed += message.glimpse_reply.fresh;
		return;
	}
	if (message.head.type == DF_MSG_FREEZE) {
		client.frozen.insert(message.head.slot);
		client.freezes.push_back(message);
		return;
	}
	if (message.head.type == DF_MSG_THAW) {
		client.frozen.erase(message.head.slot);
		std::erase_if(client.freezes, [&](const df_msg &freeze) {
			return freeze.head.slot == message.head.slot;
		});
		for (Lock &lock : client.locks)
			if (lock.parked && lock.chain->chain.slot == message.head.slot)
				lock.parked = false, lock.gate_slot = message.head.slot;
		return;
	}
	auto key = static_cast<unsigned>(df_key_split_inode(message.head.key) - 1);
	if (key >= shape_.keys) {
		df_msg reply;
		if (df_client_unknown(&message, &reply) == 1)
			client.to_lockd.push_back(reply);
		return;
	}
	df_out out;
	df_value value;
	const df_value *publish =
		message.head.type == DF_MSG_GLIMPSE ? to_publish(client, key, value) : nullptr;
	if (df_lock_message(&client.locks[key].core, &message, publish, &out))
		fail("a client breaks off at " + std::string(df_msg_name(message.head.type)));
	output(client, key, out);
}

bool Simulator::freeze_ready(const Client &client, const df_msg &freeze) const
{
	for (const Lock &lock : client.locks)
		if (lock.gate_slot == freeze.head.slot)
			return false;
	return true;
}

void Simulator::freeze_answer(Client &client, unsigned index)
{
	df_msg freeze = client.freezes[index], reply;
	auto key = static_cast<unsigned>(df_key_split_inode(freeze.head.key) - 1);

	client.freezes.erase(client.freezes.begin() + index);
	if (key >= shape_.keys) {
		df_client_unknown(&freeze, &reply);
		client.to_lockd.push_back(reply);
		return;
	}
	df_out out;
	if (df_lock_message(&client.locks[key].core, &freeze, nullptr, &out))
		fail("a client breaks off at Freeze");
	output(client, key, out);
}

void Simulator::shed(Client &client, unsigned key)
{
	Lock &lock = client.locks[key];
	df_u32 kept = lock.keep == DF_S && below(4) == 0 ? df_u32{DF_NL} : lock.keep;
	df_value value = value_of(key);
	df_out out;

	if (lock.core.gate == DF_GATE_REVOKING) {
		if (df_lock_close_gate(&lock.core))
			fail("the gate does not close");
		return;
	}
	if (lock.dirty) {
		content_[key].lost = false;
		lock.seen_content = content_[key].number;
	}
	if (df_lock_shed_done(&lock.core, kept, lock.dirty ? &value : nullptr, &out))
		fail("shed_done is refused");
	lock.shedding = false;
	lock.dirty = false;
	output(client, key, out);
}

/* --- simulated applications --------------------------------------------------------------- */

void Simulator::start(Client &client, unsigned index)
{
	Thread &thread = client.threads[index];

	thread.key = below(shape_.keys);
	thread.mode = shape_.intentions && below(4) == 0 ? 1 + below(2)
							 : (below(2) ? df_u32{DF_S} : df_u32{DF_X});
	Lock &lock = client.locks[thread.key];
	if (df_lock_pin(&lock.core, thread.mode) == DF_PIN_OK) {
		pinned(client, index);
		return;
	}
	if (below(3) == 0 && df_lock_pin_guest(&lock.core, thread.mode) == DF_PIN_OK) {
		stats_.guests++;
		pinned(client, index);
		return;
	}
	if (below(3) == 0) {
		df_out out;
		thread.state = Thread::trying;
		if (df_lock_want(&lock.core, thread.mode, 1, &out) != DF_WANT_STARTED)
			thread.state = Thread::idle;
		output(client, thread.key, out);
		return;
	}
	want(client, index);
}

void Simulator::want(Client &client, unsigned index)
{
	Thread &thread = client.threads[index];
	Lock &lock = client.locks[thread.key];
	df_out out;

	thread.state = Thread::waiting;
	if (df_lock_want(&lock.core, thread.mode, 0, &out) == DF_WANT_HELD) {
		if (df_lock_pin(&lock.core, thread.mode) != DF_PIN_OK)
			fail("held, and not to be pinned");
		pinned(client, index);
	}
	output(client, thread.key, out);
}

void Simulator::cancel(Client &client, unsigned index)
{
	unsigned key = client.threads[index].key;
	df_out out;

	client.threads[index].state = Thread::idle;
	for (const Thread &thread : client.threads)
		if (thread.state == Thread::waiting && thread.key == key)
			return;
	df_lock_cancel(&client.locks[key].core, &out);
	output(client, key, out);
}

void Simulator::pinned(Client &client, unsigned index)
{
	Thread &thread = client.threads[index];

	thread.state = Thread::holding;
	client.locks[thread.key].pins[thread.mode]++;
	check_key(thread.key);
	if (thread.mode == DF_X && below(2)) {
		Lock &lock = client.locks[thread.key];
		content_[thread.key].number++;
		content_[thread.key].lost = true;
		lock.dirty = lock.unpublished = true;
	}
}

void Simulator::unpin(Client &client, unsigned index)
{
	Thread &thread = client.threads[index];

	client.locks[thread.key].pins[thread.mode]--;
	df_lock_unpin(&client.locks[thread.key].core);
	thread.state = Thread::idle;
}

void Simulator::drop(Client &client, unsigned key)
{
	df_out out;

	df_lock_drop(&client.locks[key].core, &out);
	output(client, key, out);
}

void Simulator::glimpse(Client &client, unsigned key)
{
	df_u32 slot = client.locks[key].core.slot;

	if (slot == DF_NO_SLOT || client.glimpses > 3 ||
	    !df_glimpse_needed(&table_[slot], key_of(key), client.node))
		return;
	df_msg message;
	df_msg_init(&message, DF_MSG_GLIMPSE, slot, key_of(key), client.next_request++);
	client.to_lockd.push_back(message);
	client.glimpses++;
}

/* Nobody holds or uses what another one excludes. */
void Simulator::check_key(unsigned key) const
{
	for (const Client &a : clients_) {
		if (a.gone)
			continue;
		for (const Client &b : clients_) {
			if (&a == &b || b.gone)
				continue;
			const Lock &one = a.locks[key], &other = b.locks[key];
			if (!df_compatible(effective(one.core), effective(other.core)))
				fail("two clients hold what excludes one another");
			for (df_u32 m = 1; m < DF_MODES; m++)
				for (df_u32 n = 1; n < DF_MODES; n++)
					if (one.pins[m] && other.pins[n] && !df_compatible(m, n))
						fail("two clients use what excludes one another");
		}
	}
}
} // namespace distfuse::lock_simulator
