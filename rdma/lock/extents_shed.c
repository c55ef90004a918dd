/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What a revoke or time takes away: extents.h. */
#include "rdma/lock/extents_internal.h"

/* --- an extent ---------------------------------------------------------------------------- */

/* A cached hold is taken away: 1 if that was once too often. */
static int bounced(const struct df_extents *file, struct df_extent *entry, df_u64 now)
{
	if (entry->hits >= file->policy.worth) {
		entry->bounces = 0;
		entry->calm_wait = file->policy.calm_ms;
	} else {
		if (entry->bounces && now - entry->revoked_at > file->policy.bounce_ms)
			entry->bounces = 0;
		if (entry->bounces < 255)
			entry->bounces++;
	}
	entry->revoked_at = now;
	entry->hits = 0;
	return entry->bounces >= file->policy.bounces;
}

/* The same over all extents: small records dealt out in turn may never bounce one extent often enough. */
static void heat(struct df_extents *file, const struct df_extent *entry, df_u64 now)
{
	if (!entry->bounces || now - file->heat_at > file->policy.bounce_ms)
		file->heat = 0;
	if (!entry->bounces)
		return;
	file->heat_at = now;
	if (file->heat < 255)
		file->heat++;
	if (file->heat >= file->policy.bounces)
		file->hot_until = now + file->policy.bounce_ms;
}

df_u32 df_extents_revoked(struct df_extents *file, df_u64 key, df_u32 keep, df_u64 now)
{
	struct df_extent *entry = df_extent_by_key(file, key);

	if (!entry || entry == &file->size)
		return keep;
	if (df_caches(entry->held)) {
		if (bounced(file, entry, now))
			df_extent_go_uncached(file, entry, now);
		heat(file, entry, now);
	}
	if (entry->held == DF_X && keep == DF_IX) {
		df_extent_go_uncached(file, entry, now);
		if (!entry->users && now - entry->used_at >= file->policy.idle_ms)
			return DF_NL;
	}
	return keep;
}

/* --- the inode's shed --------------------------------------------------------------------- */

static int idle(const struct df_extents *file, df_u64 now)
{
	return !file->inode.users &&
	       (file->closed || now - file->inode.used_at >= file->policy.leave_ms);
}

void df_extents_shed_begin(struct df_extents *file, df_u32 keep, df_u64 now)
{
	file->shedding = 1;
	file->converted = 0;
	file->target = (df_u8)keep;
	if (df_intention(keep) && idle(file, now))
		file->target = DF_NL;
	if (!df_caches(file->inode.held))
		return;
	if (bounced(file, &file->inode, now))
		file->shared_until = now + file->inode.calm_wait;
	if (df_intention(file->target))
		df_extent_wait_longer(file, &file->inode, now);
}

/* The extent used last under X that has no lock of its own for it. */
static struct df_extent *to_convert(struct df_extents *file)
{
	struct df_extent *found = NULL;
	df_u32 i;

	for (i = 0; i < file->entries; i++) {
		struct df_extent *entry = &file->entry[i];

		if (!entry->present || entry->whole == DF_NL ||
		    df_covers(entry->held, entry->whole))
			continue;
		if (!found || df_extent_colder(file, found, entry))
			found = entry;
	}
	return found;
}

static struct df_extent *to_drop(struct df_extents *file)
{
	df_u32 i;

	for (i = file->entries; i-- > 0;) {
		struct df_extent *entry = &file->entry[i];

		if (entry->present && entry->held != DF_NL)
			return entry;
	}
	return NULL;
}

void df_extents_shed_next(struct df_extents *file, struct df_step *step)
{
	struct df_extent *entry;
	df_u32 i;

	if (df_intention(file->target)) {
		entry = file->converted < file->policy.convert ? to_convert(file) : NULL;
		if (entry) {
			file->converted++;
			df_step_init(step, DF_STEP_TAKE, df_key_extent(file->ino, entry->number),
				     df_join(entry->held, entry->whole));
			step->try_only = 1;
			return;
		}
	} else {
		entry = to_drop(file);
		if (entry || file->size.held != DF_NL) {
			df_step_init(step, DF_STEP_DROP,
				     entry ? df_key_extent(file->ino, entry->number)
					   : df_key_size(file->ino),
				     DF_NL);
			return;
		}
	}
	for (i = 0; i < file->entries; i++)
		file->entry[i].whole = DF_NL;
	df_step_init(step, DF_STEP_DONE, df_key_inode(file->ino), file->target);
}

df_u32 df_extents_cover(const struct df_extents *file, df_u32 extent)
{
	df_u32 whole = file->shedding ? file->target : file->inode.held;
	df_u32 i;

	if (df_caches(whole))
		return whole;
	for (i = 0; whole != DF_NL && i < file->entries; i++) {
		const struct df_extent *entry = &file->entry[i];

		if (entry->present && entry->number == extent)
			return df_caches(entry->held) ? entry->held : DF_NL;
	}
	return DF_NL;
}

/* --- time --------------------------------------------------------------------------------- */

void df_extents_closed(struct df_extents *file, int closed)
{
	file->closed = closed != 0;
}

static void wake_by(struct df_step *step, df_u64 at)
{
	if (at < step->wake_at)
		step->wake_at = at;
}

void df_extents_tick(struct df_extents *file, df_u64 now, struct df_step *step)
{
	df_u32 i;

	df_step_init(step, DF_STEP_NONE, 0, DF_NL);
	if (!df_intention(file->inode.held) || file->shedding)
		return;
	if (idle(file, now)) {
		df_step_init(step, DF_STEP_DROP, df_key_inode(file->ino), DF_NL);
		return;
	}
	if (!file->inode.users)
		wake_by(step, file->inode.used_at + file->policy.leave_ms);
	for (i = 0; i < file->entries; i++) {
		const struct df_extent *entry = &file->entry[i];
		df_u64 last = entry->held == DF_IX ? entry->wrote_at : entry->used_at;

		if (!entry->present || entry->users || !df_intention(entry->held))
			continue;
		if (now - last >= file->policy.idle_ms) {
			df_step_init(step, DF_STEP_DROP, df_key_extent(file->ino, entry->number),
				     DF_NL);
			return;
		}
		wake_by(step, last + file->policy.idle_ms);
	}
}
