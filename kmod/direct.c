// SPDX-License-Identifier: GPL-2.0-only
/*
 * O_DIRECT: between the caller's own pages and the servers, past the page cache.
 *
 * Parties: the thread that reads or writes; the daemon's threads, whose answers end requests.
 *
 * A batch: pages of the caller are referenced (faults come here, with no pin), then the lock is pinned, what the page cache has of the range goes to the servers
 * (a write drops it too, before and after), then up to DFS_BATCH_REQUESTS requests go at once and are all waited for. A batch is one stay under the pin, so it is
 * atomic towards other nodes; larger calls are several.
 *
 * States of a batch: GATHERING; RUNNING with `pending` requests; ENDED. A killed thread leaves a RUNNING batch: the pins go with it, and a work gives
 * pages and pins up when the last answer has come.
 *
 * Serialised by: i_rwsem (reads shared, writes alone); `spin`: who ends the batch.
 *
 * Limits: 16 MiB a batch. Memory that does not begin on a page goes through the page cache (-EOPNOTSUPP here); a file's offset and the length may be any.
 */
#include <linux/completion.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/uio.h>

#include "inode.h"
#include "open.h"
#include "rdma/lock/slot.h"

#define DFS_BATCH_REQUESTS 16u

struct dfs_batch {
	bool write;
	u32 count;
	struct dfs_request *request[DFS_BATCH_REQUESTS];
	size_t bytes;
	spinlock_t spin; /* pending, left */
	u32 pending;
	bool left;
	struct completion ended;
	struct work_struct work;
	struct dfs_pins pins; /* of a killed thread */
};

/* --- gathering ------------------------------------------------------------------------------------- */

static void dfs_put_pages(struct dfs_request *request, bool dirty)
{
	u32 i;

	for (i = 0; i < request->page_count; i++) {
		if (dirty)
			set_page_dirty_lock(request->pages[i]);
		put_page(request->pages[i]);
	}
	request->page_count = 0;
}

static void dfs_batch_free(struct dfs_batch *batch)
{
	u32 i;

	for (i = 0; i < batch->count; i++) {
		dfs_put_pages(batch->request[i], !batch->write);
		dfs_request_put(batch->request[i]);
	}
	kfree(batch);
}

static void dfs_batch_left(struct work_struct *work)
{
	struct dfs_batch *batch = container_of(work, struct dfs_batch, work);
	u32 i;

	for (i = 0; i < batch->pins.count; i++)
		dfs_inode_distrust(batch->pins.inode[i]);
	dfs_unpin(&batch->pins);
	dfs_batch_free(batch);
}

/* The next pages of the iterator, which moves on. -EOPNOTSUPP: not from the beginning of a page. */
static int dfs_gather_request(struct dfs_batch *batch, struct inode *inode, struct iov_iter *iter)
{
	struct dfs_request *request = dfs_request_new(
		dfs_c(inode), batch->write ? FUSE_WRITE : FUSE_READ, inode->i_ino,
		batch->write ? sizeof(struct fuse_write_in) : sizeof(struct fuse_read_in),
		batch->write ? sizeof(struct fuse_write_out) : 0, true);
	size_t offset;
	ssize_t bytes;

	if (!request)
		return -ENOMEM;
	dfs_request_pages(request);
	bytes = iov_iter_get_pages2(iter, request->pages, DFS_MAX_IO, DFS_MAX_PAGES, &offset);
	if (bytes > 0) {
		request->page_count = DIV_ROUND_UP(offset + bytes, PAGE_SIZE);
		request->page_bytes = bytes;
	}
	if (bytes <= 0 || offset) {
		dfs_put_pages(request, false);
		dfs_request_put(request);
		if (bytes <= 0)
			return bytes ? bytes : -EFAULT;
		iov_iter_revert(iter, bytes);
		return -EOPNOTSUPP;
	}
	batch->request[batch->count++] = request;
	batch->bytes += bytes;
	return 0;
}

static struct dfs_batch *dfs_gather(struct inode *inode, struct iov_iter *iter, bool write)
{
	struct dfs_batch *batch = kzalloc(sizeof(*batch), GFP_KERNEL);
	int error = 0;

	if (!batch)
		return ERR_PTR(-ENOMEM);
	batch->write = write;
	spin_lock_init(&batch->spin);
	init_completion(&batch->ended);
	INIT_WORK(&batch->work, dfs_batch_left);
	while (!error && iov_iter_count(iter) && batch->count < DFS_BATCH_REQUESTS)
		error = dfs_gather_request(batch, inode, iter);
	if (batch->count)
		return batch; /* what stopped it is met again */
	dfs_batch_free(batch);
	return ERR_PTR(error);
}

/* --- running ----------------------------------------------------------------------------------------- */

static void dfs_batch_ended(struct dfs_batch *batch)
{
	bool last, left;

	spin_lock(&batch->spin);
	last = --batch->pending == 0;
	left = batch->left;
	if (last && !left)
		complete(&batch->ended);
	spin_unlock(&batch->spin);
	if (last && left)
		queue_work(system_unbound_wq, &batch->work);
}

/* What a file's hole or end leaves of a read is zero. */
static void dfs_direct_ended(struct dfs_request *request)
{
	u32 i, left = request->error ? 0 : request->out_length;

	for (i = 0; !request->pages_in && !request->error && i < request->page_count; i++) {
		u32 part = min_t(u32, left, PAGE_SIZE);
		u32 end = min_t(u32, request->page_bytes - i * PAGE_SIZE, PAGE_SIZE);

		if (part < end)
			zero_user_segment(request->pages[i], part, end);
		flush_dcache_page(request->pages[i]);
		left -= part;
	}
	dfs_batch_ended(request->private);
}

static void dfs_batch_start(struct dfs_batch *batch, loff_t position)
{
	u32 i;

	batch->pending = batch->count;
	for (i = 0; i < batch->count; i++) {
		struct dfs_request *request = batch->request[i];

		request->private = batch;
		request->end = dfs_direct_ended;
		if (batch->write) {
			struct fuse_write_in *in = request->in;

			in->offset = position;
			in->size = request->page_bytes;
			in->write_flags = FUSE_WRITE_CACHE;
			request->pages_in = true;
			dfs_count_by(request->connection, pages_written, request->page_count);
		} else {
			struct fuse_read_in *in = request->in;

			in->offset = position;
			in->size = request->page_bytes;
			request->out_variable = true;
			dfs_count_by(request->connection, pages_read, request->page_count);
		}
		position += request->page_bytes;
		refcount_inc(&request->refs);
		dfs_request_start(request);
	}
}

/* False: killed, the batch and the pins are not ours any more. */
static bool dfs_batch_wait(struct dfs_batch *batch, struct dfs_pins *pins)
{
	struct dfs_pins moved = {};
	bool left;

	if (!wait_for_completion_killable(&batch->ended))
		return true;
	dfs_pins_move(&moved, pins);
	spin_lock(&batch->spin);
	left = batch->pending != 0;
	if (left) {
		batch->pins = moved;
		batch->left = true;
	}
	spin_unlock(&batch->spin);
	if (!left)
		*pins = moved;
	return !left;
}

/* What of the batch is done, up to the first request that failed; its error, if that is the first. */
static ssize_t dfs_batch_result(const struct dfs_batch *batch)
{
	ssize_t done = 0;
	int error;
	u32 i;

	for (i = 0; i < batch->count; i++) {
		const struct dfs_request *request = batch->request[i];

		error = request->error;
		if (!error && batch->write &&
		    ((struct fuse_write_out *)request->out)->size != request->page_bytes)
			error = -EIO;
		if (error)
			return done ? done : error;
		done += request->page_bytes;
	}
	return done;
}

/* --- one batch, pinned --------------------------------------------------------------------------------- */

/* What the page cache has of the range is at the servers, and for a write gone. */
static int dfs_clear_range(struct inode *inode, loff_t position, size_t bytes, bool drop)
{
	loff_t last = position + bytes - 1;
	int error = dfs_write_out(inode, position, last);

	if (!error && drop)
		error = invalidate_inode_pages2_range(inode->i_mapping, position >> PAGE_SHIFT,
						      last >> PAGE_SHIFT);
	return error;
}

static void dfs_direct_grown(struct inode *inode, loff_t end)
{
	struct dfs_inode *dfs = dfs_i(inode);
	bool grown;

	spin_lock(&dfs->spin);
	grown = end > i_size_read(inode);
	if (grown)
		i_size_write(inode, end);
	set_bit(DFS_ATTRS_DIRTY, &dfs->flags);
	set_bit(DFS_CHANGED, &dfs->flags);
	spin_unlock(&dfs->spin);
	mark_inode_dirty_sync(inode);
}

/* Under the pins. `gone`: killed, batch and pins are not ours any more. */
static ssize_t dfs_batch_run(struct dfs_batch *batch, struct inode *inode, struct kiocb *iocb,
			     struct dfs_pins *pins, bool *gone)
{
	loff_t size = i_size_read(inode);
	ssize_t result;

	if (batch->write && (iocb->ki_flags & IOCB_APPEND))
		iocb->ki_pos = size;
	if (!batch->write && iocb->ki_pos >= size)
		return 0;
	result = dfs_clear_range(inode, iocb->ki_pos, batch->bytes, batch->write);
	if (result)
		return result;
	dfs_batch_start(batch, iocb->ki_pos);
	*gone = !dfs_batch_wait(batch, pins);
	if (*gone)
		return -EINTR;
	result = dfs_batch_result(batch);
	if (batch->write) {
		/* What a fault has brought in meanwhile is older, or as new: nobody can tell. */
		(void)dfs_clear_range(inode, iocb->ki_pos, batch->bytes, true);
		if (result > 0)
			dfs_direct_grown(inode, iocb->ki_pos + result);
	} else if (result > 0) {
		result = min_t(loff_t, result, size - iocb->ki_pos);
	}
	return result;
}

/* One batch. */
ssize_t dfs_direct(struct kiocb *iocb, struct iov_iter *iter, bool write)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct dfs_batch *batch;
	struct dfs_pins pins;
	bool gone = false;
	ssize_t result;
	size_t bytes;

	if (!user_backed_iter(iter))
		return -EOPNOTSUPP;
	batch = dfs_gather(inode, iter, write);
	if (IS_ERR(batch))
		return PTR_ERR(batch);
	bytes = batch->bytes;
	result = dfs_pin(&pins, inode, write ? DF_X : DF_S);
	if (result) {
		dfs_batch_free(batch);
		goto out;
	}
	result = dfs_refresh(inode, &pins);
	if (!result)
		result = dfs_batch_run(batch, inode, iocb, &pins, &gone);
	if (gone)
		return result;
	dfs_unpin(&pins);
	dfs_batch_free(batch);
out:
	if (result > 0)
		iocb->ki_pos += result;
	iov_iter_revert(iter, bytes - max_t(ssize_t, result, 0));
	return result;
}
