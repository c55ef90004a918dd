/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which locks an access to a file takes: the whole file, or extent by extent, cached or uncached. A policy machine without I/O, clock,
 * threads or allocation: one per file that a node uses; times are handed in, milliseconds of one monotonic clock.
 *
 * Parties
 *   machine   knows what this node holds of the file, proposes the next lock, says what a revoke may leave.
 *   shell     the daemon, the module or the simulator: a df_lock (client.h) per key, the pages, the servers. It performs steps.
 *   others    machines of the same file elsewhere. They exchange nothing: all they learn of each other is in lock words and revokes.
 *
 * Keys and what they cover
 *   inode     X: everything. S: everything, to read. IX, IS: nothing but the right to lock the size and extents below; while either
 *             is held the file does not shrink, for truncate needs X here.
 *   size      df_key_size: size, mtime, ctime while the inode is held in an intention mode. X: change them and believe them. S: believe
 *             them. IX: change by merge only (size and times rise to the maximum), believe nothing but one's own floor.
 *   extent    data of one extent while the inode is held in an intention mode. X: cached writes. S: cached reads. IX, IS: writes and
 *             reads straight to storaged; no page of it stays here.
 *   Effective right of a node on an extent: the inode's mode if X or S, else the extent's. df_compatible holds between any two nodes'.
 *
 * Order: inode, size, extents ascending; each is pinned until the access ends. The inode is never waited for by who pins anything of
 * this file. What a shed takes it only tries. So no cycle: a wait is for a later key, or for nothing.
 *
 * How two nodes agree without talking
 *   An intention in an extent's word says "uncached": S and X meet it as a conflict. Who wants to cache tries first (one chain,
 *   never asks). Intentions in the way: goes uncached too, at once. S or X in the way: asks, unless this extent bounced
 *   too often here: then it asks IX, which leaves an X holder IX (df_keep), and by that tells it to go uncached as well.
 *   A bounce is a revoke of a cached lock that served fewer than `worth` accesses, within bounce_ms after the one before.
 *   Bounces are counted over all extents of the file as well: then what is not held begins uncached, for bounce_ms (records smaller
 *   than extents dealt out in turn over many nodes never bounce one extent often enough).
 *   Back: an intention that was idle for idle_ms is dropped. Who still uses the extent tries S or X after calm_ms: it succeeds only
 *   when nobody else has an intention left. Hysteresis: each failure doubles the wait, up to calm_max_ms; after a return one more bounce
 *   suffices to fall back, with a doubled wait, until a cached hold has been worth its while again.
 *   The inode alike: X (or S) is tried; a writer that meets X asks IX; a node that finds intentions takes its own beside them. Who holds an
 *   intention tries X (S, if it only reads) every promote interval, with the same doubling; who is idle for leave_ms, or closed, leaves.
 *
 * Giving up
 *   inode X to IX   X or S is tried on the extents used last under it, `convert` at most, in their strongest use; pages beyond, and those of a try
 *                   that fails, are given up whole (flushed, forgotten). Size and times go to the server. A node that is idle keeps NL.
 *   inode X to S    dirty data, size and times go to the server; pages stay. What is held below goes.
 *   inode to NL     everything below goes first. (S asked IX or X; IX asked S or X.)
 *   extent          X to S: flushed. X to IX, any to NL: flushed and forgotten. The rest as df_keep says.
 *   size            X or IX to less: merged at the server before.
 *
 * Why size and times have a lock of their own
 *   Merging at flush alone lets stat miss a write that has ended (invariant 1), and a glimpse reaches one X holder, not many IX holders.
 *   X on the last extent would make each extending writer wait for the others. With the lock: writers share IX and send nothing for an
 *   extension; who needs the truth takes S, which makes them merge first (invariant 3) and touches no page. The floor (the largest size
 *   known since the inode was held) is a lower bound that needs no lock, so I/O below it never asks.
 *     read below the floor   no size lock         write              IX (X when it is free)
 *     read across the floor  S, then the size     append             X, then the extents at the end
 *     getattr                S                    truncate and what else shrinks, punches, changes attributes: X on the inode
 *
 * Lock messages per access (a chain: one-sided, one round trip; "ask": Ask, Revoke a holder, Released a holder, Grant)
 *   lone node, first access     1 chain           then 0
 *   second node, first access   try (1), IX (1 and an ask), size try or IX (1..2), extent try (1)
 *   own extent of a shared file, first access 1 chain; then 0
 *   bouncing extent             try, then a failed take and an ask; at most `bounces` times a node, then uncached
 *   uncached                    0 of locks, the data's own request; a try a calm interval
 *   return                      1 chain an extent; 1 for the whole file
 *
 * Serialised by: the caller; one at a time per machine. Between threads of one node exclusion is the shell's (as i_rwsem): append and
 * whole beside nothing else here.
 * Recovery: a session that ended: df_extents_init again after everything is unpinned. A forfeited lock: df_extents_held(NL); with the inode's,
 * SHED(NL) comes and takes what is below. Detach, re-assertion and resume do not concern the machine: what is held stays held.
 * Limits: entries as given by the caller (DF_EXTENTS_MIN at least); an access covers DF_EXTENTS_SPAN extents at most and is cut there: the
 * shell does the rest as another access. Beyond DF_EXTENT_LAST, by the whole file.
 * Known weakness: an access over several extents is atomic per extent only where it is uncached. Idle nodes keep an extended file in extents for
 * leave_ms. A stat of a file that many write makes each of them merge and take IX anew.
 */
#ifndef DISTFUSE_EXTENTS_H
#define DISTFUSE_EXTENTS_H

#include "rdma/lock/slot.h"

DF_BEGIN_C

/* The last extent number is the size's key. */
#define DF_EXTENT_LAST (DF_KEY_EXTENT_MAX - 1)
#define DF_EXTENTS_SPAN 8u
#define DF_EXTENTS_MIN 16u

static inline df_u64 df_key_size(df_u64 inode)
{
	return df_key_extent(inode, DF_KEY_EXTENT_MAX);
}

struct df_extents_policy {
	df_u32 shift;	    /* an extent has 2^shift bytes; 22 */
	df_u32 worth;	    /* accesses that make a cached hold worth its while; 8 */
	df_u32 bounces;	    /* then uncached; 3 */
	df_u32 bounce_ms;   /* that far apart they count; 1000 */
	df_u32 calm_ms;	    /* first wait before caching is tried again; 200 */
	df_u32 calm_max_ms; /* 10000 */
	df_u32 idle_ms;	    /* an intention on an extent goes after; 100, less than calm_ms */
	df_u32 leave_ms;    /* one on the inode; 5000 */
	df_u32 convert;	    /* extents to take in a shed of the inode; 64 */
	df_u32 reserved;
};
extern const struct df_extents_policy df_extents_default;

enum df_access_kind {
	DF_ACCESS_READ = 1,
	DF_ACCESS_WRITE,
	DF_ACCESS_APPEND,  /* offset is set to the size; `end` holds the length before */
	DF_ACCESS_GETATTR, /* size and times */
	DF_ACCESS_WHOLE,   /* truncate, punch, setattr */
};

enum df_extents_step_kind {
	DF_STEP_READY = 0, /* go: offset, end, `cached` of the access */
	DF_STEP_LOCK, /* pin `key` in `mode` (want it first; with `try` never ask): df_extents_pinned or df_extents_blocked */
	DF_STEP_TAKE, /* in a shed: try `key` in `mode`, without a pin: df_extents_held or df_extents_blocked(NULL) */
	DF_STEP_DROP, /* give `key` up by our own will; go on when df_extents_held(NL) was told */
	DF_STEP_SIZE, /* ask the server for the size: df_extents_size */
	DF_STEP_BUSY, /* every entry is in use: again when an access has ended */
	DF_STEP_DONE, /* of a shed: `mode` may be kept */
	DF_STEP_NONE, /* of a tick */
};

struct df_step {
	df_u8 kind; /* enum df_extents_step_kind */
	df_u8 mode;
	df_u8 try_only;
	df_u8 reserved[5];
	df_u64 key;
	df_u64 wake_at; /* of a tick: come again then; ~0: not needed */
};

struct df_extent {
	df_u64 used_at;
	df_u64 wrote_at;
	df_u64 revoked_at;
	df_u64 calm_at; /* uncached: when caching is tried again */
	df_u32 number;
	df_u32 hits; /* accesses under this cached hold */
	df_u32 calm_wait;
	df_u32 order; /* of the last use, for recency within a millisecond */
	df_u16 users; /* accesses that will pin it, or do */
	df_u16 raw;   /* of them, under way uncached */
	df_u8 held;
	df_u8 bounces;
	df_u8 uncached;
	df_u8 present;
	df_u8 whole; /* mode that fits its use under the inode's lock; NL: not used so */
	df_u8 reserved[3];
};

struct df_extents {
	struct df_extents_policy policy;
	struct df_extent inode, size;
	struct df_extent *entry;
	df_u32 entries;
	df_u32 recent; /* index of the last one found */
	df_u32 order;
	df_u32 converted;
	df_u64 ino;
	df_u64 floor;	     /* the size is at least that */
	df_u64 shared_until; /* the inode bounced: no whole-file locks are asked for till then */
	df_u64 heat_at;	     /* the last bounce of any extent */
	df_u64 hot_until;    /* what is not held begins uncached till then */
	df_u8 exact;	     /* floor is the size */
	df_u8 closed;	     /* nobody has it open here */
	df_u8 shedding;	     /* enum: 0; 1: pump in progress */
	df_u8 target;	     /* of the shed */
	df_u8 heat;	     /* bounces of all extents in a row */
	df_u8 reserved[3];
};

struct df_access {
	df_u64 offset;
	df_u64 end; /* exclusive */
	df_u64 now;
	df_u32 first, last; /* extents, inclusive; when `reserved` */
	df_u32 next;	    /* the one to be pinned */
	df_u32 cached;	    /* bit i: extent first + i goes through the cache */
	df_u32 raw;	    /* bit i: counted in its `raw` */
	df_u8 kind;	    /* enum df_access_kind */
	df_u8 stage;
	df_u8 ask; /* after a failed try: what is asked for */
	df_u8 ranged;
	df_u8 whole; /* pinned the inode in X or S */
	df_u8 pins;
	df_u8 reserved[2];
	struct {
		df_u64 key;
		df_u32 mode;
		df_u32 reserved;
	} pin[DF_EXTENTS_SPAN + 2]; /* what the shell unpins after the access */
};

/* `policy` NULL: the default. `entry`: `entries` of them, zeroed here; 16 at least (-1: fewer, or a shift outside 6..40). */
int df_extents_init(struct df_extents *file, df_u64 ino, const struct df_extents_policy *policy,
		    struct df_extent *entry, df_u32 entries);

/* An access to [offset, end); APPEND: end is the length. Others: both are ignored. */
void df_access_begin(struct df_extents *file, struct df_access *access, df_u32 kind, df_u64 offset,
		     df_u64 end, df_u64 now);
/* What to do next. READY stands until df_access_end; access->end may be lower than asked for (cut, or the end of the file). */
void df_access_next(struct df_extents *file, struct df_access *access, df_u64 now,
		    struct df_step *step);
/* The LOCK step's lock is held (df_extents_held was told) and pinned. */
void df_extents_pinned(struct df_extents *file, struct df_access *access,
		       const struct df_step *step);
/* The try failed; `word`: what it met without our own unit, 0 if that is not known. access NULL: a shed's. */
void df_extents_blocked(struct df_extents *file, struct df_access *access,
			const struct df_step *step, df_u64 word, df_u64 now);
/* It is over (done, or given up at any step). The caller unpins access->pin. */
void df_access_end(struct df_extents *file, struct df_access *access, int done, df_u64 now);

/* The size, learned while S or X on the inode or the size is pinned, or set by truncate. */
void df_extents_size(struct df_extents *file, df_u64 size);
/* A lock is held in `mode` from now on: after a grant, a release, a forfeit. */
void df_extents_held(struct df_extents *file, df_u64 key, df_u32 mode);

/* SHED(keep) of an extent or the size: what to keep really. Then flush, forget, df_lock_shed_done, df_extents_held. */
df_u32 df_extents_revoked(struct df_extents *file, df_u64 key, df_u32 keep, df_u64 now);
/* SHED(keep) of the inode, with its gate closed: then shed_next until DONE; flush, forget, df_lock_shed_done, df_extents_held. */
void df_extents_shed_begin(struct df_extents *file, df_u32 keep, df_u64 now);
void df_extents_shed_next(struct df_extents *file, struct df_step *step);
/* In what mode pages of the extent may stay here, by the inode's lock (or what it is being shed to) and the extent's own. */
df_u32 df_extents_cover(const struct df_extents *file, df_u32 extent);

/* Nobody has the file open here any more (1), or again (0). */
void df_extents_closed(struct df_extents *file, int closed);
/* What is due by time: DROP or NONE; after a DROP was begun, again. */
void df_extents_tick(struct df_extents *file, df_u64 now, struct df_step *step);

DF_END_C

#endif
