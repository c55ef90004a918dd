// SPDX-License-Identifier: GPL-2.0-only
/*
 * Listings. A batch of entries with attributes is fetched under S into memory of ours; handing it to user memory needs no pin. Names of a batch
 * are believed as a lookup's are, if the directory's `names` is still what it was.
 */
#include <linux/fs.h>
#include <linux/slab.h>

#include "file_lock.h"
#include "inode.h"
#include "rdma/lock/slot.h"

#define DFS_BATCH (64u << 10)
#define DFS_DOTS 2 /* positions 0 and 1 are '.' and '..'; then 2 + the cookie of the entry before */

struct dfs_listing {
	struct mutex mutex;
	void *batch; /* DFS_BATCH bytes of struct fuse_direntplus */
	u32 length;
	u32 at;	     /* of the next entry */
	loff_t next; /* position of the entry at `at` */
	u64 names;   /* of the directory when it was fetched */
	bool end;    /* an empty answer: nothing follows */
};

static int dfs_open_directory(struct inode *inode, struct file *file)
{
	struct dfs_listing *listing = kzalloc(sizeof(*listing), GFP_KERNEL);

	if (!listing)
		return -ENOMEM;
	mutex_init(&listing->mutex);
	file->private_data = listing;
	return 0;
}

static int dfs_release_directory(struct inode *inode, struct file *file)
{
	struct dfs_listing *listing = file->private_data;

	kvfree(listing->batch);
	kfree(listing);
	return 0;
}

/* The entry at `at`; NULL: the batch is over. ERR_PTR: the daemon's answer makes no sense. */
static const struct fuse_direntplus *dfs_entry(const struct dfs_listing *listing)
{
	const struct fuse_direntplus *entry = listing->batch + listing->at;
	u32 left = listing->length - listing->at;

	if (!left)
		return NULL;
	if (left < FUSE_NAME_OFFSET_DIRENTPLUS || !entry->dirent.namelen ||
	    entry->dirent.namelen > 255 || FUSE_DIRENTPLUS_SIZE(entry) > left ||
	    memchr(entry->dirent.name, '/', entry->dirent.namelen) ||
	    memchr(entry->dirent.name, 0, entry->dirent.namelen))
		return ERR_PTR(-EIO);
	return entry;
}

/* One name of a batch into the dentry cache. Under S of the directory and i_rwsem (shared). What fails here is looked up when it is used. */
static void dfs_believe_entry(struct dentry *parent, const struct fuse_direntplus *entry, u32 epoch)
{
	const struct fuse_dirent *dirent = &entry->dirent;
	struct qstr name = QSTR_INIT(dirent->name, dirent->namelen);
	DECLARE_WAIT_QUEUE_HEAD_ONSTACK(wait);
	struct inode *dir = d_inode(parent), *inode;
	struct dentry *dentry, *alias;

	if (!entry->entry_out.nodeid || entry->entry_out.nodeid != entry->entry_out.attr.ino)
		return;
	name.hash = full_name_hash(parent, name.name, name.len);
	dentry = d_lookup(parent, &name);
	if (dentry) {
		if (d_inode(dentry) && d_inode(dentry)->i_ino == entry->entry_out.nodeid) {
			dentry->d_time = READ_ONCE(dfs_i(dir)->names);
			dfs_offer_attr(d_inode(dentry), &entry->entry_out.attr, epoch);
		}
		dput(dentry);
		return;
	}
	dentry = d_alloc_parallel(parent, &name, &wait);
	if (IS_ERR(dentry))
		return;
	if (d_in_lookup(dentry)) {
		inode = dfs_iget_offered(dir->i_sb, &entry->entry_out.attr, epoch);
		dentry->d_time = READ_ONCE(dfs_i(dir)->names);
		alias = IS_ERR(inode) ? ERR_CAST(inode) : d_splice_alias(inode, dentry);
		d_lookup_done(dentry);
		if (IS_ERR(alias)) {
			d_drop(dentry);
		} else if (alias) {
			alias->d_time = READ_ONCE(dfs_i(dir)->names);
			dput(alias);
		}
	}
	dput(dentry);
}

static int dfs_believe_batch(struct dentry *parent, struct dfs_listing *listing, u32 epoch)
{
	const struct fuse_direntplus *entry;

	while ((entry = dfs_entry(listing)) != NULL) {
		if (IS_ERR(entry))
			return PTR_ERR(entry);
		dfs_believe_entry(parent, entry, epoch);
		listing->at += FUSE_DIRENTPLUS_SIZE(entry);
	}
	listing->at = 0;
	return 0;
}

/* The batch that begins at `position`. */
static int dfs_fetch(struct file *file, struct dfs_listing *listing, loff_t position)
{
	struct inode *dir = file_inode(file);
	u32 epoch = dfs_session_epoch(dir->i_sb);
	struct dfs_request *request;
	struct fuse_read_in *in;
	struct dfs_pins pins;
	int error;

	error = dfs_pin(&pins, dir, DF_S);
	if (error)
		return error;
	request = dfs_request_new(dfs_c(dir), FUSE_READDIRPLUS, dir->i_ino, sizeof(*in), DFS_BATCH,
				  true);
	if (!request) {
		dfs_unpin(&pins);
		return -ENOMEM;
	}
	in = request->in;
	in->offset = position - DFS_DOTS;
	in->size = DFS_BATCH;
	request->out_variable = true;
	error = dfs_request_call(request, &pins);
	if (!error) {
		kvfree(listing->batch);
		listing->batch = request->out;
		request->out = request->inline_out;
		listing->length = request->out_length;
		listing->at = 0;
		listing->next = position;
		listing->end = !request->out_length;
		listing->names = READ_ONCE(dfs_i(dir)->names);
		error = dfs_believe_batch(file->f_path.dentry, listing, epoch);
	}
	dfs_request_put(request);
	dfs_unpin(&pins);
	return error;
}

static int dfs_emit(struct dir_context *context, struct dfs_listing *listing)
{
	const struct fuse_direntplus *entry;

	while ((entry = dfs_entry(listing)) != NULL) {
		const struct fuse_dirent *dirent = &entry->dirent;

		if (IS_ERR(entry))
			return PTR_ERR(entry);
		if (!dir_emit(context, dirent->name, dirent->namelen, dirent->ino, dirent->type))
			return 1;
		listing->at += FUSE_DIRENTPLUS_SIZE(entry);
		listing->next = DFS_DOTS + dirent->off;
		context->pos = listing->next;
	}
	return 0;
}

static int dfs_readdir(struct file *file, struct dir_context *context)
{
	struct dfs_listing *listing = file->private_data;
	int error = 0;

	if (!dir_emit_dots(file, context))
		return 0;
	mutex_lock(&listing->mutex);
	if (context->pos == DFS_DOTS)
		listing->length = listing->at = listing->end =
			0; /* from the start: what there is now */
	for (;;) {
		if (listing->at == listing->length || listing->next != context->pos) {
			if (listing->end && listing->next == context->pos)
				break;
			error = dfs_fetch(file, listing, context->pos);
			if (error || listing->end)
				break;
		}
		error = dfs_emit(context, listing);
		if (error)
			break;
	}
	mutex_unlock(&listing->mutex);
	return error > 0 ? 0 : error;
}

static int dfs_fsync_directory(struct file *file, loff_t start, loff_t end, int datasync)
{
	struct inode *dir = file_inode(file);
	struct dfs_request *request;
	int error;

	request = dfs_request_new(dfs_c(dir), FUSE_FSYNCDIR, dir->i_ino,
				  sizeof(struct fuse_fsync_in), 0, true);
	if (!request)
		return -ENOMEM;
	error = dfs_request_call(request, NULL);
	dfs_request_put(request);
	return error;
}

const struct file_operations dfs_directory_operations = {
	.open = dfs_open_directory,
	.release = dfs_release_directory,
	.read = generic_read_dir,
	.llseek = generic_file_llseek,
	.iterate_shared = dfs_readdir,
	.fsync = dfs_fsync_directory,
	.lock = dfs_file_lock,
	.flock = dfs_file_flock,
};
