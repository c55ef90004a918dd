/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A client's session with lockd: lease, trust, lockd's restart, loss. A state machine without I/O, clock, threads or
 * allocation; times are handed in, milliseconds of the client's own monotonic clock.
 *
 * Parties
 *   client    one session; its locks (client.h); renews its lease, stops trusting, re-asserts.
 *   lockd     watches leases, fences, reclaims; keeps the list of sessions on disk; after a restart holds a grace period.
 *   storaged  refuses fenced sessions; after its own restart accepts nothing until lockd has told it who lives.
 * No clock is compared with another machine's: each party measures intervals of its own, and lockd's count later than the
 * client's, for lockd sees a renewal after the client posted it.
 *
 * Lease
 *   client    WRITEs a new value into its lease word (Welcome.lease_offset) every lease/4, one-sided. When the completion is seen, caches
 *             are trusted until (time of the POST) + 70 % of the lease. Without a completion by then: SUSPECT. A lock is used
 *             only while trusted; what is dirty stays; requests wait.
 *   lockd     looks at the lease words every lease/8 at most. A word that changed: deadline = now + lease. Deadline passed: the session is
 *             lost. The words count once more after the connections are destroyed (Loss, 1): a renewal that landed between the last look and
 *             the destruction has completed at the client, which trusts again by it; so the deadline moves once more, and no further.
 *
 * Loss of a session (the lease ran out; a rule was broken; its connection ended)
 *   1. its connections are destroyed: no one-sided operation of it lands any more;
 *   2. every storaged refuses it, and has said so (Fence, carried to each until it has answered);
 *   3. unless the peer itself ended the connection (orderly close or death seen by its kernel), its deadline has passed: until then
 *      its caches may be trusted by a client that does not know yet;
 *   4. its end is noted on disk, and then its locks and file locks are anybody's. (A session is on disk before its Welcome leaves, its
 *      loss before the first Fence does: a later lockd must not take back whom a storaged refuses already.)
 *   A client that ends its control connection by its own will stops trusting first: lockd cannot tell that end from a death, and waits for no
 *   deadline. That goes for one that seems broken, or one of whose lanes ended: the shell keeps it open, unused, until trust has
 *   ended, or until a later incarnation has answered (then the lockd that might see the end is gone). What a lost session left dirty is an
 *   error, once, at fsync or close of each file concerned. The client opens a new session: new id, empty caches.
 *
 * lockd's restart: a new incarnation (on disk, raised by each start), an empty table, a list of sessions from disk, grace
 *   grace     lasts until every listed session said Reclaimed or Bye, and one lease + 20 % at most (of the longest lease that a listed session
 *             was told). A Hello for a new session is refused (GRACE, come again), one that names a session which is not listed, or which
 *             came already in this incarnation, or that has not its token (wire.h), with SESSION. A listed session's Hello names it and is accepted
 *             with Welcome.grace_ms != 0: same session id, same node id, same token, new incarnation. The tokens are on lockd's disk with the
 *             list; a list of before there were tokens has nobody who can come back: all of it is fenced.
 *   re-assert the client takes each lock that it holds in the new table by the ordinary chains, never asking (df_lock_reassert), and
 *             sends its file locks again (DF_FILE_RECLAIM); then Reclaimed. A lock that cannot be had again (only a liar's can
 *             conflict) is lost as if its session were: errors once for what is dirty below it.
 *             In grace lockd answers Find, and Ask with BUSY; it revokes and glimpses nothing.
 *   resume    grace is over: lockd fences those that did not say Reclaimed, and only after the last of these fences sends Resume to
 *             everyone, and accepts new sessions. From Resume on clients take new locks.
 *   Trust goes on through all this while the lease counts: the new lockd gives nothing to anybody before each session has
 *   re-asserted, or is fenced and a whole lease has passed since lockd began. Its Welcome and its renewals in the new table count
 *   like any other: of a session that came, and did not say Reclaimed, that deadline must pass (Loss, 3).
 *   A client whose session is refused by lockd (fenced, or grace was over): lost, see above.
 *   A client whose session a storaged refuses as fenced: lost at once, once, whatever it trusts and whether lockd can be reached. For a session may
 *   be fenced long before its trust ends (Loss: only the locks wait for the deadline), and nothing that it does can have an effect any more.
 *   A client that reaches no lockd for give_up_ms (no connection, or a renewal that does not complete and trust is over): lost, requests fail; it goes on trying for a new session.
 *
 * storaged's restart: it remembers fences on disk, and yet accepts no request but lockd's until lockd has sent Sessions{incarnation,
 *   high, ids}: who lives; ids above `high` began later and are accepted unless fenced; all others are refused as fenced. An
 *   incarnation older than one seen, also before the restart, is refused, and that lockd ends. Earlier requests are answered "learning": come again.
 *
 * Old and new cannot be confused: session ids are never reused (incarnation << 32 | counter); messages live on one connection, and a
 * connection knows one incarnation; slot addresses, versions and request numbers are forgotten with the table they belong to
 * (a client drops pages kept beyond a lock when the incarnation changes: eras begin anew with each table).
 *
 * States of this machine
 *   LIVE         connected; trusted or not by the clock (df_session_trusted).
 *   SUSPECT      connected, but trust ran out: SUSPECT was given out (stop using caches, keep what is dirty). The next completed renewal
 *                makes it LIVE again (TRUST), unless lockd has ended it meanwhile.
 *   CONNECTING   the control connection ended. Cached use goes on while trusted; then SUSPECT is given out here too. CONNECT is given
 *                out now and after each failure, after 50 ms doubling to 1 s.
 *   RECLAIMING   connected to a new incarnation in grace: re-asserting, then waiting for Resume. REASSERT was given out.
 *   LOST         the end; never trusted. The shell makes a new session with a new machine.
 *
 * The shell's duties
 *   - Nothing of a connection that ended is reported afterwards: no completion of a renewal or chain, no message, no second end. The machine
 *     cannot tell them from the new connection's.
 *   - After a Welcome in grace the lanes are there before `reassert` and `renew` are performed.
 *   - A lock object that is made between `detach` and `resume` is detached too (df_lock_init, then df_lock_detach).
 *   - A Welcome that comes when the machine is LOST already (it gave up meanwhile) is ignored here; the shell closes that connection.
 *
 * Serialised by: the caller; one at a time. Each call fills a struct df_session_out, performed by the shell in the order of its fields.
 *
 * Limits: one renewal in flight; a renewal that takes longer than lease/4 delays the next.
 *
 * Known weakness: a shared machine that stops for longer than the lease between df_session_trusted and the use of a page can
 * use that page late. For data that is written this is closed by the fence; for a read it is not.
 */
#ifndef DISTFUSE_SESSION_H
#define DISTFUSE_SESSION_H

#include "rdma/lock/wire.h"

DF_BEGIN_C

enum df_session_state {
	DF_SESSION_LIVE = 1,
	DF_SESSION_SUSPECT,
	DF_SESSION_CONNECTING,
	DF_SESSION_RECLAIMING,
	DF_SESSION_LOST,
};

enum df_session_loss {
	DF_LOSS_NONE = 0,
	DF_LOSS_REFUSED,  /* lockd does not know the session any more: fenced */
	DF_LOSS_GIVEN_UP, /* no lockd for give_up_ms */
	DF_LOSS_FENCED,	  /* a storaged refuses it */
	DF_LOSS_GEOMETRY, /* the new lockd's Welcome, or a Resume before Reclaimed, makes no sense for this session */
};

struct df_session_out {
	df_u8 suspect; /* 1: stop trusting caches; keep what is dirty */
	df_u8 trust;   /* 1: they may be trusted again */
	df_u8 lost;    /* enum df_session_loss: the session ended */
	df_u8 detach; /* 1: df_lock_detach for every lock: chains and requests in flight will not be answered */
	df_u8 reassert; /* 1: df_lock_reassert for every lock, file locks, then df_session_reasserted */
	df_u8 resume; /* 1: df_lock_resume for every lock */
	df_u8 renew;  /* 1: WRITE renew_value to the lease word; df_session_renewed when complete */
	df_u8 connect; /* 1: connect with a Hello of this id and token; answer by welcome or unreachable */
	df_u8 reclaimed; /* 1: send Reclaimed */
	df_u8 reserved[7];
	df_u64 renew_value;
	df_u64 wake_at; /* call df_session_tick then at the latest; ~0: nothing to wait for */
};

struct df_session {
	df_u64 id;
	df_u64 incarnation;
	df_u64 lease_ms;
	df_u64 give_up_ms;
	df_u64 lease_offset;
	df_u64 renew_value;
	df_u64 trusted_until; /* exclusive */
	df_u64 posted_at;     /* of the renewal in flight */
	df_u64 renew_at;      /* the next one */
	df_u64 connect_at;    /* the next attempt; ~0: one is under way */
	df_u64 cut_at;	      /* when the connection ended */
	df_u32 connect_pause_ms;
	df_u32 node;
	df_u8 token[DF_TOKEN_BYTES]; /* id, node and token never change */
	df_u8 state;		     /* enum df_session_state */
	df_u8 renewing;
	df_u8 suspected; /* SUSPECT was given out and TRUST was not */
	df_u8 loss;
	df_u8 reasserted; /* RECLAIMING: Reclaimed was given out */
	df_u8 reserved[3];
};

/*
 * A first Welcome arrived; its Hello was posted at `posted_ms` (trust counts from there: lockd began the lease later). lease_ms 0: no
 * lease, always trusted while connected.
 */
void df_session_begin(struct df_session *session, const struct df_welcome *welcome,
		      df_u64 posted_ms, df_u64 give_up_ms, struct df_session_out *out);
void df_session_tick(struct df_session *session, df_u64 now_ms, struct df_session_out *out);
/* The renewal given out last completed. A failed one is not reported: the connection's end is. */
void df_session_renewed(struct df_session *session, df_u64 now_ms, struct df_session_out *out);
/* The control connection or a lane of it ended. */
void df_session_cut(struct df_session *session, df_u64 now_ms, struct df_session_out *out);
/* Answers to CONNECT. `posted_ms`: when the Hello was. */
void df_session_welcome(struct df_session *session, const struct df_welcome *welcome,
			df_u64 posted_ms, df_u64 now_ms, struct df_session_out *out);
void df_session_unreachable(struct df_session *session, df_u64 now_ms, struct df_session_out *out);
/* A storaged refuses the session: it is fenced. In any state. */
void df_session_fenced(struct df_session *session, df_u64 now_ms, struct df_session_out *out);
/* Everything was re-asserted. */
void df_session_reasserted(struct df_session *session, df_u64 now_ms, struct df_session_out *out);
/* Resume arrived. */
void df_session_resumed(struct df_session *session, df_u64 now_ms, struct df_session_out *out);

/* Whether what a held lock covers may be used now. The hot path: one comparison. */
static inline int df_session_trusted(const struct df_session *session, df_u64 now_ms)
{
	return now_ms < session->trusted_until;
}

DF_END_C

#endif
