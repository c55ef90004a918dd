/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Parties, states and duties of the shell: client.h. */
#include "rdma/lock/client_internal.h"

df_u64 df_own_unit(const struct df_lock *lock, df_u32 mode)
{
	return df_unit(mode, lock->table->node);
}

void df_out_begin(struct df_out *out)
{
	out->wake = 0;
	out->shed = 0;
	out->keep = DF_NL;
	out->messages = 0;
	out->post = 0;
}

union df_msg *df_add_message(struct df_out *out, df_u32 type, df_u32 slot, df_u64 key, df_u64 seq)
{
	union df_msg *message = &out->message[out->messages++];

	df_msg_init(message, type, slot, key, seq);
	return message;
}

void df_send_released(struct df_lock *lock, df_u64 seq, struct df_out *out)
{
	df_add_message(out, DF_MSG_RELEASED, lock->slot, lock->key, seq)->released.kept =
		lock->held;
}

struct df_chain *df_begin_chain(struct df_lock *lock, df_u32 kind, struct df_out *out)
{
	lock->chain = (df_u8)kind;
	out->post = 1;
	df_chain_init(&out->chain, kind, kind == DF_CHAIN_FIND ? DF_NO_SLOT : lock->slot);
	return &out->chain;
}

df_u64 df_word_offset(const struct df_lock *lock)
{
	return df_slot_offset(lock->slot);
}

/* ORDER: the hint before the word, so that whoever is counted is hinted. */
void df_chain_hint(struct df_lock *lock, struct df_chain *chain)
{
	static const df_u8 set = 1;
	df_u64 offset = offsetof(struct df_slot, hints) + lock->table->node % DF_HINTS;

	df_chain_write(chain, df_word_offset(lock) + offset, 0, &set, 1);
}

static int being_revoked(const struct df_lock *lock)
{
	return lock->gate != DF_GATE_OPEN || lock->next_seq;
}

/* --- giving up ---------------------------------------------------------------------------- */

/* version, size, times and flags lie side by side: one WRITE. */
static void chain_value(struct df_lock *lock, struct df_chain *chain)
{
	memcpy(chain->bytes + 8, &lock->version, 8);
	memcpy(chain->bytes + 16, &lock->value, sizeof(lock->value));
	df_chain_write(chain, df_word_offset(lock) + offsetof(struct df_slot, version), 8,
		       chain->bytes + 8, 8 + sizeof(lock->value));
}

/* ORDER: the value before the word; whoever takes the lock after the word reads the value. */
static void post_release(struct df_lock *lock, struct df_out *out)
{
	struct df_chain *chain = df_begin_chain(lock, DF_CHAIN_RELEASE, out);

	if (lock->kept != DF_NL && lock->kept != lock->held)
		df_chain_hint(lock, chain);
	if (lock->changed || lock->distrust || lock->held == DF_X) {
		lock->version = df_version_next(lock->version);
		if (lock->changed)
			lock->value.flags |= DF_VALUE_PUBLISHED;
		else if (lock->distrust)
			memset(&lock->value, 0, sizeof(lock->value));
		else
			lock->value.flags &= DF_VALUE_PUBLISHED;
		chain_value(lock, chain);
	}
	df_chain_faa(chain, df_word_offset(lock),
		     df_own_unit(lock, lock->kept) - df_own_unit(lock, lock->held));
	lock->shed_due = 0;
	lock->changed = 0;
	lock->distrust = lock->kept == DF_IX;
}

static void release_done(struct df_lock *lock, df_u64 old, struct df_out *out)
{
	lock->held = lock->kept;
	lock->gate = DF_GATE_OPEN;
	lock->forfeited = 0;
	out->wake |= DF_WAKE_RELEASED;
	if (df_word_contended(old) || lock->revoke_seq)
		df_send_released(lock, lock->revoke_seq, out);
	lock->revoke_seq = 0;
	/* Others queue already: no attempt that is sure to fail, straight to the queue. */
	if (df_word_contended(old) && !df_covers(lock->held, lock->want) && !lock->asked)
		df_send_ask(lock, out);
	df_advance(lock, out);
}

void df_begin_shed(struct df_lock *lock, df_u64 seq, df_u32 keep, struct df_out *out)
{
	lock->gate = DF_GATE_REVOKING;
	lock->revoke_seq = seq;
	lock->keep = (df_u8)keep;
	out->shed = 1;
	out->keep = (df_u8)keep;
}

static void serve_revoke(struct df_lock *lock, struct df_out *out)
{
	df_u64 seq = lock->next_seq;
	df_u32 keep = df_keep(lock->held, lock->next_wanted);

	lock->next_seq = 0;
	if (keep == lock->held)
		df_send_released(lock, seq, out);
	else
		df_begin_shed(lock, seq, keep, out);
}

static void serve_glimpse(struct df_lock *lock, struct df_out *out)
{
	df_u32 publish = lock->held == DF_X && lock->publish_value;

	lock->publish_due = 0;
	lock->publish_value = 0;
	if (!publish) { /* nothing new, or given up meanwhile with its value */
		df_add_message(out, DF_MSG_GLIMPSED, lock->glimpse_slot, lock->key,
			       lock->glimpse_seq);
		lock->glimpse_seq = 0;
		return;
	}
	lock->value = lock->publish;
	lock->value.flags |= DF_VALUE_PUBLISHED;
	chain_value(lock, df_begin_chain(lock, DF_CHAIN_PUBLISH, out));
}

static void publish_done(struct df_lock *lock, struct df_out *out)
{
	if (!lock->publish_due) {
		df_add_message(out, DF_MSG_GLIMPSED, lock->glimpse_slot, lock->key,
			       lock->glimpse_seq)
			->glimpsed.published = 1;
		lock->glimpse_seq = 0;
	}
	df_advance(lock, out);
}

static void release(struct df_lock *lock, struct df_out *out)
{
	if (lock->held != DF_NL && lock->held != lock->kept) {
		post_release(lock, out);
		return;
	}
	/* The table that it was held in is gone, or it could not be had again: nothing is in the word to give up. */
	lock->shed_due = 0;
	lock->changed = 0;
	release_done(lock, 0, out);
}

/* What may go on now that no chain is in flight, most urgent first. At most one chain comes of it. */
void df_advance(struct df_lock *lock, struct df_out *out)
{
	if (lock->chain != DF_CHAIN_NONE || lock->detached)
		return;
	if (lock->publish_due)
		serve_glimpse(lock, out);
	if (lock->chain == DF_CHAIN_NONE && lock->shed_due)
		release(lock, out);
	if (lock->chain != DF_CHAIN_NONE)
		return;
	if (lock->next_seq && lock->gate == DF_GATE_OPEN)
		serve_revoke(lock, out);
	if (lock->gate != DF_GATE_OPEN || lock->want == DF_NL || lock->target != DF_NL)
		return;
	if (df_covers(lock->held, lock->want)) {
		lock->want = DF_NL;
		out->wake |= DF_WAKE_GRANTED;
		return;
	}
	df_begin_acquire(lock, lock->want, out);
}

/* --- the shell's calls -------------------------------------------------------------------- */

void df_lock_init(struct df_lock *lock, const struct df_table *table, df_u64 key)
{
	memset(lock, 0, sizeof(*lock));
	lock->table = table;
	lock->key = key;
	lock->slot = DF_NO_SLOT;
}

static int pin_if(struct df_lock *lock, df_u32 mode, int admitted)
{
	if (lock->lost)
		return DF_PIN_LOST;
	if (!admitted || !df_covers(lock->held, mode))
		return DF_PIN_WANT;
	lock->pins++;
	return DF_PIN_OK;
}

int df_lock_pin(struct df_lock *lock, df_u32 mode)
{
	return pin_if(lock, mode, !being_revoked(lock));
}

int df_lock_pin_granted(struct df_lock *lock, df_u32 mode)
{
	return pin_if(lock, mode, lock->gate != DF_GATE_CLOSED);
}

int df_lock_pin_guest(struct df_lock *lock, df_u32 mode)
{
	/* It must fail: the sweep waits for it, and what would admit it waits for the sweep. */
	if (lock->forfeited && lock->gate == DF_GATE_REVOKING)
		return DF_PIN_LOST;
	return pin_if(lock, mode, lock->gate != DF_GATE_CLOSED);
}

void df_lock_unpin(struct df_lock *lock)
{
	if (lock->pins)
		lock->pins--;
}

int df_lock_want(struct df_lock *lock, df_u32 mode, int try_only, struct df_out *out)
{
	df_out_begin(out);
	if (lock->lost)
		return DF_WANT_LOST;
	if (df_covers(lock->held, mode) && !being_revoked(lock))
		return DF_WANT_HELD;
	if (try_only) {
		if (lock->chain || lock->target || lock->detached || being_revoked(lock))
			return DF_WANT_BUSY;
		lock->try_only = 1;
		df_begin_acquire(lock, mode, out);
		return DF_WANT_STARTED;
	}
	lock->want = (df_u8)df_join(lock->want, mode);
	df_advance(lock, out);
	return DF_WANT_STARTED;
}

void df_lock_cancel(struct df_lock *lock, struct df_out *out)
{
	df_out_begin(out);
	lock->want = DF_NL;
	if (lock->asked && !lock->cancelling) {
		lock->cancelling = 1;
		df_add_message(out, DF_MSG_CANCEL, lock->slot, lock->key, lock->request);
	}
}

void df_lock_chain_done(struct df_lock *lock, df_u64 old, const void *image, struct df_out *out)
{
	df_u32 chain = lock->chain;

	df_out_begin(out);
	lock->chain = DF_CHAIN_NONE;
	switch (chain) {
	case DF_CHAIN_FIND:
		df_find_done(lock, image, out);
		break;
	case DF_CHAIN_CLAIM:
		df_claim_done(lock, old, out);
		break;
	case DF_CHAIN_TAKE:
		df_take_done(lock, old, image, out);
		break;
	case DF_CHAIN_UNDO:
		df_undo_done(lock, old, out);
		break;
	case DF_CHAIN_RELEASE:
		release_done(lock, old, out);
		break;
	case DF_CHAIN_PUBLISH:
		publish_done(lock, out);
		break;
	default: /* the session was lost meanwhile */
		break;
	}
}

int df_lock_close_gate(struct df_lock *lock)
{
	if (lock->gate == DF_GATE_OPEN || lock->pins)
		return -1;
	lock->gate = DF_GATE_CLOSED;
	return 0;
}

int df_lock_shed_done(struct df_lock *lock, df_u32 kept, const struct df_value *changed,
		      struct df_out *out)
{
	df_out_begin(out);
	if (lock->lost)
		return 0;
	if (lock->gate != DF_GATE_CLOSED || lock->shed_due || !df_covers(lock->keep, kept))
		return -1;
	lock->kept = (df_u8)kept;
	lock->shed_due = 1;
	if (changed && lock->held == DF_X) {
		lock->changed = 1;
		lock->value = *changed;
		lock->publish =
			*changed; /* a glimpse that still waits must not bring back an older one */
	}
	df_advance(lock, out);
	return 0;
}

int df_lock_drop(struct df_lock *lock, struct df_out *out)
{
	df_out_begin(out);
	if (lock->gate != DF_GATE_OPEN)
		return 0;
	if (lock->chain || lock->target || lock->next_seq || lock->asserting)
		return -1;
	if (lock->lost || lock->held == DF_NL)
		return 1;
	df_begin_shed(lock, 0, DF_NL, out);
	return 0;
}

void df_lock_session_lost(struct df_lock *lock, struct df_out *out)
{
	const struct df_table *table = lock->table;
	df_u64 key = lock->key;
	df_u32 pins = lock->pins;

	df_out_begin(out);
	df_lock_init(lock, table, key);
	lock->pins = pins;
	lock->lost = 1;
	out->wake = DF_WAKE_LOST;
}

int df_lock_quiet(const struct df_lock *lock)
{
	return lock->held == DF_NL && lock->chain == DF_CHAIN_NONE && lock->target == DF_NL &&
	       lock->want == DF_NL && lock->gate == DF_GATE_OPEN && !lock->next_seq &&
	       !lock->glimpse_seq && !lock->pins && !lock->asserting && !lock->void_try;
}

/* --- messages ----------------------------------------------------------------------------- */

static int got_grant(struct df_lock *lock, const struct df_msg_grant *grant, struct df_out *out)
{
	if (!lock->asked || grant->head.seq != lock->request || grant->head.slot != lock->slot)
		return -1;
	/* A revoke that we serve is answered before lockd grants; nothing is in flight then. */
	if (grant->status == DF_GRANTED &&
	    (grant->mode != lock->target || lock->chain || lock->gate != DF_GATE_OPEN))
		return -1;
	if (grant->status == DF_GRANT_STALE && (lock->chain || lock->held != DF_NL))
		return -1;
	lock->asked = 0;
	lock->cancelling = 0;
	switch (grant->status) {
	case DF_GRANTED:
		df_granted(lock, grant->version, &grant->value, out);
		break;
	case DF_GRANT_STALE:
		lock->woken = 0;
		df_find_again(lock, out);
		break;
	case DF_GRANT_CANCELLED:
		df_end_acquire(lock, 0, out);
		break;
	default:
		lock->want = DF_NL;
		df_end_acquire(lock, DF_WAKE_BUSY, out);
		break;
	}
	return 0;
}

static int got_found(struct df_lock *lock, const struct df_msg_found *found, struct df_out *out)
{
	if (!lock->finding || found->head.seq != lock->request || lock->chain)
		return -1;
	if (found->status == DF_FOUND_SLOT && found->head.slot >= df_table_slots(lock->table))
		return -1;
	lock->finding = 0;
	if (found->status == DF_FOUND_SLOT) {
		df_slot_found(lock, found->head.slot, out);
		return 0;
	}
	if (lock->asserting) { /* df_lock_reassert again */
		out->wake |= DF_WAKE_BUSY;
		return 0;
	}
	lock->want = DF_NL;
	df_end_acquire(lock, DF_WAKE_BUSY, out);
	return 0;
}

static void got_revoke(struct df_lock *lock, const struct df_msg_revoke *revoke, struct df_out *out)
{
	/* Two that wait together: what satisfies both is to keep nothing. */
	if (lock->next_seq && lock->next_wanted != revoke->wanted)
		lock->next_wanted = DF_X;
	else
		lock->next_wanted = revoke->wanted;
	lock->next_seq = revoke->head.seq;
	df_advance(lock, out);
}

static void got_glimpse(struct df_lock *lock, const struct df_msg_head *head,
			const struct df_value *publish, struct df_out *out)
{
	if (!publish && lock->chain == DF_CHAIN_NONE) {
		df_add_message(out, DF_MSG_GLIMPSED, head->slot, head->key, head->seq);
		return;
	}
	lock->glimpse_seq = head->seq;
	lock->glimpse_slot = head->slot;
	lock->publish_due = 1;
	if (publish) {
		lock->publish_value = 1;
		lock->publish = *publish;
	}
	df_advance(lock, out);
}

int df_lock_message(struct df_lock *lock, const union df_msg *message,
		    const struct df_value *publish, struct df_out *out)
{
	df_out_begin(out);
	if (lock->lost)
		return 0;
	switch (message->head.type) {
	case DF_MSG_GRANT:
		return got_grant(lock, &message->grant, out);
	case DF_MSG_FOUND:
		return got_found(lock, &message->found, out);
	case DF_MSG_THAW:
		return 0;
	case DF_MSG_REVOKE:
	case DF_MSG_GLIMPSE:
	case DF_MSG_FREEZE:
		break;
	default:
		return -1;
	}
	/* An old life of another slot: nothing of ours is there. */
	if (message->head.slot != lock->slot) {
		df_client_unknown(message, &out->message[0]);
		out->messages = 1;
	} else if (message->head.type == DF_MSG_REVOKE) {
		got_revoke(lock, &message->revoke, out);
	} else if (message->head.type == DF_MSG_GLIMPSE) {
		got_glimpse(lock, &message->head, publish, out);
	} else {
		df_add_message(out, DF_MSG_STATE, lock->slot, lock->key, message->head.seq)
			->state.held = lock->held;
	}
	return 0;
}

int df_client_unknown(const union df_msg *message, union df_msg *reply)
{
	df_u32 type;

	switch (message->head.type) {
	case DF_MSG_REVOKE:
		type = DF_MSG_RELEASED;
		break;
	case DF_MSG_GLIMPSE:
		type = DF_MSG_GLIMPSED;
		break;
	case DF_MSG_FREEZE:
		type = DF_MSG_STATE;
		break;
	case DF_MSG_THAW:
		return 0;
	default:
		return -1;
	}
	df_msg_init(reply, type, message->head.slot, message->head.key, message->head.seq);
	return 1;
}
