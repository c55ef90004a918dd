/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Machines of several nodes against an ideal lock service (queues in order, df_compatible, df_keep), a server and an oracle of every byte,
 * of size and of mtime. Time is simulated; messages are counted.
 */
#ifndef DISTFUSE_EXTENTS_WORLD_H
#define DISTFUSE_EXTENTS_WORLD_H

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "rdma/lock/extents.h"

namespace distfuse::extents_test
{

constexpr df_u64 kInode = 7;
constexpr df_u32 kShift = 6;
constexpr df_u64 kExtent = 1U << kShift;
constexpr df_u64 kFile = kExtent * 64;
constexpr int kNothing = -1;

struct Cell {
	bool valid = false, dirty = false;
	std::uint32_t value = 0;
};

struct Task {
	df_access access{};
	df_step step{};
	df_u32 kind = 0;
	df_u64 size = 0;   /* truncate's */
	df_u64 wanted = 0; /* the end asked for */
	df_u64 limit = 0;  /* the file's size when the range became known */
	bool ranged = false;
	bool waiting = false; /* for a grant */
	bool dropping = false;
	bool ready = false;
	bool over = false;
};

struct Local {
	df_u32 held = DF_NL;
	int pins = 0;
	int shed = kNothing; /* keep */
	bool asked = false;  /* in the service's queue */
};

struct Server {
	std::array<std::uint32_t, kFile> data{};
	df_u64 size = 0, mtime = 0;
};

class World;

struct Node {
	df_extents file{};
	std::vector<df_extent> entries;
	std::map<df_u64, Local> locks;
	std::vector<Cell> cells = std::vector<Cell>(kFile);
	std::list<Task> tasks;
	df_u64 mtime = 0;
	bool attributes_dirty = false;
	df_u64 uncached = 0, cached = 0; /* accesses per extent */
};

struct Request {
	std::size_t node;
	df_u32 want;
};

class World
{
      public:
	World(std::size_t nodes, const df_extents_policy &policy, df_u32 entries) : nodes_(nodes)
	{
		for (Node &node : nodes_) {
			node.entries.resize(entries);
			EXPECT_EQ(df_extents_init(&node.file, kInode, &policy, node.entries.data(),
						  entries),
				  0);
		}
	}

	Node &node(std::size_t index) { return nodes_[index]; }
	std::size_t size() const { return nodes_.size(); }
	df_u64 now = 1000;
	df_u64 messages = 0; /* chains, and messages of asks */
	df_u64 operations = 0;

	Task &begin(std::size_t index, df_u32 kind, df_u64 offset, df_u64 end)
	{
		Node &node = nodes_[index];
		Task &task = node.tasks.emplace_back();
		task.kind = kind;
		task.size = offset;
		task.wanted = end;
		df_access_begin(&node.file, &task.access, kind, offset, end, now);
		return task;
	}

	/* One step of a task; false: it waits for something. */
	bool advance(std::size_t index, Task &task)
	{
		Node &node = nodes_[index];
		if (task.over)
			return false;
		if (task.ready) {
			perform(index, task);
			return true;
		}
		if (task.waiting)
			return false;
		if (task.dropping) {
			if (local(index, task.step.key).held != DF_NL &&
			    local(index, task.step.key).shed != kNothing)
				return false;
			task.dropping = false;
		}
		df_access_next(&node.file, &task.access, now, &task.step);
		if (!task.ranged) /* while it is not known, this follows the present */
			task.limit = oracle_.size;
		task.ranged = task.access.last != 0 || task.access.next != 0 ||
			      task.access.ranged != 0 || task.step.kind == DF_STEP_READY;
		switch (task.step.kind) {
		case DF_STEP_READY:
			task.ready = true;
			return true;
		case DF_STEP_LOCK:
			return lock(index, task);
		case DF_STEP_DROP:
			task.dropping = true;
			shed(index, task.step.key, DF_NL);
			return true;
		case DF_STEP_SIZE:
			merge(node);
			node.mtime = server_.mtime;
			df_extents_size(&node.file, server_.size);
			return true;
		case DF_STEP_BUSY:
			return false;
		default:
			ADD_FAILURE() << "step " << int{task.step.kind};
			return false;
		}
	}

	/* Serves a revoke or a drop if it can be now. */
	bool serve(std::size_t index, df_u64 key)
	{
		Local &lock = local(index, key);
		if (lock.shed == kNothing || lock.pins != 0)
			return false;
		Node &node = nodes_[index];
		df_u32 keep = static_cast<df_u32>(lock.shed);
		if (key == df_key_inode(kInode))
			keep = pump(index, keep);
		else
			keep = df_extents_revoked(&node.file, key, keep, now);
		release(index, key, keep);
		return true;
	}

	bool tick(std::size_t index)
	{
		df_step step{};
		df_extents_tick(&nodes_[index].file, now, &step);
		if (step.kind != DF_STEP_DROP)
			return false;
		if (local(index, step.key).shed != kNothing)
			return false;
		shed(index, step.key, DF_NL);
		return true;
	}

	/* Runs everything to its end without new accesses. */
	void settle()
	{
		bool moved = true;
		for (int round = 0; moved; round++) {
			ASSERT_LT(round, 10000) << "steps without end" << describe_all();
			moved = false;
			for (std::size_t i = 0; i < nodes_.size(); i++) {
				for (Task &task : nodes_[i].tasks)
					moved |= advance(i, task);
				moved |= serve_all(i);
				nodes_[i].tasks.remove_if([](const Task &t) { return t.over; });
			}
		}
		for (std::size_t i = 0; i < nodes_.size(); i++)
			ASSERT_TRUE(nodes_[i].tasks.empty())
				<< "node " << i << " waits for ever" << describe_all();
	}

	/* One access from begin to end; the messages that it cost. */
	df_u64 run(std::size_t index, df_u32 kind, df_u64 offset, df_u64 end)
	{
		df_u64 before = messages;
		begin(index, kind, offset, end);
		settle();
		return messages - before;
	}

	/* Lets time pass with ticks. */
	void pass(df_u64 ms)
	{
		for (df_u64 until = now + ms; now < until;) {
			now += std::min<df_u64>(50, until - now);
			for (std::size_t i = 0; i < nodes_.size(); i++)
				while (tick(i))
					settle();
		}
	}

	bool serve_all(std::size_t index)
	{
		bool moved = false;
		std::vector<df_u64> keys;
		for (auto &[key, lock] : nodes_[index].locks)
			if (lock.shed != kNothing)
				keys.push_back(key);
		for (df_u64 key : keys)
			moved |= serve(index, key);
		return moved;
	}

	df_u32 held(std::size_t index, df_u64 key) { return local(index, key).held; }
	df_u32 on_inode(std::size_t index) { return held(index, df_key_inode(kInode)); }
	df_u32 on_extent(std::size_t index, df_u32 extent)
	{
		return held(index, df_key_extent(kInode, extent));
	}

      private:
	std::string describe_all()
	{
		std::string text;
		for (std::size_t i = 0; i < nodes_.size(); i++)
			text += "\nnode " + std::to_string(i) + describe(i);
		for (auto &[key, queue] : queue_)
			for (const Request &request : queue)
				text += "\nqueue " + std::to_string(key & 0xffffff) + " node " +
					std::to_string(request.node) + " wants " +
					std::to_string(request.want);
		return text;
	}

	std::string describe(std::size_t index)
	{
		std::string text;
		for (const Task &task : nodes_[index].tasks)
			text += " kind " + std::to_string(task.kind) + " step " +
				std::to_string(task.step.kind) + " key " +
				std::to_string(task.step.key & 0xffffff) + " mode " +
				std::to_string(task.step.mode) + " try " +
				std::to_string(task.step.try_only) +
				(task.waiting ? " waits" : "") + (task.dropping ? " drops" : "") +
				(task.ready ? " ready" : "") + ";";
		for (auto &[key, lock] : nodes_[index].locks)
			if (lock.held != DF_NL || lock.asked)
				text += " lock " + std::to_string(key & 0xffffff) + " held " +
					std::to_string(lock.held) + " pins " +
					std::to_string(lock.pins) + " shed " +
					std::to_string(lock.shed) + (lock.asked ? " asked;" : ";");
		return text;
	}

	Local &local(std::size_t index, df_u64 key) { return nodes_[index].locks[key]; }

	/* --- the service --- */

	df_u64 word_of_others(std::size_t index, df_u64 key)
	{
		df_u64 word = 0;
		for (std::size_t i = 0; i < nodes_.size(); i++)
			if (i != index)
				word += df_unit(local(i, key).held, static_cast<df_u32>(i + 1));
		return word;
	}

	bool try_take(std::size_t index, df_u64 key, df_u32 mode, df_u64 *word)
	{
		df_u32 target = df_join(local(index, key).held, mode);
		messages++;
		*word = word_of_others(index, key);
		if (!queue_[key].empty() || !df_word_admits(*word, target)) {
			messages++; /* the undo */
			return false;
		}
		set_held(index, key, target);
		return true;
	}

	void ask(std::size_t index, df_u64 key, df_u32 mode)
	{
		df_u64 word = 0;
		if (try_take(index, key, mode, &word)) {
			granted(index, key);
			return;
		}
		messages++;
		local(index, key).asked = true;
		queue_[key].push_back({index, mode});
		serve_queue(key);
	}

	void serve_queue(df_u64 key)
	{
		auto &queue = queue_[key];
		while (!queue.empty()) {
			Request head = queue.front();
			Local &lock = local(head.node, key);
			df_u32 target = df_join(lock.held, head.want);
			if (!df_word_admits(word_of_others(head.node, key), target)) {
				revoke_others(head.node, key, target);
				return;
			}
			if (lock.shed != kNothing) /* its held mode is not certain */
				return;
			queue.pop_front();
			lock.asked = false;
			messages++;
			set_held(head.node, key, target);
			granted(head.node, key);
		}
	}

	void revoke_others(std::size_t index, df_u64 key, df_u32 wanted)
	{
		for (std::size_t i = 0; i < nodes_.size(); i++) {
			Local &lock = local(i, key);
			if (i == index || df_compatible(lock.held, wanted))
				continue;
			df_u32 keep = df_keep(lock.held, wanted);
			if (lock.shed != kNothing &&
			    df_covers(keep, static_cast<df_u32>(lock.shed)))
				continue;
			messages += 2; /* Revoke, Released */
			lock.shed = static_cast<int>(keep);
		}
	}

	void set_held(std::size_t index, df_u64 key, df_u32 mode)
	{
		local(index, key).held = mode;
		df_extents_held(&nodes_[index].file, key, mode);
		check_rights();
	}

	/* Design: X with nobody; S with no writer. By what each node may do with each extent. */
	void check_rights()
	{
		for (df_u32 extent = 0; extent < kFile / kExtent; extent++)
			for (std::size_t i = 0; i < nodes_.size(); i++)
				for (std::size_t j = i + 1; j < nodes_.size(); j++)
					ASSERT_TRUE(
						df_compatible(right(i, extent), right(j, extent)))
						<< "extent " << extent << " nodes " << i << ","
						<< j;
	}

	df_u32 right(std::size_t index, df_u32 extent)
	{
		df_u32 whole = on_inode(index);
		if (whole == DF_S || whole == DF_X)
			return whole;
		df_u32 own = on_extent(index, extent);
		/* The rule of levels: nothing below without an intention above; X and IX only below IX. */
		EXPECT_TRUE(own == DF_NL || whole == DF_IX ||
			    (whole == DF_IS && own != DF_X && own != DF_IX))
			<< "extent held in " << own << " below " << whole;
		return own;
	}

	/* --- the node's shell --- */

	bool lock(std::size_t index, Task &task)
	{
		Node &node = nodes_[index];
		Local &lock = local(index, task.step.key);
		if (lock.shed == kNothing && df_covers(lock.held, task.step.mode)) {
			pin(node, lock, task);
			return true;
		}
		if (lock.shed != kNothing || lock.asked) {
			if (task.step.try_only)
				return false; /* something is under way: later again */
			task.waiting = true;
			return true;
		}
		if (!task.step.try_only) {
			task.waiting = true;
			ask(index, task.step.key, task.step.mode);
			return true;
		}
		df_u64 word = 0;
		if (try_take(index, task.step.key, task.step.mode, &word))
			pin(node, lock, task);
		else
			df_extents_blocked(&node.file, &task.access, &task.step, word, now);
		return true;
	}

	static void pin(Node &node, Local &lock, Task &task)
	{
		lock.pins++;
		df_extents_pinned(&node.file, &task.access, &task.step);
	}

	/* Whoever is covered is pinned at once, before a revoke can come. */
	void granted(std::size_t index, df_u64 key)
	{
		Node &node = nodes_[index];
		Local &lock = local(index, key);
		for (Task &task : node.tasks) {
			if (!task.waiting || task.step.key != key ||
			    !df_covers(lock.held, task.step.mode))
				continue;
			task.waiting = false;
			pin(node, lock, task);
		}
		again(index, key); /* who wants more than was granted */
	}

	void shed(std::size_t index, df_u64 key, df_u32 keep)
	{
		Local &lock = local(index, key);
		if (lock.held == DF_NL)
			return;
		if (lock.shed == kNothing || !df_covers(keep, static_cast<df_u32>(lock.shed)))
			lock.shed = static_cast<int>(keep);
	}

	df_u32 pump(std::size_t index, df_u32 keep)
	{
		Node &node = nodes_[index];
		df_step step{};
		df_extents_shed_begin(&node.file, keep, now);
		for (;;) {
			df_extents_shed_next(&node.file, &step);
			if (step.kind == DF_STEP_DONE)
				return step.mode;
			if (step.kind == DF_STEP_DROP) {
				EXPECT_EQ(local(index, step.key).pins, 0);
				release(index, step.key, DF_NL);
				continue;
			}
			EXPECT_EQ(step.kind, DF_STEP_TAKE);
			df_u64 word = 0;
			conversions++;
			if (fail_conversions || !try_take(index, step.key, step.mode, &word))
				df_extents_blocked(&node.file, nullptr, &step, word, now);
		}
	}

	/* Visible before release: what `keep` does not cover goes to the server, then the word changes. */
	void release(std::size_t index, df_u64 key, df_u32 keep)
	{
		Node &node = nodes_[index];
		Local &lock = local(index, key);
		df_u32 extent = 0;
		df_u32 before = lock.held;
		if (!df_key_split_extent(key, &extent)) {
			if (before == DF_X && keep != DF_X)
				merge(node);
			for (extent = 0; extent < kFile / kExtent; extent++)
				sweep(node, extent, df_extents_cover(&node.file, extent));
		} else if (extent == DF_KEY_EXTENT_MAX) {
			if (before != keep)
				merge(node);
		} else {
			df_u32 whole = node.file.shedding ? node.file.target : node.file.inode.held;
			bool above = whole == DF_X || whole == DF_S;
			sweep(node, extent, above ? whole : keep);
		}
		lock.shed = kNothing;
		messages++;
		set_held(index, key, keep);
		serve_queue(key);
		again(index, key);
	}

	/* Local waiters that came while the lock was shed, or asked for in a lesser mode. */
	void again(std::size_t index, df_u64 key)
	{
		df_u32 want = DF_NL;
		for (Task &task : nodes_[index].tasks)
			if (task.waiting && task.step.key == key)
				want = df_join(want, task.step.mode);
		Local &lock = local(index, key);
		if (want == DF_NL || lock.asked || lock.shed != kNothing)
			return;
		if (df_covers(lock.held, want))
			granted(index, key);
		else
			ask(index, key, want);
	}

	void sweep(Node &node, df_u32 extent, df_u32 cover)
	{
		for (df_u64 at = extent * kExtent; at < (extent + 1) * kExtent; at++) {
			Cell &cell = node.cells[at];
			if (cell.dirty && cover != DF_X) {
				server_.data[at] = cell.value;
				cell.dirty = false;
			}
			if (cover != DF_X && cover != DF_S)
				cell.valid = false;
		}
	}

	void merge(Node &node)
	{
		if (!node.attributes_dirty)
			return;
		server_.size = std::max(server_.size, node.file.floor);
		server_.mtime = std::max(server_.mtime, node.mtime);
		node.attributes_dirty = false;
	}

	/* --- the operations themselves --- */

	void perform(std::size_t index, Task &task)
	{
		Node &node = nodes_[index];
		df_access &access = task.access;
		operations++;
		if (task.kind == DF_ACCESS_GETATTR) {
			ASSERT_TRUE(node.file.exact);
			ASSERT_EQ(node.file.floor, oracle_.size);
			ASSERT_EQ(node.mtime, oracle_.mtime);
		} else if (task.kind == DF_ACCESS_WHOLE) {
			truncate(node, task.size);
		} else if (task.kind == DF_ACCESS_READ) {
			read(node, task);
		} else {
			write(node, task);
		}
		for (int i = 0; i < access.pins; i++)
			local(index, access.pin[i].key).pins--;
		df_access_end(&node.file, &access, 1, now);
		task.over = true;
	}

	bool through_cache(Node &node, const df_access &access, df_u64 at)
	{
		bool cached = (access.cached >> ((at >> kShift) - access.first) & 1U) != 0;
		if (at == access.offset || at % kExtent == 0)
			(cached ? node.cached : node.uncached)++;
		if (!cached) {
			EXPECT_FALSE(node.cells[at].valid)
				<< "a page beside uncached I/O, byte " << at;
		}
		return cached;
	}

	void read(Node &node, const Task &task)
	{
		df_u64 end = std::max(task.access.offset, std::min(task.wanted, task.limit));
		df_u64 cut = ((task.access.offset >> kShift) + DF_EXTENTS_SPAN) << kShift;
		ASSERT_EQ(task.access.end, std::min(end, cut)) << "the end of the file";
		for (df_u64 at = task.access.offset; at < task.access.end; at++) {
			std::uint32_t value = server_.data[at];
			if (through_cache(node, task.access, at)) {
				Cell &cell = node.cells[at];
				if (!cell.valid)
					cell = {true, false, value};
				value = cell.value;
			}
			ASSERT_EQ(value, oracle_.data[at]) << "byte " << at;
		}
	}

	void write(Node &node, const Task &task)
	{
		if (task.kind == DF_ACCESS_APPEND) {
			ASSERT_EQ(task.access.offset, oracle_.size);
		}
		std::uint32_t value = ++clock_;
		for (df_u64 at = task.access.offset; at < task.access.end; at++) {
			if (through_cache(node, task.access, at))
				node.cells[at] = {true, true, value};
			else
				server_.data[at] = value;
			oracle_.data[at] = value;
		}
		node.mtime = oracle_.mtime = value;
		oracle_.size = std::max(oracle_.size, task.access.end);
		node.attributes_dirty = true;
	}

	void truncate(Node &node, df_u64 size)
	{
		for (df_u64 at = size; at < kFile; at++) {
			node.cells[at] = {};
			server_.data[at] = oracle_.data[at] = 0;
		}
		server_.size = oracle_.size = size;
		node.mtime = server_.mtime = oracle_.mtime = ++clock_;
		node.attributes_dirty = false;
		df_extents_size(&node.file, size);
	}

	std::vector<Node> nodes_;
	std::map<df_u64, std::deque<Request>> queue_;
	Server server_, oracle_;
	std::uint32_t clock_ = 0;

      public:
	df_u64 length() const { return oracle_.size; }
	df_u64 conversions = 0;
	bool fail_conversions = false;
};

} // namespace distfuse::extents_test

#endif
