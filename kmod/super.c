// SPDX-License-Identifier: GPL-2.0-only
/* The filesystem type: mount options, the superblock, inodes' memory, unmount. */
#include <linux/backing-dev.h>
#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/statfs.h>
#include <linux/writeback.h>

#include "debug.h"
#include "inode.h"
#include "lock.h"
#include "session.h"
#include "uapi.h"

static struct kmem_cache *dfs_inode_cache;

enum dfs_option { DFS_OPTION_CONNECTION };

static const struct fs_parameter_spec dfs_options[] = {
	fsparam_u64("connection", DFS_OPTION_CONNECTION), {}};

struct dfs_mount_options {
	u64 connection;
};

/* --- inodes' memory ------------------------------------------------------------------------------- */

static void dfs_inode_once(void *memory)
{
	struct dfs_inode *dfs = memory;

	inode_init_once(&dfs->vfs);
	spin_lock_init(&dfs->spin);
	mutex_init(&dfs->flush);
	INIT_LIST_HEAD(&dfs->file_locks);
}

int dfs_inode_cache_init(void)
{
	dfs_inode_cache = kmem_cache_create("dfs_inode", sizeof(struct dfs_inode), 0,
					    SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT | SLAB_MEM_SPREAD,
					    dfs_inode_once);
	return dfs_inode_cache ? 0 : -ENOMEM;
}

void dfs_inode_cache_exit(void)
{
	rcu_barrier();
	kmem_cache_destroy(dfs_inode_cache);
}

static struct inode *dfs_alloc_inode(struct super_block *sb)
{
	struct dfs_inode *dfs = alloc_inode_sb(sb, dfs_inode_cache, GFP_KERNEL);

	if (!dfs)
		return NULL;
	dfs->lock = NULL;
	dfs->flags = 0;
	dfs->names = 1; /* a fresh dentry's d_time is 0 */
	dfs->opens = 0;
	dfs->flushing = false;
	dfs->changes = 0;
	dfs->glimpsed_ns = 0;
	dfs->glimpsed_size = 0;
	return &dfs->vfs;
}

static void dfs_free_inode(struct inode *inode)
{
	if (S_ISLNK(inode->i_mode))
		kfree(inode->i_link);
	kmem_cache_free(dfs_inode_cache, dfs_i(inode));
}

/* nlink 0 says that no name is left, not that nobody else has it open: what is dirty goes to the server as ever. */
static void dfs_evict_inode(struct inode *inode)
{
	struct dfs_inode *dfs = dfs_i(inode);

	if (!inode->i_nlink && !is_bad_inode(inode)) {
		filemap_write_and_wait(&inode->i_data);
		dfs_flush_attrs(inode);
	}
	dfs_refusal_forgotten(inode);
	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	dfs_files_evict(inode);
	dfs_unregister_open(inode);
	if (dfs->lock)
		dfs_lock_unbind(dfs->lock);
	dfs->lock = NULL;
}

/* --- the superblock ---------------------------------------------------------------------------------- */

static int dfs_statfs(struct dentry *dentry, struct kstatfs *buffer)
{
	struct inode *inode = d_inode(dentry);
	const struct fuse_statfs_out *out;
	struct dfs_request *request;
	int error;

	request = dfs_request_new(dfs_c(inode), FUSE_STATFS, inode->i_ino, 0, sizeof(*out), true);
	if (!request)
		return -ENOMEM;
	error = dfs_request_call(request, NULL);
	if (!error) {
		out = request->out;
		buffer->f_type = DFS_MAGIC;
		buffer->f_bsize = out->st.bsize;
		buffer->f_frsize = out->st.frsize;
		buffer->f_blocks = out->st.blocks;
		buffer->f_bfree = out->st.bfree;
		buffer->f_bavail = out->st.bavail;
		buffer->f_files = out->st.files;
		buffer->f_ffree = out->st.ffree;
		buffer->f_namelen = out->st.namelen;
	}
	dfs_request_put(request);
	return error;
}

/* The server's log: what was answered becomes durable. */
static int dfs_sync_fs(struct super_block *sb, int wait)
{
	struct dfs_request *request;
	int error;

	if (!wait)
		return 0;
	request = dfs_request_new(dfs_m(sb)->connection, FUSE_FSYNCDIR, DFS_ROOT_INODE,
				  sizeof(struct fuse_fsync_in), 0, true);
	if (!request)
		return -ENOMEM;
	error = dfs_request_call(request, NULL);
	dfs_request_put(request);
	return error == -EINTR ? -EIO : error;
}

static void dfs_umount_begin(struct super_block *sb)
{
	dfs_connection_abort(dfs_m(sb)->connection);
}

static int dfs_show_options(struct seq_file *out, struct dentry *root)
{
	const struct dfs_session *session = dfs_m(root->d_sb)->session;

	seq_printf(out, ",give_up=%u,max_locks=%u", session->give_up_ms, session->max_locks);
	return 0;
}

static const struct super_operations dfs_super_operations = {
	.alloc_inode = dfs_alloc_inode,
	.free_inode = dfs_free_inode,
	.write_inode = dfs_write_inode,
	.drop_inode = generic_drop_inode,
	.evict_inode = dfs_evict_inode,
	.statfs = dfs_statfs,
	.sync_fs = dfs_sync_fs,
	.umount_begin = dfs_umount_begin,
	.show_options = dfs_show_options,
};

/* Attributes come with the first use: the daemon does not serve yet. */
static struct dentry *dfs_make_root(struct super_block *sb)
{
	const struct fuse_attr attr = {
		.ino = DFS_ROOT_INODE,
		.mode = S_IFDIR | 0755,
		.nlink = 2,
	};
	struct inode *inode = dfs_iget(sb, &attr);

	return IS_ERR(inode) ? NULL : d_make_root(inode);
}

static int dfs_fill_super(struct super_block *sb, struct fs_context *context)
{
	struct dfs_mount *mount = sb->s_fs_info;
	int error;

	mount->sb = sb;
	sb->s_magic = DFS_MAGIC;
	sb->s_op = &dfs_super_operations;
	sb->s_d_op = &dfs_dentry_operations;
	sb->s_xattr = dfs_xattr_handlers;
	sb->s_maxbytes = MAX_LFS_FILESIZE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_time_gran = 1;
	sb->s_flags |= SB_POSIXACL | SB_NOATIME | SB_NOSEC;
	error = super_setup_bdi(sb);
	if (error)
		return error;
	sb->s_bdi->ra_pages = DFS_MAX_PAGES;
	sb->s_bdi->io_pages = DFS_MAX_PAGES;
	sb->s_root = dfs_make_root(sb);
	if (!sb->s_root)
		return -ENOMEM;
	mount->connection->device = sb->s_dev;
	dfs_debug_mounted(mount->connection);
	return 0;
}

static int dfs_get_tree(struct fs_context *context)
{
	const struct dfs_mount_options *options = context->fs_private;
	struct dfs_mount *mount;
	int error;

	if (!options->connection)
		return invalf(context, "distfuse: give connection=ID; `distfuse mount` does");
	mount = kzalloc(sizeof(*mount), GFP_KERNEL);
	if (!mount)
		return -ENOMEM;
	mount->connection = dfs_connection_claim(options->connection);
	if (!mount->connection) {
		kfree(mount);
		return invalf(context, "distfuse: there is no connection %llu to mount",
			      options->connection);
	}
	mount->session = mount->connection->session;
	context->s_fs_info = mount;
	error = get_tree_nodev(context, dfs_fill_super);
	return error;
}

static void dfs_free_mount(struct dfs_mount *mount)
{
	dfs_connection_put(mount->connection);
	kfree(mount);
}

static int dfs_parse_option(struct fs_context *context, struct fs_parameter *parameter)
{
	struct dfs_mount_options *options = context->fs_private;
	struct fs_parse_result result;
	int option = fs_parse(context, dfs_options, parameter, &result);

	if (option < 0)
		return option;
	options->connection = result.uint_64;
	return 0;
}

static void dfs_free_context(struct fs_context *context)
{
	if (context->s_fs_info)
		dfs_free_mount(context->s_fs_info);
	kfree(context->fs_private);
}

static const struct fs_context_operations dfs_context_operations = {
	.parse_param = dfs_parse_option,
	.get_tree = dfs_get_tree,
	.free = dfs_free_context,
};

static int dfs_init_context(struct fs_context *context)
{
	context->fs_private = kzalloc(sizeof(struct dfs_mount_options), GFP_KERNEL);
	if (!context->fs_private)
		return -ENOMEM;
	context->ops = &dfs_context_operations;
	return 0;
}

/* The inodes are gone, and with them what was dirty; then the locks, the session, and the daemon's work. */
static void dfs_kill_super(struct super_block *sb)
{
	struct dfs_mount *mount = dfs_m(sb);

	kill_anon_super(sb);
	if (!mount)
		return;
	dfs_debug_unmounted(mount->connection);
	dfs_session_close(mount->connection);
	dfs_connection_abort(mount->connection);
	cancel_delayed_work_sync(&mount->connection->give_up);
	WRITE_ONCE(mount->connection->device, 0); /* the number is another mount's from now on */
	dfs_free_mount(mount);
}

static struct file_system_type dfs_type = {
	.owner = THIS_MODULE,
	.name = DFS_FILESYSTEM_NAME,
	.init_fs_context = dfs_init_context,
	.parameters = dfs_options,
	.kill_sb = dfs_kill_super,

};
MODULE_ALIAS_FS(DFS_FILESYSTEM_NAME);

int dfs_super_init(void)
{
	return register_filesystem(&dfs_type);
}

void dfs_super_exit(void)
{
	unregister_filesystem(&dfs_type);
}
