/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * One client with one lock: client.c, client_acquire.c and what client.h asks of the shell, function by function under the
 * same names. A chain is posted, takes effect operation by operation, and completes by a later step; messages come between.
 *
 * One application thread: it wants a mode (or tries), waits or gives up waiting, pins, unpins. Bounded by `ops`, or without end (ENDLESS).
 */

/* Chains. */
#define NONE 0
#define TAKE 1
#define UNDO 2
#define RELEASE 3

/* Gate. */
#define OPEN 0
#define REVOKING 1

/* Messages up (client to lockd) and down. */
#define ASK 1	   /* request, want, held */
#define RELEASED 2 /* seq (0: answers none), kept */
#define STATE 3	   /* seq, held */
#define CANCEL 4   /* request */
#define GRANT 5	   /* request, status, mode */
#define REVOKE 6   /* seq, wanted */
#define FREEZE 7   /* seq */
#define THAW 8
#define RESUME 9

#define GRANTED 0
#define CANCELLED 1

/* --- the word and the hints in lockd's region, changed by atomics and whole-byte writes only --- */
unsigned word : 16;
unsigned hints : 4; /* bit n: node n may hold a shared mode */

chan up[N] = [5] of { byte, byte, byte, byte };
chan down[N] = [5] of { byte, byte, byte };

/* What each client holds by its own lights, and what of it somebody may use (less, once a shed is done). */
unsigned held_1 : 3;
unsigned held_2 : 3;
unsigned held_3 : 3;
unsigned use_1 : 3;
unsigned use_2 : 3;
unsigned use_3 : 3;
unsigned alive : 4;	 /* bit n */
unsigned waiting : 4;	 /* bit n: its thread waits for a grant */
unsigned unfinished : 4; /* bit n: its thread waits, or a chain, request or shed is under way */
unsigned deaths : 2 = DEATHS;
unsigned gone_due : 4; /* bit n: died, lockd has not yet been told (after the fence) */

#ifdef RESTARTS
unsigned restarts : 2 = RESTARTS;
unsigned cut : 4;      /* bit n: its connection ended with lockd, and it does not know */
unsigned detached : 4; /* bit n: between df_lock_detach and df_lock_resume */
unsigned asserted : 4; /* bit n: has said Reclaimed */
#define is_detached has(detached, me)
#define is_cut has(cut, me)
#else
#define is_detached 0
#define is_cut 0
#endif

#define bit(n) (1 << (n))
#define set(field, n) field = field | bit(n)
#define unset(field, n) field = field & (15 - bit(n))
#define has(field, n) (((field) & bit(n)) != 0)

inline check_exclusion()
{
	/* Never X with another holder, never S with IX. */
	claim(EXCLUSION, compatible(use_1, use_2) && compatible(use_1, use_3) && compatible(use_2, use_3))
}

inline set_use(mode)
{
	if
	:: me == 1 -> use_1 = mode
	:: me == 2 -> use_2 = mode
	:: me == 3 -> use_3 = mode
	fi;
	check_exclusion()
}

inline send_released(seq) { up[me - 1]!RELEASED, seq, held, 0 }

inline send_ask()
{
	target = join_of(held, want);
#ifdef CANCELS
	request = 1 - request;
#endif
	up[me - 1]!ASK, request, target, held;
	asked = 1;
	cancelling = 0
}

inline post(kind)
{
	chain = kind;
	step = 0;
	parked = (frozen && kind != UNDO)
}

inline post_take()
{
	if
	:: !try_only -> target = join_of(held, want)
	:: else
	fi;
	woken = 0;
	post(TAKE)
}

inline wake_granted()
{
	if
	:: has(waiting, me) && covers(held, mode) ->
		unset(waiting, me);
		mode = NL;
		pinned = 1
	:: else
	fi
}

inline serve_revoke()
{
	if
	:: keep_of(held, next_wanted) == held ->
		send_released(next_seq)
	:: else ->
		reached(shed);
		gate = REVOKING;
		revoke_seq = next_seq;
		keep = keep_of(held, next_wanted)
	fi;
	next_seq = 0;
	next_wanted = NL
}

/* df_advance */
inline advance()
{
	if
	:: chain == NONE && !is_detached ->
		if
		:: next_seq && gate == OPEN -> serve_revoke()
		:: else
		fi;
		if
		:: gate == OPEN && want != NL && target == NL ->
			if
			:: covers(held, want) ->
				want = NL;
				wake_granted()
			:: else ->
				target = join_of(held, want);
				post_take()
			fi
		:: else
		fi
	:: else
	fi
}

inline end_acquire()
{
	target = NL;
	try_only = 0;
	advance()
}

/* The waiters are pinned before a revoke that already waits is served: client.h, GRANTED. */
inline got_it()
{
	held = target;
	set_held();
	set_use(held);
	if
	:: covers(held, want) -> want = NL
	:: else
	fi;
	wake_granted();
	end_acquire()
}

inline set_held()
{
	if
	:: me == 1 -> held_1 = held
	:: me == 2 -> held_2 = held
	:: me == 3 -> held_3 = held
	fi
}

inline take_failed()
{
	if
	:: try_only || covers(held, want) ->
		if
		:: woken ->
			reached(wakeup_after_undo);
			send_released(0)
		:: else
		fi;
		if
		:: try_only ->
			unset(waiting, me);
			mode = NL
		:: else
		fi;
		end_acquire()
	:: else ->
		send_ask();
		advance()
	fi
}

#ifdef MUTANT_UNDO_FORGETS
#define undo_is_due !woken
#else
#define undo_is_due 1
#endif

inline take_done()
{
	woken = saw_contended;
	if
	:: in_word && !woken && alone ->
		if
		:: held == NL -> reached(taken)
		:: held == S && target == X -> reached(upgrade_of_a_lone_S)
		:: else
		fi;
		got_it()
	:: else ->
		if
		:: in_word && undo_is_due ->
			reached(undo);
			post(UNDO)
		:: else -> take_failed()
		fi
	fi
}

inline release_done()
{
	held = kept;
	set_held();
	gate = OPEN;
	if
	:: saw_contended || revoke_seq -> send_released(revoke_seq)
	:: else
	fi;
	revoke_seq = 0;
	if
	:: saw_contended && !covers(held, want) && !asked ->
		reached(release_then_ask);
		send_ask()
	:: else
	fi;
	keep = NL;
	kept = NL;
	advance()
}

#ifdef RESTARTS
inline reassert_done()
{
	/* Only a liar's can conflict. */
	claim(KEEP, in_word && alone && !saw_contended);
	if
	:: target == X -> reached(reasserted_in_X)
	:: else -> reached(reasserted_shared)
	fi;
	held = target;
	target = NL;
	set(asserted, me)
}
#endif

inline chain_done()
{
	chain_was = chain;
	chain = NONE;
	step = 0;
	if
#ifdef RESTARTS
	:: chain_was == TAKE && is_detached -> reassert_done()
#endif
	:: chain_was == TAKE && !is_detached -> take_done()
	:: chain_was == UNDO ->
		woken = woken || saw_contended;
		take_failed()
	:: chain_was == RELEASE -> release_done()
	fi;
	if
	:: chain == NONE || step == 0 ->
		saw_contended = 0;
		in_word = 0;
		alone = 0
	fi
}

/* What the completion will tell of the word as it was. `mine`: what of it is this client's. */
inline see(mine)
{
	saw_contended = contended(word);
	alone = (chain == TAKE -> admits((word & (CONTENDED - 1)) - unit(mine, me), target) : 0)
}

#define hint_first (kept != NL && kept != held)

/* One operation of the chain in flight takes effect. ORDER: the hint before the word. */
inline perform()
{
	if
	:: chain == TAKE && target == X ->
		see(held);
		in_word = (word == unit(held, me));
		if
		:: in_word -> word = unit(X, me)
		:: else
		fi
	:: chain == TAKE && target != X && step == 0 -> set(hints, me)
	:: chain == TAKE && target != X && step == 1 ->
		see(held);
		in_word = 1;
		word = word + unit(target, me) - unit(held, me)
	:: chain == UNDO ->
		see(target);
		word = word + unit(held, me) - unit(target, me)
	:: chain == RELEASE && step == 0 && hint_first -> set(hints, me)
	:: chain == RELEASE && !(step == 0 && hint_first) ->
		see(held);
		word = word + unit(kept, me) - unit(held, me)
	fi;
	if
	:: step == 0 && (chain == TAKE -> target != X : chain == RELEASE && hint_first) -> step = 1
	:: else -> step = 2
	fi
}

inline grant_arrived(status, granted_mode)
{
	claim(HONEST, asked);
	asked = 0;
	cancelling_was = cancelling;
	cancelling = 0;
	if
	:: status == GRANTED ->
		/* Else the client would end the session: client.c, got_grant. */
		claim(HONEST, granted_mode == target && chain == NONE && gate == OPEN);
		if
		:: held == S && target == X -> reached(upgrade_granted)
		:: held == NL && cancelling_was -> reached(grant_overtook_cancel)
		:: else
		fi;
		got_it()
	:: else ->
		reached(cancelled);
		end_acquire()
	fi
}

/* The shell answers Freeze when nothing of this session is between the post of a TAKE and the end of its UNDO. */
inline answer_freeze()
{
	up[me - 1]!STATE, freeze_seq, held, 0;
	freeze_seq = 0
}

#ifdef RESTARTS
inline forget_mail()
{
	do
	:: nempty(up[me - 1]) -> up[me - 1]?type, seq, what, chain_was
	:: empty(up[me - 1]) -> break
	od;
	do
	:: nempty(down[me - 1]) -> down[me - 1]?type, seq, what
	:: empty(down[me - 1]) -> break
	od;
	type = 0;
	seq = 0;
	what = 0
}

/* df_lock_detach */
inline detach()
{
	forget_mail();
	if
	:: chain == RELEASE ->
		reached(detached_while_releasing);
		held = kept;
		set_held();
		shed_due = 1
	:: chain == TAKE && is_detached -> held = target /* re-asserting: still held */
	:: chain == TAKE && !is_detached && held != NL -> reached(detached_while_upgrading)
	:: else
	fi;
	if
	:: try_only ->
		unset(waiting, me);
		mode = NL
	:: else
	fi;
	if
	:: asked -> reached(detached_while_asking)
	:: gate == REVOKING && chain == NONE -> reached(detached_while_shedding)
	:: else
	fi;
	chain = NONE;
	step = 0;
	target = NL;
	revoke_seq = 0;
	next_seq = 0;
	next_wanted = NL;
	freeze_seq = 0;
	request = 0;
	try_only = 0;
	asked = 0;
	cancelling = 0;
	woken = 0;
	frozen = 0;
	parked = 0;
	saw_contended = 0;
	in_word = 0;
	alone = 0;
	set(detached, me);
	unset(asserted, me);
	unset(cut, me)
}

/* df_lock_reassert: by the chain of a TAKE that takes all of what is held. */
inline reassert()
{
	if
	:: shed_due ->
		held = kept;
		set_held()
	:: else
	fi;
	if
	:: held == NL -> set(asserted, me)
	:: else ->
		target = held;
		held = NL;
		post(TAKE)
	fi
}

/* df_lock_resume */
inline resume()
{
	unset(detached, me);
	unset(asserted, me);
	if
	:: shed_due ->
		shed_due = 0;
		if
		:: held != NL && held != kept -> post(RELEASE)
		:: else ->
			saw_contended = 0;
			release_done()
		fi
	:: else -> advance()
	fi
}
#endif

inline message_arrived()
{
	down[me - 1]?type, seq, what;
	if
	:: type == GRANT -> grant_arrived(seq, what)
	:: type == REVOKE ->
		claim(HONEST, next_seq == 0);
		next_seq = seq;
		next_wanted = what;
		if
		:: chain == TAKE -> reached(revoke_overtakes_completion)
		:: else
		fi;
		advance()
	:: type == FREEZE ->
		frozen = 1;
		freeze_seq = seq;
		if
		:: chain == NONE || parked -> answer_freeze()
		:: else -> reached(freeze_waits_for_a_chain)
		fi
	:: type == THAW ->
		if
		:: parked -> reached(thaw_lets_a_chain_go)
		:: else
		fi;
		frozen = 0;
		freeze_seq = 0;
		parked = 0
#ifdef RESTARTS
	:: type == RESUME -> resume()
#endif
	fi;
	type = 0;
	seq = 0;
	what = 0
}

inline note_unfinished()
{
	if
	:: has(waiting, me) || chain != NONE || asked || gate != OPEN || pinned || next_seq ||
		    freeze_seq ->
		set(unfinished, me)
	:: else -> unset(unfinished, me)
	fi
}

#ifdef RESTARTS
#define shed_may_end (!shed_due && (chain == NONE || is_detached))
#else
#define shed_may_end (chain == NONE)
#endif

/* Waits for Resume; else at once. */
inline release()
{
#ifdef RESTARTS
	if
	:: is_detached -> shed_due = 1
	:: else -> post(RELEASE)
	fi
#else
	post(RELEASE)
#endif
}

#define idle (!has(waiting, me) && !pinned)
#ifdef ENDLESS
/* A hit changes nothing: it is left out. */
#define may_want(m) ((modes & bit(m)) && (!covers(held, m) || gate != OPEN || next_seq))
#define may_begin (idle && (may_want(IS) || may_want(IX) || may_want(S) || may_want(X)))
#define count_op skip
#else
#define may_want(m) (modes & bit(m))
#define may_begin (idle && ops > 0)
#define count_op ops = ops - 1
#endif

SCRATCH byte type, seq, what;
SCRATCH byte chain_was, cancelling_was;

proctype client(byte me; byte ops; byte modes; byte tries; bool drops)
{
	unsigned held : 3;
	unsigned target : 3;
	unsigned want : 3;
	unsigned mode : 3; /* that the thread waits for */
	unsigned chain : 2;
	unsigned step : 2; /* of the chain; 2: all has taken effect */
	unsigned gate : 1;
	unsigned keep : 3;
	unsigned kept : 3;
	unsigned next_wanted : 3;
	unsigned next_seq : 2;
	unsigned revoke_seq : 2;
	unsigned freeze_seq : 2;
	unsigned request : 1;
	bool asked, cancelling, woken, saw_contended, in_word, alone, try_only, pinned, frozen, parked;
#ifdef RESTARTS
	bool shed_due;
#endif

end:
	do
	/* The fabric. */
	:: d_step { chain != NONE && !parked && step < 2 && !is_cut -> perform() }
	:: d_step {
		   chain != NONE && step == 2 -> chain_done();
		   if
		   :: freeze_seq && (chain == NONE || parked) -> answer_freeze()
		   :: else
		   fi;
		   note_unfinished()
	   }
	:: d_step { nempty(down[me - 1]) -> message_arrived(); note_unfinished() }

	/* The revoker: the sweep is over, the gate is closed, all that `kept` does not cover is written back and forgotten. */
	:: d_step {
		   gate == REVOKING && shed_may_end && !pinned -> kept = keep;
		   if
		   :: held == X && kept == S -> reached(downgrade_to_S)
		   :: held == X && kept == IX -> reached(downgrade_to_IX)
		   :: else
		   fi;
		   set_use(kept);
		   release();
		   note_unfinished()
	   }
#ifdef KEEP_LESS
	:: d_step {
		   gate == REVOKING && shed_may_end && !pinned && keep != NL -> kept = NL;
		   set_use(kept);
		   release();
		   note_unfinished()
	   }
#endif

	/* The thread. */
	:: atomic {
		   may_begin ->
		   if
		   :: may_want(IS) -> mode = IS
		   :: may_want(IX) -> mode = IX
		   :: may_want(S) -> mode = S
		   :: may_want(X) -> mode = X
		   fi;
		   if
#ifndef ENDLESS
		   :: d_step {
			      covers(held, mode) && gate == OPEN && !next_seq -> /* the cached path */
			      ops = ops - 1;
			      mode = NL;
			      pinned = 1
		      }
#endif
		   :: d_step {
			      !(covers(held, mode) && gate == OPEN && !next_seq) -> count_op;
			      set(waiting, me);
			      want = mode;
			      advance();
			      note_unfinished()
		      }
		   :: d_step {
			      tries > 0 && !covers(held, mode) && gate == OPEN && !next_seq &&
				      chain == NONE && target == NL && !is_detached -> count_op;
			      tries = tries - 1;
			      set(waiting, me);
			      try_only = 1;
			      target = join_of(held, mode);
			      post_take();
			      note_unfinished()
		      }
		   fi
	   }
	:: d_step { pinned -> pinned = 0; mode = NL; note_unfinished() }
#ifdef CANCELS
	:: d_step { /* df_lock_cancel: a signal */
		has(waiting, me) && want != NL && !cancelling -> unset(waiting, me);
		mode = NL;
		want = NL;
		if
		:: asked ->
			cancelling = 1;
			up[me - 1]!CANCEL, request, 0, 0
		:: else
		fi;
		note_unfinished()
	}
#endif
	:: d_step { /* df_lock_drop: of its own will */
		drops && held != NL && idle && gate == OPEN && chain == NONE && target == NL &&
			!next_seq -> gate = REVOKING;
		revoke_seq = 0;
		keep = NL;
#ifndef ENDLESS
		drops = 0;
#endif
		note_unfinished()
	}
#ifdef RESTARTS
	:: d_step { is_cut -> detach(); note_unfinished() }
	:: d_step { is_detached && !is_cut && !has(asserted, me) && chain == NONE -> reassert(); note_unfinished() }
#endif
#if DEATHS > 0
	/* Death. What is posted and has not taken effect may have been about to: that is a later death. */
	:: d_step { /* client 1 stays, so that somebody needs what is left */
		deaths > 0 && me != 1 -> deaths = deaths - 1;
		unset(alive, me);
		unset(waiting, me);
		unset(unfinished, me);
		set(gone_due, me);
		held = NL;
		set_held();
		set_use(NL)
	} break
#endif
	od
}
