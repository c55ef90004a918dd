// SPDX-License-Identifier: GPL-2.0-only
/* Extended attributes, which the server is asked for, and POSIX ACLs, which the VFS keeps while the inode's lock is held. */
#include <linux/fs.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/xattr.h>

#include "inode.h"
#include "lock.h"

/* GETXATTR and LISTXATTR: with `size` 0 the length alone. */
static ssize_t dfs_read_xattr(struct inode *inode, u32 opcode, const char *name, void *value,
			      size_t size, struct dfs_pins *pins)
{
	u32 length = name ? strlen(name) + 1 : 0;
	struct dfs_request *request;
	struct fuse_getxattr_in *in;
	ssize_t result;

	size = min_t(size_t, size, XATTR_SIZE_MAX);
	request = dfs_request_new(dfs_c(inode), opcode, inode->i_ino, sizeof(*in) + length,
				  size ? size : sizeof(struct fuse_getxattr_out), true);
	if (!request)
		return -ENOMEM;
	in = request->in;
	in->size = size;
	if (name)
		memcpy(request->in + sizeof(*in), name, length);
	request->out_variable = size != 0;
	result = dfs_request_call(request, pins);
	if (!result && size) {
		memcpy(value, request->out, request->out_length);
		result = request->out_length;
	} else if (!result) {
		result = ((struct fuse_getxattr_out *)request->out)->size;
		if (result > XATTR_SIZE_MAX && opcode == FUSE_GETXATTR)
			result = -EIO;
	}
	dfs_request_put(request);
	return result;
}

/* Under the pin on S or X. True: it has none, as the attributes tell. */
static bool dfs_no_xattrs(struct inode *inode, struct dfs_pins *pins)
{
	return !dfs_refresh(inode, pins) && test_bit(DFS_NO_XATTRS, &dfs_i(inode)->flags);
}

/* A pin that is there already is joined, else the value is asked for as the server has it at that moment. */
static ssize_t dfs_ask_xattr(struct inode *inode, const char *name, void *value, size_t size,
			     bool *covered)
{
	struct dfs_pins pins;
	ssize_t result;

	*covered = dfs_pin_try(&pins, inode, DF_S);
	if (*covered && dfs_no_xattrs(inode, &pins))
		result = -ENODATA;
	else
		result = dfs_read_xattr(inode, FUSE_GETXATTR, name, value, size,
					*covered ? &pins : NULL);
	if (*covered)
		dfs_unpin(&pins);
	return result;
}

static int dfs_write_xattr(struct inode *inode, const char *name, const void *value, size_t size,
			   int flags, struct dfs_pins *pins)
{
	u32 length = strlen(name) + 1;
	struct dfs_request *request;
	struct fuse_setxattr_in *in;
	int error;

	if (!value) {
		request = dfs_request_new(dfs_c(inode), FUSE_REMOVEXATTR, inode->i_ino, length, 0,
					  true);
		if (!request)
			return -ENOMEM;
		memcpy(request->in, name, length);
	} else {
		request = dfs_request_new(dfs_c(inode), FUSE_SETXATTR, inode->i_ino,
					  FUSE_COMPAT_SETXATTR_IN_SIZE + length + size, 0, true);
		if (!request)
			return -ENOMEM;
		in = request->in;
		in->size = size;
		in->flags = flags;
		memcpy(request->in + FUSE_COMPAT_SETXATTR_IN_SIZE, name, length);
		memcpy(request->in + FUSE_COMPAT_SETXATTR_IN_SIZE + length, value, size);
	}
	error = dfs_request_call(request, pins);
	dfs_request_put(request);
	return error;
}

/* Under X of the inode, by ourselves or by the caller. */
static int dfs_change_xattr(struct inode *inode, const char *name, const void *value, size_t size,
			    int flags)
{
	struct dfs_pins pins;
	int error = dfs_pin(&pins, inode, DF_X);

	if (error)
		return error;
	error = dfs_flush_attrs(inode);
	error = error ? error : dfs_write_xattr(inode, name, value, size, flags, &pins);
	if (!error) {
		dfs_attrs_changed(inode, false); /* ctime */
		inode->i_flags &= ~S_NOSEC;
	}
	dfs_unpin(&pins);
	return error;
}

/* --- handlers ------------------------------------------------------------------------------------------ */

static int dfs_xattr_get(const struct xattr_handler *handler, struct dentry *dentry,
			 struct inode *inode, const char *name, void *value, size_t size)
{
	bool covered;

	return dfs_ask_xattr(inode, xattr_full_name(handler, name), value, size, &covered);
}

static int dfs_xattr_set(const struct xattr_handler *handler, struct user_namespace *userns,
			 struct dentry *dentry, struct inode *inode, const char *name,
			 const void *value, size_t size, int flags)
{
	return dfs_change_xattr(inode, xattr_full_name(handler, name), value, size, flags);
}

#define DFS_XATTR_HANDLER(id, text)                                                                \
	static const struct xattr_handler dfs_xattr_##id = {                                       \
		.prefix = text,                                                                    \
		.get = dfs_xattr_get,                                                              \
		.set = dfs_xattr_set,                                                              \
	}
DFS_XATTR_HANDLER(user, XATTR_USER_PREFIX);
DFS_XATTR_HANDLER(trusted, XATTR_TRUSTED_PREFIX);
DFS_XATTR_HANDLER(security, XATTR_SECURITY_PREFIX);

const struct xattr_handler *dfs_xattr_handlers[] = {
	&posix_acl_access_xattr_handler,
	&posix_acl_default_xattr_handler,
	&dfs_xattr_user,
	&dfs_xattr_trusted,
	&dfs_xattr_security,
	NULL,
};

ssize_t dfs_listxattr(struct dentry *dentry, char *list, size_t size)
{
	struct inode *inode = d_inode(dentry);
	struct dfs_pins pins;
	ssize_t result = dfs_pin(&pins, inode, DF_S);

	if (result)
		return result;
	if (!dfs_no_xattrs(inode, &pins))
		result = dfs_read_xattr(inode, FUSE_LISTXATTR, NULL, list, size, &pins);
	dfs_unpin(&pins);
	return result;
}

/* --- ACLs ------------------------------------------------------------------------------------------------- */

static const char *dfs_acl_name(int type)
{
	return type == ACL_TYPE_ACCESS ? XATTR_NAME_POSIX_ACL_ACCESS : XATTR_NAME_POSIX_ACL_DEFAULT;
}

/* May be called with a pin or without. What no pin covers the VFS must not keep: forgetting here makes it drop the answer. */
struct posix_acl *dfs_get_acl(struct inode *inode, int type, bool rcu)
{
	struct posix_acl *acl = NULL;
	bool covered;
	ssize_t size;
	void *value;

	if (rcu)
		return ERR_PTR(-ECHILD);
	value = kvmalloc(PAGE_SIZE, GFP_KERNEL);
	if (!value)
		return ERR_PTR(-ENOMEM);
	size = dfs_ask_xattr(inode, dfs_acl_name(type), value, PAGE_SIZE, &covered);
	if (size > 0)
		acl = posix_acl_from_xattr(&init_user_ns, value, size);
	else if (size < 0 && size != -ENODATA && size != -EOPNOTSUPP)
		acl = ERR_PTR(size);
	kvfree(value);
	if (!covered || !dfs_lock_covers(dfs_i(inode)->lock, DF_S))
		forget_cached_acl(inode, type);
	return acl;
}

static int dfs_store_acl(struct inode *inode, const struct posix_acl *acl, int type)
{
	void *value = NULL;
	size_t size = 0;
	int error;

	if (acl) {
		size = posix_acl_xattr_size(acl->a_count);
		value = kmalloc(size, GFP_KERNEL);
		if (!value)
			return -ENOMEM;
		error = posix_acl_to_xattr(&init_user_ns, acl, value, size);
		if (error < 0)
			goto out;
	}
	error = dfs_change_xattr(inode, dfs_acl_name(type), value, size, 0);
	if (error == -ENODATA && !acl)
		error = 0;
out:
	kfree(value);
	forget_cached_acl(inode, type);
	return error;
}

int dfs_set_acl(struct user_namespace *userns, struct inode *inode, struct posix_acl *acl, int type)
{
	struct iattr iattr = {.ia_valid = ATTR_MODE | ATTR_CTIME};
	int error;

	if (type == ACL_TYPE_ACCESS && acl) {
		error = posix_acl_update_mode(userns, inode, &iattr.ia_mode, &acl);
		if (error)
			return error;
		if (iattr.ia_mode != inode->i_mode) {
			iattr.ia_ctime = current_time(inode);
			error = dfs_change_mode(inode, &iattr);
			if (error)
				return error;
		}
	}
	return dfs_store_acl(inode, acl, type);
}

int dfs_set_made_acls(struct inode *inode, struct posix_acl *inherited, struct posix_acl *access)
{
	int error = 0;

	if (inherited)
		error = dfs_store_acl(inode, inherited, ACL_TYPE_DEFAULT);
	if (!error && access)
		error = dfs_store_acl(inode, access, ACL_TYPE_ACCESS);
	return error;
}
