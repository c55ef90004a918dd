/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Hostile clients against lockd's state machine: the input is a list of steps, each a message of any bytes, a scribble into the
 * table (a client has the right to write there), a session's end, the end of grace, or progress of the loopback. lockd must neither crash nor
 * leave its memory, and must be done with everything when all sessions are gone.
 */
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "rdma/lock/lockd.h"

namespace
{

constexpr df_lockd_config kConfig{1, 2, 4, 4, 12, 5};

struct World {
	struct Posted {
		df_u64 cookie;
		df_chain chain;
	};
	std::vector<df_slot> table = std::vector<df_slot>(10);
	std::vector<df_u64> memory = std::vector<df_u64>(df_lockd_memory(&kConfig) / 8);
	std::deque<Posted> posted;
	std::vector<df_u32> dropped;
	df_lockd *lockd = nullptr;
	df_u64 last_seq = 0;

	World()
	{
		df_lockd_shell shell{};
		shell.context = this;
		shell.post = [](void *context, df_u64 cookie, const df_chain *chain) {
			static_cast<World *>(context)->posted.push_back({cookie, *chain});
		};
		shell.send = [](void *context, df_u32, const df_msg *message) {
			if (df_msg_check(message, message->head.length) ||
			    !df_msg_from_lockd(message->head.type))
				std::abort();
			static_cast<World *>(context)->last_seq = message->head.seq;
		};
		shell.drop = [](void *context, df_u32 node, int) {
			static_cast<World *>(context)->dropped.push_back(node);
		};
		for (df_u32 i = 0; i < table.size(); i++)
			df_lockd_prepare_slot(&table[i], i);
		lockd = df_lockd_init(memory.data(), &kConfig, &shell);
		for (df_u32 node = 1; node <= kConfig.sessions; node++)
			if (df_lockd_session_joined(lockd, node))
				std::abort();
	}

	bool progress()
	{
		if (posted.empty())
			return false;
		Posted front = posted.front();
		posted.pop_front();
		df_u64 old = 0;
		std::vector<df_u8> image;
		for (df_u32 i = 0; i < front.chain.count; i++) {
			const df_op &op = front.chain.op[i];
			if (op.offset + op.length > table.size() * sizeof(df_slot))
				std::abort();
			df_u8 *at = reinterpret_cast<df_u8 *>(table.data()) + op.offset;
			if (op.kind == DF_OP_READ) {
				image.assign(at, at + op.length);
			} else if (op.kind == DF_OP_WRITE) {
				std::memcpy(at, front.chain.bytes + op.data, op.length);
			} else {
				std::memcpy(&old, at, 8);
				df_u64 value = op.kind == DF_OP_FAA ? old + op.operand : op.operand;
				if (op.kind == DF_OP_FAA || old == op.expected)
					std::memcpy(at, &value, 8);
			}
		}
		df_lockd_chain_done(lockd, front.cookie, old,
				    image.empty() ? nullptr : image.data());
		return true;
	}

	void settle_drops()
	{
		while (!dropped.empty()) {
			df_u32 node = dropped.back();
			dropped.pop_back();
			df_lockd_session_gone(lockd, node, 0);
			if (df_lockd_session_joined(lockd, node))
				std::abort();
		}
	}
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const df_u8 *data, size_t size)
{
	World world;

	df_lockd_grace(world.lockd, size && data[0] == 255);
	while (size >= 2) {
		df_u8 step = data[0];
		df_u32 node = 1 + data[1] % kConfig.sessions;
		data += 2;
		size -= 2;
		if (step < 128) {
			df_msg message{};
			df_u32 type = step % DF_MSG_TYPES;
			size_t body = df_msg_size(type) ? df_msg_size(type) - 4 : 0;
			if (body > size)
				break;
			message.head.type = static_cast<df_u16>(type);
			message.head.length = static_cast<df_u16>(body + 4);
			if (body) /* slot and key small, so that they meet */
				std::memcpy(message.bytes + 4, data, body);
			message.head.slot %= 11;
			message.head.key = df_key_inode(1 + message.head.key % 12);
			if (step & 64) /* an answer to the last question */
				message.head.seq = world.last_seq;
			data += body;
			size -= body;
			if (df_msg_check(&message, message.head.length) == DF_CHECK_OK)
				df_lockd_message(world.lockd, node, &message);
			world.settle_drops();
		} else if (step < 140) {
			if (size < 8)
				break;
			std::memcpy(reinterpret_cast<df_u8 *>(&world.table[step % 10]) +
					    data[0] % 8 * 8,
				    data, 8);
			data += 8;
			size -= 8;
		} else if (step < 150) {
			df_lockd_session_gone(world.lockd, node, step & 1);
			if (df_lockd_session_joined(world.lockd, node))
				std::abort();
		} else if (step == 150) {
			df_lockd_grace(world.lockd, 0);
		} else {
			for (df_u8 i = 0; i < step % 8 + 1 && world.progress(); i++) {
			}
		}
	}
	for (df_u32 node = 1; node <= kConfig.sessions; node++)
		df_lockd_session_gone(world.lockd, node, 0);
	for (int i = 0; world.progress(); i++)
		if (i > 10000)
			std::abort();
	df_lockd_counters counters;
	df_lockd_read_counters(world.lockd, &counters);
	if (counters.waiters || counters.objects)
		std::abort();
	return 0;
}
