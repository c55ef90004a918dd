/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * lockd's side of contended slots: a state machine without I/O, clock, threads or allocation.
 *
 * Parties: the shell (the lockd daemon); client sessions by messages; the slot table by chains on the loopback connection.
 *
 * Serialised by: the caller, one thread. Outputs go to the shell's struct df_lockd_shell; its functions must not call back
 * into the core: they queue, or post and send at once. Loopback chains take effect in the order posted (the shell queues what the
 * connection cannot take) and complete by df_lockd_chain_done with their cookie.
 *
 * States of a slot with an object (there is one exactly while the contended bit is set, being set or being cleared):
 *   arming     FAA(+C) and READ in flight
 *   ready      no chain in flight; the head waiter is blocked and somebody owes a message
 *   reading    READ in flight, after something changed
 *   granting   CAS of the word for a batch of waiters in flight
 *   clearing   CAS of the word that takes a dead owner off in flight
 *   freezing   Freeze sent, States awaited; repairing: CAS to the sum in flight
 *   rekeying   the slot's new key being written under owner 0x7fff
 *   disarming  FAA(-C) in flight
 * The head waiter is served in order, with every waiter right behind it that is compatible; nobody overtakes, so nobody starves.
 * Who is in its way is asked in three stages: the owner in the word or the sessions whose hints are set; all sessions;
 * Freeze. A stage ends when everyone asked has answered or died, and each message about the slot makes lockd look at the
 * word again. A waiter that itself owes the answer to a Revoke of this slot is not granted: its held mode is not certain.
 * Upgraders: a waiter with a held mode is granted in place of it; when another waiter is before it, it is revoked like any holder.
 *
 * Recovery: session_gone (after the fence) takes the session's waiters and owed answers away; what it left in words is put right
 * when somebody needs the slot (owner: CAS, version raised, value block no longer published; counts: Freeze). lockd's own
 * loss: the table is new with every incarnation; in grace (df_lockd_grace) the clients take in it what they held, by chains that
 * this core does not see, and by Find. The size of the table may not shrink from one incarnation to the next: then each key held finds
 * its place in grace without an eviction. Leases are the shell's (session.h).
 *
 * Old messages are not taken for new ones, for:
 *   connection  a message belongs to one connection, in order, and a connection to one session of one incarnation. A node id that is used
 *               again belongs to another connection; session_gone clears its bits, waiters and glimpses first. What the dead one left
 *               as owner under that id is seen by Freeze: the new one says that it does not hold it.
 *   our numbers Revoke, Freeze and Glimpse have numbers of 64 bits that rise over all slots. Released and State count only if they
 *               carry the one that this object awaits now: not an older one, not one of the object that the slot had before.
 *   Ask         one at a time for a lock; the answer carries its request id, slot and key. Cancel ends only that id, and the client asks
 *               anew only after the answer. Ids wrap after 2^32, with one outstanding.
 *   the slot    a lock with an old address: Ask, Released, Glimpsed and State carry the key; the READ of a taking chain brings it. While its
 *               unit is in the word the slot cannot be re-keyed (re-keying begins with CAS 0 -> owner 0x7fff), so key and word belong
 *               together from the chain's atomic on.
 *   versions    carry the era of the slot's life (slot.h); incarnations begin eras anew, and clients forget versions with the table.
 *
 * Limits: objects, waiters (Ask, Find, Glimpse), sessions as configured; requests per session as told in Welcome. No room:
 * the request is answered BUSY, and the client tries later. A session that breaks a rule is dropped (df_lockd_shell.drop); the shell
 * ends its connections and lease at once and calls df_lockd_session_gone after the fence.
 *
 * Known weakness: a victim for re-keying may be pinned by an operation that itself waits for a Find; with a table so small that
 * pinned locks fill a whole bucket and the overflow area, such operations wait until one gives up. Size the table for it.
 */
#ifndef DISTFUSE_LOCKD_H
#define DISTFUSE_LOCKD_H

#include "rdma/lock/slot.h"
#include "rdma/lock/wire.h"

DF_BEGIN_C

enum df_drop_reason {
	DF_DROP_MESSAGE = 1, /* a type, mode or field that no client may send */
	DF_DROP_SLOT,	     /* a slot outside of the table */
	DF_DROP_FLOOD,	     /* more requests than Welcome allowed */
	DF_DROP_DUPLICATE,   /* a second Ask for a key while one waits */
	DF_DROP_ANSWER,	     /* an answer to what was not asked */
	DF_DROP_STATE,	     /* says to hold what another live session has */
};
const char *df_drop_text(int reason);

struct df_lockd_config {
	df_u32 buckets;
	df_u32 overflow; /* slots */
	df_u32 sessions; /* at most; node ids 1..sessions */
	df_u32 objects;	 /* contended slots at once */
	df_u32 waiters;	 /* Ask, Find and Glimpse waiting at once, of all sessions */
	df_u32 asks;	 /* of them, per session */
};

struct df_lockd_shell {
	void *context;
	/* A chain on the loopback; copy it. Completes by df_lockd_chain_done(cookie). */
	void (*post)(void *context, df_u64 cookie, const struct df_chain *chain);
	/* message->head.length bytes to a live session. Must not fail: a session that cannot take it is the shell's to end. */
	void (*send)(void *context, df_u32 node, const union df_msg *message);
	/* A session broke a rule; called once, nothing is sent to it or taken from it afterwards. */
	void (*drop)(void *context, df_u32 node, int reason);
};

struct df_lockd_counters {
	df_u64 asks, grants, revokes, finds, rekeys, glimpses, freezes, repairs, drops;
	df_u32 objects, waiters, sessions; /* now */
	df_u32 died;			   /* sessions gone without Bye */
};

struct df_lockd; /* lives in memory that the caller provides */

/* Bytes that df_lockd_init needs, or 0: the configuration is out of range. */
df_u64 df_lockd_memory(const struct df_lockd_config *config);
/*
 * `memory`: df_lockd_memory bytes, 8-aligned. The table must have been prepared by df_lockd_prepare_slot.
 */
struct df_lockd *df_lockd_init(void *memory, const struct df_lockd_config *config,
			       const struct df_lockd_shell *shell);
/* A fresh slot's content, written by lockd's CPU before anyone is connected. */
void df_lockd_prepare_slot(struct df_slot *slot, df_u32 index);

/*
 * A session is about to be accepted: its first operation must come after this call, which may already send to it (Freeze). The
 * shell chooses the node id: 1..sessions, not live, longest unused first. 0; or -1: too many sessions died in this
 * incarnation (slot.h, Limits), or the id is not free.
 */
int df_lockd_session_joined(struct df_lockd *lockd, df_u32 node);
/* Its queue pairs are destroyed and every storaged refuses it. `clean`: it said Bye and holds nothing. */
void df_lockd_session_gone(struct df_lockd *lockd, df_u32 node, int clean);

/*
 * Grace, by default off. On: from before the first session joins. Find is answered (BUSY if only an eviction would help), Ask and Glimpse are
 * answered BUSY; nothing is revoked, glimpsed or frozen. Sessions come back by df_lockd_session_joined with the node id that they
 * had. Off: before the first Resume is sent.
 */
void df_lockd_grace(struct df_lockd *lockd, int on);

/*
 * A message of a live session, through df_msg_read: Ask, Released, Find, Glimpse, Glimpsed, State, Cancel. File* and Bye are
 * the shell's and refused here.
 */
void df_lockd_message(struct df_lockd *lockd, df_u32 node, const union df_msg *message);
/* `image`: what the chain's READ brought, or NULL. */
void df_lockd_chain_done(struct df_lockd *lockd, df_u64 cookie, df_u64 old, const void *image);

void df_lockd_read_counters(const struct df_lockd *lockd, struct df_lockd_counters *counters);
/* Unanswered requests of a session, for the shell's own bound over these and File* together. */
df_u32 df_lockd_session_requests(const struct df_lockd *lockd, df_u32 node);
/* Who waits in the slot's queue, in order: at most `most` node ids (0x7fff: a Find). Answers how many wait. For reports. */
df_u32 df_lockd_slot_waiters(const struct df_lockd *lockd, df_u32 slot, df_u32 *nodes, df_u32 most);

DF_END_C

#endif
