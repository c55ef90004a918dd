/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Minimum hold time: how long a lock that bounces between nodes is kept after its grant before a revoke is served.
 *
 * Parties: the client's shell, one struct df_hold beside each struct df_lock, under the same mutex; times are handed in, microseconds of one
 * monotonic clock. Nothing here is seen by lockd: a Revoke is answered later, that is all.
 *
 * Why: without it two writers of one file give it back and forth for every write, and each pays a flush, an invalidation and four
 * messages (about a millisecond) for a write of some microseconds. Held for as long as a hand-over costs, half of the time is work; held
 * ten times as long, nine tenths.
 *
 * How the shell uses it
 *   WAKE GRANTED was performed        df_hold_granted
 *   a pin was given out               df_hold_used (the waiters' pins too)
 *   df_lock_want answered STARTED     df_hold_wanted
 *   a Revoke arrived for a lock that is held: at = df_hold_revoked. at <= now: df_lock_message at once. Else keep the message
 *                                     (later ones behind it) and call df_lock_message at that time: only then the core stops
 *                                     pins. Glimpse, Freeze, Grant pass it. df_lock_drop, the end of the session and df_lock_detach end the
 *                                     wait: the first hands the messages over at once, the others forget them.
 *   SHED was given out for a Revoke   df_hold_shed
 *
 * The time doubles, 1 ms to 20 ms, each time that a tenure was brief and the lock is wanted again at once; it halves when either
 * was not so, and for each 50 ms of quiet.
 *
 * Limits: a revoke is held back once a grant, and until 20 ms after the grant at most. Holders revoked in parallel cost one such wait; in
 * a queue of n writers each waits n at most. 20 ms: twenty hand-overs' cost, and below what a user at a terminal notices. A lock that nobody
 * has used since its grant is never held back.
 *
 * Known weakness: fairness is by tenure, not by work done in it.
 */
#ifndef DISTFUSE_HOLD_H
#define DISTFUSE_HOLD_H

#include "rdma/lock/df_types.h"

DF_BEGIN_C

#define DF_HOLD_FIRST_US 1000u
#define DF_HOLD_MAX_US 20000u
#define DF_HOLD_BRIEF_US 5000u /* a tenure ended this soon after its hold time was brief */
#define DF_HOLD_AGAIN_US 5000u /* wanted this soon after the shed began: at once */
#define DF_HOLD_QUIET_US 50000u

/* Zeroed: a lock that never bounced. */
struct df_hold {
	df_u64 granted_us;
	df_u64 shed_us;
	df_u32 hold_us; /* 0, or DF_HOLD_FIRST_US .. DF_HOLD_MAX_US */
	df_u8 used;	/* pinned since the grant */
	df_u8 shed;	/* the tenure ended by a revoke, and nobody wanted it since */
	df_u8 brief;	/* of that tenure */
	df_u8 reserved;
};

static inline void df_hold_used(struct df_hold *hold)
{
	hold->used = 1;
}
void df_hold_granted(struct df_hold *hold, df_u64 now_us);
/* When a Revoke that arrived now may be served: now_us .. now_us + DF_HOLD_MAX_US. */
df_u64 df_hold_revoked(const struct df_hold *hold, df_u64 now_us);
void df_hold_shed(struct df_hold *hold, df_u64 now_us);
void df_hold_wanted(struct df_hold *hold, df_u64 now_us);

DF_END_C

#endif
