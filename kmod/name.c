// SPDX-License-Identifier: GPL-2.0-only
/* Names: lookup, and what changes a directory. A name is believed while d_time is the directory's `names` and S of the directory is held (LOCKING.md). */
#include <linux/namei.h>
#include <linux/fs.h>
#include <linux/posix_acl.h>
#include <linux/slab.h>

#include "inode.h"
#include "lock.h"
#include "race.h"

#define DFS_NAME_MAX 255

/* A request whose argument is a struct of `size` bytes and a name. */
static struct dfs_request *dfs_name_request(struct inode *dir, u32 opcode, u32 size,
					    const struct qstr *name, u32 out_size)
{
	struct dfs_request *request;

	if (name->len > DFS_NAME_MAX)
		return ERR_PTR(-ENAMETOOLONG);
	request = dfs_request_new(dfs_c(dir), opcode, dir->i_ino, size + name->len + 1, out_size,
				  true);
	if (!request)
		return ERR_PTR(-ENOMEM);
	memcpy(request->in + size, name->name, name->len);
	((char *)request->in)[size + name->len] = 0;
	return request;
}

/* 0 and the entry; -ENOENT. Under the pin of S or X on `dir`. */
static int dfs_ask_name(struct inode *dir, const struct qstr *name, struct dfs_pins *pins,
			struct fuse_entry_out *entry)
{
	struct dfs_request *request = dfs_name_request(dir, FUSE_LOOKUP, 0, name, sizeof(*entry));
	int error;

	if (IS_ERR(request))
		return PTR_ERR(request);
	error = dfs_request_call(request, pins);
	if (!error) {
		*entry = *(struct fuse_entry_out *)request->out;
		if (!entry->nodeid)
			error = -ENOENT;
		else if (entry->nodeid != entry->attr.ino)
			error = -EIO;
	}
	dfs_request_put(request);
	return error;
}

/* Under the directory's pin. */
static void dfs_believe(struct dentry *dentry, const struct inode *dir)
{
	dentry->d_time = READ_ONCE(dfs_i(dir)->names);
}

static struct dentry *dfs_lookup(struct inode *dir, struct dentry *dentry, unsigned int flags)
{
	u32 epoch = dfs_session_epoch(dir->i_sb);
	struct fuse_entry_out entry;
	struct inode *inode = NULL;
	struct dentry *alias;
	struct dfs_pins pins;
	int error;

	if (dentry->d_name.len > DFS_NAME_MAX)
		return ERR_PTR(-ENAMETOOLONG);
	error = dfs_pin(&pins, dir, DF_S);
	if (error)
		return ERR_PTR(error);
	error = dfs_ask_name(dir, &dentry->d_name, &pins, &entry);
	dfs_race(DFS_RACE_name_answered, dfs_c(dir));
	if (!error)
		inode = dfs_iget_offered(dir->i_sb, &entry.attr, epoch);
	else if (error != -ENOENT)
		inode = ERR_PTR(error);
	dfs_believe(dentry, dir);
	alias = d_splice_alias(inode, dentry);
	if (!IS_ERR_OR_NULL(alias))
		dfs_believe(alias, dir);
	dfs_unpin(&pins);
	return alias;
}

/* Cover first: if `names` is still the same afterwards, no shed has come by. */
static bool dfs_name_usable(const struct dentry *dentry, const struct inode *dir)
{
	return dfs_lock_covers(dfs_i(dir)->lock, DF_S) &&
	       dentry->d_time == READ_ONCE(dfs_i(dir)->names);
}

/* 1: the name still means the same; 0: it does not; -errno. */
static int dfs_name_again(struct dentry *dentry, struct inode *dir)
{
	u32 epoch = dfs_session_epoch(dir->i_sb);
	struct inode *inode = d_inode(dentry);
	struct fuse_entry_out entry;
	struct name_snapshot name;
	struct dfs_pins pins;
	int error, same;

	error = dfs_pin(&pins, dir, DF_S);
	if (error)
		return error;
	take_dentry_name_snapshot(&name, dentry);
	error = dfs_ask_name(dir, &name.name, &pins, &entry);
	release_dentry_name_snapshot(&name);
	if (error && error != -ENOENT) {
		dfs_unpin(&pins);
		return error;
	}
	same = error ? !inode
		     : inode && inode->i_ino == entry.nodeid &&
			       !((inode->i_mode ^ entry.attr.mode) & S_IFMT);
	if (same)
		dfs_believe(dentry, dir);
	if (same && inode)
		dfs_offer_attr(inode, &entry.attr, epoch);
	dfs_unpin(&pins);
	return same;
}

/*
 * Whether a name still means what the VFS has found, for what will be done to it under the pin on X of `dir` and i_rwsem: another node may have been
 * there between. -ESTALE: it does not, and the VFS looks it up again.
 */
static int dfs_confirm_name(struct dentry *dentry, struct inode *dir, struct dfs_pins *pins)
{
	const struct inode *inode = d_inode(dentry);
	struct fuse_entry_out entry;
	int error;

	if (dentry->d_time == READ_ONCE(dfs_i(dir)->names))
		return 0;
	error = dfs_ask_name(dir, &dentry->d_name, pins, &entry);
	if (error && error != -ENOENT)
		return error;
	if (error ? inode != NULL : !inode || inode->i_ino != entry.nodeid)
		return -ESTALE;
	dfs_believe(dentry, dir);
	return 0;
}

static int dfs_revalidate(struct dentry *dentry, unsigned int flags)
{
	struct dentry *parent;
	struct inode *dir;
	int valid;

	if (flags & LOOKUP_RCU) {
		dir = d_inode_rcu(READ_ONCE(dentry->d_parent));
		return dir && dfs_name_usable(dentry, dir) ? 1 : -ECHILD;
	}
	parent = dget_parent(dentry);
	dir = d_inode(parent);
	valid = dfs_name_usable(dentry, dir) ? 1 : dfs_name_again(dentry, dir);
	dput(parent);
	return valid;
}

const struct dentry_operations dfs_dentry_operations = {
	.d_revalidate = dfs_revalidate,
};

/* --- making names ------------------------------------------------------------------------------------ */

/* What changed in the directory itself (times, size, nlink) the server knows. Under the pin on X. */
static void dfs_directory_changed(struct inode *dir)
{
	dfs_attrs_changed(dir, true);
}

/*
 * The inode of a name that was just made. Its lock is tried: nobody else can know the inode while X of its directory is held here, so the lock is
 * free, and the attributes that came with the name are of this hold.
 */
static struct inode *dfs_made(struct inode *dir, const struct fuse_entry_out *entry, umode_t type)
{
	struct dfs_pins child;
	struct inode *inode;

	if (entry->nodeid != entry->attr.ino || (entry->attr.mode & S_IFMT) != type)
		return ERR_PTR(-EIO);
	inode = dfs_iget(dir->i_sb, &entry->attr);
	if (!IS_ERR(inode) && dfs_pin_free(&child, inode, DF_X)) {
		dfs_apply_attr(inode, &entry->attr);
		dfs_unpin(&child);
	}
	return inode;
}

/* Sends a request that makes a name, and gives the dentry its inode. The request is put. Under the pin on X of `dir`. */
static int dfs_make(struct inode *dir, struct dentry *dentry, struct dfs_request *request,
		    struct dfs_pins *pins, umode_t type)
{
	struct inode *inode;
	int error;

	if (IS_ERR(request))
		return PTR_ERR(request);
	error = dfs_request_call(request, pins);
	if (!error) {
		dfs_directory_changed(dir);
		inode = dfs_made(dir, request->out, type);
		if (IS_ERR(inode)) {
			error = PTR_ERR(inode);
			d_drop(dentry);
		} else {
			dfs_believe(dentry, dir);
			if (d_in_lookup(dentry))
				d_add(dentry, inode);
			else
				d_instantiate(dentry, inode);
		}
	} else if (error == -EEXIST && !d_in_lookup(dentry)) {
		d_drop(dentry); /* it was believed to be negative */
	}
	dfs_request_put(request);
	return error;
}

/* Under the pin on X of `dir`. */
static int dfs_make_node(struct inode *dir, struct dentry *dentry, umode_t mode, dev_t device,
			 struct dfs_pins *pins)
{
	struct posix_acl *inherited = NULL, *access = NULL;
	struct dfs_request *request;
	struct fuse_mknod_in *in;
	int error;

	error = posix_acl_create(dir, &mode, &inherited, &access);
	if (error)
		return error;
	request = dfs_name_request(dir, FUSE_MKNOD, sizeof(*in), &dentry->d_name,
				   sizeof(struct fuse_entry_out));
	if (!IS_ERR(request)) {
		in = request->in;
		in->mode = mode;
		in->rdev = new_encode_dev(device);
	}
	error = dfs_make(dir, dentry, request, pins, mode & S_IFMT);
	if (!error)
		error = dfs_set_made_acls(d_inode(dentry), inherited, access);
	posix_acl_release(inherited);
	posix_acl_release(access);
	return error;
}

static int dfs_mknod(struct user_namespace *userns, struct inode *dir, struct dentry *dentry,
		     umode_t mode, dev_t device)
{
	struct dfs_pins pins;
	int error = dfs_pin(&pins, dir, DF_X);

	if (error)
		return error;
	error = dfs_make_node(dir, dentry, mode, device, &pins);
	dfs_unpin(&pins);
	return error;
}

static int dfs_create(struct user_namespace *userns, struct inode *dir, struct dentry *dentry,
		      umode_t mode, bool exclusive)
{
	return dfs_mknod(userns, dir, dentry, mode | S_IFREG, 0);
}

/* A name that another node has made meanwhile. Under the pin on X of `dir`. NULL, or the dentry to use in place of this one. */
static struct dentry *dfs_find_made(struct inode *dir, struct dentry *dentry, struct dfs_pins *pins)
{
	u32 epoch = dfs_session_epoch(dir->i_sb);
	struct fuse_entry_out entry;
	struct dentry *alias;
	int error = dfs_ask_name(dir, &dentry->d_name, pins, &entry);

	if (error)
		return ERR_PTR(error == -ENOENT ? -ESTALE : error);
	if (!d_in_lookup(dentry))
		d_drop(dentry);
	dfs_believe(dentry, dir);
	alias = d_splice_alias(dfs_iget_offered(dir->i_sb, &entry.attr, epoch), dentry);
	if (!IS_ERR_OR_NULL(alias))
		dfs_believe(alias, dir);
	return alias;
}

/*
 * Opens that may make the file. Where this node modifies the directory already (X is held), the server is asked to make it, once; else the name is
 * looked up first, under S: most opens with O_CREAT of many nodes find the file that one of them has made.
 */
static int dfs_atomic_open(struct inode *dir, struct dentry *dentry, struct file *file,
			   unsigned int flags, umode_t mode)
{
	struct dentry *found = NULL;
	struct dfs_pins pins;
	int error;

	if (dentry->d_name.len > DFS_NAME_MAX)
		return -ENAMETOOLONG;
	if (d_in_lookup(dentry) &&
	    (!(flags & O_CREAT) || !dfs_lock_covers(dfs_i(dir)->lock, DF_X))) {
		found = dfs_lookup(dir, dentry, 0);
		if (IS_ERR(found))
			return PTR_ERR(found);
		if (found)
			dentry = found;
	}
	if (!(flags & O_CREAT) || d_really_is_positive(dentry))
		return finish_no_open(file, found);
	error = dfs_pin(&pins, dir, DF_X);
	if (!error) {
		error = dfs_make_node(dir, dentry, mode, 0, &pins);
		if (error == -EEXIST && !(flags & O_EXCL)) {
			struct dentry *alias = dfs_find_made(dir, dentry, &pins);

			dfs_unpin(&pins);
			if (!alias)
				return finish_no_open(file, found);
			dput(found);
			return IS_ERR(alias) ? PTR_ERR(alias) : finish_no_open(file, alias);
		}
		dfs_unpin(&pins);
	}
	if (!error) {
		file->f_mode |= FMODE_CREATED;
		error = finish_open(file, dentry, NULL);
	}
	dput(found);
	return error;
}

static int dfs_mkdir(struct user_namespace *userns, struct inode *dir, struct dentry *dentry,
		     umode_t mode)
{
	struct posix_acl *inherited = NULL, *access = NULL;
	struct dfs_request *request;
	struct fuse_mkdir_in *in;
	struct dfs_pins pins;
	int error;

	error = dfs_pin(&pins, dir, DF_X);
	if (error)
		return error;
	mode |= S_IFDIR;
	error = posix_acl_create(dir, &mode, &inherited, &access);
	if (error)
		goto out;
	request = dfs_name_request(dir, FUSE_MKDIR, sizeof(*in), &dentry->d_name,
				   sizeof(struct fuse_entry_out));
	if (!IS_ERR(request)) {
		in = request->in;
		in->mode = mode;
	}
	error = dfs_make(dir, dentry, request, &pins, S_IFDIR);
	if (!error)
		error = dfs_set_made_acls(d_inode(dentry), inherited, access);
out:
	posix_acl_release(inherited);
	posix_acl_release(access);
	dfs_unpin(&pins);
	return error;
}

static int dfs_symlink(struct user_namespace *userns, struct inode *dir, struct dentry *dentry,
		       const char *target)
{
	u32 length = dentry->d_name.len + 1, size = strlen(target) + 1;
	struct dfs_request *request;
	struct dfs_pins pins;
	int error;

	if (length > DFS_NAME_MAX + 1)
		return -ENAMETOOLONG;
	error = dfs_pin(&pins, dir, DF_X);
	if (error)
		return error;
	request = dfs_request_new(dfs_c(dir), FUSE_SYMLINK, dir->i_ino, length + size,
				  sizeof(struct fuse_entry_out), true);
	if (request) {
		memcpy(request->in, dentry->d_name.name, length - 1);
		((char *)request->in)[length - 1] = 0;
		memcpy(request->in + length, target, size);
		error = dfs_make(dir, dentry, request, &pins, S_IFLNK);
	} else {
		error = -ENOMEM;
	}
	dfs_unpin(&pins);
	return error;
}

/* A request that answers with nothing. It is put. */
static int dfs_call_and_put(struct dfs_request *request, struct dfs_pins *pins)
{
	int error;

	if (IS_ERR(request))
		return PTR_ERR(request);
	error = dfs_request_call(request, pins);
	dfs_request_put(request);
	return error;
}

static int dfs_link(struct dentry *old, struct inode *dir, struct dentry *dentry)
{
	struct inode *inode = d_inode(old), *both[] = {dir, inode};
	struct dfs_request *request;
	struct fuse_link_in *in;
	struct dfs_pins pins;
	int error;

	error = dfs_pin_all(&pins, DF_X, both, 2);
	if (error)
		return error;
	error = dfs_flush_attrs(inode);
	if (error)
		goto out;
	request = dfs_name_request(dir, FUSE_LINK, sizeof(*in), &dentry->d_name,
				   sizeof(struct fuse_entry_out));
	error = PTR_ERR_OR_ZERO(request);
	if (error)
		goto out;
	in = request->in;
	in->oldnodeid = inode->i_ino;
	error = dfs_request_call(request, &pins);
	if (!error) {
		dfs_directory_changed(dir);
		error = dfs_apply_attr(inode, &((struct fuse_entry_out *)request->out)->attr);
		ihold(inode);
		dfs_believe(dentry, dir);
		d_instantiate(dentry, inode);
	}
	dfs_request_put(request);
out:
	dfs_unpin(&pins);
	return error;
}

/* --- removing and moving them ---------------------------------------------------------------------------- */

static int dfs_remove(struct inode *dir, struct dentry *dentry, u32 opcode)
{
	struct inode *inode = d_inode(dentry), *both[] = {dir, inode};
	struct dfs_pins pins;
	int error;

	error = dfs_pin_all(&pins, DF_X, both, 2);
	if (error)
		return error;
	error = dfs_confirm_name(dentry, dir, &pins);
	if (!error && opcode == FUSE_UNLINK)
		error = dfs_register_open(inode, &pins);
	if (!error)
		error = dfs_call_and_put(dfs_name_request(dir, opcode, 0, &dentry->d_name, 0),
					 &pins);
	if (!error) {
		dfs_directory_changed(dir);
		dfs_attrs_changed(inode, true);
		if (opcode == FUSE_RMDIR)
			clear_nlink(inode);
		else if (inode->i_nlink)
			drop_nlink(inode);
	}
	dfs_unpin(&pins);
	return error;
}

static int dfs_unlink(struct inode *dir, struct dentry *dentry)
{
	return dfs_remove(dir, dentry, FUSE_UNLINK);
}

static int dfs_rmdir(struct inode *dir, struct dentry *dentry)
{
	return dfs_remove(dir, dentry, FUSE_RMDIR);
}

static struct dfs_request *dfs_rename_request(struct inode *dir, const struct qstr *name,
					      struct inode *new_dir, const struct qstr *new_name,
					      u32 flags)
{
	struct dfs_request *request;
	struct fuse_rename2_in *in;
	char *names;

	if (new_name->len > DFS_NAME_MAX)
		return ERR_PTR(-ENAMETOOLONG);
	request = dfs_request_new(dfs_c(dir), FUSE_RENAME2, dir->i_ino,
				  sizeof(*in) + name->len + new_name->len + 2, 0, true);
	if (!request)
		return ERR_PTR(-ENOMEM);
	in = request->in;
	in->newdir = new_dir->i_ino;
	in->flags = flags;
	names = request->in + sizeof(*in);
	memcpy(names, name->name, name->len);
	names[name->len] = 0;
	memcpy(names + name->len + 1, new_name->name, new_name->len);
	names[name->len + 1 + new_name->len] = 0;
	return request;
}

static int dfs_rename(struct user_namespace *userns, struct inode *dir, struct dentry *dentry,
		      struct inode *new_dir, struct dentry *new_dentry, unsigned int flags)
{
	struct inode *inode = d_inode(dentry), *replaced = d_inode(new_dentry);
	struct inode *all[] = {dir, new_dir, inode, replaced};
	struct dfs_pins pins;
	int error;

	if (flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE))
		return -EINVAL;
	error = dfs_pin_all(&pins, DF_X, all, ARRAY_SIZE(all));
	if (error)
		return error;
	error = dfs_confirm_name(dentry, dir, &pins);
	error = error ? error : dfs_confirm_name(new_dentry, new_dir, &pins);
	error = error ? error : dfs_flush_attrs(inode);
	if (!error && replaced && S_ISREG(replaced->i_mode) && !(flags & RENAME_EXCHANGE))
		error = dfs_register_open(replaced, &pins);
	if (!error)
		error = dfs_call_and_put(dfs_rename_request(dir, &dentry->d_name, new_dir,
							    &new_dentry->d_name, flags),
					 &pins);
	if (!error) {
		dfs_directory_changed(dir);
		dfs_directory_changed(new_dir);
		dfs_attrs_changed(inode, true);
		/* The VFS moves the dentry (with d_move or d_exchange) after us: it is believed where it comes to be. */
		dfs_believe(dentry, new_dir);
		if (flags & RENAME_EXCHANGE)
			dfs_believe(new_dentry, dir);
		if (replaced) {
			dfs_attrs_changed(replaced, true);
			if (!(flags & RENAME_EXCHANGE) && replaced->i_nlink) {
				if (S_ISDIR(replaced->i_mode))
					clear_nlink(replaced);
				else
					drop_nlink(replaced);
			}
		}
	}
	dfs_unpin(&pins);
	return error;
}

/* --- symlinks ------------------------------------------------------------------------------------------------ */

/* The target never changes: it is asked for once in the inode's life here, and needs no lock. */
static const char *dfs_get_link(struct dentry *dentry, struct inode *inode,
				struct delayed_call *done)
{
	const char *link = READ_ONCE(inode->i_link);
	struct dfs_request *request;
	char *fresh;
	int error;

	if (link)
		return link;
	if (!dentry)
		return ERR_PTR(-ECHILD);
	request = dfs_request_new(dfs_c(inode), FUSE_READLINK, inode->i_ino, 0, PATH_MAX, true);
	if (!request)
		return ERR_PTR(-ENOMEM);
	request->out_variable = true;
	error = dfs_request_call(request, NULL);
	fresh = error ? NULL : kmemdup_nul(request->out, request->out_length, GFP_KERNEL);
	dfs_request_put(request);
	if (error)
		return ERR_PTR(error);
	if (!fresh)
		return ERR_PTR(-ENOMEM);
	link = cmpxchg_release(&inode->i_link, NULL, fresh);
	if (!link)
		return fresh;
	kfree(fresh);
	return link;
}

const struct inode_operations dfs_directory_inode_operations = {
	.lookup = dfs_lookup,
	.atomic_open = dfs_atomic_open,
	.create = dfs_create,
	.mknod = dfs_mknod,
	.mkdir = dfs_mkdir,
	.symlink = dfs_symlink,
	.link = dfs_link,
	.unlink = dfs_unlink,
	.rmdir = dfs_rmdir,
	.rename = dfs_rename,
	.permission = dfs_permission,
	.getattr = dfs_getattr,
	.setattr = dfs_setattr,
	.listxattr = dfs_listxattr,
	.get_acl = dfs_get_acl,
	.set_acl = dfs_set_acl,
	.update_time = dfs_update_time,
};

const struct inode_operations dfs_symlink_inode_operations = {
	.get_link = dfs_get_link,
	.getattr = dfs_getattr,
	.setattr = dfs_setattr,
	.permission = dfs_permission,
	.listxattr = dfs_listxattr,
	.update_time = dfs_update_time,
};

const struct inode_operations dfs_special_inode_operations = {
	.getattr = dfs_getattr,
	.setattr = dfs_setattr,
	.permission = dfs_permission,
	.listxattr = dfs_listxattr,
	.get_acl = dfs_get_acl,
	.set_acl = dfs_set_acl,
	.update_time = dfs_update_time,
};
