// SPDX-License-Identifier: GPL-2.0-only
/* What a cached inode does when its lock is given up. The gate is closed: nobody reads, writes, faults or looks at it under this lock. LOCKING.md, "Revoke". */
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "inode.h"
#include "lock.h"
#include "rdma/lock/slot.h"

/* Pages go, whatever it takes: a page that stays would be read under the next lock. Who holds them up (a direct I/O, a reader of /proc) does not for ever. */
static void dfs_drop_pages(struct inode *inode)
{
	u32 pause_ms = 1;

	while (invalidate_inode_pages2(inode->i_mapping)) {
		filemap_write_and_wait(inode->i_mapping);
		msleep(pause_ms);
		pause_ms = min(2 * pause_ms, 100u);
	}
}

static void dfs_shed_pages(struct inode *inode, u32 keep, bool forfeited)
{
	struct dfs_inode *dfs = dfs_i(inode);

	int error;

	if (forfeited)
		set_bit(DFS_FORFEITED, &dfs->flags);
	/* Errors are in the mapping, for fsync and close. */
	error = filemap_write_and_wait(inode->i_mapping);
	/* Clean pages that the server does not have must not be read under S. */
	if (keep == DF_NL || error || test_bit(DFS_REFUSED, &dfs->flags))
		dfs_drop_pages(inode);
	clear_bit(DFS_FORFEITED, &dfs->flags);
}

void dfs_inode_refused(struct inode *inode)
{
	set_bit(DFS_REFUSED, &dfs_i(inode)->flags);
}

static bool dfs_sweep_due(const struct inode *inode)
{
	const struct dfs_inode *dfs = dfs_i(inode);
	const struct dfs_lock *lock = dfs->lock;

	return test_bit(DFS_REFUSED, &dfs->flags) ||
	       (READ_ONCE(lock->lost) && !READ_ONCE(lock->swept));
}

int dfs_await_sweep(struct inode *inode)
{
	return wait_event_killable(dfs_i(inode)->lock->wait, !dfs_sweep_due(inode)) ? -EINTR : 0;
}

static void dfs_tell_superblock(struct inode *inode)
{
	errseq_set(&inode->i_sb->s_wb_err, -EIO);
}

void dfs_refusal_forgotten(struct inode *inode)
{
	if (test_bit(DFS_REFUSED, &dfs_i(inode)->flags))
		dfs_tell_superblock(inode);
}

/* Not AS_EIO: the next truncation or direct read of the next session would take it for its own. */
static void dfs_tell_refusal(struct inode *inode)
{
	struct dfs_inode *dfs = dfs_i(inode);

	if (test_bit(DFS_REFUSED, &dfs->flags)) {
		filemap_set_wb_err(inode->i_mapping, -EIO);
		dfs_tell_superblock(inode);
		clear_bit_unlock(DFS_REFUSED, &dfs->flags);
	}
	wake_up_all(&dfs->lock->wait);
}

/* Size and times that did not get there are the server's again. */
static void dfs_flush_failed(struct inode *inode)
{
	struct dfs_inode *dfs = dfs_i(inode);

	spin_lock(&dfs->spin);
	clear_bit(DFS_ATTRS_DIRTY, &dfs->flags);
	spin_unlock(&dfs->spin);
	if (!test_bit(DFS_REFUSED, &dfs->flags))
		mapping_set_error(inode->i_mapping, -EIO);
	dfs_inode_distrust(inode);
}

static void dfs_shed_attrs(struct inode *inode, bool forfeited)
{
	struct dfs_inode *dfs = dfs_i(inode);

	if (!forfeited) {
		if (dfs_flush_attrs(inode))
			dfs_flush_failed(inode);
		return;
	}
	/* After a flush that is under way: if it is refused, it leaves them dirty. */
	mutex_lock(&dfs->flush);
	spin_lock(&dfs->spin);
	if (test_bit(DFS_ATTRS_DIRTY, &dfs->flags))
		dfs_inode_refused(inode);
	clear_bit(DFS_ATTRS_DIRTY, &dfs->flags);
	spin_unlock(&dfs->spin);
	clear_bit(DFS_CHANGED, &dfs->flags);
	clear_bit(DFS_OTHERS_CHANGED, &dfs->flags);
	clear_bit(DFS_REGISTERED, &dfs->flags); /* by a session that is gone */
	dfs_tell_refusal(inode);
	mutex_unlock(&dfs->flush);
}

/*
 * What is known of the inode, once nothing of it is dirty, is what the server has, if nothing says otherwise. The next hold may find that it still is: it is
 * offered to it.
 */
static void dfs_settle_attrs(struct inode *inode, u32 keep, bool forfeited)
{
	struct dfs_inode *dfs = dfs_i(inode);
	struct dfs_lock *lock = dfs->lock;
	u64 version;
	u32 epoch;
	bool exact;

	spin_lock_bh(&lock->spin);
	epoch = lock->epoch;
	version = lock->core.version;
	if (lock->core.held == DF_X)
		version = df_version_next(version); /* by the release */
	spin_unlock_bh(&lock->spin);

	spin_lock(&dfs->spin);
	exact = !forfeited && test_bit(DFS_ATTRS, &dfs->flags) &&
		!test_bit(DFS_TIMES_OLD, &dfs->flags) && !test_bit(DFS_ATTRS_DIRTY, &dfs->flags);
	assign_bit(DFS_EXACT, &dfs->flags, exact);
	if (forfeited)
		clear_bit(DFS_OFFERED, &dfs->flags);
	spin_unlock(&dfs->spin);
	if (keep != DF_NL)
		return;
	dfs_inode_distrust(inode);
	if (!exact)
		return;
	spin_lock(&dfs->spin);
	dfs->offered_epoch = epoch;
	dfs->offered_version = version;
	set_bit(DFS_OFFERED, &dfs->flags);
	spin_unlock(&dfs->spin);
}

void dfs_inode_shed(struct inode *inode, u32 keep, bool forfeited)
{
	if (S_ISREG(inode->i_mode))
		dfs_shed_pages(inode, keep, forfeited);
	dfs_shed_attrs(inode, forfeited);
	dfs_settle_attrs(inode, keep, forfeited);
	if (keep != DF_NL)
		return;
	if (S_ISREG(inode->i_mode) && !forfeited)
		(void)dfs_register_open(inode,
					NULL); /* -ENOENT: it is gone, and its use will say so */
}

/* Since which version nothing but size and times has changed, for the release of X. */
static u64 dfs_value_since(struct dfs_inode *dfs)
{
	const u64 known = DF_VALUE_PUBLISHED | DF_VALUE_SINCE;
	struct dfs_lock *lock = dfs->lock;
	u64 version, flags;

	spin_lock_bh(&lock->spin);
	version = lock->core.version;
	flags = lock->core.value.flags;
	spin_unlock_bh(&lock->spin);
	if (test_bit(DFS_OTHERS_CHANGED, &dfs->flags))
		version = df_version_next(version);
	else if ((flags & known) == known)
		version = flags >> DF_VALUE_SINCE_SHIFT;
	return DF_VALUE_SINCE | (u64)(u32)version << DF_VALUE_SINCE_SHIFT;
}

static u64 dfs_value_flags(const struct inode *inode, bool final)
{
	struct dfs_inode *dfs = dfs_i(inode);

	if (final)
		return test_bit(DFS_EXACT, &dfs->flags) ? DF_VALUE_EXACT | dfs_value_since(dfs) : 0;
	return atomic_read(&inode->i_writecount) > 0 ? DF_VALUE_WRITING : 0;
}

bool dfs_inode_publish(struct inode *inode, bool final, struct df_value *value)
{
	struct dfs_inode *dfs = dfs_i(inode);
	bool changed = test_bit(DFS_CHANGED, &dfs->flags);

	if (!changed)
		return false;
	*value = (struct df_value){
		.size = i_size_read(inode),
		.mtime_ns = timespec64_to_ns(&inode->i_mtime),
		.ctime_ns = timespec64_to_ns(&inode->i_ctime),
		.flags = dfs_value_flags(inode, final),
	};
	if (final) {
		clear_bit(DFS_CHANGED, &dfs->flags);
		clear_bit(DFS_OTHERS_CHANGED, &dfs->flags);
	}
	return true;
}
