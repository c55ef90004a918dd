// SPDX-License-Identifier: GPL-2.0-only
/* Race points and fault points: the contract is in race.h. */
#include <linux/debugfs.h>
#include <linux/kdev_t.h>
#include <linux/seq_file.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "connection.h"
#include "race.h"

#define DFS_RACE_LINE 64u
#define DFS_RACE_HOLD 0u
#define DFS_LATE_MS 300u

enum dfs_race_state { DFS_RACE_IDLE, DFS_RACE_ARMED, DFS_RACE_HOLDING };

DEFINE_STATIC_KEY_FALSE(dfs_races);

static struct {
	const char *name;
	bool fault;
	u8 state; /* enum dfs_race_state; this and all below: dfs_race_spin */
	dev_t device;
	u32 ms;
	u32 times;
} dfs_race_points[DFS_RACE_NUMBER] = {
#define DFS_RACE_RACE(point) [DFS_RACE_##point] = {.name = #point},
#define DFS_RACE_FAULT(point) [DFS_RACE_##point] = {.name = #point, .fault = true},
	DFS_RACE_POINTS(DFS_RACE_RACE) DFS_FAULT_POINTS(DFS_RACE_FAULT)
#undef DFS_RACE_RACE
#undef DFS_RACE_FAULT
};
static DEFINE_SPINLOCK(dfs_race_spin);
static DEFINE_MUTEX(dfs_race_writers);
static DECLARE_WAIT_QUEUE_HEAD(dfs_race_released);

/* Whether it strikes now. Any context. */
static bool dfs_race_take(enum dfs_race_point point, const struct dfs_connection *connection,
			  enum dfs_race_state next, u32 *ms)
{
	unsigned long flags;
	bool struck;

	spin_lock_irqsave(&dfs_race_spin, flags);
	struck = dfs_race_points[point].state == DFS_RACE_ARMED &&
		 dfs_race_points[point].device == connection->device;
	if (struck) {
		dfs_race_points[point].state = next;
		dfs_race_points[point].times++;
		*ms = dfs_race_points[point].ms;
	}
	spin_unlock_irqrestore(&dfs_race_spin, flags);
	return struck;
}

static bool dfs_race_over(enum dfs_race_point point)
{
	return READ_ONCE(dfs_race_points[point].state) != DFS_RACE_HOLDING;
}

/* Not killable: a killed thread must come by in the order that the test says, too. */
void dfs_race_strike(enum dfs_race_point point, const struct dfs_connection *connection)
{
	u32 ms;

	might_sleep();
	if (!dfs_race_take(point, connection, DFS_RACE_HOLDING, &ms))
		return;
	wait_event_timeout(dfs_race_released, dfs_race_over(point),
			   msecs_to_jiffies(ms == DFS_RACE_HOLD ? DFS_RACE_MOST_MS : ms));
	spin_lock_irq(&dfs_race_spin);
	if (dfs_race_points[point].state == DFS_RACE_HOLDING)
		dfs_race_points[point].state = DFS_RACE_IDLE;
	spin_unlock_irq(&dfs_race_spin);
}

bool dfs_fault_strike(enum dfs_race_point point, const struct dfs_connection *connection, u32 *ms)
{
	u32 late;
	bool struck = dfs_race_take(point, connection, DFS_RACE_IDLE, &late);

	if (struck && ms)
		*ms = late == DFS_RACE_HOLD ? DFS_LATE_MS : late;
	return struck;
}

/* --- debugfs ---------------------------------------------------------------------------------- */

static int race_show(struct seq_file *out, void *unused)
{
	static const char *const states[] = {"idle", "armed", "holding"};
	u32 i;

	for (i = 0; i < DFS_RACE_NUMBER; i++)
		seq_printf(out, "%s %s %s %u\n", dfs_race_points[i].name,
			   dfs_race_points[i].fault ? "fault" : "race",
			   states[READ_ONCE(dfs_race_points[i].state)],
			   READ_ONCE(dfs_race_points[i].times));
	return 0;
}

static int dfs_race_set(const char *name, enum dfs_race_state state, dev_t device, u32 ms)
{
	int result = -ENOENT;
	bool armed = false;
	u32 i;

	mutex_lock(&dfs_race_writers);
	spin_lock_irq(&dfs_race_spin);
	for (i = 0; i < DFS_RACE_NUMBER; i++) {
		if (!strcmp(dfs_race_points[i].name, name)) {
			dfs_race_points[i].state = state;
			dfs_race_points[i].device = device;
			dfs_race_points[i].ms = ms;
			result = 0;
		}
		armed |= dfs_race_points[i].state == DFS_RACE_ARMED;
	}
	spin_unlock_irq(&dfs_race_spin);
	if (armed)
		static_branch_enable(&dfs_races);
	else
		static_branch_disable(&dfs_races);
	mutex_unlock(&dfs_race_writers);
	wake_up_all(&dfs_race_released);
	return result;
}

static ssize_t race_write(struct file *file, const char __user *bytes, size_t length, loff_t *at)
{
	char line[DFS_RACE_LINE] = {}, name[32] = {};
	u32 major, minor, ms = DFS_RACE_HOLD;
	int fields, error;

	if (length >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, bytes, length))
		return -EFAULT;
	fields = sscanf(line, "%31s %u:%u %u", name, &major, &minor, &ms);
	if (fields >= 3 && ms <= DFS_RACE_MOST_MS)
		error = dfs_race_set(name, DFS_RACE_ARMED, MKDEV(major, minor), ms);
	else if (fields == 1 && strstr(line, " off"))
		error = dfs_race_set(name, DFS_RACE_IDLE, 0, 0);
	else
		error = -EINVAL;
	return error ? error : (ssize_t)length;
}

static int race_open(struct inode *inode, struct file *file)
{
	return single_open(file, race_show, NULL);
}

static const struct file_operations race_fops = {
	.owner = THIS_MODULE,
	.open = race_open,
	.read = seq_read,
	.write = race_write,
	.llseek = seq_lseek,
	.release = single_release,
};

void dfs_race_init(struct dentry *folder)
{
	debugfs_create_file("race", 0600, folder, NULL, &race_fops);
}
