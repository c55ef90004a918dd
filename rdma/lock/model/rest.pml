/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* When nothing can happen any more: what must be so. */

#define sum_of_holders (unit(held_1, 1) + unit(held_2, 2) + unit(held_3, 3))
#define count_of(m) ((held_1 == m -> 1 : 0) + (held_2 == m -> 1 : 0) + (held_3 == m -> 1 : 0))

active proctype rest()
{
	atomic {
		timeout ->
		claim(WAKEUP, (unfinished & alive) == 0);
		claim(LEAK, !object && !contended(word));
#if DEATHS
		/* What the dead left stays until somebody needs the slot; nothing of the living is lacking. */
		claim(LEAK, word_s(word) >= count_of(S) && word_ix(word) >= count_of(IX) &&
				    word_is(word) >= count_of(IS));
#else
		claim(LEAK, word == sum_of_holders);
#endif
	}
}
