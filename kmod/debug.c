// SPDX-License-Identifier: GPL-2.0-only
/*
 * debugfs: distfuse/race (race.h); distfuse/MAJOR:MINOR/ of each mount, for root: `counters` (name value), `session`, `locks` and `requests` (a header line, then one line each).
 * Whatever is written to `abort` ends all requests of the mount, now and later, with ENOTCONN (uapi.h).
 * For people and tests: names of columns stay, columns may be added at the end.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "connection.h"
#include "debug.h"
#include "lock.h"
#include "race.h"
#include "session.h"

static struct dentry *dfs_debug_root;

static const char *const dfs_counter_names[] = {
#define DFS_COUNTER_NAME(name) #name,
	DFS_COUNTERS(DFS_COUNTER_NAME)
#undef DFS_COUNTER_NAME
};

static int counters_show(struct seq_file *out, void *unused)
{
	const struct dfs_connection *connection = out->private;
	u32 i;
	int cpu;

	for (i = 0; i < DFS_COUNTER_NUMBER; i++) {
		u64 sum = 0;

		for_each_possible_cpu(cpu) sum += per_cpu_ptr(connection->counters, cpu)->value[i];
		seq_printf(out, "%s %llu\n", dfs_counter_names[i], sum);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static const char *dfs_state_name(u32 state)
{
	switch (state) {
	case DF_SESSION_LIVE:
		return "live";
	case DF_SESSION_CONNECTING:
		return "connecting";
	case DF_SESSION_LOST:
		return "lost";
	default:
		return "recovering";
	}
}

static int session_show(struct seq_file *out, void *unused)
{
	struct dfs_connection *connection = out->private;
	struct dfs_session *session = connection->session;
	s64 trusted = READ_ONCE(session->trusted_until_ms) - dfs_now_ms();

	spin_lock_bh(&session->spin);
	seq_printf(out, "session %#llx\nincarnation %llu\nstate %s\nlease_ms %u\n", session->id,
		   session->incarnation, dfs_state_name(READ_ONCE(session->machine.state)),
		   session->lease_ms);
	seq_printf(out, "trusted_ms %lld\nlink %u\nlocks %u\nlocks_idle %u\n", max(trusted, 0LL),
		   session->epoch, session->lock_count, session->idle_count);
	spin_unlock_bh(&session->spin);
	seq_printf(out, "daemon %s\n",
		   READ_ONCE(connection->aborted)   ? "aborted"
		   : READ_ONCE(connection->leaving) ? "leaving"
		   : READ_ONCE(connection->daemon)  ? "attached"
						    : "away");
	seq_printf(out, "daemons %u\n", READ_ONCE(connection->daemons));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(session);

static void dfs_show_lock(struct dfs_lock *lock, void *argument)
{
	static const char *const modes[] = {"-", "IS", "IX", "S", "X"};
	static const char *const gates[] = {"open", "revoking", "closed"};
	struct seq_file *out = argument;
	u32 waiters = 0;
	struct list_head *entry;

	spin_lock_bh(&lock->spin);
	list_for_each(entry, &lock->waiters) waiters++;
	seq_printf(out, "%llu %s %s %s %u %u %d %u%s%s%s\n", lock->key >> DF_KEY_EXTENT_BITS,
		   lock->core.held < ARRAY_SIZE(modes) ? modes[lock->core.held] : "?",
		   lock->core.want < ARRAY_SIZE(modes) ? modes[lock->core.want] : "?",
		   lock->core.gate < ARRAY_SIZE(gates) ? gates[lock->core.gate] : "?",
		   lock->core.pins, waiters, (int)lock->core.slot, refcount_read(&lock->refs),
		   lock->shedding ? " shedding" : "", lock->core.detached ? " detached" : "",
		   lock->lost ? " lost" : "");
	spin_unlock_bh(&lock->spin);
}

static int locks_show(struct seq_file *out, void *unused)
{
	struct dfs_connection *connection = out->private;

	seq_puts(out, "inode held want gate pins waiters slot references flags\n");
	dfs_locks_each(connection->session, dfs_show_lock, out);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(locks);

static void dfs_show_request(struct seq_file *out, const struct dfs_request *request)
{
	static const char *const states[] = {"new", "pending", "sent", "done"};

	seq_printf(out, "%llu %u %llu %s %u%s%s\n", request->head.unique, request->head.opcode,
		   request->head.nodeid, states[request->state & 3], request->page_count,
		   request->background ? " background" : "",
		   request->caller_left ? " caller_left" : "");
}

static int requests_show(struct seq_file *out, void *unused)
{
	struct dfs_connection *connection = out->private;
	const struct dfs_request *request;
	u32 i;

	seq_puts(out, "unique opcode inode state pages flags\n");
	spin_lock(&connection->spin);
	list_for_each_entry(request, &connection->pending, link) dfs_show_request(out, request);
	for (i = 0; i < DFS_SENT_BUCKETS; i++)
		list_for_each_entry(request, &connection->sent[i], link)
			dfs_show_request(out, request);
	spin_unlock(&connection->spin);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(requests);

static ssize_t abort_write(struct file *file, const char __user *bytes, size_t length, loff_t *at)
{
	dfs_connection_abort(file->private_data);
	return length;
}

static const struct file_operations abort_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = abort_write,
	.llseek = no_llseek,
};

void dfs_debug_mounted(struct dfs_connection *connection)
{
	char name[32];

	snprintf(name, sizeof(name), "%u:%u", MAJOR(connection->device), MINOR(connection->device));
	connection->debug = debugfs_create_dir(name, dfs_debug_root);
	debugfs_create_file("counters", 0400, connection->debug, connection, &counters_fops);
	debugfs_create_file("session", 0400, connection->debug, connection, &session_fops);
	debugfs_create_file("locks", 0400, connection->debug, connection, &locks_fops);
	debugfs_create_file("requests", 0400, connection->debug, connection, &requests_fops);
	debugfs_create_file("abort", 0200, connection->debug, connection, &abort_fops);
}

/* Waits for readers: nothing of the connection is looked at afterwards. */
void dfs_debug_unmounted(struct dfs_connection *connection)
{
	debugfs_remove_recursive(connection->debug);
	connection->debug = NULL;
}

int dfs_debug_init(void)
{
	dfs_debug_root = debugfs_create_dir("distfuse", NULL);
	dfs_race_init(dfs_debug_root);
	return 0;
}

void dfs_debug_exit(void)
{
	debugfs_remove_recursive(dfs_debug_root);
}
