// SPDX-License-Identifier: GPL-2.0-only
/*
 * Regular files: read, write, sync, space. User memory is touched under a pin only with page faults off (LOCKING.md, "Why nothing waits in a
 * cycle", 2): what is not there is faulted in without a pin, a window at a time, and the copy goes on where it was.
 */
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/fadvise.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/splice.h>
#include <linux/uio.h>
#include <linux/writeback.h>

#include "file_lock.h"
#include "inode.h"
#include "open.h"
#include "race.h"
#include "rdma/lock/slot.h"

#define DFS_WINDOW (1u << 20)

struct dfs_copy {
	size_t window; /* to fault in next; halved when it was of no use */
	size_t last;   /* what was left when the last one was faulted in */
};

/* False: nothing is left to try, the error stands. `left`: of the iterator. */
static bool dfs_fault_in(struct dfs_copy *copy, struct iov_iter *iter, bool readable)
{
	size_t left = iov_iter_count(iter), missing;

	/* A full pipe: nothing that a fault brings. */
	if (!user_backed_iter(iter))
		return false;
	if (copy->last == left)
		copy->window = max_t(size_t, copy->window / 2, PAGE_SIZE);
	else
		copy->window = DFS_WINDOW;
	copy->last = left;
	missing = readable ? fault_in_iov_iter_readable(iter, min(copy->window, left))
			   : fault_in_iov_iter_writeable(iter, min(copy->window, left));
	return missing < min(copy->window, left);
}

/* --- read ------------------------------------------------------------------------------------------- */

static ssize_t dfs_read_pinned(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct dfs_pins pins;
	ssize_t result;
	int error = dfs_pin(&pins, inode, DF_S);

	if (error)
		return error;
	result = dfs_refresh(inode, &pins);
	if (!result) {
		pagefault_disable();
		/* Not told of what was read before: it would return that in place of an error. */
		result = filemap_read(iocb, to, 0);
		pagefault_enable();
	}
	dfs_unpin(&pins);
	return result;
}

/* -EOPNOTSUPP: through the cache, which is coherent. */
static ssize_t dfs_read_direct(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	ssize_t done = 0, result = 0;

	if (iocb->ki_flags & IOCB_NOWAIT)
		return -EAGAIN;
	inode_lock_shared(inode);
	while (iov_iter_count(to)) {
		result = dfs_direct(iocb, to, false);
		if (result <= 0)
			break;
		done += result;
	}
	inode_unlock_shared(inode);
	return done ? done : result;
}

static ssize_t dfs_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct dfs_copy copy = {.window = DFS_WINDOW};
	ssize_t done = 0, result;

	if (iocb->ki_flags & IOCB_DIRECT) {
		result = dfs_read_direct(iocb, to);
		if (result != -EOPNOTSUPP)
			return result;
		iocb->ki_flags &= ~IOCB_DIRECT;
	}
	while (iov_iter_count(to)) {
		result = dfs_read_pinned(iocb, to);
		if (result > 0)
			done += result; /* short: why is the next one's answer */
		else if (result != -EFAULT)
			return done ? done : result; /* 0: the end of the file */
		else if (!dfs_fault_in(&copy, to, false))
			return done ? done : -EFAULT;
	}
	return done;
}

/* --- write ------------------------------------------------------------------------------------------- */

/* Under i_rwsem and the pin on X, refreshed. What has no xattrs has no capabilities to ask for. */
static int dfs_remove_privs(struct file *file)
{
	struct inode *inode = file_inode(file);

	if (test_bit(DFS_NO_XATTRS, &dfs_i(inode)->flags))
		inode_has_no_xattr(inode);
	return file_remove_privs(file);
}

/* Under i_rwsem. One stay under the pin: what was written, or an error; -EFAULT: user memory is not there. */
static ssize_t dfs_write_pinned(struct kiocb *iocb, struct iov_iter *from, bool first)
{
	struct file *file = iocb->ki_filp;
	struct inode *inode = file_inode(file);
	struct dfs_pins pins;
	ssize_t result;
	loff_t position;

	dfs_race(DFS_RACE_write_entered, dfs_c(inode));
	result = dfs_pin(&pins, inode, DF_X);
	if (result)
		return result;
	result = dfs_refresh(inode, &pins);
	if (!result && first) {
		/* O_APPEND: the end that counts is the one under the lock. */
		result = generic_write_checks(iocb, from);
		if (result > 0) {
			result = dfs_remove_privs(file);
			result = result ? result : file_update_time(file);
		} else if (!result) {
			result = -ENODATA; /* nothing to write */
		}
	}
	if (!result) {
		dfs_race(DFS_RACE_write_pinned, dfs_c(inode));
		/* Kernels differ in who advances it: 6.1.0 leaves it to the caller, later ones of 6.1 do not. */
		position = iocb->ki_pos;
		pagefault_disable();
		result = generic_perform_write(iocb, from);
		pagefault_enable();
		iocb->ki_pos = position + max_t(ssize_t, result, 0);
	}
	dfs_unpin(&pins);
	return result;
}

static ssize_t dfs_write_all(struct kiocb *iocb, struct iov_iter *from)
{
	struct dfs_copy copy = {.window = DFS_WINDOW};
	ssize_t done = 0, result;
	bool first = true;

	while (iov_iter_count(from)) {
		result = dfs_write_pinned(iocb, from, first);
		if (result == -ENODATA)
			break;
		first = false;
		if (result > 0) {
			done += result;
			continue;
		}
		if (result && result != -EFAULT)
			return done ? done : result;
		if (!dfs_fault_in(&copy, from, true))
			return done ? done : -EFAULT;
	}
	return done;
}

/* Under i_rwsem. Where it goes, what it does to the mode and times: once, under the pin on X. > 0: something is to be written. */
static ssize_t dfs_write_prepare(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct dfs_pins pins;
	ssize_t result = dfs_pin(&pins, inode, DF_X);
	int error;

	if (result)
		return result;
	result = dfs_refresh(inode, &pins);
	if (!result)
		result = generic_write_checks(iocb, from);
	if (result > 0) {
		error = dfs_remove_privs(iocb->ki_filp);
		error = error ? error : file_update_time(iocb->ki_filp);
		result = error ? error : result;
	}
	dfs_unpin(&pins);
	return result;
}

/* Under i_rwsem. What the caller's memory does not allow goes through the cache, and to the server at once. */
static ssize_t dfs_write_direct(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	ssize_t done = 0, result = dfs_write_prepare(iocb, from);
	int error;

	if (result <= 0)
		return result;
	while (iov_iter_count(from)) {
		result = dfs_direct(iocb, from, true);
		if (result <= 0)
			break;
		done += result;
	}
	if (result != -EOPNOTSUPP)
		return done ? done : result;
	iocb->ki_flags &= ~IOCB_DIRECT;
	result = dfs_write_all(iocb, from);
	if (result <= 0)
		return done ? done : result;
	error = dfs_write_out(inode, iocb->ki_pos - result, iocb->ki_pos - 1);
	return error ? error : done + result;
}

static ssize_t dfs_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	ssize_t done;

	if (iocb->ki_flags & IOCB_NOWAIT)
		return -EAGAIN;
	inode_lock(inode);
	done = iocb->ki_flags & IOCB_DIRECT ? dfs_write_direct(iocb, from)
					    : dfs_write_all(iocb, from);
	inode_unlock(inode);
	return done > 0 ? generic_write_sync(iocb, done) : done;
}

/* --- sync --------------------------------------------------------------------------------------------- */

static int dfs_sync_server(struct inode *inode, int datasync)
{
	struct dfs_request *request;
	struct fuse_fsync_in *in;
	int error;

	request = dfs_request_new(dfs_c(inode), FUSE_FSYNC, inode->i_ino, sizeof(*in), 0, true);
	if (!request)
		return -ENOMEM;
	in = request->in;
	in->fsync_flags = datasync ? FUSE_FSYNC_FDATASYNC : 0;
	error = dfs_request_call(request, NULL);
	/* Every open file is to hear of it: dfs_fsync takes what is this one's. */
	if (error && request->lost) {
		mapping_set_error(inode->i_mapping, -EIO);
		error = 0;
	}
	dfs_request_put(request);
	return error;
}

static int dfs_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	struct inode *inode = file_inode(file);
	int error, later;

	error = file_write_and_wait_range(file, start, end);
	if (!error)
		error = dfs_flush_attrs(inode);
	if (!error)
		error = dfs_sync_server(inode, datasync);
	/* What a shed met meanwhile; of a session that is lost, all of it at once. */
	later = dfs_await_sweep(inode);
	if (!later)
		later = file_check_and_advance_wb_err(file);
	return error ? error : later;
}

/* close tells what writeback met; it does not wait for it: other nodes see what is dirty here by the lock. */
static int dfs_flush(struct file *file, fl_owner_t owner)
{
	int error;

	if (!(file->f_mode & FMODE_WRITE))
		return 0;
	error = dfs_await_sweep(file_inode(file));
	return error ? error : file_check_and_advance_wb_err(file);
}

/* --- space --------------------------------------------------------------------------------------------- */

/* Under i_rwsem, the pin on X and invalidate_lock. */
static int dfs_fallocate_pinned(struct inode *inode, int mode, loff_t offset, loff_t length,
				struct dfs_pins *pins)
{
	struct dfs_request *request;
	struct fuse_fallocate_in *in;
	int error;

	error = dfs_refresh(inode, pins);
	if (!error && !(mode & FALLOC_FL_KEEP_SIZE))
		error = inode_newsize_ok(inode, offset + length);
	/* No writeback of what is punched may come after the punch. */
	if (!error && (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
		error = dfs_write_out(inode, offset, offset + length - 1);
	if (!error)
		error = dfs_flush_attrs(inode);
	if (error)
		return error;
	request = dfs_request_new(dfs_c(inode), FUSE_FALLOCATE, inode->i_ino, sizeof(*in), 0, true);
	if (!request)
		return -ENOMEM;
	in = request->in;
	in->offset = offset;
	in->length = length;
	in->mode = mode;
	error = dfs_request_call(request, pins);
	dfs_request_put(request);
	if (error)
		return error;
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		truncate_pagecache_range(inode, offset, offset + length - 1);
	dfs_attrs_changed(inode, false);
	return dfs_refresh(inode, pins);
}

static long dfs_fallocate(struct file *file, int mode, loff_t offset, loff_t length)
{
	struct inode *inode = file_inode(file);
	struct dfs_pins pins;
	int error;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		return -EOPNOTSUPP;
	inode_lock(inode);
	inode_dio_wait(inode);
	error = dfs_pin(&pins, inode, DF_X);
	if (!error) {
		filemap_invalidate_lock(inode->i_mapping);
		error = dfs_fallocate_pinned(inode, mode, offset, length, &pins);
		filemap_invalidate_unlock(inode->i_mapping);
		dfs_unpin(&pins);
	}
	inode_unlock(inode);
	return error;
}

/* DATA and HOLE are the server's to say: what is dirty goes there first. Under the pin on S. */
static loff_t dfs_seek_data(struct file *file, loff_t offset, int whence, struct dfs_pins *pins)
{
	struct inode *inode = file_inode(file);
	struct dfs_request *request;
	struct fuse_lseek_in *in;
	loff_t result;

	if (offset < 0 || offset >= i_size_read(inode))
		return -ENXIO;
	result = dfs_write_out(inode, 0, LLONG_MAX);
	result = result ? result : dfs_flush_attrs(inode);
	if (result)
		return result;
	request = dfs_request_new(dfs_c(inode), FUSE_LSEEK, inode->i_ino, sizeof(*in),
				  sizeof(struct fuse_lseek_out), true);
	if (!request)
		return -ENOMEM;
	in = request->in;
	in->offset = offset;
	in->whence = whence;
	result = dfs_request_call(request, pins);
	if (!result)
		result = vfs_setpos(file, ((struct fuse_lseek_out *)request->out)->offset,
				    inode->i_sb->s_maxbytes);
	dfs_request_put(request);
	return result;
}

static loff_t dfs_llseek(struct file *file, loff_t offset, int whence)
{
	struct inode *inode = file_inode(file);
	struct dfs_pins pins;
	loff_t result;

	if (whence == SEEK_SET || whence == SEEK_CUR)
		return generic_file_llseek(file, offset, whence);
	inode_lock_shared(inode);
	result = dfs_pin(&pins, inode, DF_S);
	if (!result) {
		result = dfs_refresh(inode, &pins);
		if (!result)
			result = whence == SEEK_END ? generic_file_llseek(file, offset, whence)
						    : dfs_seek_data(file, offset, whence, &pins);
		dfs_unpin(&pins);
	}
	inode_unlock_shared(inode);
	return result;
}

/* What is read ahead is cached under the lock as well. */
static int dfs_fadvise(struct file *file, loff_t offset, loff_t length, int advice)
{
	struct dfs_pins pins;
	int error;

	if (advice != POSIX_FADV_WILLNEED)
		return generic_fadvise(file, offset, length, advice);
	error = dfs_pin(&pins, file_inode(file), DF_S);
	if (error)
		return error;
	error = dfs_refresh(file_inode(file), &pins);
	error = error ? error : generic_fadvise(file, offset, length, advice);
	dfs_unpin(&pins);
	return error;
}

static int dfs_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &dfs_vm_operations;
	return 0;
}

const struct file_operations dfs_file_operations = {
	.open = dfs_open,
	.release = dfs_release,
	.flush = dfs_flush,
	.llseek = dfs_llseek,
	.read_iter = dfs_read_iter,
	.write_iter = dfs_write_iter,
	.mmap = dfs_mmap,
	.fsync = dfs_fsync,
	.splice_read = generic_file_splice_read,
	.splice_write = iter_file_splice_write,
	.fallocate = dfs_fallocate,
	.lock = dfs_file_lock,
	.flock = dfs_file_flock,
	.fadvise = dfs_fadvise,
};

const struct inode_operations dfs_file_inode_operations = {
	.getattr = dfs_getattr,
	.setattr = dfs_setattr,
	.permission = dfs_permission,
	.listxattr = dfs_listxattr,
	.get_acl = dfs_get_acl,
	.set_acl = dfs_set_acl,
	.update_time = dfs_update_time,
};
