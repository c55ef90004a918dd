/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Race points and fault points, for tests: places in the module that, once armed, hold the next thread that comes by, or fail for it, once.
 *
 * distfuse/race in debugfs. Each write is one line:
 *   POINT MAJOR:MINOR [MS]   arms it for that mount. A race point then sleeps MS, or until it is released, DFS_RACE_MOST_MS at most; a fault point fails
 *                            once; chain_late is late by MS
 *   POINT off                disarms it, and releases who sleeps there
 * A read lists: POINT race|fault idle|armed|holding TIMES (how often it has struck).
 *
 * A race point may stand only where sleeping is allowed and where a wait for the daemon would be (LOCKING.md, "The one order"), so that holding it is no
 * other thing than a slow daemon. Not armed, a point is a branch that is patched out (static key).
 */
#ifndef DISTFUSE_KMOD_RACE_H
#define DISTFUSE_KMOD_RACE_H

#include <linux/jump_label.h>
#include <linux/types.h>

#define DFS_RACE_MOST_MS 30000u

struct dentry;
struct dfs_connection;

/* Name, and what the thread has in hand there. */
#define DFS_RACE_POINTS(POINT)                                                                     \
	POINT(write_entered)  /* i_rwsem; no pin yet */                                            \
	POINT(write_pinned)   /* X pinned, checks made, no page dirty yet */                       \
	POINT(fault_pinned)   /* mmap_lock, S pinned, no folio yet */                              \
	POINT(mkwrite_done)   /* mmap_lock, the folio locked and dirty, not mapped writable yet */ \
	POINT(read_answered)  /* folios locked, their bytes there; the daemon's thread */          \
	POINT(attrs_answered) /* S or X pinned, the server's answer not believed yet */            \
	POINT(name_answered) /* the directory's S pinned, the name's attributes not offered yet */ \
	POINT(looked)	     /* nothing: a glimpse's attributes not offered yet */                 \
	POINT(truncate_cut)  /* X pinned, the server has cut, the cache is as before */            \
	POINT(writeback)     /* a dirty folio locked, its session not looked at yet */             \
	POINT(flush_attrs)   /* dfs_inode.flush; size and times taken, not sent yet */             \
	POINT(shed_begun)    /* the gate closed, nothing swept yet */

#define DFS_FAULT_POINTS(POINT)                                                                    \
	POINT(chain_post)    /* a chain cannot be posted: the link ends */                         \
	POINT(chain_error)   /* a chain of a lock has run, its completion is an error */           \
	POINT(chain_late)    /* what a chain that takes a lock has found comes MS late */          \
	POINT(write_error)   /* one request of writeback is answered by EIO */                     \
	POINT(answer_lost)   /* the daemon's answer to a request goes nowhere */                   \
	POINT(request_alloc) /* no memory for a request that may fail */                           \
	POINT(lock_alloc)    /* no memory for a lock */

enum dfs_race_point {
#define DFS_RACE_ENUM(name) DFS_RACE_##name,
	DFS_RACE_POINTS(DFS_RACE_ENUM) DFS_FAULT_POINTS(DFS_RACE_ENUM) DFS_RACE_NUMBER
#undef DFS_RACE_ENUM
};

DECLARE_STATIC_KEY_FALSE(dfs_races);

void dfs_race_strike(enum dfs_race_point point, const struct dfs_connection *connection);
bool dfs_fault_strike(enum dfs_race_point point, const struct dfs_connection *connection, u32 *ms);

static inline void dfs_race(enum dfs_race_point point, const struct dfs_connection *connection)
{
	if (static_branch_unlikely(&dfs_races))
		dfs_race_strike(point, connection);
}

/* Any context. True: fail now. */
static inline bool dfs_fails(enum dfs_race_point point, const struct dfs_connection *connection)
{
	return static_branch_unlikely(&dfs_races) && dfs_fault_strike(point, connection, NULL);
}

/* The same; 0: no, else by how many ms. */
static inline u32 dfs_late(enum dfs_race_point point, const struct dfs_connection *connection)
{
	u32 ms = 0;

	if (static_branch_unlikely(&dfs_races))
		dfs_fault_strike(point, connection, &ms);
	return ms;
}

void dfs_race_init(struct dentry *folder);

#endif
