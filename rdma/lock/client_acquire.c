/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How a lock is got: find the slot, try, and if somebody is in the way ask lockd. Protocol: client.h. */
#include "rdma/lock/client_internal.h"

#define STALE_TAKES 8 /* then lockd is asked, which serialises with its own re-keying */

static int somebody_waits(const struct df_lock *lock)
{
	return lock->want != DF_NL || lock->try_only || lock->asserting;
}

/* --- taking ------------------------------------------------------------------------------- */

static void post_take(struct df_lock *lock, struct df_out *out)
{
	struct df_chain *chain = df_begin_chain(lock, DF_CHAIN_TAKE, out);
	df_u64 held = df_own_unit(lock, lock->held);
	df_u64 target;

	if (!lock->try_only) /* waiters may have come and gone since the search began */
		lock->target = (df_u8)df_join(lock->held, lock->want);
	target = df_own_unit(lock, lock->target);
	lock->woken = 0;
	lock->refind = 0;
	lock->undo = held - target;
	if (lock->target == DF_X) {
		df_chain_cas(chain, df_word_offset(lock), held, target);
	} else {
		df_chain_hint(lock, chain);
		df_chain_faa(chain, df_word_offset(lock), target - held);
	}
	df_chain_read(chain, df_word_offset(lock), DF_SLOT_SIZE);
}

void df_post_find(struct df_lock *lock, struct df_out *out)
{
	df_u32 bucket = df_hash_bucket(lock->key, lock->table->buckets);
	struct df_chain *chain = df_begin_chain(lock, DF_CHAIN_FIND, out);

	df_chain_read(chain, (df_u64)bucket * DF_BUCKET_SIZE, DF_BUCKET_SIZE);
}

void df_begin_acquire(struct df_lock *lock, df_u32 mode, struct df_out *out)
{
	lock->target = (df_u8)df_join(lock->held, mode);
	if (lock->slot == DF_NO_SLOT)
		df_post_find(lock, out);
	else
		post_take(lock, out);
}

void df_end_acquire(struct df_lock *lock, df_u32 wake, struct df_out *out)
{
	lock->target = DF_NL;
	lock->try_only = 0;
	out->wake |= (df_u8)wake;
	df_advance(lock, out);
}

void df_granted(struct df_lock *lock, df_u64 version, const struct df_value *value,
		struct df_out *out)
{
	/*
	 * Who holds IX changes at the servers what the block speaks of: beside or under intention modes it says nothing, and
	 * the next release from IX, or from what IX was raised to, takes it back.
	 */
	lock->distrust |= lock->target == DF_IX;
	lock->held = lock->target;
	lock->version = version;
	lock->value = *value;
	if (lock->distrust || lock->held == DF_IS)
		lock->value.flags &= ~DF_VALUE_PUBLISHED;
	lock->stale = 0;
	if (df_covers(lock->held, lock->want))
		lock->want = DF_NL;
	df_end_acquire(lock, DF_WAKE_GRANTED, out);
}

void df_send_ask(struct df_lock *lock, struct df_out *out)
{
	union df_msg *ask;

	lock->target = (df_u8)df_join(lock->held, lock->want);
	ask = df_add_message(out, DF_MSG_ASK, lock->slot, lock->key, ++lock->request);
	ask->ask.want = lock->target;
	ask->ask.held = lock->held;
	lock->asked = 1;
	lock->cancelling = 0;
}

static void send_find(struct df_lock *lock, struct df_out *out)
{
	if (lock->try_only) {
		df_end_acquire(lock, DF_WAKE_WOULD_BLOCK, out);
		return;
	}
	df_add_message(out, DF_MSG_FIND, 0, lock->key, ++lock->request);
	lock->finding = 1;
	df_advance(lock, out);
}

/* The slot has another key now; nothing of ours is in its word. */
void df_find_again(struct df_lock *lock, struct df_out *out)
{
	if (lock->woken || lock->next_seq) {
		df_send_released(lock, lock->next_seq, out);
		lock->next_seq = 0;
	}
	lock->slot = DF_NO_SLOT;
	if (!somebody_waits(lock))
		df_end_acquire(lock, 0, out);
	else if (++lock->stale > STALE_TAKES)
		send_find(lock, out);
	else
		df_post_find(lock, out);
}

/* The attempt met a conflict or a queue; nothing but `held` is in the word. */
static void take_failed(struct df_lock *lock, struct df_out *out)
{
	if (lock->refind) {
		df_find_again(lock, out);
		return;
	}
	if (lock->asserting) {
		df_assert_failed(lock, out);
		return;
	}
	if (lock->try_only ||
	    df_covers(lock->held, lock->want)) { /* nobody waits for more any longer */
		if (lock->woken)
			df_send_released(lock, 0, out);
		df_end_acquire(lock, lock->try_only ? DF_WAKE_WOULD_BLOCK : 0, out);
		return;
	}
	df_send_ask(lock, out);
	df_advance(lock, out);
}

void df_take_done(struct df_lock *lock, df_u64 old, const struct df_slot *slot, struct df_out *out)
{
	df_u64 others = old - df_own_unit(lock, lock->held);
	int in_word = lock->target != DF_X || others == 0;

	if (lock->asserting) {
		df_assert_taken(lock, old, slot, out);
		return;
	}
	lock->woken = (unsigned)df_word_contended(old) & 1u;
	/* What is held cannot be re-keyed: with a held mode this is a conflict, and lockd will say what is wrong. */
	if (lock->held == DF_NL && (slot->key != lock->key || df_word_owner(old) == DF_NODE_LOCKD))
		lock->refind = 1;
	if (in_word && !lock->refind && !lock->woken && df_word_admits(others, lock->target)) {
		df_granted(lock, slot->version, &slot->value, out);
		return;
	}
	if (!in_word) {
		take_failed(lock, out);
		return;
	}
	df_chain_faa(df_begin_chain(lock, DF_CHAIN_UNDO, out), df_word_offset(lock), lock->undo);
}

void df_undo_done(struct df_lock *lock, df_u64 old, struct df_out *out)
{
	if (df_word_contended(old))
		lock->woken = 1;
	take_failed(lock, out);
}

/* --- finding ------------------------------------------------------------------------------ */

void df_slot_found(struct df_lock *lock, df_u32 slot, struct df_out *out)
{
	lock->slot = slot;
	if (lock->asserting)
		df_assert_take(lock, out);
	else if (somebody_waits(lock))
		post_take(lock, out);
	else
		df_end_acquire(lock, 0, out);
}

/* ORDER: claims go to the first empty slot, then to the next: all claimers of one key meet. */
static void claim_next(struct df_lock *lock, struct df_out *out)
{
	df_u32 first = df_hash_bucket(lock->key, lock->table->buckets) * DF_BUCKET_SLOTS;
	struct df_chain *chain;

	if (!somebody_waits(lock)) {
		df_end_acquire(lock, 0, out);
		return;
	}
	if (!lock->empty) {
		send_find(lock, out);
		return;
	}
	for (lock->claim = 0; !((df_u32)lock->empty >> lock->claim & 1u);)
		lock->claim++;
	chain = df_begin_chain(lock, DF_CHAIN_CLAIM, out);
	chain->slot = first + lock->claim;
	df_chain_cas(chain, df_slot_offset(first + lock->claim) + offsetof(struct df_slot, key), 0,
		     lock->key);
}

void df_find_done(struct df_lock *lock, const struct df_slot *slots, struct df_out *out)
{
	df_u32 first = df_hash_bucket(lock->key, lock->table->buckets) * DF_BUCKET_SLOTS;
	df_u32 i;

	lock->empty = 0;
	for (i = 0; i < DF_BUCKET_SLOTS; i++) {
		if (slots[i].key == lock->key) {
			df_slot_found(lock, first + i, out);
			return;
		}
		if (!slots[i].key)
			lock->empty |= (df_u8)(1u << i);
	}
	claim_next(lock, out);
}

void df_claim_done(struct df_lock *lock, df_u64 old, struct df_out *out)
{
	df_u32 first = df_hash_bucket(lock->key, lock->table->buckets) * DF_BUCKET_SLOTS;

	if (old == 0 || old == lock->key) {
		df_slot_found(lock, first + lock->claim, out);
		return;
	}
	lock->empty &= (df_u8) ~(1u << lock->claim);
	claim_next(lock, out);
}
