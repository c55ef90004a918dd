// SPDX-License-Identifier: GPL-2.0-only
/* Inodes: made, attributes believed and changed. LOCKING.md says under which lock. */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/slab.h>
#include <linux/writeback.h>
#include <linux/xattr.h>

#include "glimpse.h"
#include "inode.h"
#include "lock.h"
#include "race.h"
#include "session.h"
#include "uapi.h"

static struct timespec64 dfs_time(u64 seconds, u32 nanoseconds)
{
	return (struct timespec64){.tv_sec = (s64)seconds, .tv_nsec = nanoseconds};
}

static bool dfs_attr_sane(const struct fuse_attr *attr)
{
	return attr->ino && (s64)attr->size >= 0 && attr->atimensec < NSEC_PER_SEC &&
	       attr->mtimensec < NSEC_PER_SEC && attr->ctimensec < NSEC_PER_SEC;
}

/* Under inode->spin or I_NEW. */
static void dfs_take_attr(struct inode *inode, const struct fuse_attr *attr)
{
	struct dfs_inode *dfs = dfs_i(inode);

	inode->i_mode = (inode->i_mode & S_IFMT) | (attr->mode & 07777);
	inode->i_uid = make_kuid(&init_user_ns, attr->uid);
	inode->i_gid = make_kgid(&init_user_ns, attr->gid);
	set_nlink(inode, attr->nlink);
	inode->i_blocks = attr->blocks;
	inode->i_atime = dfs_time(attr->atime, attr->atimensec);
	assign_bit(DFS_NO_XATTRS, &dfs->flags, attr->blksize & DFS_ATTR_NO_XATTRS);
	if (test_bit(DFS_ATTRS_DIRTY, &dfs->flags) || dfs->flushing)
		return;
	inode->i_mtime = dfs_time(attr->mtime, attr->mtimensec);
	inode->i_ctime = dfs_time(attr->ctime, attr->ctimensec);
	i_size_write(inode, attr->size);
}

static int dfs_check_attr(const struct inode *inode, const struct fuse_attr *attr)
{
	if (!dfs_attr_sane(attr) || attr->ino != inode->i_ino)
		return -EIO;
	return (attr->mode ^ inode->i_mode) & S_IFMT ? -ESTALE : 0;
}

/* Under spin. */
static void dfs_believe_attr(struct inode *inode, const struct fuse_attr *attr)
{
	struct dfs_inode *dfs = dfs_i(inode);

	dfs_take_attr(inode, attr);
	set_bit(DFS_ATTRS, &dfs->flags);
	clear_bit(DFS_OFFERED, &dfs->flags);
	clear_bit(DFS_TIMES_OLD, &dfs->flags);
}

int dfs_apply_attr(struct inode *inode, const struct fuse_attr *attr)
{
	struct dfs_inode *dfs = dfs_i(inode);
	int error = dfs_check_attr(inode, attr);

	if (error)
		return error;
	spin_lock(&dfs->spin);
	dfs->changes++;
	set_bit(DFS_CHANGED, &dfs->flags);
	set_bit(DFS_OTHERS_CHANGED, &dfs->flags);
	dfs_believe_attr(inode, attr);
	spin_unlock(&dfs->spin);
	return 0;
}

/* What was asked for when `changes` was this. False: it may be older than what we have done since. */
static bool dfs_apply_fetched(struct inode *inode, const struct fuse_attr *attr, u32 changes)
{
	struct dfs_inode *dfs = dfs_i(inode);
	bool fresh;

	spin_lock(&dfs->spin);
	fresh = dfs->changes == changes;
	if (fresh)
		dfs_believe_attr(inode, attr);
	spin_unlock(&dfs->spin);
	return fresh;
}

void dfs_attrs_changed(struct inode *inode, bool times_alone)
{
	struct dfs_inode *dfs = dfs_i(inode);

	spin_lock(&dfs->spin);
	dfs->changes++;
	clear_bit(DFS_OFFERED, &dfs->flags);
	if (times_alone)
		set_bit(DFS_TIMES_OLD, &dfs->flags);
	else
		clear_bit(DFS_ATTRS, &dfs->flags);
	set_bit(DFS_CHANGED, &dfs->flags);
	set_bit(DFS_OTHERS_CHANGED, &dfs->flags);
	spin_unlock(&dfs->spin);
}

/* Under spin: but for size and times. */
static bool dfs_same_others(const struct inode *inode, const struct fuse_attr *attr)
{
	const struct timespec64 atime = dfs_time(attr->atime, attr->atimensec);

	return inode->i_mode == attr->mode && inode->i_nlink == attr->nlink &&
	       uid_eq(inode->i_uid, make_kuid(&init_user_ns, attr->uid)) &&
	       gid_eq(inode->i_gid, make_kgid(&init_user_ns, attr->gid)) &&
	       timespec64_equal(&inode->i_atime, &atime) &&
	       test_bit(DFS_NO_XATTRS, &dfs_i(inode)->flags) ==
		       !!(attr->blksize & DFS_ATTR_NO_XATTRS);
}

/* Under X the fields are ours alone: there may be pages that the server does not know of. */
static bool dfs_offer_due(struct dfs_lock *lock, u32 epoch)
{
	bool due;

	spin_lock_bh(&lock->spin);
	due = lock->epoch == epoch && !lock->lost && lock->core.held != DF_X;
	spin_unlock_bh(&lock->spin);
	return due;
}

void dfs_offer_attr(struct inode *inode, const struct fuse_attr *attr, u32 epoch)
{
	struct dfs_inode *dfs = dfs_i(inode);
	u32 changes = READ_ONCE(dfs->changes);

	if (dfs_check_attr(inode, attr) || !dfs_offer_due(dfs->lock, epoch))
		return;
	spin_lock(&dfs->spin);
	/* If it came to X, and a change, meanwhile: the count tells. */
	if (dfs->changes == changes && !test_bit(DFS_ATTRS, &dfs->flags) &&
	    !test_bit(DFS_ATTRS_DIRTY, &dfs->flags)) {
		/* What is known as of a version stays so, if it is the same. */
		if (!test_bit(DFS_OFFERED, &dfs->flags) || dfs->offered_epoch != epoch ||
		    !dfs_same_others(inode, attr))
			dfs->offered_version = 0;
		dfs_take_attr(inode, attr);
		dfs->offered_epoch = epoch;
		set_bit(DFS_OFFERED, &dfs->flags);
	}
	spin_unlock(&dfs->spin);
}

/* What the slot said at the take of the present hold. */
struct dfs_hold_facts {
	bool shared;	/* S: the slot does not tell of what we ourselves do under X */
	bool unchanged; /* nothing of the inode changed in this incarnation of lockd */
	u32 epoch;
	u64 version;
	struct df_value value;
};

static void dfs_hold_facts(struct dfs_lock *lock, struct dfs_hold_facts *facts)
{
	const struct df_lock *core = &lock->core;

	spin_lock_bh(&lock->spin);
	facts->shared = core->held == DF_S && !lock->lost;
	facts->unchanged =
		core->slot != DF_NO_SLOT && core->version == df_initial_version(core->slot);
	facts->epoch = lock->epoch;
	facts->version = core->version;
	facts->value = core->value;
	spin_unlock_bh(&lock->spin);
}

/* Under spin: all but size and times are those of now, and these are in the value block. */
static bool dfs_complete_offer(struct inode *inode, const struct dfs_hold_facts *facts)
{
	struct dfs_inode *dfs = dfs_i(inode);
	const struct df_value *value = &facts->value;

	if (!df_value_same_since(value, facts->version, dfs->offered_version) ||
	    (s64)value->size < 0 || test_bit(DFS_CHANGED, &dfs->flags) ||
	    test_bit(DFS_ATTRS_DIRTY, &dfs->flags) || dfs->flushing)
		return false;
	i_size_write(inode, value->size);
	inode->i_blocks = (value->size + 511) >> 9;
	inode->i_mtime = ns_to_timespec64((s64)value->mtime_ns);
	inode->i_ctime = ns_to_timespec64((s64)value->ctime_ns);
	return true;
}

/* Under spin: whether what is on offer is what the server has. */
static bool dfs_offer_current(struct inode *inode, const struct dfs_hold_facts *facts)
{
	const struct df_value *value = &facts->value;
	const u64 wanted = DF_VALUE_PUBLISHED | DF_VALUE_EXACT;

	if (dfs_i(inode)->offered_epoch != facts->epoch)
		return false;
	if (facts->shared && facts->unchanged)
		return true;
	if (facts->shared && (value->flags & wanted) == wanted &&
	    value->size == i_size_read(inode) &&
	    value->mtime_ns == timespec64_to_ns(&inode->i_mtime) &&
	    value->ctime_ns == timespec64_to_ns(&inode->i_ctime))
		return true;
	return dfs_complete_offer(inode, facts);
}

/* Under a pin of S or X. True: the attributes on offer are those of now, no request is needed. */
static bool dfs_accept_offer(struct inode *inode)
{
	struct dfs_inode *dfs = dfs_i(inode);
	struct dfs_hold_facts facts;
	bool accepted;

	if (!test_bit(DFS_OFFERED, &dfs->flags))
		return false;
	dfs_hold_facts(dfs->lock, &facts);
	spin_lock(&dfs->spin);
	accepted = test_and_clear_bit(DFS_OFFERED, &dfs->flags) && dfs_offer_current(inode, &facts);
	if (accepted) {
		set_bit(DFS_ATTRS, &dfs->flags);
		clear_bit(DFS_TIMES_OLD, &dfs->flags);
	}
	spin_unlock(&dfs->spin);
	if (accepted)
		dfs_count(dfs_c(inode), attributes_kept);
	return accepted;
}

static void dfs_init_inode(struct inode *inode, const struct fuse_attr *attr)
{
	inode->i_mode = attr->mode;
	switch (attr->mode & S_IFMT) {
	case S_IFREG:
		inode->i_op = &dfs_file_inode_operations;
		inode->i_fop = &dfs_file_operations;
		inode->i_mapping->a_ops = &dfs_file_aops;
		break;
	case S_IFDIR:
		inode->i_op = &dfs_directory_inode_operations;
		inode->i_fop = &dfs_directory_operations;
		break;
	case S_IFLNK:
		inode->i_op = &dfs_symlink_inode_operations;
		break;
	default:
		inode->i_op = &dfs_special_inode_operations;
		init_special_inode(inode, attr->mode, new_decode_dev(attr->rdev));
		break;
	}
	dfs_take_attr(inode, attr);
}

struct inode *dfs_iget(struct super_block *sb, const struct fuse_attr *attr)
{
	struct dfs_lock *lock;
	struct inode *inode;

	if (!dfs_attr_sane(attr))
		return ERR_PTR(-EIO);
	inode = iget_locked(sb, attr->ino);
	if (!inode)
		return ERR_PTR(-ENOMEM);
	if (!(inode->i_state & I_NEW)) {
		if (!((attr->mode ^ inode->i_mode) & S_IFMT))
			return inode;
		iput(inode);
		return ERR_PTR(-ESTALE);
	}
	lock = dfs_lock_get(dfs_m(sb)->session, df_key_inode(attr->ino), GFP_KERNEL);
	if (!lock) {
		iget_failed(inode);
		return ERR_PTR(-ENOMEM);
	}
	dfs_init_inode(inode, attr);
	dfs_i(inode)->lock = lock;
	dfs_lock_bind(lock, inode);
	unlock_new_inode(inode);
	return inode;
}

struct inode *dfs_iget_offered(struct super_block *sb, const struct fuse_attr *attr, u32 epoch)
{
	struct inode *inode = dfs_iget(sb, attr);

	if (!IS_ERR(inode))
		dfs_offer_attr(inode, attr, epoch);
	return inode;
}

bool dfs_inode_session(const struct inode *inode, u64 *number)
{
	const struct dfs_lock *lock = dfs_i(inode)->lock;

	*number = READ_ONCE(lock->session->id);
	/* The next session gets its number after every lock was marked; a mark goes when nothing is dirty under it any more. */
	smp_rmb();
	return !READ_ONCE(lock->lost);
}

u32 dfs_session_epoch(const struct super_block *sb)
{
	return READ_ONCE(dfs_m(sb)->session->epoch);
}

bool dfs_attrs_usable(const struct inode *inode)
{
	const struct dfs_inode *dfs = dfs_i(inode);

	/* Cover first: if the bit is still there afterwards, no shed has come by (it clears the bit with the gate closed). */
	return dfs_lock_covers(dfs->lock, DF_S) && test_bit(DFS_ATTRS, &dfs->flags);
}

void dfs_inode_distrust(struct inode *inode)
{
	struct dfs_inode *dfs = dfs_i(inode);

	spin_lock(&dfs->spin);
	clear_bit(DFS_ATTRS, &dfs->flags);
	clear_bit(DFS_OFFERED, &dfs->flags);
	dfs->changes++;
	dfs->names++;
	spin_unlock(&dfs->spin);
	inode->i_flags &= ~S_NOSEC;
	forget_all_cached_acls(inode);
}

static int dfs_ask_attrs(struct inode *inode, struct dfs_pins *pins)
{
	const struct fuse_attr_out *out;
	struct dfs_request *request;
	bool fresh = false;
	int error = 0;
	u32 changes;

	while (!error && !fresh) {
		changes = READ_ONCE(dfs_i(inode)->changes);
		request = dfs_request_new(dfs_c(inode), FUSE_GETATTR, inode->i_ino,
					  sizeof(struct fuse_getattr_in), sizeof(*out), true);
		if (!request)
			return -ENOMEM;
		error = dfs_request_call(request, pins);
		dfs_race(DFS_RACE_attrs_answered, dfs_c(inode));
		if (!error) {
			out = request->out;
			error = dfs_check_attr(inode, &out->attr);
			fresh = !error && dfs_apply_fetched(inode, &out->attr, changes);
		}
		dfs_request_put(request);
	}
	return error == -ENOENT ? -ESTALE : error;
}

int dfs_refresh(struct inode *inode, struct dfs_pins *pins)
{
	if (test_bit(DFS_ATTRS, &dfs_i(inode)->flags) || dfs_accept_offer(inode))
		return 0;
	return dfs_ask_attrs(inode, pins);
}

static int dfs_refresh_all(struct inode *inode, struct dfs_pins *pins)
{
	return test_bit(DFS_TIMES_OLD, &dfs_i(inode)->flags) ? dfs_ask_attrs(inode, pins)
							     : dfs_refresh(inode, pins);
}

/* Of the server, under no lock: for this moment alone. */
static int dfs_peek_attrs(struct inode *inode, struct fuse_attr *attr)
{
	struct dfs_request *request =
		dfs_request_new(dfs_c(inode), FUSE_GETATTR, inode->i_ino,
				sizeof(struct fuse_getattr_in), sizeof(struct fuse_attr_out), true);
	int error;

	if (!request)
		return -ENOMEM;
	error = dfs_request_call(request, NULL);
	if (!error) {
		*attr = ((struct fuse_attr_out *)request->out)->attr;
		error = dfs_check_attr(inode, attr);
	}
	dfs_request_put(request);
	return error == -ENOENT ? -ESTALE : error;
}

/* The newer of the two. */
static void dfs_merge_value(struct fuse_attr *attr, const struct df_value *value)
{
	struct timespec64 mtime = ns_to_timespec64(value->mtime_ns);
	struct timespec64 ctime = ns_to_timespec64(value->ctime_ns);
	struct timespec64 known = dfs_time(attr->ctime, attr->ctimensec);

	if (timespec64_compare(&ctime, &known) < 0)
		return;
	attr->size = value->size;
	attr->mtime = mtime.tv_sec;
	attr->mtimensec = mtime.tv_nsec;
	attr->ctime = ctime.tv_sec;
	attr->ctimensec = ctime.tv_nsec;
}

/*
 * What another node writes is looked at, not taken away, as long as it goes on writing: who has closed it, or has written nothing since the last look, gives
 * it up to us. The holder is asked before the server, so that what it wrote back in between is seen there; the newer of the two is believed. 1: it is in `attr`;
 * -EAGAIN: take S.
 */
static int dfs_look(struct inode *inode, struct fuse_attr *attr)
{
	struct dfs_inode *dfs = dfs_i(inode);
	u32 epoch = dfs_session_epoch(inode->i_sb);
	struct df_value value = {};
	int result = dfs_glimpse(dfs->lock, &value);

	if (result < 0)
		return result;
	if (!result || !(value.flags & DF_VALUE_WRITING) ||
	    (READ_ONCE(dfs->glimpsed_ns) == value.ctime_ns &&
	     READ_ONCE(dfs->glimpsed_size) == value.size))
		return -EAGAIN;
	WRITE_ONCE(dfs->glimpsed_ns, value.ctime_ns);
	WRITE_ONCE(dfs->glimpsed_size, value.size);
	result = dfs_peek_attrs(inode, attr);
	if (result)
		return result;
	dfs_merge_value(attr, &value);
	dfs_race(DFS_RACE_looked, dfs_c(inode));
	/* The VFS looks at i_size before it asks anybody (copy_file_range): it is at least what stat has told. */
	dfs_offer_attr(inode, attr, epoch);
	return 1;
}

static void dfs_fill_looked(const struct fuse_attr *attr, struct kstat *stat)
{
	stat->mode = (stat->mode & S_IFMT) | (attr->mode & 07777);
	stat->nlink = attr->nlink;
	stat->uid = make_kuid(&init_user_ns, attr->uid);
	stat->gid = make_kgid(&init_user_ns, attr->gid);
	stat->size = attr->size;
	stat->blocks = DIV_ROUND_UP_ULL(attr->size, 512);
	stat->atime = dfs_time(attr->atime, attr->atimensec);
	stat->mtime = dfs_time(attr->mtime, attr->mtimensec);
	stat->ctime = dfs_time(attr->ctime, attr->ctimensec);
}

/* 0: the inode's own attributes are those of now; 1: those in `attr` are. */
static int dfs_attrs_now(struct inode *inode, struct fuse_attr *attr)
{
	bool regular = S_ISREG(inode->i_mode);
	struct dfs_pins pins;
	int error;

	if (!regular || !dfs_pin_free(&pins, inode, DF_S)) {
		error = regular ? dfs_look(inode, attr) : -EAGAIN;
		if (error != -EAGAIN)
			return error;
		error = dfs_pin(&pins, inode, DF_S);
		if (error)
			return error;
	}
	error = dfs_refresh_all(inode, &pins);
	dfs_unpin(&pins);
	return error;
}

int dfs_getattr(struct user_namespace *userns, const struct path *path, struct kstat *stat,
		u32 mask, unsigned int query)
{
	struct inode *inode = d_inode(path->dentry);
	struct fuse_attr attr;
	int looked = 0;

	if (!(query & AT_STATX_DONT_SYNC) &&
	    (!dfs_attrs_usable(inode) || test_bit(DFS_TIMES_OLD, &dfs_i(inode)->flags)))
		looked = dfs_attrs_now(inode, &attr);
	if (looked < 0)
		return looked;
	generic_fillattr(userns, inode, stat);
	if (looked)
		dfs_fill_looked(&attr, stat);
	stat->blksize = DFS_MAX_IO;
	return 0;
}

int dfs_permission(struct user_namespace *userns, struct inode *inode, int mask)
{
	struct dfs_pins pins;
	int error;

	if (!dfs_attrs_usable(inode)) {
		if (mask & MAY_NOT_BLOCK)
			return -ECHILD;
		error = dfs_pin(&pins, inode, DF_S);
		if (error)
			return error;
		error = dfs_refresh(inode, &pins);
		dfs_unpin(&pins);
		if (error)
			return error;
	}
	return generic_permission(userns, inode, mask);
}

/* --- changes ------------------------------------------------------------------------------------ */

static void dfs_fill_setattr(const struct iattr *iattr, struct fuse_setattr_in *in)
{
	if (iattr->ia_valid & ATTR_MODE) {
		in->valid |= FATTR_MODE;
		in->mode = iattr->ia_mode;
	}
	if (iattr->ia_valid & ATTR_UID) {
		in->valid |= FATTR_UID;
		in->uid = from_kuid(&init_user_ns, iattr->ia_uid);
	}
	if (iattr->ia_valid & ATTR_GID) {
		in->valid |= FATTR_GID;
		in->gid = from_kgid(&init_user_ns, iattr->ia_gid);
	}
	if (iattr->ia_valid & ATTR_SIZE) {
		in->valid |= FATTR_SIZE;
		in->size = iattr->ia_size;
	}
	if (iattr->ia_valid & ATTR_ATIME) {
		in->valid |= FATTR_ATIME;
		in->atime = iattr->ia_atime.tv_sec;
		in->atimensec = iattr->ia_atime.tv_nsec;
	}
	if (iattr->ia_valid & ATTR_MTIME) {
		in->valid |= FATTR_MTIME;
		in->mtime = iattr->ia_mtime.tv_sec;
		in->mtimensec = iattr->ia_mtime.tv_nsec;
	}
	/* ctime is the server's: the VFS's has the grain of a tick, in which two changes could look like one (slot.h, DF_VALUE_EXACT). */
}

static int dfs_send_setattr(struct inode *inode, const struct fuse_setattr_in *in,
			    struct dfs_pins *pins, struct fuse_attr *attr)
{
	struct dfs_request *request;
	int error;

	request = dfs_request_new(dfs_c(inode), FUSE_SETATTR, inode->i_ino, sizeof(*in),
				  sizeof(struct fuse_attr_out), true);
	if (!request)
		return -ENOMEM;
	memcpy(request->in, in, sizeof(*in));
	error = dfs_request_call(request, pins);
	if (!error)
		*attr = ((struct fuse_attr_out *)request->out)->attr;
	dfs_request_put(request);
	return error;
}

/* Writeback's, under no pin: in the session of the lock that it is dirty under. */
static int dfs_send_flush(struct inode *inode, const struct fuse_setattr_in *in,
			  struct fuse_attr *attr)
{
	struct dfs_request *request =
		dfs_request_new(dfs_c(inode), FUSE_SETATTR, inode->i_ino, sizeof(*in),
				sizeof(struct fuse_attr_out), false);
	int error = -EIO;

	memcpy(request->in, in, sizeof(*in));
	dfs_race(DFS_RACE_flush_attrs, dfs_c(inode));
	if (!dfs_inode_session(inode, &request->session)) {
		dfs_inode_refused(inode);
	} else {
		error = dfs_request_call(request, NULL);
		if (dfs_request_refused(request))
			dfs_inode_refused(inode);
	}
	if (!error)
		*attr = ((struct fuse_attr_out *)request->out)->attr;
	dfs_request_put(request);
	return error;
}

/* False: nothing is dirty. */
static bool dfs_begin_flush(struct inode *inode, struct fuse_setattr_in *in)
{
	struct dfs_inode *dfs = dfs_i(inode);

	spin_lock(&dfs->spin);
	if (!test_and_clear_bit(DFS_ATTRS_DIRTY, &dfs->flags)) {
		spin_unlock(&dfs->spin);
		return false;
	}
	dfs->flushing = true;
	in->valid = FATTR_MTIME | FATTR_CTIME;
	in->mtime = inode->i_mtime.tv_sec;
	in->mtimensec = inode->i_mtime.tv_nsec;
	in->ctime = inode->i_ctime.tv_sec;
	in->ctimensec = inode->i_ctime.tv_nsec;
	if (S_ISREG(inode->i_mode)) {
		/* FATTR_FH with this handle: the size alone, no data is cut. */
		in->valid |= FATTR_SIZE | FATTR_FH;
		in->fh = DFS_FH_SIZE_ONLY;
		in->size = i_size_read(inode);
	}
	spin_unlock(&dfs->spin);
	return true;
}

/* Whether the server has what it was sent, and the mode that is known here. */
static bool dfs_flushed_as_sent(const struct inode *inode, const struct fuse_setattr_in *in,
				const struct fuse_attr *attr)
{
	return attr->mode == inode->i_mode && attr->mtime == in->mtime &&
	       attr->mtimensec == in->mtimensec && attr->ctime == in->ctime &&
	       attr->ctimensec == in->ctimensec &&
	       (!(in->valid & FATTR_SIZE) || attr->size == in->size);
}

static void dfs_end_flush(struct inode *inode, const struct fuse_setattr_in *in, int error,
			  const struct fuse_attr *attr)
{
	struct dfs_inode *dfs = dfs_i(inode);

	spin_lock(&dfs->spin);
	dfs->flushing = false;
	dfs->changes++;
	if (error && error != -ENOENT && error != -ESTALE)
		set_bit(DFS_ATTRS_DIRTY, &dfs->flags);
	else if (error || !dfs_flushed_as_sent(inode, in, attr))
		clear_bit(DFS_ATTRS, &dfs->flags);
	spin_unlock(&dfs->spin);
}

int dfs_flush_attrs(struct inode *inode)
{
	struct dfs_inode *dfs = dfs_i(inode);
	struct fuse_setattr_in in = {};
	struct fuse_attr attr;
	int error = 0;

	/* One at a time: who finds nothing dirty must not go on before the server has it. */
	mutex_lock(&dfs->flush);
	if (dfs_begin_flush(inode, &in)) {
		error = dfs_send_flush(inode, &in, &attr);
		dfs_end_flush(inode, &in, error, &attr);
	}
	mutex_unlock(&dfs->flush);
	return error;
}

int dfs_write_inode(struct inode *inode, struct writeback_control *control)
{
	return dfs_flush_attrs(inode);
}

/* Page cache and size, around the server's cut. Under i_rwsem, the pin on X and invalidate_lock. */
static int dfs_truncate(struct inode *inode, const struct fuse_setattr_in *in,
			struct dfs_pins *pins, struct fuse_attr *attr)
{
	loff_t size = in->size;
	int error;

	inode_dio_wait(inode);
	/* What lies beyond goes now, so that no writeback of it can come after the server's cut. Nobody dirties more: faults wait. */
	error = dfs_write_out(inode, size, LLONG_MAX);
	if (!error)
		error = dfs_send_setattr(inode, in, pins, attr);
	dfs_race(DFS_RACE_truncate_cut, dfs_c(inode));
	if (!error)
		truncate_setsize(inode, size);
	return error;
}

int dfs_setattr(struct user_namespace *userns, struct dentry *dentry, struct iattr *iattr)
{
	struct inode *inode = d_inode(dentry);
	struct fuse_setattr_in in = {};
	struct fuse_attr attr;
	struct dfs_pins pins;
	int error;

	error = dfs_pin(&pins, inode, DF_X);
	if (error)
		return error;
	error = dfs_refresh(inode, &pins);
	error = error ? error : setattr_prepare(userns, dentry, iattr);
	error = error ? error : dfs_flush_attrs(inode);
	if (error)
		goto out;
	dfs_fill_setattr(iattr, &in);
	if (iattr->ia_valid & ATTR_SIZE) {
		filemap_invalidate_lock(inode->i_mapping);
		error = dfs_truncate(inode, &in, &pins, &attr);
		filemap_invalidate_unlock(inode->i_mapping);
	} else {
		error = dfs_send_setattr(inode, &in, &pins, &attr);
	}
	if (!error)
		error = dfs_apply_attr(inode, &attr);
out:
	dfs_unpin(&pins);
	/* With a pin of its own. */
	if (!error && (iattr->ia_valid & ATTR_MODE))
		error = posix_acl_chmod(userns, inode, inode->i_mode);
	return error;
}

int dfs_change_mode(struct inode *inode, const struct iattr *iattr)
{
	struct fuse_setattr_in in = {};
	struct fuse_attr attr;
	struct dfs_pins pins;
	int error = dfs_pin(&pins, inode, DF_X);

	if (error)
		return error;
	dfs_fill_setattr(iattr, &in);
	error = dfs_flush_attrs(inode);
	error = error ? error : dfs_send_setattr(inode, &in, &pins, &attr);
	error = error ? error : dfs_apply_attr(inode, &attr);
	dfs_unpin(&pins);
	return error;
}

/*
 * Who looks at the value block and at the server believes the later ctime: ours never goes back, whatever this node's clock says (it is coarse,
 * and another node's may be ahead). Under inode->spin.
 */
static void dfs_advance_ctime(struct inode *inode, const struct timespec64 *time)
{
	if (timespec64_compare(time, &inode->i_ctime) > 0)
		inode->i_ctime = *time;
	else
		inode->i_ctime = timespec64_add(inode->i_ctime, (struct timespec64){0, 1});
}

/* atime is changed by utimes alone (SB_NOATIME). Under X for a regular file's write and fault; else the server keeps the times. */
int dfs_update_time(struct inode *inode, struct timespec64 *time, int flags)
{
	struct dfs_inode *dfs = dfs_i(inode);

	if (!S_ISREG(inode->i_mode))
		return 0;
	spin_lock(&dfs->spin);
	if (flags & S_MTIME)
		inode->i_mtime = *time;
	if (flags & S_CTIME)
		dfs_advance_ctime(inode, time);
	set_bit(DFS_ATTRS_DIRTY, &dfs->flags);
	set_bit(DFS_CHANGED, &dfs->flags);
	spin_unlock(&dfs->spin);
	mark_inode_dirty_sync(inode);
	return 0;
}
