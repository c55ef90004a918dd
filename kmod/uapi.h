/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the client daemon and the module say to each other beside the FUSE wire protocol: ioctls on /dev/distfuse.
 *
 * Parties: one daemon and one connection (a mount) of the module, joined by an open /dev/distfuse. A connection outlives its daemon: one
 * that was killed is followed by another, which attaches.
 *
 *   NEW      a fresh descriptor becomes the daemon of a new connection. The module connects to lockd before it answers.
 *   ATTACH   a fresh descriptor becomes the next daemon of the connection whose mount has this device number. -EBUSY: it has a daemon.
 *   SESSION  waits until the session is another than the one named (0: any), and tells it.
 *   mount(2) of type distfuse, option connection=ID: the filesystem over that connection, once.
 *
 * FUSE requests are read and answered on the same descriptor, by any threads, after NEW or ATTACH; the first is FUSE_INIT. A request's
 * `unique` never comes again in a connection; one that is sent again to a next daemon has the same `unique` and FUSE_UNIQUE_RESEND is
 * not used: the daemon derives the storage request ids from it, so that it takes effect once.
 */
#ifndef DISTFUSE_KMOD_UAPI_H
#define DISTFUSE_KMOD_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DFS_ABI 1u
/*
 * In the FUSE protocol: SETATTR with FATTR_SIZE, FATTR_FH and this handle records the size and cuts no data (a write-back of size and times).
 * READ, WRITE, RELEASE and the like name the inode; their handle says nothing. FORGET is never sent: the daemon keeps nothing of an inode. OPEN and
 * RELEASE register and unregister the inode as open on this mount, once each, whatever the number of open files.
 */
#define DFS_FH_SIZE_ONLY (~0ull)
/* fuse_attr.blksize has no meaning of its own here: it has these bits. */
#define DFS_ATTR_NO_XATTRS 1u /* the inode has no extended attribute, access lists included */
#define DFS_DEVICE_NAME "distfuse"
#define DFS_FILESYSTEM_NAME "distfuse"

struct dfs_ioc_new {
	__u32 abi;		/* DFS_ABI */
	__u16 lockd_family;	/* AF_INET or AF_INET6 */
	__u16 lockd_port;	/* host order */
	__u8 lockd_address[16]; /* network order; IPv4: the first four */
	__u8 cluster[16];
	__u8 name[16];	   /* of the mount, for lockd's status; NUL-padded */
	__u32 give_up_ms;  /* how long a request waits for lockd or a daemon that is away */
	__u32 max_locks;   /* that are kept without use */
	__u64 connection;  /* out: its number, for mount(2) */
	__u64 session;	   /* out */
	__u64 incarnation; /* out: of lockd */
	__u32 lease_ms;	   /* out */
	__s32 refusal;	   /* out: enum df_refusal, if the ioctl failed with EPROTO */
};

struct dfs_ioc_attach {
	__u32 abi;
	__u32 device_minor; /* of the mount, from /proc/self/mountinfo */
	__u64 connection;   /* out */
	__u64 session;	    /* out */
	__u64 incarnation;  /* out */
	__u32 lease_ms;	    /* out */
	__u32 reserved;
};

struct dfs_ioc_session {
	__u64 known;	   /* answer when the session is another */
	__u64 session;	   /* out; 0: lost, and there is no next one yet */
	__u64 incarnation; /* out */
};

#define DFS_IOC_NEW _IOWR(0xdf, 1, struct dfs_ioc_new)
#define DFS_IOC_ATTACH _IOWR(0xdf, 2, struct dfs_ioc_attach)
#define DFS_IOC_SESSION _IOWR(0xdf, 3, struct dfs_ioc_session)

#endif
