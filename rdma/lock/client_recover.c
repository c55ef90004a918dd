/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * lockd's restart: what a lock holds is taken again in the new table. Protocol: client.h and session.h.
 *
 * Why a conflict is a liar's or passes: only sessions that were live when lockd ended re-assert, each what it held or was certainly
 * granted; those modes were compatible in the old word. What else can stand in a word of the new table: lockd's owner 0x7fff while it
 * re-keys (found again), and units of an attempt on another key that this slot had or has, which the next chain of that session takes
 * off, or lockd when that session has ended. That may take as long as a lease. So shared units are no conflict: X is taken beside them, as
 * it would stand if they had come later. An owner is in the way, for the field has room for one: tried again, then forfeited.
 *
 * Known weakness: the owner may be an attempt on another key of a session that stands still for longer than the tries last. It takes a slot
 * that is claimed in grace and re-keyed before its first take arrives, which lockd does last (lockd_find.c).
 */
#include "rdma/lock/client_internal.h"

#define CONFLICTS 16 /* with the shell's pauses about a second */

void df_lock_detach(struct df_lock *lock)
{
	if (lock->lost)
		return;
	if (lock->chain == DF_CHAIN_RELEASE) { /* `kept` is held: nothing is left to post */
		lock->held = lock->kept;
		lock->shed_due = 1;
	}
	lock->void_try |= lock->try_only;
	lock->chain = DF_CHAIN_NONE;
	lock->target = DF_NL;
	lock->slot = DF_NO_SLOT;
	lock->revoke_seq = 0;
	lock->next_seq = 0;
	lock->glimpse_seq = 0;
	lock->publish_due = 0;
	lock->publish_value = 0;
	lock->try_only = 0;
	lock->asked = 0;
	lock->finding = 0;
	lock->cancelling = 0;
	lock->woken = 0;
	lock->refind = 0;
	lock->empty = 0;
	lock->stale = 0;
	lock->conflicts = 0;
	lock->asserting = 0;
	lock->asserted = 0;
	lock->over = 0;
	lock->detached = 1;
}

int df_lock_reassert(struct df_lock *lock, struct df_out *out)
{
	df_out_begin(out);
	if (lock->lost || !lock->detached || lock->asserted || lock->chain || lock->finding)
		return 0;
	if (lock->shed_due) { /* given up already, in a table that is gone */
		lock->held = lock->kept;
		lock->changed = 0;
		lock->distrust = lock->kept == DF_IX;
	}
	if (lock->held == DF_NL)
		return 0;
	lock->asserting = 1;
	if (lock->slot == DF_NO_SLOT)
		df_post_find(lock, out);
	else
		df_assert_take(lock, out);
	return 1;
}

void df_assert_take(struct df_lock *lock, struct df_out *out)
{
	struct df_chain *chain = df_begin_chain(lock, DF_CHAIN_TAKE, out);
	df_u64 unit = df_own_unit(lock, lock->held);

	lock->woken = 0;
	lock->refind = 0;
	if (lock->held == DF_X) {
		df_chain_cas(chain, df_word_offset(lock), lock->over, lock->over | unit);
	} else {
		df_chain_hint(lock, chain);
		df_chain_faa(chain, df_word_offset(lock), unit);
	}
	lock->undo = 0 - unit;
	df_chain_read(chain, df_word_offset(lock), DF_SLOT_SIZE);
}

static void asserted(struct df_lock *lock, const struct df_slot *slot, struct df_out *out)
{
	lock->asserting = 0;
	lock->asserted = 1;
	lock->stale = 0;
	lock->version = slot->version;
	if (!lock->changed)
		lock->value = slot->value;
	if (lock->distrust || lock->held == DF_IS)
		lock->value.flags &= ~DF_VALUE_PUBLISHED;
	out->wake |= DF_WAKE_REASSERTED;
}

void df_assert_taken(struct df_lock *lock, df_u64 old, const struct df_slot *slot,
		     struct df_out *out)
{
	int in_word = lock->held != DF_X || old == lock->over;

	lock->woken = (unsigned)df_word_contended(old) & 1u;
	lock->refind = slot->key != lock->key || df_word_owner(old) == DF_NODE_LOCKD;
	if (in_word && !lock->refind && !df_word_owner(old))
		asserted(lock, slot, out);
	else if (in_word)
		df_chain_faa(df_begin_chain(lock, DF_CHAIN_UNDO, out), df_word_offset(lock),
			     lock->undo);
	else if (lock->refind)
		df_find_again(lock, out);
	else if (
		!df_word_owner(
			old)) { /* lockd's queue stands behind what was held before; shared units are attempts */
		lock->over = old;
		df_assert_take(lock, out);
	} else {
		df_assert_failed(lock, out);
	}
}

static void forfeit(struct df_lock *lock, struct df_out *out)
{
	lock->asserting = 0;
	lock->asserted = 1;
	lock->held = DF_NL;
	lock->changed = 0;
	lock->distrust = 0;
	lock->forfeited = 1;
	if (lock->gate == DF_GATE_OPEN || lock->shed_due) {
		lock->shed_due = 0; /* what it kept goes as well */
		df_begin_shed(lock, 0, DF_NL, out);
	} else { /* one is under way; a closed gate is to be closed again, after a sweep for this `keep` */
		lock->keep = DF_NL;
		lock->gate = DF_GATE_REVOKING;
	}
	out->wake |= DF_WAKE_FORFEITED;
}

/* Nothing of ours is in the word. */
void df_assert_failed(struct df_lock *lock, struct df_out *out)
{
	if (lock->woken)
		df_send_released(lock, 0, out);
	lock->woken = 0;
	if (++lock->conflicts < CONFLICTS)
		out->wake |= DF_WAKE_BUSY;
	else
		forfeit(lock, out);
}

void df_lock_resume(struct df_lock *lock, struct df_out *out)
{
	df_out_begin(out);
	if (lock->lost || !lock->detached)
		return;
	if (lock->held != DF_NL && !lock->asserted) {
		if (lock->chain || lock->finding)
			return; /* it is not yet time: its end comes first */
		forfeit(lock, out);
	}
	lock->detached = 0;
	lock->asserting = 0;
	lock->asserted = 0;
	if (lock->void_try)
		out->wake |= DF_WAKE_WOULD_BLOCK;
	lock->void_try = 0;
	df_advance(lock, out);
}
