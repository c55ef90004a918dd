// SPDX-License-Identifier: GPL-2.0-only
/* Open files, as far as the server must know of them: see inode.h. */
#include "inode.h"
#include "lock.h"
#include "open.h"

int dfs_register_open(struct inode *inode, struct dfs_pins *pins)
{
	struct dfs_inode *dfs = dfs_i(inode);
	struct dfs_request *request;
	bool needed;
	int error;

	spin_lock(&dfs->spin);
	needed = dfs->opens && !test_bit(DFS_REGISTERED, &dfs->flags);
	spin_unlock(&dfs->spin);
	if (!needed)
		return 0;
	request = dfs_request_new(dfs_c(inode), FUSE_OPEN, inode->i_ino,
				  sizeof(struct fuse_open_in), sizeof(struct fuse_open_out), false);
	error = dfs_request_call(request, pins);
	dfs_request_put(request);
	if (!error)
		set_bit(DFS_REGISTERED, &dfs->flags);
	return error;
}

/* In the background: an eviction must not wait for the daemon. */
void dfs_unregister_open(struct inode *inode)
{
	struct dfs_request *request;

	if (!test_and_clear_bit(DFS_REGISTERED, &dfs_i(inode)->flags))
		return;
	request = dfs_request_new(dfs_c(inode), FUSE_RELEASE, inode->i_ino,
				  sizeof(struct fuse_release_in), 0, false);
	dfs_request_start(request);
}

int dfs_open(struct inode *inode, struct file *file)
{
	struct dfs_inode *dfs = dfs_i(inode);
	struct dfs_pins pins;
	int error = generic_file_open(inode, file);

	if (error)
		return error;
	/* Counted under the lock: a shed, which registers what is open, comes before or after. */
	error = dfs_pin(&pins, inode, DF_S);
	if (error)
		return error;
	error = dfs_refresh(inode, &pins);
	if (!error) {
		spin_lock(&dfs->spin);
		dfs->opens++;
		spin_unlock(&dfs->spin);
		file->f_mode |= FMODE_CAN_ODIRECT;
	}
	dfs_unpin(&pins);
	return error;
}

int dfs_release(struct inode *inode, struct file *file)
{
	struct dfs_inode *dfs = dfs_i(inode);
	bool last;

	spin_lock(&dfs->spin);
	last = --dfs->opens == 0;
	spin_unlock(&dfs->spin);
	if (last)
		dfs_unregister_open(inode);
	return 0;
}
