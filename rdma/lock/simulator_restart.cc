/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* lockd ends at any point and starts again with an empty table; every client that lives comes back in grace. */
#include "rdma/lock/simulator.h"

namespace distfuse::lock_simulator
{

/* Connections and lanes end: nothing in flight is answered, and what was posted has gone with the old table. */
void Simulator::restart()
{
	stats_.restarts++;
	loop_.clear();
	loop_done_.clear();
	start_lockd();
	df_lockd_grace(lockd_, 1);
	grace_ = true;
	for (Client &client : clients_) {
		client.to_lockd.clear();
		client.to_client.clear();
		client.frozen.clear();
		client.freezes.clear();
		client.glimpses = 0;
		client.resuming = false;
		client.gone = !client.alive;
		if (client.gone)
			continue;
		if (df_lockd_session_joined(lockd_, client.node))
			fail("a session does not get its node id back");
		for (Lock &lock : client.locks) {
			df_lock_detach(&lock.core);
			lock.chain.reset();
			lock.parked = false;
			lock.gate_slot = DF_NO_SLOT;
			lock.pending = true;
			lock.seen = false;
			lock.unpublished = lock.dirty;
		}
	}
}

void Simulator::reassert(Client &client, unsigned key)
{
	df_out out;

	if (df_lock_reassert(&client.locks[key].core, &out))
		output(client, key, out);
	else
		client.locks[key].pending = false;
}

/* Everyone said Reclaimed. From now on other clients may be faster than this one's Resume. */
void Simulator::resume()
{
	df_lockd_grace(lockd_, 0);
	grace_ = false;
	for (Client &client : clients_)
		client.resuming = client.alive;
}

void Simulator::resume(Client &client)
{
	client.resuming = false;
	for (unsigned key = 0; key < shape_.keys; key++) {
		df_out out;
		df_lock_resume(&client.locks[key].core, &out);
		output(client, key, out);
	}
}

void Simulator::collect_grace(std::vector<Move> &moves)
{
	bool all = grace_;

	for (unsigned c = 0; c < clients_.size(); c++) {
		Client &client = clients_[c];
		if (!client.alive)
			continue;
		if (client.resuming)
			moves.push_back({kClientResume, {c, 0}});
		for (unsigned key = 0; grace_ && key < shape_.keys; key++) {
			Lock &lock = client.locks[key];
			all = all && !lock.pending;
			if (lock.pending && !lock.chain && !lock.core.finding)
				moves.push_back({kReassert, {c, key}});
		}
	}
	if (all)
		moves.push_back({kResume, {0, 0}});
}

} // namespace distfuse::lock_simulator
