/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What extents.c (accesses) and extents_shed.c (revokes, time) share. */
#ifndef DISTFUSE_EXTENTS_INTERNAL_H
#define DISTFUSE_EXTENTS_INTERNAL_H

#include "rdma/lock/extents.h"

#define DF_EXTENTS_NEVER (~0ull)

/* The inode's, the size's, an extent's that is known, or NULL. */
struct df_extent *df_extent_by_key(struct df_extents *file, df_u64 key);
/* Caching is tried again after its wait; the next wait is twice as long. */
void df_extent_wait_longer(const struct df_extents *file, struct df_extent *entry, df_u64 now);
void df_extent_go_uncached(const struct df_extents *file, struct df_extent *entry, df_u64 now);

static inline int df_intention(df_u32 mode)
{
	return mode == DF_IS || mode == DF_IX;
}

static inline int df_caches(df_u32 mode)
{
	return mode == DF_S || mode == DF_X;
}

static inline int df_extent_colder(const struct df_extents *file, const struct df_extent *a,
				   const struct df_extent *b)
{
	return !b || file->order - a->order > file->order - b->order;
}

static inline void df_step_init(struct df_step *step, df_u32 kind, df_u64 key, df_u32 mode)
{
	memset(step, 0, sizeof(*step));
	step->kind = (df_u8)kind;
	step->key = key;
	step->mode = (df_u8)mode;
	step->wake_at = DF_EXTENTS_NEVER;
}

#endif
