/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * lockd's side of one slot: lockd_queue.c and lockd_repair.c, function by function under the same names. What makes the core drop
 * a session is an assertion here: these clients are honest.
 *
 * Numbers of Revoke and Freeze go round in 1..3: a new one is given out only when no answer to the one before is owed (Revoke), or
 * when a session went (Freeze, at most DEATHS times in one repair), so three tell apart what can be under way together.
 */

/* States of the object. */
#define ARMING 1
#define READY 2
#define READING 3
#define GRANTING 4
#define CLEARING 5
#define FREEZING 6
#define SUMMING 7
#define REPAIRING 8
#define DISARMING 9

/* Stages. */
#define NOBODY 0
#define LIKELY 1
#define ALL 2

bool object; /* there is one */

#define in_repair (state == FREEZING || state == SUMMING || state == REPAIRING)
#define next_number(n) ((n) % 3 + 1)
#define live(n) (((sessions) & bit(n)) != 0)

inline lockd_post(next_state)
{
	state = next_state;
	step = 0;
	if
	:: next_state == ARMING || next_state == READING || next_state == DISARMING ->
		image = 0; /* is read before it is looked at */
		image_hints = 0
	:: else
	fi
}

inline post_read(added)
{
	addend = added;
	recheck = 0;
	lockd_post(READING)
}

inline queue_remove(at)
{
	if
	:: at == 0 -> node0 = node1; want0 = want1; held0 = held1; dead0 = dead1;
		node1 = node2; want1 = want2; held1 = held2; dead1 = dead2
	:: at == 1 -> node1 = node2; want1 = want2; held1 = held2; dead1 = dead2
	:: at == 2
	fi;
	node2 = 0; want2 = 0; held2 = 0; dead2 = 0;
	length = length - 1;
	if
	:: at == 0 -> stage = NOBODY
	:: else
	fi
}

inline send_down(n, t, q, a)
{
	if
	:: live(n) -> down[(n) - 1]!t, q, a
	:: else
	fi
}

/* One waiter of the batch; sets blocked_at. */
inline admit(at, its_node, its_want, its_held)
{
	if
	:: !stop && at < length ->
		if
		:: has(owes, its_node) || field_count(sum_word, its_held) == 0 -> stop = 1
		:: else ->
			others = sum_word - unit(its_held, its_node);
			if
			:: !admits(others, its_want) -> stop = 1
			:: else ->
				sum_word = others + unit(its_want, its_node);
				batch = batch + 1;
				if
				:: its_want == X -> image_hints = 0
				:: else -> set(image_hints, its_node)
				fi
			fi
		fi
	:: else
	fi
}

inline grant_batch()
{
	batch = 0;
	stop = 0;
	sum_word = image & (CONTENDED - 1);
	admit(0, node0, want0, held0);
	admit(1, node1, want1, held1);
	admit(2, node2, want2, held2);
	if
	:: batch ->
		if
		:: batch > 1 -> reached(several_granted_at_once)
		:: else
		fi;
		desired = sum_word | CONTENDED;
		lockd_post(GRANTING)
	:: else
	fi
}

inline revoke_one(n)
{
	if
	:: live(n) && n != spared &&
		    (stage == ALL || (word_owner(image) -> word_owner(image) == n : has(image_hints, n))) ->
		set(owes, n);
		send_down(n, REVOKE, revoke_seq, wanted)
	:: else
	fi
}

inline revoke_stage()
{
	stage = stage + 1;
	revoke_seq = next_number(revoke_seq);
	wanted = want0;
	spared = (held0 != NL -> node0 : 0);
	revoke_one(1);
	revoke_one(2);
	revoke_one(3)
}

inline freeze_one(n)
{
	if
	:: live(n) ->
		set(owes, n);
		send_down(n, FREEZE, freeze_seq, 0)
	:: else
	fi
}

inline repair_freeze()
{
	state = FREEZING;
	refreeze = 0;
	freeze_seq = next_number(freeze_seq);
	sum = 0;
	sharers = 0;
	freeze_one(1);
	freeze_one(2);
	freeze_one(3);
	if
	:: owes == 0 -> lockd_post(SUMMING)
	:: else
	fi
}

inline blocked()
{
	if
	:: recheck -> post_read(0)
	:: else ->
		if
		:: owes
		:: owes == 0 && word_owner(image) && !live(word_owner(image)) ->
			reached(dead_owner);
			lockd_post(CLEARING)
		:: owes == 0 && !(word_owner(image) && !live(word_owner(image))) ->
			if
			:: stage < ALL -> revoke_stage()
			:: else
			fi;
			if
			:: owes == 0 && stage < ALL -> revoke_stage()
			:: else
			fi;
			if
			:: owes == 0 -> repair_freeze()
			:: else
			fi
		fi
	fi
}

inline queue_pump()
{
	if
	:: length ->
		grant_batch();
		if
		:: batch == 0 -> blocked()
		:: else
		fi
	:: else ->
		if
		:: owes == 0 -> lockd_post(DISARMING)
		:: else
		fi
	fi
}

inline queue_touch()
{
	recheck = 1;
	if
	:: state == READY -> post_read(0)
	:: else
	fi
}

inline answer_head()
{
	if
	:: dead0 -> dead_units = dead_units + unit(want0, node0)
	:: else -> send_down(node0, GRANT, GRANTED, want0)
	fi;
	queue_remove(0);
	batch = batch - 1
}

inline granted()
{
	dead_units = 0;
	if
	:: batch > 0 -> answer_head()
	:: else
	fi;
	if
	:: batch > 0 -> answer_head()
	:: else
	fi;
	if
	:: batch > 0 -> answer_head()
	:: else
	fi;
	if
	:: dead_units ->
		reached(granted_to_a_dead_one);
		post_read(dead_units)
	:: else -> pump = 1
	fi
}

inline drop_dead(at, its_dead)
{
	if
	:: its_dead -> queue_remove(at)
	:: else
	fi
}

inline grant_done()
{
	state = READY;
	if
	:: won -> granted()
	:: else ->
		reached(grant_lost_the_race);
		batch = 0;
		drop_dead(2, dead2);
		drop_dead(1, dead1);
		drop_dead(0, dead0);
		pump = 1
	fi
}

inline thaw_one(n) { send_down(n, THAW, 0, 0) }

inline thaw()
{
	thaw_one(1);
	thaw_one(2);
	thaw_one(3);
	state = READY;
	stage = NOBODY;
	sum = 0;
	sharers = 0;
	pump = 1
}

inline summing_done()
{
	if
	:: owes -> state = FREEZING /* somebody joined */
	:: owes == 0 && image == (sum | CONTENDED) ->
		reached(freeze_found_nothing);
		thaw()
	:: owes == 0 && image != (sum | CONTENDED) ->
		reached(repaired);
		image_hints = sharers;
		desired = sum | CONTENDED;
		lockd_post(REPAIRING)
	fi
}

inline repairing_done()
{
	if
	:: won ->
		owes = 0; /* who joined just now is thawed with the others */
		thaw()
	:: !won && owes -> state = FREEZING
	:: !won && owes == 0 -> lockd_post(SUMMING)
	fi
}

inline object_free()
{
	object = 0;
	state = 0;
	stage = NOBODY;
	wanted = NL;
	spared = 0;
	revoke_seq = 0; /* nobody owes an answer: the numbers may begin anew */
	freeze_seq = 0;
	image = 0;
	image_hints = 0;
	recheck = 0;
	refreeze = 0
}

inline disarmed()
{
	if
#ifdef MUTANT_DISARM_RACES
	:: 1 ->
		length = 0;
		node0 = 0; want0 = 0; held0 = 0; dead0 = 0;
		node1 = 0; want1 = 0; held1 = 0; dead1 = 0;
		object_free()
#else
	:: !won -> lockd_post(DISARMING)
	:: won && length ->
		reached(asked_while_disarming);
		lockd_post(ARMING)
	:: won && length == 0 ->
		reached(disarmed);
		object_free()
#endif
	fi
}

inline lockd_chain_done()
{
	step = 0;
	pump = 0;
	if
	:: state == ARMING ->
		if
		:: won -> lockd_post(ARMING)
		:: else ->
			state = READY;
			pump = 1
		fi
	:: state == READING || state == CLEARING ->
		state = READY;
		pump = 1
	:: state == GRANTING -> grant_done()
	:: state == DISARMING -> disarmed()
	:: state == SUMMING || state == REPAIRING ->
		if
		:: refreeze ->
			reached(died_while_summing);
			repair_freeze()
		:: !refreeze && state == SUMMING -> summing_done()
		:: !refreeze && state == REPAIRING -> repairing_done()
		fi
	fi;
	if
	:: pump -> queue_pump()
	:: else
	fi;
	won = 0
}

inline toggle_contended()
{
	if
	:: contended(word) -> word = word - CONTENDED
	:: else -> word = word + CONTENDED
	fi
}

/* TORN: a READ of 128 bytes is two of 64: the hints as they were before, the word as it is. */
inline read_slot()
{
#ifdef TORN
	if
	:: !torn ->
		image_hints = hints;
		torn = 1;
		step = 2
	:: else ->
		image = word;
		torn = 0;
		step = 3
	fi
#else
	image = word;
	image_hints = hints;
	step = 3
#endif
}

/* One operation of the chain in flight. step 3: all has taken effect. */
inline lockd_perform()
{
	if
	:: (state == ARMING || state == DISARMING) && step == 0 ->
		won = contended(word);
		toggle_contended();
		step = (state == ARMING -> 2 : 3)
	:: state == READING && step == 0 && addend ->
		word = word - addend;
		addend = 0;
		step = 2
	:: (state == GRANTING || state == REPAIRING) && step == 0 ->
		hints = image_hints;
		step = 1
	:: state == CLEARING && step == 0 ->
		if
		:: word == image -> word = word & (65535 - OWNER_MASK)
		:: else
		fi;
		step = 2
	:: step == 1 ->
		won = (word == image);
		if
		:: won -> word = desired
		:: else
		fi;
		desired = 0;
		step = 2
	:: (state == SUMMING || state == READING && !addend) && step == 0 || step == 2 ->
		read_slot()
	fi
}

#define in_flight                                                                                  \
	(object && state != READY && state != FREEZING)

inline queue_add(n, w, h)
{
	if
	:: length == 0 -> node0 = n; want0 = w; held0 = h
	:: length == 1 -> node1 = n; want1 = w; held1 = h
	:: length == 2 -> node2 = n; want2 = w; held2 = h
	fi;
	length = length + 1
}

inline queue_ask(n, w, h)
{
	/* Else a duplicate. */
	claim(HONEST, !(length > 0 && node0 == n && !dead0) && !(length > 1 && node1 == n && !dead1) &&
	       !(length > 2 && node2 == n && !dead2));
	queue_add(n, w, h);
	if
	:: !object ->
		object = 1;
		lockd_post(ARMING)
	:: else -> queue_touch()
	fi
}

inline note_one(n, k, force, at, its_node, its_held, its_dead)
{
	if
	:: at < length && its_node == n && !its_dead && (force || covers(its_held, k)) -> its_held = k
	:: else
	fi
}

inline note_kept(n, k, force)
{
	note_one(n, k, force, 0, node0, held0, dead0);
	note_one(n, k, force, 1, node1, held1, dead1);
	note_one(n, k, force, 2, node2, held2, dead2)
}

inline queue_released(n, q, k)
{
	if
	:: object ->
		if
		:: q && q == revoke_seq && !in_repair && has(owes, n) ->
			claim(HONEST, compatible(k, wanted));
			unset(owes, n)
		:: else
		fi;
		if
		:: state != ARMING -> note_kept(n, k, 0)
		:: else
		fi;
		queue_touch()
	:: else
	fi
}

inline repair_state(n, q, h)
{
	if
	:: object && in_repair && q == freeze_seq && has(owes, n) ->
		/* Else lockd drops it: believable(). */
		claim(HONEST, !(h == X && word_owner(image) != n));
		claim(HONEST, n == spared || compatible(h, wanted));
		unset(owes, n);
		sum = sum + unit(h, n);
		if
		:: h != NL && h != X -> set(sharers, n)
		:: else
		fi;
		note_kept(n, h, 1);
		if
		:: owes == 0 && state == FREEZING -> lockd_post(SUMMING)
		:: else
		fi
	:: else
	fi
}

#define in_batch(at) (state == GRANTING && (at) < batch)

inline cancel_one(at, its_node, its_dead)
{
	if
	:: !stop && at < length && its_node == n && !its_dead ->
		stop = 1;
		if
		:: !in_batch(at) ->
			queue_remove(at);
			send_down(n, GRANT, CANCELLED, 0);
			queue_touch()
		:: else
		fi
	:: else
	fi
}

/* Its request's number is the waiter's: one Ask a session, and messages in order; late ones are told by `asks`. */
inline queue_cancel(r)
{
	stop = 0;
	if
	:: object && ((asks >> n) & 1) == r ->
		cancel_one(0, node0, dead0);
		cancel_one(1, node1, dead1);
		cancel_one(2, node2, dead2)
	:: else
	fi
}

inline gone_one(at, its_node, its_dead)
{
	if
	:: at < length && its_node == n && !its_dead ->
		if
		:: in_batch(at) -> its_dead = 1
		:: else -> queue_remove(at)
		fi
	:: else
	fi
}

inline session_gone()
{
	sessions = sessions & (15 - bit(n));
	if
	:: object ->
		gone_one(2, node2, dead2);
		gone_one(1, node1, dead1);
		gone_one(0, node0, dead0);
		unset(owes, n);
		if
		:: state == FREEZING ->
			reached(died_while_freezing);
			repair_freeze()
		:: state == SUMMING || state == REPAIRING -> refreeze = 1
		:: else -> queue_touch()
		fi
	:: else
	fi
}

inline session_joined()
{
	sessions = sessions | bit(n);
	set(alive, n);
	if
	:: object && in_repair ->
		reached(joined_in_repair);
		set(owes, n);
		send_down(n, FREEZE, freeze_seq, 0)
	:: else
	fi
}

inline forget_messages()
{
	do
	:: nempty(up[n - 1]) -> up[n - 1]?kind, first, second, third
	:: empty(up[n - 1]) -> break
	od;
	do
	:: nempty(down[n - 1]) -> down[n - 1]?kind, first, second
	:: empty(down[n - 1]) -> break
	od
}

inline take_message()
{
	up[n - 1]?kind, first, second, third;
	if
	:: kind == ASK ->
#ifdef CANCELS
		asks = (asks & (15 - bit(n))) | (first << n);
#endif
		queue_ask(n, second, third)
	:: kind == RELEASED -> queue_released(n, first, second)
	:: kind == STATE -> repair_state(n, first, second)
	:: kind == CANCEL -> queue_cancel(first)
	fi
}

#define START(number, script) run client(number, script)

#ifdef RESTARTS
#define connected_to(number) (!has(cut, number))
#define everybody 14

/* A new lockd, with an empty table, in grace: only who has re-asserted goes on, when all have. */
inline restart()
{
	restarts = restarts - 1;
	word = 0;
	hints = 0;
	object_free();
	owes = 0;
	length = 0;
	batch = 0;
	step = 0;
	desired = 0;
	addend = 0;
	sum = 0;
	sharers = 0;
	asks = 0;
	won = 0;
#ifdef TORN
	torn = 0;
#endif
	node0 = 0; want0 = 0; held0 = 0; dead0 = 0;
	node1 = 0; want1 = 0; held1 = 0; dead1 = 0;
	node2 = 0; want2 = 0; held2 = 0; dead2 = 0;
	cut = everybody;
	grace = 1
}

inline end_grace()
{
	grace = 0;
	down[0]!RESUME, 0, 0;
	down[1]!RESUME, 0, 0;
	down[2]!RESUME, 0, 0
}
#else
#define connected_to(number) 1
#endif

SCRATCH byte n, kind, first, second, third;
SCRATCH byte stop, pump;
SCRATCH int sum_word, others, dead_units;

active proctype lockd()
{
	unsigned sessions : 4 = INITIAL;
	unsigned joining : 4 = JOINERS;
	unsigned state : 4;
	unsigned stage : 2;
	unsigned step : 2;
	unsigned length : 2;
	unsigned batch : 2;
	unsigned owes : 4;
	unsigned revoke_seq : 2;
	unsigned freeze_seq : 2;
	unsigned wanted : 3;
	unsigned spared : 2;
	unsigned image : 16;
	unsigned image_hints : 4;
	unsigned desired : 16;
	unsigned addend : 16;
	unsigned sum : 16;
	unsigned sharers : 4;
	/*
	 * A byte, not bits: spin 6.5.2 takes a proctype whose last member is a bit field for shorter than the C compiler makes it, and masks
	 * the end out of the states as padding. Globals and proctypes that end in a byte are right.
	 */
	byte asks;
	unsigned node0 : 2, node1 : 2, node2 : 2;
	unsigned want0 : 3, want1 : 3, want2 : 3;
	unsigned held0 : 3, held1 : 3, held2 : 3;
	bool dead0, dead1, dead2, recheck, refreeze, won;
#ifdef TORN
	bool torn;
#endif
#ifdef RESTARTS
	bool grace;
#endif

	atomic {
		alive = INITIAL;
		START(1, ONE);
#if INITIAL & 4
		START(2, TWO);
#endif
#if INITIAL & 8
		START(3, THREE);
#endif
	};
end:
	do
	:: d_step { in_flight && step < 3 -> lockd_perform() }
	:: d_step { in_flight && step == 3 -> lockd_chain_done() }
	:: d_step { nempty(up[0]) && connected_to(1) -> n = 1; take_message() }
#if N > 1
	:: d_step { nempty(up[1]) && connected_to(2) -> n = 2; take_message() }
#endif
#if N > 2
	:: d_step { nempty(up[2]) && connected_to(3) -> n = 3; take_message() }
#endif
	/* After the fence: nothing of the dead one lands any more. */
#ifdef RESTARTS
	:: d_step { restarts > 0 -> restart() }
	:: d_step { grace && cut == 0 && asserted == everybody -> end_grace() }
#endif
#if DEATHS > 0
	:: d_step { has(gone_due, 2) -> n = 2; unset(gone_due, 2); forget_messages(); session_gone() }
#if N > 2
	:: d_step { has(gone_due, 3) -> n = 3; unset(gone_due, 3); forget_messages(); session_gone() }
#endif
#endif
#if JOINERS
	:: atomic {
		has(joining, 3) -> d_step { unset(joining, 3);
		n = 3;
		session_joined() };
		START(3, THREE)
	}
#endif
	od
}
