/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the client daemon and the module say to each other beside the FUSE wire protocol: ioctls on /dev/distfuse, and what leads each request.
 *
 * Parties: one connection (a mount) of the module; its daemon, a process that has an open /dev/distfuse; for the length of a hand-over
 * two of them, the one that leaves and the next. A connection outlives its daemons. They are numbered, 1, 2, ..., in the order in which they
 * came; the number goes to the storageds with every channel (rpc/wire.h, Hello.daemon).
 *
 *   NEW      a fresh descriptor becomes daemon 1 of a new connection. The module connects to lockd before it answers.
 *   ATTACH   a fresh descriptor becomes the next daemon of the connection whose mount has this device number.
 *   SESSION  waits until the session is another than the one named (0: any), and tells it.
 *   mount(2) of type distfuse, option connection=ID: the filesystem over that connection, once.
 *
 * A read returns struct dfs_request_head and one FUSE request, a write takes one FUSE answer, by any threads; the first request of a daemon is
 * FUSE_INIT. End: read says ENODEV when the mount is gone or aborted, ESHUTDOWN when a next daemon is to take over.
 *
 * States of a connection
 *   SERVED     a daemon is attached. Its descriptor closed (it died): ALONE.
 *   LEAVING    SERVED, and an ATTACH came: the daemon is given nothing more (ESHUTDOWN) and answers what it has; new requests are
 *              kept. It has answered everything, or its descriptor is closed: the next one is SERVED. Not within drain_ms: it is killed
 *              (SIGKILL), and has drain_ms more for its descriptor to be closed; else the ATTACH fails with EBUSY, and the next one may try again.
 *   ALONE      no daemon. Requests are kept, those that it had not answered and new ones; callers wait, killably. ATTACH: SERVED.
 *              give_up_ms passed: ABORTED.
 *   ABORTED    for ever: all requests, kept, under way and new, end with ENOTCONN at once; so do waits for cluster locks and for fcntl and
 *              flock. ATTACH: ENOTCONN. By give_up_ms; by the administrator (umount -f; writing to `abort` in debugfs); by the unmount. The
 *              session goes on until the unmount: what other nodes ask for is given up, dirty data under it as an error at fsync and close.
 *
 * Recovery: what a daemon had read and not answered is sent to the next one again, in the order of `unique`, flagged DFS_RESENT. It takes
 * effect once, because
 *   - a `unique` never comes again in a connection, and the next 15 numbers neither: what one request changes at the meta target goes
 *     under unique, unique + 1, ... in the order in which the daemon's code asks, as request ids of the storage RPC, whose reply cache answers what was
 *     done already. dfs_request_head.lowest: no request below it is unanswered, and none will be sent again; so replies are kept until then;
 *   - changes of data are idempotent: they run again as they were, under the same pins, before anything that depends on them;
 *   - nothing of an earlier daemon runs, or can still run, at a storaged when that welcomes a later one (rpc/wire.h): a late first run cannot undo
 *     what came after the second;
 *   - it is bound to the session under whose locks it was made (dfs_request_head.session): in another one it must change nothing. The daemon
 *     answers EIO then, as the storageds do for a session that is fenced.
 *
 * Fence: a storaged that refuses the session of the request is answered as EKEYREVOKED. The caller gets EIO, and the session is lost at once
 * (rdma/lock/session.h), if it is still that one.
 *
 * What a daemon keeps, it can have again: layouts (asked for); the sessions' registrations of open inodes are the storageds', by session, and the
 * module knows which it made; the session and its locks are the module's. But for this: under which start of a storaged's machine it had what answered that
 * no sync has made durable. FSYNC and FSYNCDIR ask every target all the same, and are answered DFS_LOST, once, when one of those machines has restarted
 * since: then every open file of the inode gets EIO once. A next daemon knows of no change before its time.
 *
 * Limits: one hand-over at a time (EBUSY). Kept requests: as in connection.h.
 *
 * Known weakness: DFS_LOST that answers a caller who was killed is told to nobody else. A request whose caller was killed goes on without the VFS's locks of its caller; kept while there is no daemon, a truncation of that
 * kind may run beside what was asked after it.
 */
#ifndef DISTFUSE_KMOD_UAPI_H
#define DISTFUSE_KMOD_UAPI_H

#include <linux/errno.h>
#include <linux/ioctl.h>
#include <linux/types.h>

#define DFS_ABI 2u

#define DFS_RESENT 1u /* a former daemon was sent it and did not answer */

/* In front of each FUSE request that is read. */
struct dfs_request_head {
	__u64 session; /* under which it was made; 0: there was none */
	__u64 lowest;  /* `unique` of the oldest request that is unanswered; this one's at most */
	__u32 flags;   /* DFS_RESENT */
	__u32 reserved;
};

/*
 * In the FUSE protocol: SETATTR with FATTR_SIZE, FATTR_FH and this handle records the size and cuts no data (a write-back of size and times).
 * READ, WRITE, RELEASE and the like name the inode; their handle says nothing. FORGET is never sent: the daemon keeps nothing of an inode. OPEN and
 * RELEASE register and unregister the inode as open on this mount, once each, whatever the number of open files.
 */
#define DFS_FH_SIZE_ONLY (~0ull)
/* fuse_attr.blksize has no meaning of its own here: it has these bits. */
#define DFS_ATTR_NO_XATTRS 1u /* the inode has no extended attribute, access lists included */
/* An answer to FSYNC, FSYNCDIR: all is durable now, but some of what was answered before may be gone. */
#define DFS_LOST EREMOTEIO
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
	__u8 cluster[16];   /* EXDEV: the mount is another cluster's */
	__u32 look;	    /* 1: only tells what is below; the descriptor stays fresh */
	__u32 drain_ms;	    /* for a daemon that is there to leave */
	__u64 connection;   /* out */
	__u64 session;	    /* out; 0: lost, and there is no next one yet */
	__u64 incarnation;  /* out */
	__u32 lease_ms;	    /* out */
	__u32 daemon;	    /* out: its number; look: the present one's, 0: none */
	__u32 aborted;	    /* out, look: 1 */
	__u32 give_up_ms;   /* out */
};

struct dfs_ioc_session {
	__u64 known;	   /* answer when the session is another */
	__u64 session;	   /* out; 0: lost, and there is no next one yet */
	__u64 incarnation; /* out */
};

#define DFS_IOC_NEW _IOWR(0xdf, 1, struct dfs_ioc_new)
#define DFS_IOC_ATTACH _IOWR(0xdf, 2, struct dfs_ioc_attach)
#define DFS_IOC_SESSION _IOWR(0xdf, 3, struct dfs_ioc_session)
/* A storaged refuses this session, for a request that the daemon asks again in the next one: without an answer that says so, nobody else tells. */
#define DFS_IOC_FENCED _IOW(0xdf, 4, __u64)

#endif
