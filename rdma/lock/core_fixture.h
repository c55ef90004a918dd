/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Three mounts and lockd: the order of events is set by hand, on a real table, with the real cores. */
#ifndef DISTFUSE_CORE_FIXTURE_H
#define DISTFUSE_CORE_FIXTURE_H

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <vector>

#include "rdma/lock/client.h"
#include "rdma/lock/lockd.h"

namespace distfuse::lock_core
{

inline constexpr df_u64 kKey = 7ull << DF_KEY_EXTENT_BITS;

/* One mount's lock on kKey, its chain in flight, its messages. */
struct Mount {
	df_table table{};
	df_lock lock{};
	df_out out{};
	df_chain chain{};
	bool posted = false;
	std::deque<df_msg> to_lockd, to_client;
	df_u32 woken = 0, sheds = 0, keep = 0;

	void perform()
	{
		woken |= out.wake;
		sheds += out.shed;
		keep = out.shed ? out.keep : keep;
		for (unsigned i = 0; i < out.messages; i++)
			to_lockd.push_back(out.message[i]);
		if (out.post) {
			ASSERT_FALSE(posted);
			chain = out.chain;
			posted = true;
		}
	}
	int want(df_u32 mode, int try_only = 0)
	{
		int result = df_lock_want(&lock, mode, try_only, &out);
		perform();
		return result;
	}
	void shed(df_u32 kept, const df_value *changed = nullptr)
	{
		ASSERT_EQ(df_lock_close_gate(&lock), 0);
		ASSERT_EQ(df_lock_shed_done(&lock, kept, changed, &out), 0);
		perform();
	}
};

class Core : public testing::Test
{
      protected:
	struct Loop {
		df_u64 cookie;
		df_chain chain;
	};

	Core()
	{
		start(shell_of());
		for (df_u32 node = 1; node <= 3; node++) {
			mount_[node].table = {config_.buckets, config_.overflow, node};
			df_lock_init(&mount_[node].lock, &mount_[node].table, kKey);
			EXPECT_EQ(df_lockd_session_joined(lockd_, node), 0);
		}
	}

	df_lockd_shell shell_of()
	{
		df_lockd_shell shell{};
		shell.context = this;
		shell.post = [](void *context, df_u64 cookie, const df_chain *chain) {
			static_cast<Core *>(context)->loop_.push_back({cookie, *chain});
		};
		shell.send = [](void *context, df_u32 node, const df_msg *message) {
			static_cast<Core *>(context)->mount_[node].to_client.push_back(*message);
		};
		shell.drop = [](void *context, df_u32 node, int reason) {
			static_cast<Core *>(context)->drops_.push_back({node, reason});
		};
		return shell;
	}
	/* A new table and a new lockd. */
	void start(const df_lockd_shell &shell)
	{
		loop_.clear();
		slots_.assign(config_.buckets * DF_BUCKET_SLOTS + config_.overflow, df_slot{});
		for (df_u32 i = 0; i < slots_.size(); i++)
			df_lockd_prepare_slot(&slots_[i], i);
		memory_.assign(df_lockd_memory(&config_) / 8, 0);
		lockd_ = df_lockd_init(memory_.data(), &config_, &shell);
	}
	/* lockd ends and starts again, in grace; everyone is detached and back. What was in flight is gone. */
	void restart()
	{
		start(shell_of());
		df_lockd_grace(lockd_, 1);
		for (df_u32 node = 1; node <= 3; node++) {
			Mount &mount = mount_[node];
			mount.posted = false;
			mount.to_lockd.clear();
			mount.to_client.clear();
			mount.woken = mount.sheds = 0;
			df_lock_detach(&mount.lock);
			ASSERT_EQ(df_lockd_session_joined(lockd_, node), 0);
		}
	}
	int reassert(df_u32 node)
	{
		int begun = df_lock_reassert(&mount_[node].lock, &mount_[node].out);
		if (begun)
			mount_[node].perform();
		return begun;
	}
	void resume()
	{
		df_lockd_grace(lockd_, 0);
		for (df_u32 node = 1; node <= 3; node++) {
			df_lock_resume(&mount_[node].lock, &mount_[node].out);
			mount_[node].perform();
		}
	}

	void execute(const df_chain &chain, df_u64 &old, std::vector<df_u8> &image)
	{
		for (df_u32 i = 0; i < chain.count; i++) {
			const df_op &op = chain.op[i];
			auto *at = reinterpret_cast<df_u8 *>(slots_.data()) + op.offset;
			if (op.kind == DF_OP_READ) {
				image.assign(at, at + op.length);
			} else if (op.kind == DF_OP_WRITE) {
				std::memcpy(at, chain.bytes + op.data, op.length);
			} else {
				std::memcpy(&old, at, 8);
				df_u64 value = op.kind == DF_OP_FAA ? old + op.operand : op.operand;
				if (op.kind == DF_OP_FAA || old == op.expected)
					std::memcpy(at, &value, 8);
			}
		}
	}
	/* The chain takes effect; its completion is on its way. */
	void effect(Mount &mount, df_u64 &old, std::vector<df_u8> &image)
	{
		ASSERT_TRUE(mount.posted);
		execute(mount.chain, old, image);
	}
	void complete(Mount &mount, df_u64 old, const std::vector<df_u8> &image)
	{
		mount.posted = false;
		df_lock_chain_done(&mount.lock, old, image.empty() ? nullptr : image.data(),
				   &mount.out);
		mount.perform();
	}
	void chains(Mount &mount)
	{
		while (mount.posted) {
			df_u64 old = 0;
			std::vector<df_u8> image;
			effect(mount, old, image);
			complete(mount, old, image);
		}
	}
	void lockd()
	{
		for (df_u32 node = 1; node <= 3; node++) {
			while (!mount_[node].to_lockd.empty()) {
				df_msg message = mount_[node].to_lockd.front();
				mount_[node].to_lockd.pop_front();
				ASSERT_EQ(df_msg_check(&message, message.head.length), DF_CHECK_OK);
				df_lockd_message(lockd_, node, &message);
			}
		}
		while (!loop_.empty()) {
			Loop front = loop_.front();
			loop_.pop_front();
			df_u64 old = 0;
			std::vector<df_u8> image;
			execute(front.chain, old, image);
			df_lockd_chain_done(lockd_, front.cookie, old,
					    image.empty() ? nullptr : image.data());
		}
	}
	void receive(Mount &mount, const df_value *publish = nullptr)
	{
		while (!mount.to_client.empty()) {
			df_msg message = mount.to_client.front();
			mount.to_client.pop_front();
			ASSERT_EQ(df_lock_message(&mount.lock, &message, publish, &mount.out), 0);
			mount.perform();
		}
	}
	void hold(df_u32 node, df_u32 mode)
	{
		mount_[node].want(mode);
		chains(mount_[node]);
		ASSERT_EQ(mount_[node].lock.held, mode);
	}
	void settle()
	{
		for (int i = 0; i < 20; i++) {
			lockd();
			for (df_u32 node = 1; node <= 3; node++) {
				receive(mount_[node]);
				chains(mount_[node]);
			}
		}
	}
	df_slot &slot()
	{
		for (df_slot &slot : slots_)
			if (slot.key == kKey)
				return slot;
		return slots_[0];
	}
	void expect_idle()
	{
		df_lockd_counters counters;
		df_lockd_read_counters(lockd_, &counters);
		EXPECT_EQ(counters.objects, 0u);
		EXPECT_EQ(counters.waiters, 0u);
		EXPECT_FALSE(df_word_contended(slot().word));
	}

	df_lockd_config config_{1, 1, 4, 4, 8, 4};
	std::vector<df_slot> slots_;
	std::vector<df_u64> memory_;
	std::deque<Loop> loop_;
	Mount mount_[5];
	std::vector<std::pair<df_u32, int>> drops_;
	df_lockd *lockd_ = nullptr;
};

} // namespace distfuse::lock_core

#endif
