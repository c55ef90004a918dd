/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Sessions: lease, trust, fence, reclaim, lockd's restart with grace and re-assertion, storaged's restart with relearning: session.h.
 * The lock of one slot is its mode a client: the contended path is the other models' subject.
 *
 * Time is a global tick that counts the parties' timers, and any party may do nothing for any number of ticks (a stall, a slow
 * network, a process that is stopped): only intervals are compared, as in session.h. The lease is LEASE ticks, trust ends TRUST
 * ticks after the post of the renewal. A message whose delay shows nowhere but as a delay of its sender arrives at once.
 *
 * Faults, each at most as often as said: LOCKD_CRASHES, STORAGED_CRASHES, KILLS (its kernel ends the connection), POWER_CUTS (nobody tells),
 * LINK_CUTS (the connection between a client and lockd ends, both live). Stalls have no bound. A client begins at most one session:
 * who comes after a loss is another client (NEWCOMERS). COARSE: a chain is one step, which leaves room for a third client.
 */
#include "word.pml"

#ifndef N
#define N 2
#endif
#ifndef LOCKD_CRASHES
#define LOCKD_CRASHES 1
#endif
#ifndef STORAGED_CRASHES
#define STORAGED_CRASHES 0
#endif
#ifndef KILLS
#define KILLS 0
#endif
#ifndef POWER_CUTS
#define POWER_CUTS 0
#endif
#ifndef LINK_CUTS
#define LINK_CUTS 0
#endif
#ifndef TRUST
#define TRUST 1
#define LEASE 2
#endif
#define GRACE_TICKS LEASE /* session.h: longer by a fifth; to end it sooner is the worse case */
#ifndef WRITERS
#define WRITERS 1 /* bit i: client i takes X, too; the others S */
#endif
#ifndef NEWCOMERS
#define NEWCOMERS 0 /* bit i: client i has no session at the start */
#endif

/* States of a client's session: session.h; SUSPECT is `trust` being 0. */
#define OUT 0
#define LIVE 1
#define CONNECTING 2
#define REASSERTING 3
#define RECLAIMED 4 /* said so; waits for Resume */
#define LOST 5	    /* or dead */

/* A chain; a renewal. */
#define NO_CHAIN 0
#define POSTED 1
#define DONE 2	 /* took effect */
#define FAILED 3 /* met a conflict */

/* A Hello. */
#define NO_HELLO 0
#define SENT 1
#define ACCEPTED 2

/* A write to storaged. */
#define NO_WRITE 0
#define UNDER_WAY 1 /* in the network, or to be sent again */
#define ADMITTED 2  /* storaged works on it */

/* lockd's loss of a session. */
#define NOT_LOST 0
#define FENCING 1 /* connections destroyed; Fence was sent */
#define FENCED 2  /* storaged has said so */
#define NOTED 3	  /* on disk */
#define GIVEN 4	  /* its locks are anybody's */

/* --- clients --- */
byte session[N];
byte held[N];
byte trust[N]; /* ticks left */
byte age[N];   /* of the renewal or Hello in flight; TRUST: or more */
byte renewal[N];
byte hello[N];
byte chain[N];
byte taking[N]; /* of the chain: the mode in the word after it */
bool dirty[N];

/* --- the network and lockd's memory: gone with lockd --- */
bool pair[N];	    /* the queue pair exists */
bool ended[N];	    /* the peer itself ended the connection */
bool lease_word[N]; /* changed since lockd looked */
byte table[N];	    /* what of the word is this session's */
/* --- lockd --- */
bool up = 1;
bool grace;
byte grace_left;
byte loss[N];
bool joined[N]; /* has connected to this incarnation */
bool said[N];	/* Reclaimed arrived */
byte deadline[N];
/* --- lockd's disk --- */
bool listed[N];

/* --- storaged --- */
byte write[N];
bool refuses[N]; /* on disk */
bool stray[N];	 /* a Fence of a lockd that is gone, still in the network */
bool storaged_up = 1;
bool learned = 1;
#if STORAGED_CRASHES
byte incarnation;
bool told = 1; /* this incarnation of lockd has sent Sessions to this life of storaged */
byte seen;     /* incarnation */
bool lives[N]; /* by Sessions */
bool before[N]; /* not above `high` */
/* Sessions in the network; of the lockd before, too. */
bool list_sent;
byte list_incarnation;
bool list_lives[N];
bool list_before[N];
bool old_sent;
byte old_incarnation;
bool old_lives[N];
bool old_before[N];
#endif

/* --- for the claims only --- */
bool given[N];
bool condemned[N]; /* lockd once decided that it is lost */

#if LOCKD_CRASHES
byte lockd_crashes = LOCKD_CRASHES;
#endif
#if STORAGED_CRASHES
byte storaged_crashes = STORAGED_CRASHES;
#endif
#if KILLS
byte kills = KILLS;
#endif
#if POWER_CUTS
byte power_cuts = POWER_CUTS;
#endif
#if LINK_CUTS
byte link_cuts = LINK_CUTS;
#endif

#define bit(i) (1 << (i))
#define using(i) (held[i] != NL && trust[i] > 0)
#define clash(i, l) (i != l && using(i) && using(l) && !compatible(held[i], held[l]))

SCRATCH byte suspected;

#if N == 2
#define clash_of(i) clash(i, 0) || clash(i, 1)
#define others_use(i) ((i != 0 && using(0)) || (i != 1 && using(1)))
#define fits(i) (fit(i, 0) && fit(i, 1))
#define nobody_has(i) (free(i, 0) && free(i, 1))
#define nobody_writes(i) (read(i, 0) && read(i, 1))
#define all_said (said_one(0) && said_one(1))
#define any_timer (timer_runs(0) || timer_runs(1))
#else
#define clash_of(i) clash(i, 0) || clash(i, 1) || clash(i, 2)
#define others_use(i) ((i != 0 && using(0)) || (i != 1 && using(1)) || (i != 2 && using(2)))
#define fits(i) (fit(i, 0) && fit(i, 1) && fit(i, 2))
#define nobody_has(i) (free(i, 0) && free(i, 1) && free(i, 2))
#define nobody_writes(i) (read(i, 0) && read(i, 1) && read(i, 2))
#define all_said (said_one(0) && said_one(1) && said_one(2))
#define any_timer (timer_runs(0) || timer_runs(1) || timer_runs(2))
#endif
#ifdef COARSE
#define re_asserted(i) 1
#else
#define re_asserted(i) (chain[i] > POSTED || held[i] == NL)
#endif
#define fit(i, l) (i == l || compatible(taking[i], table[l]))
#define free(i, l) (i == l || table[l] == NL)
#define read(i, l) (i == l || table[l] != X)
#define said_one(l) (!listed[l] || said[l])
#define ageing(i) (renewal[i] != NO_CHAIN || hello[i] != NO_HELLO)
#define timer_runs(i) (trust[i] > 0 || deadline[i] > 0 || (ageing(i) && age[i] < TRUST))

inline check_use(i)
{
	claim(FENCE, !(given[i] && using(i)));
	claim(EXCLUSION, !(clash_of(i)))
}

inline set_trust(i)
{
	suspected = (trust[i] == 0);
#ifdef MUTANT_TRUST_WHOLE_LEASE
	trust[i] = LEASE;
#else
	if
	:: TRUST - age[i] > trust[i] -> trust[i] = TRUST - age[i]
	:: else
	fi;
#endif
	age[i] = 0;
	if
	:: held[i] != NL && suspected -> reached(suspect_trusts_again)
	:: else
	fi;
	check_use(i)
}

/* df_session_cut, df_lock_detach: a take in flight is not held, a release in flight is given up. */
inline detach(i)
{
	chain[i] = NO_CHAIN;
	taking[i] = NL;
	renewal[i] = NO_CHAIN;
	hello[i] = NO_HELLO;
	age[i] = 0
}

inline lose(i)
{
	detach(i);
	session[i] = LOST;
	trust[i] = 0;
	held[i] = NL;
	dirty[i] = 0 /* an error at fsync or close */
}

#define connected(i) (session[i] == LIVE || session[i] == REASSERTING || session[i] == RECLAIMED)

proctype client(byte i)
{
end:
	do
#if NEWCOMERS
	:: d_step { session[i] == OUT && hello[i] == NO_HELLO && up && !listed[i] -> hello[i] = SENT }
	:: d_step {
		   session[i] == OUT && hello[i] == ACCEPTED -> hello[i] = NO_HELLO;
		   session[i] = LIVE;
		   set_trust(i)
	   }
#endif
	/* The lease. */
	:: d_step {
		   connected(i) && renewal[i] == NO_CHAIN && trust[i] < TRUST -> renewal[i] = POSTED;
		   age[i] = 0
	   }
	:: d_step { connected(i) && renewal[i] == DONE -> renewal[i] = NO_CHAIN; set_trust(i) }

#ifndef WITHOUT_LOCKS
	/* Locks. */
#ifdef COARSE
	:: d_step {
		   session[i] == LIVE && pair[i] && held[i] == NL && trust[i] > 0 && (WRITERS & bit(i)) &&
			   nobody_has(i) -> table[i] = X;
		   held[i] = X;
		   check_use(i)
	   }
	:: d_step {
		   session[i] == LIVE && pair[i] && held[i] == NL && trust[i] > 0 && nobody_writes(i) ->
		   table[i] = S;
		   held[i] = S;
		   check_use(i)
	   }
	:: d_step {
		   session[i] == LIVE && pair[i] && held[i] != NL && !dirty[i] -> table[i] = NL;
		   held[i] = NL
	   }
#else
	:: d_step {
		   session[i] == LIVE && held[i] == NL && chain[i] == NO_CHAIN && trust[i] > 0 &&
			   (WRITERS & bit(i)) -> chain[i] = POSTED;
		   taking[i] = X
	   }
	:: d_step {
		   session[i] == LIVE && held[i] == NL && chain[i] == NO_CHAIN && trust[i] > 0 ->
		   chain[i] = POSTED;
		   taking[i] = S
	   }
	:: d_step {
		   session[i] == LIVE && chain[i] > POSTED -> if
		   :: chain[i] == DONE ->
			   held[i] = taking[i];
			   check_use(i)
		   :: else
		   fi;
		   chain[i] = NO_CHAIN;
		   taking[i] = NL
	   }
#endif
	/* Dirtied only while trusted; written back at any time. */
	:: d_step { held[i] == X && trust[i] > 0 && !dirty[i] -> dirty[i] = 1 }
	:: d_step { dirty[i] && write[i] == NO_WRITE -> write[i] = UNDER_WAY }
#ifndef COARSE
	/* A revoke, or by its own will: flushed, forgotten, then off the word. Down to NL, or from X to S. */
	:: d_step {
		   session[i] == LIVE && held[i] != NL && !dirty[i] && chain[i] == NO_CHAIN ->
		   chain[i] = POSTED;
		   taking[i] = NL;
		   held[i] = NL
	   }
	:: d_step {
		   session[i] == LIVE && held[i] == X && !dirty[i] && chain[i] == NO_CHAIN ->
		   chain[i] = POSTED;
		   taking[i] = S;
		   held[i] = S
	   }
#endif
#endif

	/* lockd is lost, or has lost us. */
	:: d_step { connected(i) && !pair[i] -> detach(i); session[i] = CONNECTING }
	:: d_step { session[i] == CONNECTING && up && hello[i] == NO_HELLO -> hello[i] = SENT }
	:: d_step {
		   session[i] == CONNECTING && hello[i] == ACCEPTED -> session[i] = REASSERTING;
		   hello[i] = NO_HELLO;
		   set_trust(i)
	   }
#ifndef COARSE
	:: d_step {
		   session[i] == REASSERTING && held[i] != NL && chain[i] == NO_CHAIN -> chain[i] = POSTED;
		   taking[i] = held[i]
	   }
#endif
	:: d_step {
		   session[i] == REASSERTING && pair[i] && re_asserted(i) ->
#ifdef COARSE
		   claim(KEEP, held[i] == NL || (held[i] == X -> nobody_has(i) : nobody_writes(i)));
		   table[i] = held[i];
#else
		   claim(KEEP, chain[i] != FAILED);
#endif
		   if
		   :: held[i] == X && dirty[i] -> reached(reasserted_dirty)
		   :: held[i] == S -> reached(reasserted_S)
		   :: else
		   fi;
		   chain[i] = NO_CHAIN;
		   taking[i] = NL;
		   session[i] = RECLAIMED;
		   said[i] = 1
	   }
	:: d_step { /* Resume */
		session[i] == RECLAIMED && pair[i] && !grace && loss[i] == NOT_LOST -> session[i] = LIVE
	}
	/* give_up_ms; or the client ends: it stops trusting first. */
	:: d_step { session[i] == CONNECTING && trust[i] == 0 -> lose(i) }
#ifdef CLOSE_TRUSTING
	/* A lane ended, and the shell closes the control connection to make them all anew. */
	:: d_step { session[i] == LIVE && pair[i] -> ended[i] = 1; detach(i); session[i] = CONNECTING }
#endif
	od
}

/* What of a client's posts takes effect in lockd's memory while the queue pair is there; and its faults. */
proctype network(byte i)
{
end:
	do
	:: d_step { renewal[i] == POSTED && pair[i] -> lease_word[i] = 1; renewal[i] = DONE }
	:: d_step {
		   chain[i] == POSTED && pair[i] -> if
		   :: taking[i] == NL || (taking[i] == S && table[i] == X) ->
			   table[i] = taking[i];
			   chain[i] = NO_CHAIN;
			   taking[i] = NL
		   :: else ->
			   if
			   :: fits(i) -> table[i] = taking[i]; chain[i] = DONE
			   :: else -> chain[i] = FAILED
			   fi
		   fi
	   }
#if LINK_CUTS
	:: d_step { link_cuts > 0 && pair[i] -> link_cuts--; pair[i] = 0 }
#endif
#if KILLS
	:: d_step { /* or unmounted by force */
		kills > 0 && session[i] != OUT && session[i] != LOST -> kills--;
		ended[i] = pair[i];
		lose(i)
	}
#endif
#if POWER_CUTS
	:: d_step {
		   power_cuts > 0 && session[i] != OUT && session[i] != LOST -> power_cuts--;
		   lose(i)
	   }
#endif
	od
}

#ifdef GRACE_WITHOUT_LEASE
/* "is fenced and a whole lease has passed since lockd began", and nothing about renewals in the new table */
#define deadline_passed(i) (deadline[i] == 0 || (grace && grace_left == 0))
#else
#define deadline_passed(i) (deadline[i] == 0)
#endif

inline accept(i)
{
	pair[i] = 1;
	joined[i] = 1;
	hello[i] = ACCEPTED;
	deadline[i] = LEASE;
	lease_word[i] = 0;
	table[i] = NL
}

/* Its connections are destroyed, its lease word is looked at for the last time, Fence goes out. */
inline condemn(i)
{
	condemned[i] = 1;
	pair[i] = 0;
#ifndef NO_LAST_LOOK
	if
	:: lease_word[i] ->
		reached(last_look);
		deadline[i] = LEASE
	:: else
	fi;
#endif
	lease_word[i] = 0;
	loss[i] = FENCING
}

inline give(i)
{
	table[i] = NL;
	given[i] = 1;
	joined[i] = 0;
	said[i] = 0;
	check_use(i)
}

inline refuse(i)
{
	if
	:: session[i] == OUT ->
		reached(newcomer_in_grace);
		hello[i] = NO_HELLO;
		age[i] = 0
	:: else ->
		reached(refused_session);
		lose(i)
	fi
}

#define is_late(i)                                                                                 \
	(grace && grace_left == 0 && listed[i] && !said[i] && loss[i] == NOT_LOST)

/* lockd's part of one session. */
proctype lockd_session(byte i)
{
end:
	do
#if NEWCOMERS
	:: d_step {
		   up && hello[i] == SENT && session[i] == OUT -> if
		   :: grace -> refuse(i)
		   :: else ->
			   listed[i] = 1; /* on disk before the Welcome */
			   accept(i)
		   fi
	   }
#endif
	:: d_step {
		   up && hello[i] == SENT && session[i] == CONNECTING -> if
		   :: grace && listed[i] && !joined[i] && loss[i] == NOT_LOST -> accept(i)
		   :: else -> refuse(i)
		   fi
	   }
	:: d_step { /* looks at the lease word */
		up && joined[i] && loss[i] == NOT_LOST && lease_word[i] && !is_late(i) -> lease_word[i] = 0;
		deadline[i] = LEASE
	}
	:: d_step { /* the lease ran out */
		up && joined[i] && loss[i] == NOT_LOST && deadline[i] == 0 && !lease_word[i] -> condemn(i)
	}
	:: d_step { /* its connection ended */
		up && joined[i] && loss[i] == NOT_LOST && (!pair[i] || ended[i]) -> condemn(i)
	}
	:: d_step { /* did not come, or did not say Reclaimed, within grace */
		up && is_late(i) ->
		if
		:: joined[i] -> reached(came_and_did_not_reclaim)
		:: else -> reached(absentee)
		fi;
		condemn(i)
	}
#ifdef MUTANT_RECLAIM_BEFORE_FENCE
	:: d_step { up && loss[i] == FENCING -> loss[i] = FENCED }
#endif
	:: d_step {
		   up && loss[i] == FENCED && (ended[i] || deadline_passed(i)) -> ended[i] = 0;
		   deadline[i] = 0;
		   loss[i] = NOTED;
#ifdef NOTED_LATE
		   give(i)
#else
		   listed[i] = 0
#endif
	   }
	:: d_step {
		   up && loss[i] == NOTED -> loss[i] = GIVEN;
		   listed[i] = 0;
		   give(i)
	   }
	od
}

/* lockd as a whole. */
inline forget_session(i)
{
	if
	:: loss[i] == FENCING && storaged_up && !refuses[i] ->
		reached(lockd_died_while_fencing);
		stray[i] = 1
	:: else
	fi;
	pair[i] = 0;
	ended[i] = 0;
	lease_word[i] = 0;
	table[i] = NL;
	loss[i] = NOT_LOST;
	joined[i] = 0;
	said[i] = 0;
	deadline[i] = 0;
	hello[i] = NO_HELLO;
	if
	:: renewal[i] == NO_CHAIN -> age[i] = 0
	:: else
	fi;
	if
	:: session[i] == OUT && (listed[i] || condemned[i]) -> session[i] = LOST /* its number is spent, and it will not come */
	:: else
	fi
}

inline remember_session(i)
{
	if
	:: listed[i] ->
		deadline[i] = LEASE;
		grace = 1;
		grace_left = GRACE_TICKS
	:: !listed[i] && session[i] != OUT ->
		given[i] = 1; /* the new table knows nothing of it */
		loss[i] = GIVEN;
		check_use(i)
	:: else
	fi
}

inline list_session(i)
{
	list_lives[i] = listed[i];
	list_before[i] = session[i] != OUT || listed[i]
}

inline learn_session(i)
{
	lives[i] = list_lives[i];
	before[i] = list_before[i];
	list_lives[i] = 0;
	list_before[i] = 0
}

inline learn_old_session(i)
{
	lives[i] = old_lives[i];
	before[i] = old_before[i];
	old_lives[i] = 0;
	old_before[i] = 0
}

inline age_list(i)
{
	old_lives[i] = list_lives[i];
	old_before[i] = list_before[i];
	list_lives[i] = 0;
	list_before[i] = 0
}

#if N == 2
#define every(what)                                                                                \
	what(0);                                                                                   \
	what(1)
#else
#define every(what)                                                                                \
	what(0);                                                                                   \
	what(1);                                                                                   \
	what(2)
#endif

proctype lockd()
{
end:
	do
#ifdef MUTANT_GRACE_ENDS_EARLY
	:: d_step { up && grace -> grace = 0; grace_left = 0 }
#else
	:: d_step {
		up && grace && all_said -> if
		:: grace_left -> reached(grace_ended_before_its_time)
		:: else
		fi;
		grace = 0;
		grace_left = 0
	}
#endif
#if LOCKD_CRASHES
	:: d_step {
		   up && lockd_crashes > 0 -> lockd_crashes--;
		   up = 0;
		   grace = 0;
		   grace_left = 0;
#if STORAGED_CRASHES
		   told = 0;
		   if
		   :: list_sent ->
			   old_sent = 1;
			   old_incarnation = list_incarnation;
			   every(age_list);
			   list_sent = 0
		   :: else
		   fi;
#endif
		   every(forget_session)
	   }
#endif
	:: d_step {
		   !up -> up = 1;
#if STORAGED_CRASHES
		   incarnation++;
#endif
		   every(remember_session)
	   }
#if STORAGED_CRASHES
	:: d_step { /* storaged lives, or lives again */
		up && !told && storaged_up && !list_sent -> told = 1;
		list_sent = 1;
		list_incarnation = incarnation;
		every(list_session)
	}
#endif
	od
}

#if STORAGED_CRASHES
#define is_refused(i) (refuses[i] || (before[i] && !lives[i]))
#else
#define is_refused(i) refuses[i]
#endif

proctype storaged_session(byte i)
{
end:
	do
	:: d_step { /* Fence: what is being written is waited for, then the answer */
		storaged_up && loss[i] == FENCING && write[i] != ADMITTED -> refuses[i] = 1;
		loss[i] = FENCED
	}
	:: d_step {
		storaged_up && stray[i] && write[i] != ADMITTED -> reached(fence_of_the_lockd_before);
		stray[i] = 0;
		refuses[i] = 1
	}
	:: d_step {
		storaged_up && write[i] == UNDER_WAY && learned -> if
		:: is_refused(i) ->
			reached(write_refused);
			write[i] = NO_WRITE;
			if
			:: session[i] != LOST ->
				claim(KEEP, condemned[i]);
				ended[i] = (pair[i] && loss[i] == NOT_LOST);
				lose(i)
			:: else
			fi
		:: else -> write[i] = ADMITTED
		fi
	}
	:: d_step { /* it lands */
		storaged_up && write[i] == ADMITTED -> if
		:: loss[i] != NOT_LOST -> reached(fence_waits_for_a_write)
		:: else
		fi;
		claim(FENCE, !given[i]);
		claim(EXCLUSION, !others_use(i));
		write[i] = NO_WRITE;
		dirty[i] = 0
	}
	od
}

#if STORAGED_CRASHES
inline forget_write(i)
{
	stray[i] = 0;
	lives[i] = 0;
	before[i] = 0;
	list_lives[i] = 0;
	list_before[i] = 0;
	old_lives[i] = 0;
	old_before[i] = 0;
	if
	:: write[i] == ADMITTED -> write[i] = UNDER_WAY
	:: else
	fi
}

proctype storaged()
{
end:
	do
	:: d_step {
		storaged_up && list_sent -> list_sent = 0;
		if
		:: list_incarnation >= seen ->
			seen = list_incarnation;
			learned = 1;
			every(learn_session)
		:: else
		fi
	}
	:: d_step {
		storaged_up && old_sent -> old_sent = 0;
		if
		:: old_incarnation >= seen ->
			reached(list_of_the_lockd_before);
			seen = old_incarnation;
			learned = 1;
			every(learn_old_session)
		:: else -> reached(old_list_refused)
		fi
	}
	:: d_step {
		storaged_up && storaged_crashes > 0 -> storaged_crashes--;
		storaged_up = 0;
		learned = 0;
		told = 0;
		list_sent = 0;
		old_sent = 0;
		every(forget_write)
	}
	:: d_step { !storaged_up -> storaged_up = 1 }
	od
}
#endif

inline tick_session(i)
{
	trust[i] = (trust[i] > 0 -> trust[i] - 1 : 0);
	deadline[i] = (deadline[i] > 0 -> deadline[i] - 1 : 0);
	age[i] = (ageing(i) && age[i] < TRUST -> age[i] + 1 : age[i])
}

proctype clock()
{
end:
	do
	:: d_step {
		grace_left > 0 || any_timer -> grace_left = (grace_left > 0 -> grace_left - 1 : 0);
		every(tick_session)
	}
	od
}

inline begin_session(i)
{
	if
	:: !(NEWCOMERS & bit(i)) ->
		session[i] = LIVE;
		listed[i] = 1;
		joined[i] = 1;
		pair[i] = 1;
		trust[i] = TRUST;
		deadline[i] = LEASE
	:: else
	fi
}

init
{
	atomic {
		every(begin_session);
		run clock();
		run lockd();
#if STORAGED_CRASHES
		run storaged();
#endif
		run client(0);
		run network(0);
		run lockd_session(0);
		run storaged_session(0);
		run client(1);
		run network(1);
		run lockd_session(1);
		run storaged_session(1);
#if N > 2
		run client(2);
		run network(2);
		run lockd_session(2);
		run storaged_session(2);
#endif
	}
}
