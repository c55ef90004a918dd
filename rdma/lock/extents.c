/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#include "rdma/lock/extents_internal.h"

enum { STAGE_INODE, STAGE_SIZE, STAGE_RESERVE, STAGE_EXTENTS, STAGE_READY };

const struct df_extents_policy df_extents_default = {
	.shift = 22,
	.worth = 8,
	.bounces = 3,
	.bounce_ms = 1000,
	.calm_ms = 200,
	.calm_max_ms = 10000,
	.idle_ms = 100,
	.leave_ms = 5000,
	.convert = 64,
};

static int writes(const struct df_access *access)
{
	return access->kind == DF_ACCESS_WRITE || access->kind == DF_ACCESS_APPEND ||
	       access->kind == DF_ACCESS_WHOLE;
}

/* --- entries ------------------------------------------------------------------------------ */

static struct df_extent *find(struct df_extents *file, df_u32 number)
{
	df_u32 i;

	if (file->entry[file->recent].present && file->entry[file->recent].number == number)
		return &file->entry[file->recent];
	for (i = 0; i < file->entries; i++) {
		if (file->entry[i].present && file->entry[i].number == number) {
			file->recent = i;
			return &file->entry[i];
		}
	}
	return NULL;
}

struct df_extent *df_extent_by_key(struct df_extents *file, df_u64 key)
{
	df_u32 number;

	if (!df_key_split_extent(key, &number))
		return &file->inode;
	return number == DF_KEY_EXTENT_MAX ? &file->size : find(file, number);
}

static void use(struct df_extents *file, struct df_extent *entry, df_u64 now)
{
	entry->used_at = now;
	entry->order = ++file->order;
}

/* The coldest that nobody uses, held or not. */
static struct df_extent *coldest(struct df_extents *file, int held)
{
	struct df_extent *found = NULL;
	df_u32 i;

	for (i = 0; i < file->entries; i++) {
		struct df_extent *entry = &file->entry[i];

		if (!entry->present && !held)
			return entry;
		if (entry->present && !entry->users && (entry->held != DF_NL) == held &&
		    df_extent_colder(file, entry, found))
			found = entry;
	}
	return found;
}

static struct df_extent *make(struct df_extents *file, df_u32 number)
{
	struct df_extent *entry = coldest(file, 0);

	if (!entry)
		return NULL;
	memset(entry, 0, sizeof(*entry));
	entry->present = 1;
	entry->number = number;
	entry->calm_wait = file->policy.calm_ms;
	entry->order = file->order;
	return entry;
}

/* --- contention --------------------------------------------------------------------------- */

void df_extent_wait_longer(const struct df_extents *file, struct df_extent *entry, df_u64 now)
{
	entry->calm_at = now + entry->calm_wait;
	entry->calm_wait = entry->calm_wait * 2 < file->policy.calm_max_ms
				   ? entry->calm_wait * 2
				   : file->policy.calm_max_ms;
}

void df_extent_go_uncached(const struct df_extents *file, struct df_extent *entry, df_u64 now)
{
	if (!entry->uncached)
		df_extent_wait_longer(file, entry, now);
	entry->uncached = 1;
}

/* Caching again, on probation. */
static void return_to_cache(const struct df_extents *file, struct df_extent *entry)
{
	if (!entry->uncached)
		return;
	entry->uncached = 0;
	entry->hits = 0;
	entry->bounces = (df_u8)(file->policy.bounces - 1);
}

/* --- steps -------------------------------------------------------------------------------- */

static void step_try(struct df_step *step, df_u64 key, df_u32 mode)
{
	df_step_init(step, DF_STEP_LOCK, key, mode);
	step->try_only = 1;
}

/* IX beside a held S would join to X, which asks everybody out: S goes first. */
static void step_ask(struct df_step *step, df_u64 key, df_u32 held, df_u32 mode)
{
	if (held == DF_S && mode == DF_IX)
		df_step_init(step, DF_STEP_DROP, key, DF_NL);
	else
		df_step_init(step, DF_STEP_LOCK, key, mode);
}

static int beyond_extents(const struct df_extents *file, const struct df_access *access)
{
	return (access->kind == DF_ACCESS_READ || access->kind == DF_ACCESS_WRITE) && access->end &&
	       (access->end - 1) >> file->policy.shift > DF_EXTENT_LAST;
}

static void inode_step(struct df_extents *file, struct df_access *access, df_u64 now,
		       struct df_step *step)
{
	df_u64 key = df_key_inode(file->ino);
	df_u32 held = file->inode.held;
	df_u32 whole = writes(access) ? DF_X : DF_S;

	if (access->kind == DF_ACCESS_WHOLE || beyond_extents(file, access) ||
	    df_covers(held, whole))
		df_step_init(step, DF_STEP_LOCK, key, whole);
	else if (access->ask)
		step_ask(step, key, held, access->ask);
	else if (!df_intention(held))
		step_try(step, key, whole);
	else if (now >= file->inode.calm_at)
		step_try(step, key, df_join(held, whole));
	else
		df_step_init(step, DF_STEP_LOCK, key, whole == DF_X ? DF_IX : held);
}

static void size_step(const struct df_extents *file, const struct df_access *access,
		      struct df_step *step)
{
	df_u64 key = df_key_size(file->ino);
	df_u32 held = file->size.held;

	if (access->kind == DF_ACCESS_APPEND)
		df_step_init(step, DF_STEP_LOCK, key, DF_X);
	else if (access->kind != DF_ACCESS_WRITE)
		df_step_init(step, DF_STEP_LOCK, key, DF_S);
	else if (df_covers(held, DF_IX))
		df_step_init(step, DF_STEP_LOCK, key, DF_IX);
	else if (access->ask)
		step_ask(step, key, held, access->ask);
	else
		step_try(step, key, DF_X);
}

static void extent_step(const struct df_extents *file, const struct df_access *access,
			const struct df_extent *entry, df_u64 now, struct df_step *step)
{
	df_u64 key = df_key_extent(file->ino, entry->number);
	df_u32 cached = writes(access) ? DF_X : DF_S;
	df_u32 raw = writes(access) ? DF_IX : DF_IS;

	if (df_covers(entry->held, cached))
		df_step_init(step, DF_STEP_LOCK, key, cached);
	else if (access->ask)
		step_ask(step, key, entry->held, access->ask);
	else if (entry->uncached && (now < entry->calm_at || entry->users > 1))
		step_ask(step, key, entry->held, raw);
	else
		step_try(step, key, df_join(entry->held, cached));
}

/* --- an access ---------------------------------------------------------------------------- */

void df_access_begin(struct df_extents *file, struct df_access *access, df_u32 kind, df_u64 offset,
		     df_u64 end, df_u64 now)
{
	memset(access, 0, sizeof(*access));
	access->kind = (df_u8)kind;
	access->now = now;
	if (kind != DF_ACCESS_GETATTR && kind != DF_ACCESS_WHOLE) {
		access->offset = offset;
		access->end = end;
	}
	file->inode.users++;
}

static int needs_size_lock(const struct df_extents *file, const struct df_access *access)
{
	return access->kind != DF_ACCESS_READ || access->end > file->floor;
}

static int needs_size(const struct df_extents *file, const struct df_access *access)
{
	if (file->exact || access->kind == DF_ACCESS_WRITE || access->kind == DF_ACCESS_WHOLE)
		return 0;
	return access->kind != DF_ACCESS_READ || access->end > file->floor;
}

/* Where the access is known now: the end of the file, the cut, the extents. 0: no data is touched. */
static int set_range(struct df_extents *file, struct df_access *access)
{
	df_u32 shift = file->policy.shift;
	df_u64 most;

	if (access->kind == DF_ACCESS_APPEND) {
		access->offset = file->floor;
		access->end += file->floor;
	}
	if (access->kind == DF_ACCESS_READ && access->end > file->floor)
		access->end = file->floor;
	if (access->end <= access->offset) {
		access->end = access->offset;
		return 0;
	}
	if (access->offset >> shift > DF_EXTENT_LAST) { /* by the whole file, or not at all */
		if (!access->whole)
			access->end = access->offset;
		access->cached = ~0u;
		return 0;
	}
	most = ((access->offset >> shift) + DF_EXTENTS_SPAN) << shift;
	if (most > (df_u64)(DF_EXTENT_LAST + 1) << shift)
		most = (df_u64)(DF_EXTENT_LAST + 1) << shift;
	if (access->end > most)
		access->end = most;
	access->first = access->next = (df_u32)(access->offset >> shift);
	access->last = (df_u32)((access->end - 1) >> shift);
	return 1;
}

/* Under the whole file: remember the use, for a shed that converts. */
static void touch_whole(struct df_extents *file, struct df_access *access, df_u64 now)
{
	df_u32 number;

	for (number = access->first; number <= access->last; number++) {
		struct df_extent *entry = find(file, number);

		if (!entry)
			entry = make(file, number);
		if (entry) {
			entry->whole = (df_u8)df_join(entry->whole, writes(access) ? DF_X : DF_S);
			use(file, entry, now);
		}
		/* Beside uncached I/O that is still under way here nothing may be cached. */
		if (!entry || !entry->raw)
			access->cached |= 1u << (number - access->first);
	}
}

/* All entries or none, so that two accesses do not wait for each other's. 0: the step says what is in the way. */
static int reserve(struct df_extents *file, struct df_access *access, df_u64 now,
		   struct df_step *step)
{
	struct df_extent *victim;
	df_u32 number, i;

	for (number = access->first; number <= access->last; number++) {
		struct df_extent *entry = find(file, number);

		if (!entry)
			entry = make(file, number);
		if (entry) {
			if (now < file->hot_until && entry->held == DF_NL && !entry->uncached) {
				df_extent_wait_longer(file, entry, now);
				entry->uncached = 1;
			}
			entry->users++;
			continue;
		}
		for (i = access->first; i < number; i++)
			find(file, i)->users--;
		victim = coldest(file, 1);
		if (victim)
			df_step_init(step, DF_STEP_DROP, df_key_extent(file->ino, victim->number),
				     DF_NL);
		else
			df_step_init(step, DF_STEP_BUSY, 0, DF_NL);
		return 0;
	}
	access->ranged = 1;
	return 1;
}

static df_u32 stage_after_size(struct df_extents *file, struct df_access *access, df_u64 now)
{
	if (access->kind == DF_ACCESS_GETATTR || access->kind == DF_ACCESS_WHOLE ||
	    !set_range(file, access))
		return STAGE_READY;
	if (!access->whole)
		return STAGE_RESERVE;
	touch_whole(file, access, now);
	return STAGE_READY;
}

void df_access_next(struct df_extents *file, struct df_access *access, df_u64 now,
		    struct df_step *step)
{
	if (access->stage == STAGE_INODE) {
		inode_step(file, access, now, step);
		return;
	}
	if (access->stage == STAGE_SIZE) {
		int pinned = access->whole || access->pins == 2;

		if (!pinned && needs_size_lock(file, access)) {
			size_step(file, access, step);
			return;
		}
		if (needs_size(file, access)) {
			df_step_init(step, DF_STEP_SIZE, df_key_size(file->ino), DF_NL);
			return;
		}
		access->stage = (df_u8)stage_after_size(file, access, now);
	}
	if (access->stage == STAGE_RESERVE) {
		if (!reserve(file, access, now, step))
			return;
		access->stage = STAGE_EXTENTS;
	}
	if (access->stage == STAGE_EXTENTS) {
		if (access->next <= access->last) {
			extent_step(file, access, find(file, access->next), now, step);
			return;
		}
		access->stage = STAGE_READY;
	}
	df_step_init(step, DF_STEP_READY, 0, DF_NL);
}

static void extent_pinned(struct df_extents *file, struct df_access *access)
{
	struct df_extent *entry = find(file, access->next);
	df_u32 bit = 1u << (access->next - access->first);
	df_u32 cached = writes(access) ? DF_X : DF_S;

	if (df_caches(entry->held))
		return_to_cache(file, entry);
	/* The whole file may have come meanwhile, and pages under it. */
	if (!entry->raw &&
	    (df_covers(entry->held, cached) || df_covers(file->inode.held, cached))) {
		access->cached |= bit;
	} else {
		access->raw |= bit;
		entry->raw++;
	}
	entry->hits++;
	access->next++;
}

void df_extents_pinned(struct df_extents *file, struct df_access *access,
		       const struct df_step *step)
{
	access->pin[access->pins].key = step->key;
	access->pin[access->pins].mode = step->mode;
	access->pins++;
	access->ask = DF_NL;
	if (access->stage == STAGE_INODE) {
		access->whole = df_covers(file->inode.held, writes(access) ? DF_X : DF_S) != 0;
		file->inode.hits++;
		access->stage = STAGE_SIZE;
	} else if (access->stage == STAGE_EXTENTS) {
		extent_pinned(file, access);
	}
}

/* The whole file was tried in vain. */
static void inode_blocked(struct df_extents *file, struct df_access *access, df_u64 word,
			  df_u64 now)
{
	int shared = now < file->shared_until;

	if (df_intention(file->inode.held)) {
		df_extent_wait_longer(file, &file->inode, now);
		access->ask = writes(access) ? DF_IX : file->inode.held;
	} else if (writes(access)) {
		access->ask = shared || df_word_owner(word) || df_word_ix(word) || df_word_is(word)
				      ? DF_IX
				      : DF_X;
	} else if (df_word_ix(word)) {
		access->ask = DF_IS;
	} else {
		/* IX leaves a busy writer its dirty extents; S makes one that has finished flush once. */
		access->ask = shared && df_word_owner(word) ? DF_IX : DF_S;
	}
	if (df_intention(access->ask) && !df_intention(file->inode.held))
		df_extent_wait_longer(file, &file->inode, now);
}

static void extent_blocked(struct df_extents *file, struct df_access *access, df_u64 word,
			   df_u64 now)
{
	struct df_extent *entry = find(file, access->next);
	int raw_there = df_word_ix(word) || (writes(access) && df_word_is(word));

	if (entry->uncached)
		df_extent_wait_longer(file, entry, now);
	else if (raw_there)
		df_extent_go_uncached(file, entry, now);
	if (entry->uncached)
		access->ask = writes(access) ? DF_IX : DF_IS;
	else
		access->ask = writes(access) ? DF_X : DF_S;
}

void df_extents_blocked(struct df_extents *file, struct df_access *access,
			const struct df_step *step, df_u64 word, df_u64 now)
{
	if (!access) { /* of a shed: its pages are given up */
		struct df_extent *entry = df_extent_by_key(file, step->key);

		if (entry)
			entry->whole = DF_NL;
		return;
	}
	if (access->stage == STAGE_INODE)
		inode_blocked(file, access, word, now);
	else if (access->stage == STAGE_SIZE)
		access->ask = DF_IX;
	else
		extent_blocked(file, access, word, now);
}

void df_access_end(struct df_extents *file, struct df_access *access, int done, df_u64 now)
{
	df_u32 number;

	if (access->ranged) {
		for (number = access->first; number <= access->last; number++) {
			struct df_extent *entry = find(file, number);

			entry->users--;
			if (access->raw >> (number - access->first) & 1u)
				entry->raw--;
			use(file, entry, now);
			if (writes(access))
				entry->wrote_at = now;
		}
	}
	if (done && (access->kind == DF_ACCESS_WRITE || access->kind == DF_ACCESS_APPEND) &&
	    access->end > file->floor)
		file->floor = access->end;
	file->inode.users--;
	use(file, &file->inode, now);
}

/* --- what is held ------------------------------------------------------------------------- */

void df_extents_size(struct df_extents *file, df_u64 size)
{
	file->floor = size;
	file->exact = df_caches(file->inode.held) || df_caches(file->size.held);
}

void df_extents_held(struct df_extents *file, df_u64 key, df_u32 mode)
{
	struct df_extent *entry = df_extent_by_key(file, key);

	if (!entry)
		return;
	if (df_caches(mode) && !df_covers(entry->held, mode))
		entry->hits = 0;
	entry->held = (df_u8)mode;
	if (entry == &file->inode) {
		file->shedding = 0;
		if (mode == DF_NL)
			file->floor = 0;
	}
	if (!df_caches(file->inode.held) && !df_caches(file->size.held))
		file->exact = 0;
}

int df_extents_init(struct df_extents *file, df_u64 ino, const struct df_extents_policy *policy,
		    struct df_extent *entry, df_u32 entries)
{
	if (!policy)
		policy = &df_extents_default;
	if (entries < DF_EXTENTS_MIN || policy->shift < 6 || policy->shift > 40 || !policy->bounces)
		return -1;
	memset(file, 0, sizeof(*file));
	memset(entry, 0, entries * sizeof(*entry));
	file->policy = *policy;
	file->ino = ino;
	file->entry = entry;
	file->entries = entries;
	file->inode.calm_wait = policy->calm_ms;
	file->size.calm_wait = policy->calm_ms;
	return 0;
}
