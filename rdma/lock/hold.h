/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Minimum hold time: how long a lock that bounces between nodes is kept after its grant before a revoke is served.
 *
 * Parties: the client's shell, one struct df_hold beside each struct df_lock, under the same mutex; times are handed in, microseconds of one
 * monotonic clock. Nothing here is seen by lockd: a Revoke is answered later, that is all.
 *
 * Why: without it two writers of one file give it back and forth for every write, and each pays a flush, an invalidation and four
 * messages (40 µs over RDMA, a millisecond over TCP) for a write of some microseconds. Held for as long as a hand-over costs, half of the time is work; held
 * ten times as long, nine tenths.
 *
 * How the shell uses it
 *   WAKE GRANTED was performed        df_hold_granted
 *   a pin was given out               df_hold_used (the waiters' pins too)
 *   df_lock_want answered STARTED     df_hold_wanted
 *   a Revoke arrived for a lock that is held: at = df_hold_revoked, with the mode held. at <= now: df_lock_message at once. Else keep the
 *                                     message (later ones behind it) and ask df_hold_revoked again at that time: only when it says
 *                                     now the core is told and stops pins. A shell that does not ask again hands the message over at
 *                                     that time. Glimpse, Freeze, Grant pass it. df_lock_drop, the end of the session and
 *                                     df_lock_detach end the wait: the first hands the messages over at once, the others forget them.
 *   SHED was given out for a Revoke   df_hold_shed
 *   df_lock_shed_done was called      df_hold_given
 *
 * The time doubles from 100 µs each time that a tenure was brief and the lock is wanted again at once; it halves when either was not so or the
 * holder was idle, and for each 50 ms of quiet. It is at most eight times what a hand-over costs: the shortest wait from
 * want to grant since the lock began to bounce, or twice what giving it up takes here (the other side does the same), whichever is less: the
 * wait has the holds and the queue of all others in it. At least 100 µs, at most 20 ms. A quarter of the time without a new pin: the holder is
 * idle, and the Revoke is served.
 *
 * Limits: a revoke is held back once a grant, and until 20 ms after the grant at most; only X and IX are (readers share, and each of them that
 * held back would hold up the one writer). Holders revoked in parallel cost one such wait; in a queue of n writers each waits n at most. A lock
 * that nobody has used since its grant is never held back.
 *
 * Known weakness: fairness is by tenure, not by work done in it.
 */
#ifndef DISTFUSE_HOLD_H
#define DISTFUSE_HOLD_H

#include "rdma/lock/df_types.h"

DF_BEGIN_C

#define DF_HOLD_LEAST_US 100u
#define DF_HOLD_MAX_US 20000u
#define DF_HOLD_BRIEF_US 5000u /* a tenure ended this soon after its hold time was brief */
#define DF_HOLD_AGAIN_US 5000u /* wanted this soon after the shed began: at once */
#define DF_HOLD_QUIET_US 50000u
#define DF_HOLD_TIMES 8u /* hand-overs that a hold may last */
#define DF_HOLD_LOOKS 4u /* a hold has as many looks whether it is used */

/* Zeroed: a lock that never bounced. */
struct df_hold {
	df_u64 granted_us;
	df_u64 shed_us;
	df_u64 wanted_us;
	df_u32 hold_us; /* 0, or DF_HOLD_LEAST_US .. DF_HOLD_MAX_US */
	df_u32 wait_us; /* shortest from want to grant since it began to bounce; 0: none seen */
	df_u32 give_us; /* giving it up, average; 0: none seen */
	df_u8 used;	/* pinned since the grant */
	df_u8 shed;	/* the tenure ended by a revoke, and nobody wanted it since */
	df_u8 brief;	/* of that tenure */
	df_u8 recent;	/* pinned since the last look */
	df_u8 looked;
	df_u8 idle;    /* so the hold ended early */
	df_u8 waiting; /* since wanted_us */
	df_u8 giving;  /* since shed_us */
};

static inline void df_hold_used(struct df_hold *hold)
{
	hold->used = 1;
	hold->recent = 1;
}
void df_hold_granted(struct df_hold *hold, df_u64 now_us);
/* When a Revoke of the lock, held in mode `held`, may be served or is to be asked about again: now_us (serve it) .. now_us + DF_HOLD_MAX_US. */
df_u64 df_hold_revoked(struct df_hold *hold, df_u32 held, df_u64 now_us);
void df_hold_shed(struct df_hold *hold, df_u64 now_us);
void df_hold_given(struct df_hold *hold, df_u64 now_us);
void df_hold_wanted(struct df_hold *hold, df_u64 now_us);

DF_END_C

#endif
