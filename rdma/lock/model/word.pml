/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Modes and the slot's word, as slot.h has them, with narrower fields: IS, IX, S counts of 4 bits, owner 3 bits, contended bit 15.
 * Whoever includes this defines N, the number of clients (1..3).
 */
#define NL 0
#define IS 1
#define IX 2
#define S 3
#define X 4

#define CONTENDED 32768
#define OWNER_UNIT 4096
#define OWNER_MASK 28672

#define word_is(w) ((w) & 15)
#define word_ix(w) (((w) >> 4) & 15)
#define word_s(w) (((w) >> 8) & 15)
#define word_owner(w) (((w) >> 12) & 7)
#define contended(w) (((w) & CONTENDED) != 0)
#define unit(m, n)                                                                                 \
	((m) == IS -> 1 : ((m) == IX -> 16 : ((m) == S -> 256 : ((m) == X -> (n) * OWNER_UNIT : 0))))
#define field_count(w, m)                                                                          \
	((m) == IS -> word_is(w) : ((m) == IX -> word_ix(w) : ((m) == S -> word_s(w) : 1)))

#define compatible(a, b)                                                                           \
	((a) == NL || (b) == NL || ((a) == IS && (b) != X) || ((b) == IS && (a) != X) ||           \
	 ((a) == (b) && (a) != X))
#define covers(h, w) ((h) == (w) || (w) == NL || (h) == X || ((w) == IS && (h) != NL))
#define join_of(a, b) (covers(a, b) -> (a) : (covers(b, a) -> (b) : X))
#define keep_of(h, w)                                                                              \
	(compatible(h, w) -> (h) :                                                                 \
			    ((h) == X && ((w) == S || (w) == IS) -> S : ((h) == X && (w) == IX -> IX : NL)))
#define admits(w, m)                                                                               \
	(word_owner(w) -> (m) == NL : ((compatible(m, IS) || word_is(w) == 0) &&                   \
				      (compatible(m, IX) || word_ix(w) == 0) &&                    \
				      (compatible(m, S) || word_s(w) == 0)))

/*
 * What is checked. scripts/model tells the properties apart by the number that pan prints with the failed expression.
 */
#define EXCLUSION 1 /* never X with another holder, never S with IX, of those that somebody may use */
#define WAKEUP 2    /* when nothing is left to happen, nobody waits */
#define LEAK 3	    /* at rest the word is the sum of the live holders, and no contended bit */
#define HONEST 4    /* no honest client is dropped or breaks off */
#define FENCE 5	    /* no use, and no write at storaged, of a session whose locks were given away */
#define KEEP 6	    /* who stayed within the rules keeps the session */
#define claim(property, condition) assert((condition) || 0 == property)

/* Told once by each search: a model that never comes to what it is about proves nothing. scripts/model wants every point reached. */
#define reached(point)                                                                             \
	c_code                                                                                     \
	{                                                                                          \
		static int once;                                                                   \
		if (!once) {                                                                       \
			once = 1;                                                                  \
			fprintf(stderr, "reached " #point "\n");                                   \
		}                                                                                  \
	}

/* Variables that mean nothing between two steps: no part of the state, but in a search breadth first, which cannot have such. */
#ifndef SCRATCH
#define SCRATCH hidden
#endif
