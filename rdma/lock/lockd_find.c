/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Find of a key whose bucket is full: the overflow area and re-keying.
 *
 * Serialised: one Find a bucket; others of the bucket are pending. So a key gets one slot: the overflow map, then the bucket, are
 * looked through before a slot is chosen, and only here keys that are not 0 change. A candidate is taken by waiting for X
 * in its own queue, like any waiter, idle or not; with owner 0x7fff in the word the new key is written, then the owner goes.
 */
#include "rdma/lock/lockd_internal.h"

#define HAND 8 /* overflow slots looked at for an idle one */

static df_u32 first_overflow(const struct df_lockd *lockd)
{
	return lockd->config.buckets * DF_BUCKET_SLOTS;
}

static df_u32 bucket_of(const struct df_lockd *lockd, const struct df_waiter *find)
{
	return df_hash_bucket(find->key, lockd->config.buckets);
}

/* --- the overflow map --------------------------------------------------------------------- */

static df_u32 *overflow_chain(struct df_lockd *lockd, df_u64 key)
{
	return &lockd->overflow_hash[df_hash_bucket(key, lockd->overflow_mask + 1)];
}

static df_u32 overflow_lookup(struct df_lockd *lockd, df_u64 key)
{
	df_u32 i;

	for (i = *overflow_chain(lockd, key); i != DF_NO_SLOT; i = lockd->overflow[i].next)
		if (lockd->overflow[i].key == key)
			return first_overflow(lockd) + i;
	return DF_NO_SLOT;
}

/* `slot` gets `key`; nothing if it is a primary one. */
static void overflow_assign(struct df_lockd *lockd, df_u32 slot, df_u64 key)
{
	df_u32 i = slot - first_overflow(lockd), *link;
	struct df_overflow *entry = &lockd->overflow[i];

	if (slot < first_overflow(lockd))
		return;
	if (entry->key) {
		for (link = overflow_chain(lockd, entry->key); *link != i;)
			link = &lockd->overflow[*link].next;
		*link = entry->next;
	}
	link = overflow_chain(lockd, key);
	entry->key = key;
	entry->next = *link;
	entry->reserved = 0;
	*link = i;
}

static void unreserve(struct df_lockd *lockd, df_u32 slot)
{
	if (slot >= first_overflow(lockd))
		lockd->overflow[slot - first_overflow(lockd)].reserved = 0;
}

/* --- the steps of one Find ---------------------------------------------------------------- */

static void begin(struct df_lockd *lockd, struct df_waiter *find);

static void read_slots(struct df_lockd *lockd, struct df_waiter *find, df_u32 state, df_u32 slot,
		       df_u32 count)
{
	struct df_chain chain;

	df_chain_init(&chain, state, DF_NO_SLOT);
	df_chain_read(&chain, df_slot_offset(slot), count * DF_SLOT_SIZE);
	df_waiter_post(lockd, find, state, &chain);
}

/* Answers, and lets the others of the bucket begin. */
static void finish(struct df_lockd *lockd, struct df_waiter *find, df_u32 slot)
{
	df_u32 bucket = bucket_of(lockd, find);
	struct df_waiter **link = &lockd->finds, *other;
	union df_msg found;

	while (*link != find)
		link = &(*link)->list_next;
	*link = find->list_next;
	if (find->node) {
		df_msg_init(&found, DF_MSG_FOUND, slot == DF_NO_SLOT ? 0 : slot, find->key,
			    find->seq);
		found.found.status = slot == DF_NO_SLOT ? DF_FOUND_BUSY : DF_FOUND_SLOT;
		df_lockd_send(lockd, find->node, &found);
	}
	df_waiter_free(lockd, find);
	for (other = lockd->finds; other; other = other->list_next) {
		if (other->state == DF_FIND_PENDING && bucket_of(lockd, other) == bucket) {
			begin(lockd, other);
			return; /* the next one follows when this one is finished */
		}
	}
}

static void begin(struct df_lockd *lockd, struct df_waiter *find)
{
	df_u32 slot = overflow_lookup(lockd, find->key);

	if (slot != DF_NO_SLOT)
		finish(lockd, find, slot);
	else
		read_slots(lockd, find, DF_FIND_BUCKET, bucket_of(lockd, find) * DF_BUCKET_SLOTS,
			   DF_BUCKET_SLOTS);
}

static void queue_for(struct df_lockd *lockd, struct df_waiter *find, df_u32 slot)
{
	find->slot = slot;
	find->state = DF_FIND_QUEUED;
	find->want = DF_X;
	find->held = DF_NL;
	if (slot >= first_overflow(lockd))
		lockd->overflow[slot - first_overflow(lockd)].reserved = 1;
	if (df_queue_add(lockd, slot, find)) {
		unreserve(lockd, slot);
		finish(lockd, find, DF_NO_SLOT);
	}
}

void df_find_busy(struct df_lockd *lockd, struct df_waiter *find)
{
	unreserve(lockd, find->slot);
	finish(lockd, find, DF_NO_SLOT);
}

/* ORDER: the first empty one, as clients do it. */
static void claim(struct df_lockd *lockd, struct df_waiter *find, df_u32 slot)
{
	struct df_chain chain;

	find->slot = slot;
	df_chain_init(&chain, DF_FIND_CLAIM, slot);
	df_chain_cas(&chain, df_slot_offset(slot) + offsetof(struct df_slot, key), 0, find->key);
	df_waiter_post(lockd, find, DF_FIND_CLAIM, &chain);
}

static void evict(struct df_lockd *lockd, struct df_waiter *find)
{
	if (lockd->grace) { /* whoever holds the victim is not to be asked */
		finish(lockd, find, DF_NO_SLOT);
		return;
	}
	queue_for(lockd, find,
		  bucket_of(lockd, find) * DF_BUCKET_SLOTS + lockd->victim++ % DF_BUCKET_SLOTS);
}

static int take_unused(struct df_lockd *lockd, struct df_waiter *find)
{
	if (lockd->overflow_used == lockd->config.overflow)
		return 0;
	queue_for(lockd, find, first_overflow(lockd) + lockd->overflow_used++);
	return 1;
}

static void try_overflow(struct df_lockd *lockd, struct df_waiter *find)
{
	df_u32 left;

	if (take_unused(lockd, find))
		return;
	if (!lockd->config.overflow) {
		evict(lockd, find);
		return;
	}
	lockd->hand = lockd->hand < lockd->config.overflow ? lockd->hand : 0;
	find->slot = lockd->hand;
	left = lockd->config.overflow - lockd->hand;
	left = left < HAND ? left : HAND;
	lockd->hand += left;
	read_slots(lockd, find, DF_FIND_OVERFLOW, first_overflow(lockd) + find->slot, left);
}

static void bucket_read(struct df_lockd *lockd, struct df_waiter *find, const struct df_slot *slots)
{
	df_u32 first = bucket_of(lockd, find) * DF_BUCKET_SLOTS, i;

	for (i = 0; i < DF_BUCKET_SLOTS; i++) {
		if (slots[i].key == find->key) {
			finish(lockd, find, first + i);
			return;
		}
	}
	for (i = 0; i < DF_BUCKET_SLOTS; i++) {
		if (!slots[i].key) {
			claim(lockd, find, first + i);
			return;
		}
	}
	if (lockd->grace &&
	    take_unused(lockd, find)) /* a free word may be one just claimed, to be taken next */
		return;
	for (i = 0; i < DF_BUCKET_SLOTS; i++) {
		if (!slots[i].word) {
			queue_for(lockd, find, first + i);
			return;
		}
	}
	try_overflow(lockd, find);
}

static void overflow_read(struct df_lockd *lockd, struct df_waiter *find,
			  const struct df_slot *slots)
{
	df_u32 left = lockd->config.overflow - find->slot, i;

	for (i = 0; i < HAND && i < left; i++) {
		if (!slots[i].word && !lockd->overflow[find->slot + i].reserved) {
			queue_for(lockd, find, first_overflow(lockd) + find->slot + i);
			return;
		}
	}
	evict(lockd, find);
}

void df_find(struct df_lockd *lockd, df_u32 node, const struct df_msg_head *head)
{
	struct df_waiter *find = df_waiter_new(lockd, DF_WAITER_FIND, node, head), *other;
	union df_msg found;

	lockd->count.finds++;
	if (!find) {
		df_msg_init(&found, DF_MSG_FOUND, 0, head->key, head->seq);
		found.found.status = DF_FOUND_BUSY;
		df_lockd_send(lockd, node, &found);
		return;
	}
	for (other = lockd->finds; other; other = other->list_next)
		if (bucket_of(lockd, other) == bucket_of(lockd, find))
			break;
	find->list_next = lockd->finds;
	lockd->finds = find;
	find->state = DF_FIND_PENDING;
	if (!other)
		begin(lockd, find);
}

void df_find_chain_done(struct df_lockd *lockd, struct df_waiter *find, df_u64 old,
			const struct df_slot *image)
{
	switch (find->state) {
	case DF_FIND_BUCKET:
		bucket_read(lockd, find, image);
		break;
	case DF_FIND_CLAIM:
		if (!old || old == find->key)
			finish(lockd, find, find->slot);
		else
			begin(lockd, find);
		break;
	case DF_FIND_OVERFLOW:
		overflow_read(lockd, find, image);
		break;
	default:
		break;
	}
}

/*
 * ORDER: key, version, value and hints first, the owner off after them. Whoever takes in between sees owner 0x7fff and
 * undoes; whoever takes later reads the new key.
 */
void df_find_rekey(struct df_lockd *lockd, struct df_object *object, struct df_waiter *find)
{
	struct df_slot *image = &object->image;
	struct df_chain chain;

	lockd->count.rekeys++;
	overflow_assign(lockd, object->slot, find->key);
	image->key = find->key;
	image->version = df_version(++lockd->era, 0);
	memset(&image->value, 0, sizeof(image->value));
	image->reserved = 0;
	memset(image->hints, 0, sizeof(image->hints));
	df_chain_init(&chain, DF_OBJECT_REKEYING, object->slot);
	df_chain_write(&chain, df_slot_offset(object->slot) + offsetof(struct df_slot, key), 0,
		       &image->key, DF_SLOT_SIZE - offsetof(struct df_slot, key));
	df_chain_faa(&chain, df_slot_offset(object->slot), 0 - df_unit(DF_X, DF_NODE_LOCKD));
	df_object_post(lockd, object, DF_OBJECT_REKEYING, &chain);
}

void df_find_rekeyed(struct df_lockd *lockd, struct df_object *object, df_u64 old)
{
	struct df_waiter *find = df_queue_pop(object);

	object->image.word = old - df_unit(DF_X, DF_NODE_LOCKD);
	object->state = DF_OBJECT_READY;
	object->batch = 0;
	finish(lockd, find, object->slot);
	df_queue_pump(lockd, object);
}
