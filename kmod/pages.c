// SPDX-License-Identifier: GPL-2.0-only
/*
 * The page cache of regular files: filled by reads of the daemon, emptied by writes to it.
 *
 * A folio is locked from before its read is sent until the answer is in it, so a sweep waits for it. A dirty folio exists only under X, and is written
 * whoever asks: no pin is taken here (LOCKING.md).
 *
 * Limits: a request has at most DFS_MAX_PAGES pages; connection.h says how many of a mount are under way.
 */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/writeback.h>

#include "inode.h"
#include "lock.h"
#include "open.h"
#include "race.h"
#include "session.h"

/* --- reading ------------------------------------------------------------------------------------- */

static void dfs_read_ended(struct dfs_request *request)
{
	u32 i, left = request->error ? 0 : request->out_length;

	dfs_race(DFS_RACE_read_answered, request->connection);
	for (i = 0; i < request->page_count; i++) {
		struct page *page = request->pages[i];
		u32 part = min_t(u32, left, PAGE_SIZE);

		if (request->error) {
			SetPageError(page);
		} else {
			if (part < PAGE_SIZE)
				zero_user_segment(page, part, PAGE_SIZE);
			flush_dcache_page(page);
			SetPageUptodate(page);
		}
		left -= part;
		unlock_page(page);
		put_page(page);
	}
}

static struct dfs_request *dfs_read_request(struct inode *inode, loff_t position)
{
	struct dfs_request *request = dfs_request_new(dfs_c(inode), FUSE_READ, inode->i_ino,
						      sizeof(struct fuse_read_in), 0, false);
	struct fuse_read_in *in = request->in;

	dfs_request_pages(request);
	in->offset = position;
	request->out_variable = true;
	request->end = dfs_read_ended;
	return request;
}

/* Pages are locked and referenced; both end with the answer. */
static void dfs_read_start(struct dfs_request *request)
{
	struct fuse_read_in *in = request->in;

	request->page_bytes = request->page_count * PAGE_SIZE;
	in->size = request->page_bytes;
	dfs_count_by(request->connection, pages_read, request->page_count);
	dfs_request_start(request);
}

static int dfs_read_folio(struct file *file, struct folio *folio)
{
	struct dfs_request *request = dfs_read_request(folio->mapping->host, folio_pos(folio));

	folio_get(folio);
	request->pages[request->page_count++] = folio_page(folio, 0);
	dfs_read_start(request);
	return 0;
}

static void dfs_readahead(struct readahead_control *control)
{
	struct inode *inode = control->mapping->host;
	struct dfs_request *request = NULL;
	struct page *page;

	while ((page = readahead_page(control)) != NULL) {
		if (!request)
			request = dfs_read_request(inode, page_offset(page));
		request->pages[request->page_count++] = page;
		if (request->page_count == DFS_MAX_PAGES) {
			dfs_read_start(request);
			request = NULL;
		}
	}
	if (request)
		dfs_read_start(request);
}

/* --- writing back ----------------------------------------------------------------------------------- */

static void dfs_write_ended(struct dfs_request *request)
{
	struct address_space *mapping = request->pages[0]->mapping;
	const struct fuse_write_out *out = request->out;
	int error = request->error;
	u32 i;

	if (!error && (out->size != request->page_bytes ||
		       dfs_fails(DFS_RACE_write_error, request->connection)))
		error = -EIO;
	if (error && dfs_request_refused(request))
		dfs_inode_refused(mapping->host);
	else if (error)
		mapping_set_error(mapping, error);
	for (i = 0; i < request->page_count; i++) {
		if (error)
			SetPageError(request->pages[i]);
		end_page_writeback(request->pages[i]);
		put_page(request->pages[i]);
	}
}

struct dfs_writeback {
	struct inode *inode;
	struct dfs_request *request; /* pages so far, all under writeback */
};

static void dfs_writeback_start(struct dfs_writeback *writeback)
{
	struct dfs_request *request = writeback->request;
	struct fuse_write_in *in;

	writeback->request = NULL;
	if (!request)
		return;
	in = request->in;
	in->size = request->page_bytes;
	in->write_flags = FUSE_WRITE_CACHE;
	dfs_count_by(request->connection, pages_written, request->page_count);
	dfs_request_start(request);
}

static bool dfs_writeback_fits(const struct dfs_request *request, const struct page *page,
			       u64 session)
{
	const struct fuse_write_in *in = request->in;

	return request->page_count < DFS_MAX_PAGES && request->session == session &&
	       request->page_bytes == request->page_count * PAGE_SIZE &&
	       page_offset((struct page *)page) == (loff_t)in->offset + request->page_bytes;
}

static void dfs_writeback_add(struct dfs_writeback *writeback, struct page *page, u32 bytes,
			      u64 session)
{
	struct dfs_request *request = writeback->request;
	struct fuse_write_in *in;

	if (request && !dfs_writeback_fits(request, page, session))
		dfs_writeback_start(writeback);
	request = writeback->request;
	if (!request) {
		request = dfs_request_new(dfs_c(writeback->inode), FUSE_WRITE,
					  writeback->inode->i_ino, sizeof(*in),
					  sizeof(struct fuse_write_out), false);
		dfs_request_pages(request);
		request->session = session;
		request->pages_in = true;
		request->end = dfs_write_ended;
		in = request->in;
		in->offset = page_offset(page);
		writeback->request = request;
	}
	get_page(page);
	request->pages[request->page_count++] = page;
	request->page_bytes += bytes;
}

/* How much of the page lies in the file; what lies beyond is made zero, so that no mapping's stores there are ever seen. */
static u32 dfs_page_bytes(struct inode *inode, struct page *page)
{
	loff_t left = i_size_read(inode) - page_offset(page);

	if (left <= 0)
		return 0;
	if (left >= (loff_t)PAGE_SIZE)
		return PAGE_SIZE;
	zero_user_segment(page, left, PAGE_SIZE);
	return left;
}

static int dfs_write_one(struct page *page, struct writeback_control *control, void *data)
{
	struct dfs_writeback *writeback = data;
	struct inode *inode = writeback->inode;
	u32 bytes = dfs_page_bytes(inode, page);
	u64 session;

	dfs_race(DFS_RACE_writeback, dfs_c(inode));
	if (!bytes) {
		unlock_page(page);
		return 0;
	}
	set_page_writeback(page);
	unlock_page(page);
	if (!dfs_inode_session(inode, &session) || test_bit(DFS_FORFEITED, &dfs_i(inode)->flags)) {
		dfs_inode_refused(inode);
		end_page_writeback(page);
		return 0;
	}
	dfs_writeback_add(writeback, page, bytes, session);
	return 0;
}

static int dfs_writepages(struct address_space *mapping, struct writeback_control *control)
{
	struct dfs_writeback writeback = {.inode = mapping->host};
	int error;

	error = write_cache_pages(mapping, control, dfs_write_one, &writeback);
	dfs_writeback_start(&writeback);
	return error;
}

int dfs_write_out(struct inode *inode, loff_t first, loff_t last)
{
	int error = filemap_write_and_wait_range(inode->i_mapping, first, last);

	return error ? error : test_bit(DFS_REFUSED, &dfs_i(inode)->flags) ? -EIO : 0;
}

/* --- writing into it ----------------------------------------------------------------------------------- */

/* What the write does not cover of a page that is not here. The page is locked, and is again. */
static int dfs_fill_page(struct inode *inode, struct page *page, loff_t position, u32 length)
{
	u32 offset = offset_in_page(position);
	int error;

	if (PageUptodate(page) || length == PAGE_SIZE)
		return 0;
	if (page_offset(page) >= i_size_read(inode) ||
	    (!offset && position + length >= i_size_read(inode))) {
		zero_user_segments(page, 0, offset, offset + length, PAGE_SIZE);
		return 0;
	}
	error = dfs_read_folio(NULL, page_folio(page));
	if (error)
		return error;
	lock_page(page);
	return PageUptodate(page) ? 0 : -EIO;
}

static int dfs_write_begin(struct file *file, struct address_space *mapping, loff_t position,
			   unsigned int length, struct page **result, void **data)
{
	struct page *page = grab_cache_page_write_begin(mapping, position >> PAGE_SHIFT);
	int error;

	if (!page)
		return -ENOMEM;
	wait_for_stable_page(page);
	error = dfs_fill_page(mapping->host, page, position, length);
	if (!error && page->mapping != mapping)
		error = -EAGAIN;
	if (error) {
		unlock_page(page);
		put_page(page);
		return error;
	}
	*result = page;
	return 0;
}

static int dfs_write_end(struct file *file, struct address_space *mapping, loff_t position,
			 unsigned int length, unsigned int copied, struct page *page, void *data)
{
	struct inode *inode = mapping->host;
	struct dfs_inode *dfs = dfs_i(inode);

	if (!PageUptodate(page)) {
		/* The whole page was promised, or the rest of it is zero already. */
		if (copied < length) {
			copied = 0;
			goto out;
		}
		SetPageUptodate(page);
	}
	set_page_dirty(page);
	spin_lock(&dfs->spin);
	if (position + copied > i_size_read(inode))
		i_size_write(inode, position + copied);
	set_bit(DFS_ATTRS_DIRTY, &dfs->flags);
	set_bit(DFS_CHANGED, &dfs->flags);
	spin_unlock(&dfs->spin);
out:
	unlock_page(page);
	put_page(page);
	return copied;
}

const struct address_space_operations dfs_file_aops = {
	.read_folio = dfs_read_folio,
	.readahead = dfs_readahead,
	.writepages = dfs_writepages,
	.write_begin = dfs_write_begin,
	.write_end = dfs_write_end,
	.dirty_folio = filemap_dirty_folio,
	.migrate_folio = filemap_migrate_folio,
	.direct_IO = noop_direct_IO,
};

/* --- mappings -------------------------------------------------------------------------------------------- */

static vm_fault_t dfs_fault(struct vm_fault *fault)
{
	struct inode *inode = file_inode(fault->vma->vm_file);
	struct dfs_pins pins;
	vm_fault_t result;
	int error = dfs_pin(&pins, inode, DF_S);

	if (error)
		return VM_FAULT_SIGBUS; /* of a killed task too: the kernel's own access must not begin again for ever */
	error = dfs_refresh(inode, &pins);
	dfs_race(DFS_RACE_fault_pinned, dfs_c(inode));
	result = error ? VM_FAULT_SIGBUS : filemap_fault(fault);
	dfs_unpin(&pins);
	return result;
}

static vm_fault_t dfs_map_pages(struct vm_fault *fault, pgoff_t first, pgoff_t last)
{
	struct dfs_pins pins;
	vm_fault_t result;

	if (!dfs_pin_try(&pins, file_inode(fault->vma->vm_file), DF_S))
		return 0;
	result = filemap_map_pages(fault, first, last);
	dfs_unpin(&pins);
	return result;
}

/* The page stays locked when the pin goes: a sweep that comes then finds it dirty and mapped. Under the pin on X. */
static vm_fault_t dfs_make_writable(struct inode *inode, struct page *page)
{
	struct dfs_inode *dfs = dfs_i(inode);

	lock_page(page);
	if (page->mapping != inode->i_mapping || page_offset(page) >= i_size_read(inode)) {
		unlock_page(page);
		return VM_FAULT_NOPAGE;
	}
	wait_for_stable_page(page);
	set_page_dirty(page);
	spin_lock(&dfs->spin);
	set_bit(DFS_ATTRS_DIRTY, &dfs->flags);
	set_bit(DFS_CHANGED, &dfs->flags);
	spin_unlock(&dfs->spin);
	return VM_FAULT_LOCKED;
}

static vm_fault_t dfs_page_mkwrite(struct vm_fault *fault)
{
	struct file *file = fault->vma->vm_file;
	struct inode *inode = file_inode(file);
	vm_fault_t result = VM_FAULT_SIGBUS;
	struct dfs_pins pins;
	int error;

	sb_start_pagefault(inode->i_sb);
	error = dfs_pin(&pins, inode, DF_X);
	if (error) {
		sb_end_pagefault(inode->i_sb);
		return VM_FAULT_SIGBUS;
	}
	error = dfs_refresh(inode, &pins);
	if (!error) {
		file_update_time(file);
		filemap_invalidate_lock_shared(inode->i_mapping);
		result = dfs_make_writable(inode, fault->page);
		filemap_invalidate_unlock_shared(inode->i_mapping);
	}
	dfs_unpin(&pins);
	if (result == VM_FAULT_LOCKED)
		dfs_race(DFS_RACE_mkwrite_done, dfs_c(inode));
	sb_end_pagefault(inode->i_sb);
	return result;
}

const struct vm_operations_struct dfs_vm_operations = {
	.fault = dfs_fault,
	.map_pages = dfs_map_pages,
	.page_mkwrite = dfs_page_mkwrite,
};
