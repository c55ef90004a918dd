// SPDX-License-Identifier: GPL-2.0-only
/* Pins: see pin.h and LOCKING.md. */
#include <linux/sort.h>

#include "inode.h"
#include "lock.h"
#include "session.h"

static int dfs_pin_one(struct dfs_pins *pins, struct inode *inode, u32 mode)
{
	struct dfs_lock *lock = dfs_i(inode)->lock;
	int error = 0;

	/* What would be written under it could not be written back. */
	if (READ_ONCE(dfs_c(inode)->aborted))
		return -ENOTCONN;
	if (!dfs_lock_pin_now(lock, mode))
		error = dfs_lock_wait(lock, mode, false);
	if (!error)
		pins->inode[pins->count++] = inode;
	return error;
}

int dfs_pin(struct dfs_pins *pins, struct inode *inode, u32 mode)
{
	pins->count = 0;
	pins->owned = false;
	return dfs_pin_one(pins, inode, mode);
}

static int dfs_by_number(const void *left, const void *right)
{
	const struct inode *a = *(struct inode *const *)left, *b = *(struct inode *const *)right;

	return a->i_ino < b->i_ino ? -1 : a->i_ino > b->i_ino;
}

int dfs_pin_all(struct dfs_pins *pins, u32 mode, struct inode *const *inodes, u32 count)
{
	struct inode *sorted[DFS_MAX_PINS];
	u32 i, n = 0;
	int error;

	pins->count = 0;
	pins->owned = false;
	if (WARN_ON_ONCE(count > DFS_MAX_PINS))
		return -EINVAL;
	for (i = 0; i < count; i++)
		if (inodes[i])
			sorted[n++] = inodes[i];
	sort(sorted, n, sizeof(sorted[0]), dfs_by_number, NULL);
	for (i = 0; i < n; i++) {
		if (i && sorted[i] == sorted[i - 1])
			continue;
		error = dfs_pin_one(pins, sorted[i], mode);
		if (error) {
			dfs_unpin(pins);
			return error;
		}
	}
	return 0;
}

bool dfs_pin_try(struct dfs_pins *pins, struct inode *inode, u32 mode)
{
	pins->count = 0;
	pins->owned = false;
	if (!dfs_lock_pin_now(dfs_i(inode)->lock, mode))
		return false;
	pins->inode[pins->count++] = inode;
	return true;
}

bool dfs_pin_free(struct dfs_pins *pins, struct inode *inode, u32 mode)
{
	if (dfs_pin_try(pins, inode, mode))
		return true;
	if (dfs_lock_wait(dfs_i(inode)->lock, mode, true))
		return false;
	pins->inode[pins->count++] = inode;
	return true;
}

void dfs_unpin(struct dfs_pins *pins)
{
	while (pins->count) {
		struct inode *inode = pins->inode[--pins->count];

		dfs_lock_unpin(dfs_i(inode)->lock);
		if (pins->owned)
			iput(inode);
	}
}

bool dfs_pins_lost(const struct dfs_pins *pins)
{
	u32 i;

	smp_rmb(); /* the session's number was read before: see dfs_inode_session */
	for (i = 0; i < pins->count; i++)
		if (READ_ONCE(dfs_i(pins->inode[i])->lock->lost))
			return true;
	return false;
}

void dfs_pins_move(struct dfs_pins *to, struct dfs_pins *pins)
{
	u32 i;

	*to = *pins;
	if (!pins->owned)
		for (i = 0; i < to->count; i++)
			ihold(to->inode[i]);
	to->owned = true;
	pins->count = 0;
}
