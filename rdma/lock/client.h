/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The client's side of one lock: a state machine without I/O, clock, threads or allocation.
 *
 * Parties: the shell (a mount's lock table, in the daemon or in the module), which embeds a struct df_lock per key; the
 * slot in lockd's region, by chains; lockd, by messages on the control connection.
 *
 * Serialised by: the caller; all calls on one df_lock come one at a time (a mutex per lock). Nothing is shared between locks.
 * Each call that may act fills a struct df_out. The shell performs it before the next call on that lock, in this order:
 * WAKE, SHED, messages (in order), chain. "Perform" means to start: SHED and the chain complete later by calls of their own.
 *
 * States: held mode; at most one chain in flight (find, claim, take, undo, release, publish); at most one request at
 * lockd (Ask or Find); gate open, revoking or closed. A revoke waits for a chain in flight, so a Revoke that overtakes
 * the completion of a take is answered after it.
 *
 * Taking. df_lock_pin answers DF_PIN_OK if the held mode covers and nobody revokes: that is the cached path, no
 * output. Else the shell queues the thread and calls df_lock_want; WAKE tells when to look again:
 *   GRANTED      the shell calls df_lock_pin_granted for every waiter whose mode is covered, within the same
 *                critical section (a Revoke may already be pending: its SHED stands in the same df_out, and comes after these
 *                pins, so each grant serves those who waited for it). Waiters that are not covered go on waiting, no call needed.
 *   WOULD_BLOCK  the try failed; normal waiters go on waiting, no call needed.
 *   RELEASED     a shed is complete; waiters of df_lock_drop return. Waiting wants go on by themselves.
 *   BUSY         lockd or the table has no room: waiters call df_lock_want again after a pause (1 ms, doubling to 100).
 *   LOST         the session is gone: all waiters fail.
 *   REASSERTED, FORFEITED   see df_lock_reassert; waiters go on waiting.
 * A thread that gives up waiting leaves the shell's queue; when that is empty, df_lock_cancel. A grant that comes
 * nevertheless is kept as a cached lock.
 *
 * Giving up. SHED(keep) means: stop new users (df_lock_pin does since the revoke came), bring to the servers what the lock covers,
 * invalidate what `keep` does not cover. Until the shell closes the gate, df_lock_pin_guest still admits users under
 * the mode that is still held: page I/O that the sweep itself waits for. Order of the shell's work: sweep; if guests were
 * admitted, sweep their ranges again; df_lock_close_gate, which refuses while pins are left; write back and forget; then
 * df_lock_shed_done with the mode that is really kept (`keep` or weaker) and the value block if it changed under X.
 * SHED comes once per revoke; a stricter Revoke that arrives meanwhile follows as another SHED after the first one's release.
 *
 * Freeze (repair at lockd) is by slot and by session, because a lock with an old address may touch a slot that has
 * another key by now. The shell keeps a gate per slot: it parks chains of kind TAKE, RELEASE and PUBLISH on a frozen slot
 * until Thaw; UNDO is never parked. On Freeze it first closes the slot's gate and waits until no lock of this session has a TAKE,
 * UNDO or RELEASE on that slot posted or an UNDO about to be posted (from the post of a TAKE to the completion of its UNDO is
 * and its df_lock_chain_done is one stay inside the gate); then it calls df_lock_message on the lock of the key (or df_client_unknown), which answers
 * State with what the word holds for it. A parked chain counts as not yet posted: right, for it has not touched the word.
 * Freeze may come again for a frozen slot, with another seq: answer again; one Thaw ends it, answered or not.
 * Several slots can be frozen at once. A session that ends forgets its gates.
 *
 * Recovery: a session that ended: df_lock_session_lost; nothing survives it. lockd's restart: df_lock_detach and what follows it.
 * Chains that fail belong to a session that is lost or detached.
 *
 * Limits: one request id space of 32 bits a lock; re-finds after 8 stale takes in a row go through lockd.
 *
 * Known weakness: intention modes are not taken by two levels on the caller's behalf; a key is a key.
 */
#ifndef DISTFUSE_CLIENT_H
#define DISTFUSE_CLIENT_H

#include "rdma/lock/slot.h"
#include "rdma/lock/wire.h"

DF_BEGIN_C

enum df_chain_kind {
	DF_CHAIN_NONE = 0,
	DF_CHAIN_FIND,	/* READ of the bucket; image: 1024 bytes */
	DF_CHAIN_CLAIM, /* CAS of a key */
	DF_CHAIN_TAKE, /* hint WRITE (not for X), FAA or CAS of the word, READ of the slot; image: 128 bytes */
	DF_CHAIN_UNDO,	  /* FAA */
	DF_CHAIN_RELEASE, /* hint WRITE (kept S), version and value WRITE (from X and IX), FAA */
	DF_CHAIN_PUBLISH, /* value WRITE */
};

enum df_gate { DF_GATE_OPEN = 0, DF_GATE_REVOKING, DF_GATE_CLOSED };

enum df_wake {
	DF_WAKE_GRANTED = 1,
	DF_WAKE_WOULD_BLOCK = 2,
	DF_WAKE_RELEASED = 4,
	DF_WAKE_BUSY = 8,
	DF_WAKE_LOST = 16,
	DF_WAKE_REASSERTED = 32,
	DF_WAKE_FORFEITED = 64
};

#define DF_OUT_MESSAGES 4

struct df_out {
	df_u8 wake; /* bits of enum df_wake */
	df_u8 shed; /* 1: begin to shed down to `keep` */
	df_u8 keep;
	df_u8 messages; /* to send, message[i].head.length bytes each */
	df_u8 post;	/* 1: post the chain; answer with df_lock_chain_done */
	df_u8 reserved[3];
	union df_msg message[DF_OUT_MESSAGES];
	struct df_chain chain;
};

struct df_lock {
	const struct df_table *table; /* outlives the lock; changes only while the lock is quiet */
	df_u64 key;
	df_u64 version;	       /* as of the last take, grant or own release */
	struct df_value value; /* likewise; trust it only with DF_VALUE_PUBLISHED */
	df_u64 revoke_seq;     /* of the Revoke being served; 0: a voluntary drop */
	df_u64 next_seq;       /* of one that came meanwhile; 0: none */
	df_u64 glimpse_seq; /* of a Glimpse that waits for the chain in flight, or is being published; 0: none */
	df_u64 undo; /* what takes the attempt in flight off the word again */
	df_u64 over; /* asserting X: the word that the CAS expects */
	struct df_value publish;
	df_u32 slot; /* DF_NO_SLOT: not known */
	df_u32 pins;
	df_u32 request;		  /* id of the last Ask or Find */
	df_u32 glimpse_slot;	  /* of glimpse_seq */
	df_u8 held;		  /* enum df_mode: in the word */
	df_u8 target;		  /* what the acquire in progress will hold; NL: none in progress */
	df_u8 want;		  /* join of what waiters want, target included; NL: nobody waits */
	df_u8 chain;		  /* enum df_chain_kind in flight */
	df_u8 gate;		  /* enum df_gate */
	df_u8 keep;		  /* of the SHED given out */
	df_u8 next_wanted;	  /* of next_seq */
	df_u8 kept;		  /* RELEASE in flight: the mode after it */
	df_u8 empty;		  /* slots of the bucket that were empty, not yet tried: bit i */
	df_u8 claim;		  /* the one that a CLAIM tries */
	df_u8 stale;		  /* takes in a row that met another key */
	df_u8 conflicts;	  /* asserting: takes in a row that met a conflict */
	unsigned try_only : 1;	  /* the acquire in progress must not ask */
	unsigned asked : 1;	  /* an Ask is unanswered */
	unsigned finding : 1;	  /* a Find is unanswered */
	unsigned cancelling : 1;  /* a Cancel is on its way */
	unsigned woken : 1;	  /* TAKE or UNDO saw the contended bit: a message is due */
	unsigned refind : 1;	  /* UNDO because of another key */
	unsigned publish_due : 1; /* glimpse_seq waits with `publish` for the chain in flight */
	unsigned publish_value : 1; /* there is something in `publish` */
	unsigned shed_due : 1;	    /* df_lock_shed_done came while a PUBLISH was in flight */
	unsigned changed : 1;	    /* its value block is in `value` */
	unsigned lost : 1;
	unsigned
		distrust : 1; /* IX was held since the last release: take the value block back with the next */
	unsigned detached : 1;
	unsigned
		asserting : 1; /* detached: the chain or Find is of df_lock_reassert, or it was BUSY */
	unsigned asserted : 1;	/* detached: `held` is in the new table */
	unsigned void_try : 1;	/* detach ended a try: WOULD_BLOCK is due */
	unsigned forfeited : 1; /* until what was below it is forgotten */
};

void df_lock_init(struct df_lock *lock, const struct df_table *table, df_u64 key);

enum df_pin_result { DF_PIN_OK = 0, DF_PIN_WANT = 1, DF_PIN_LOST = 2 };

/* One more user under `mode` (IS .. X) if held and not being revoked. */
int df_lock_pin(struct df_lock *lock, df_u32 mode);
/* The same, although a revoke may be pending: only while WAKE_GRANTED is being performed. */
int df_lock_pin_granted(struct df_lock *lock, df_u32 mode);
/* The same, although a revoke is being served, until the gate is closed. For page I/O. */
int df_lock_pin_guest(struct df_lock *lock, df_u32 mode);
void df_lock_unpin(struct df_lock *lock);

enum df_want_result {
	DF_WANT_HELD = 0,    /* held and not being revoked: pin again; no output */
	DF_WANT_STARTED = 1, /* a WAKE will follow */
	DF_WANT_BUSY =
		2, /* only of try_only: something is under way here, it would block; no output */
	DF_WANT_LOST = 3,
};

/* A waiter for `mode`. try_only: take it if it is free, never Ask; the answer is WAKE GRANTED or WOULD_BLOCK. */
int df_lock_want(struct df_lock *lock, df_u32 mode, int try_only, struct df_out *out);
/* Nobody waits any more. */
void df_lock_cancel(struct df_lock *lock, struct df_out *out);

/* The chain given out is complete. `old`: of its atomic; `image`: what its READ brought (may be NULL without one). */
void df_lock_chain_done(struct df_lock *lock, df_u64 old, const void *image, struct df_out *out);

/*
 * A message for this key: Grant, Found, Revoke, Glimpse, Freeze. Already through df_msg_read. `publish`: for Glimpse, the
 * present size and times if they changed under X and were not yet published; else NULL.
 * 0; or -1: not for this state (an answer nobody waits for, a type that is not for clients): end the session.
 */
int df_lock_message(struct df_lock *lock, const union df_msg *message,
		    const struct df_value *publish, struct df_out *out);
/*
 * For Revoke, Glimpse, Freeze of a key that the shell has no lock for: fills the answer and returns 1. 0: no answer due
 * (Thaw). -1: a message that must have a lock (Grant, Found).
 */
int df_client_unknown(const union df_msg *message, union df_msg *reply);

/* No guests from now on. 0; or -1: pins are left (or nothing is being shed). */
int df_lock_close_gate(struct df_lock *lock);
/*
 * Everything that `kept` does not cover is flushed and invalidated; the gate is closed. `changed`: the value block if something
 * changed under X since the lock was taken (raises the version); else NULL. -1: gate not closed
 * (FORFEITED opens it to REVOKING), or kept above keep.
 */
int df_lock_shed_done(struct df_lock *lock, df_u32 kept, const struct df_value *changed,
		      struct df_out *out);
/*
 * Give up altogether, by our own will; SHED and then WAKE RELEASED follow. 0: begun, or a shed is under way already (which may
 * keep S: call again after RELEASED until it says 1); 1: not held, nothing to do; -1: not now (an acquire is under way).
 */
int df_lock_drop(struct df_lock *lock, struct df_out *out);

/* Ends everything: nothing is held. Pins stay until unpinned. Chains in flight will not be reported. */
void df_lock_session_lost(struct df_lock *lock, struct df_out *out);

/*
 * lockd's restart (session.h): detach, then reassert until it is had, then resume; a second restart begins with detach again. A
 * lock that is made in between is detached at once.
 *
 * Detach: the connection ended; nothing that is in flight will be answered or reported. What the lock certainly has it goes on
 * holding: an attempt in flight is not held; an upgrade in flight leaves what was held before; a release in flight is given up (to
 * what it keeps). Revokes and glimpses of the old lockd are void: nobody waits for an answer; slot, Ask and Find are forgotten. What
 * was PUBLISHed counts as not published: the new table's block is empty, so the shell hands the value over with the next glimpse.
 * `table` may change now.
 *   pin       as ever: OK while held and not being shed.
 *   want      waits for resume (STARTED); with try_only: BUSY. A try that was in flight gets WOULD_BLOCK with resume.
 *   cancel    forgets the wants; sends nothing.
 *   shed      goes on; df_lock_shed_done is accepted at any time, the release waits for resume. If nothing else is left to hold, the
 *             lock is not re-asserted, and RELEASED comes with resume.
 *   drop      begins a shed as ever (-1 while a re-assertion is in flight).
 */
void df_lock_detach(struct df_lock *lock);
/*
 * Takes what is held in the new table by chains of our own; never asks (but may send Find), does not care for the contended bit. 1: begun, a
 * WAKE will follow; 0: nothing to take (no output). WAKE:
 *   REASSERTED  it is in the new table.
 *   BUSY        call df_lock_reassert again after a pause (1 ms, doubling to 100): lockd had no room for the Find, or an owner stood in
 *               the word that may be the passing attempt of somebody who looks for another key.
 *   FORFEITED   it stood there 16 times. The lock is not held any more; what is dirty below it must not be written. If no shed is under way
 *               (df_lock_shed_done was called for the last one) SHED(NL) comes with it: forget everything below, without writing, and
 *               df_lock_shed_done as ever. One that is under way becomes one to NL: `keep` is NL from then on, and a gate that was closed is
 *               REVOKING again. So a shell that works behind the closed gate without its lock looks at the gate before df_lock_shed_done; if it is
 *               not closed any more, it sweeps for NL what its first sweep kept, forgets, closes the gate and says NL.
 *               Until the gate closes df_lock_pin_guest answers LOST: such page I/O fails.
 */
int df_lock_reassert(struct df_lock *lock, struct df_out *out);
/* Grace is over, and every lock was re-asserted or forfeited: wants, a shed that is done, Revokes that came already go on. */
void df_lock_resume(struct df_lock *lock, struct df_out *out);

/* Nothing is held, in flight, waited for or pinned: the object may go, or be given to another session. */
int df_lock_quiet(const struct df_lock *lock);

/* How a glimpse begins: READ the slot by a lane (or find the bucket); ask only if this says so. */
static inline int df_glimpse_needed(const struct df_slot *slot, df_u64 key, df_u32 node)
{
	df_u32 owner = df_word_owner(slot->word);

	return slot->key == key && owner != 0 && owner != node && owner != DF_NODE_LOCKD;
}

DF_END_C

#endif
