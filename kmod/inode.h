/* SPDX-License-Identifier: GPL-2.0-only */
/* A mount and its inodes. What each field is protected by and when it may be believed: LOCKING.md. */
#ifndef DISTFUSE_KMOD_INODE_H
#define DISTFUSE_KMOD_INODE_H

#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/list.h>

#include "connection.h"
#include "pin.h"
#include "rdma/lock/slot.h"

#define DFS_ROOT_INODE 1ull
#define DFS_MAGIC 0x44465553 /* "DFUS" */

struct dfs_lock;
struct dfs_session;

/* sb->s_fs_info */
struct dfs_mount {
	struct dfs_connection *connection;
	struct dfs_session *session;
	struct super_block *sb;
};

enum dfs_inode_flag {
	DFS_ATTRS =
		0, /* attributes are of the present hold of the cluster lock, but for what DFS_TIMES_OLD says */
	DFS_TIMES_OLD, /* the server has changed times and links, and a directory's size, at our request */
	DFS_ATTRS_DIRTY, /* size or times are newer here than at the server (under X) */
	DFS_CHANGED, /* something changed under this hold of X: the value block is due with the release */
	DFS_OTHERS_CHANGED, /* beside DFS_CHANGED: more than size and times */
	DFS_NO_XATTRS,	    /* of the attributes: the inode has no xattr, no ACL */
	DFS_OFFERED, /* the attributes are of an earlier moment: the next hold says whether they are of now */
	DFS_EXACT,	/* what is released has exactly the size and times that the server has */
	DFS_REGISTERED, /* the server knows that it is open here */
	DFS_FORFEITED,	/* dirty data of a lost lock must not be written any more */
	DFS_REFUSED, /* something dirty was refused, for the session is over: told by the sweep */
	DFS_STALE,   /* the server does not know it any more */
};

struct dfs_inode {
	struct inode vfs;
	struct dfs_lock *lock; /* of the inode's key; a reference, from iget to evict */
	spinlock_t spin;
	unsigned long flags; /* bits of enum dfs_inode_flag */
	u64 names; /* directories: names that were found under another value are not believed */
	struct mutex flush; /* one write-back of size and times at a time */
	bool flushing; /* one is under way: what the server answers meanwhile is older; under spin */
	u32 changes;   /* of attributes at the server, by us; under spin */
	u64 glimpsed_ns; /* ctime and size that the last glimpse brought */
	u64 glimpsed_size;
	u32 offered_epoch; /* of the session, with DFS_OFFERED; under spin */
	u64 offered_version; /* of the slot, whose attributes they are; 0: of some moment; under spin */
	u32 opens;	     /* open files; under spin */
	struct list_head file_locks; /* of the session's inodes with fcntl or flock locks */
	u32 chunk_size;
};

static inline struct dfs_inode *dfs_i(const struct inode *inode)
{
	return container_of(inode, struct dfs_inode, vfs);
}
static inline struct dfs_mount *dfs_m(const struct super_block *sb)
{
	return sb->s_fs_info;
}
static inline struct dfs_connection *dfs_c(const struct inode *inode)
{
	return dfs_m(inode->i_sb)->connection;
}

/* --- inode.c --- */

/*
 * The inode with this number; made of `attr` if it is not here. `attr` is applied if `mode` of its lock is pinned by the caller, or if it
 * is new. ERR_PTR: -ENOMEM, -ESTALE (another file type than before), -EIO (attributes that make no sense).
 */
struct inode *dfs_iget(struct super_block *sb, const struct fuse_attr *attr);
/*
 * Attributes that came with a name, under no lock of the inode itself, in `epoch` of the session (taken before they were asked for). They are kept if
 * none are believed; the next hold believes them if the slot says that nothing changed since (slot.h, DF_VALUE_EXACT, DF_VALUE_SINCE and versions).
 */
void dfs_offer_attr(struct inode *inode, const struct fuse_attr *attr, u32 epoch);
struct inode *dfs_iget_offered(struct super_block *sb, const struct fuse_attr *attr, u32 epoch);
u32 dfs_session_epoch(const struct super_block *sb);
/* What a change of ours brought, under the pin on X: sets DFS_ATTRS. Keeps size and times that are dirty here. */
int dfs_apply_attr(struct inode *inode, const struct fuse_attr *attr);
/* The server has changed it at our request: all of it is to be asked for again, or (`times_alone`) what DFS_TIMES_OLD says. */
void dfs_attrs_changed(struct inode *inode, bool times_alone);
/* Attributes, if they are not of this hold: one request, or none. Under a pin of S or X. DFS_TIMES_OLD stays. */
int dfs_refresh(struct inode *inode, struct dfs_pins *pins);
/* Whether attributes may be used now, without a pin: S or X held, trusted, DFS_ATTRS. */
bool dfs_attrs_usable(const struct inode *inode);
/* Nothing that is cached of it (but pages and dirty size and times) may be believed. Any context that may sleep. */
void dfs_inode_distrust(struct inode *inode);
/* Dirty size and times to the server. 0 or -errno (kept dirty). */
int dfs_flush_attrs(struct inode *inode);
int dfs_getattr(struct user_namespace *userns, const struct path *path, struct kstat *stat,
		u32 mask, unsigned int query);
int dfs_setattr(struct user_namespace *userns, struct dentry *dentry, struct iattr *iattr);
/* Mode and times alone, without looking at ACLs. Takes X. */
int dfs_change_mode(struct inode *inode, const struct iattr *iattr);
int dfs_permission(struct user_namespace *userns, struct inode *inode, int mask);
int dfs_write_inode(struct inode *inode, struct writeback_control *control);

int dfs_update_time(struct inode *inode, struct timespec64 *time, int flags);

/* --- open.c: what the server must know of open files --- */

/*
 * An inode that is open here is registered at the server before anybody can take its last name: by us before an unlink, and before its lock is
 * shed. So an open under the lock needs no request. Under a pin, or by the shed (`pins` NULL).
 */
int dfs_register_open(struct inode *inode, struct dfs_pins *pins);
/* At eviction. */
void dfs_unregister_open(struct inode *inode);

/* --- xattr.c --- */
ssize_t dfs_listxattr(struct dentry *dentry, char *list, size_t size);
struct posix_acl *dfs_get_acl(struct inode *inode, int type, bool rcu);
int dfs_set_acl(struct user_namespace *userns, struct inode *inode, struct posix_acl *acl,
		int type);
/* Of an inode that was just made: what its directory gave it. Either may be NULL. */
int dfs_set_made_acls(struct inode *inode, struct posix_acl *inherited, struct posix_acl *access);

/* --- what a shed asks of a cached inode (shed.c) --- */

/*
 * Brings what X covers to the servers; with `keep` none forgets everything that is cached. Called with the lock's gate closed and no pin.
 * Never fails: errors are in the mapping, pages that must not be written are dropped.
 */
void dfs_inode_shed(struct inode *inode, u32 keep, bool forfeited);
/*
 * Size and times if they changed under this hold of X. A glimpse is told each time, for the server may not have them yet; `final`: the lock goes.
 * Any context.
 */
bool dfs_inode_publish(struct inode *inode, bool final, struct df_value *value);

/*
 * The loss of a session is told once to each open file: what writeback, the flush of attributes and the sweep find refused or forfeited is noted with
 * dfs_inode_refused, and the end of the sweep of this lock, which follows, makes one error of it (errseq). fsync and close wait for it.
 */
void dfs_inode_refused(struct inode *inode);
/* 0: no sweep is due any more; -EINTR. Under no pin. */
int dfs_await_sweep(struct inode *inode);
/* At eviction: nobody but syncfs is left to be told. */
void dfs_refusal_forgotten(struct inode *inode);
/* Dirty pages of the range to the servers. 0 or -errno, as writeback met it. */
int dfs_write_out(struct inode *inode, loff_t first, loff_t last);
/* The session in which what is dirty may be written. False: that one is over. */
bool dfs_inode_session(const struct inode *inode, u64 *number);

extern const struct inode_operations dfs_directory_inode_operations;
extern const struct inode_operations dfs_file_inode_operations;
extern const struct inode_operations dfs_symlink_inode_operations;
extern const struct inode_operations dfs_special_inode_operations;
extern const struct file_operations dfs_directory_operations;
extern const struct file_operations dfs_file_operations;
extern const struct address_space_operations dfs_file_aops;
extern const struct dentry_operations dfs_dentry_operations;
extern const struct xattr_handler *dfs_xattr_handlers[];

int dfs_inode_cache_init(void);
void dfs_inode_cache_exit(void);
int dfs_super_init(void);
void dfs_super_exit(void);

#endif
