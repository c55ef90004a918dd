/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Why, how it is used, limits: hold.h. */
#include "rdma/lock/hold.h"

#include "rdma/lock/slot.h"

/* 1 .. DF_HOLD_MAX_US; 0 means that nothing was seen yet. */
static df_u32 sample_us(df_u64 from_us, df_u64 now_us)
{
	df_u64 took = now_us > from_us ? now_us - from_us : 1;

	return took < DF_HOLD_MAX_US ? (df_u32)took : DF_HOLD_MAX_US;
}

static df_u32 bound_us(const struct df_hold *hold)
{
	df_u32 cost = hold->wait_us ? hold->wait_us : DF_HOLD_MAX_US, bound;

	if (hold->give_us && 2 * hold->give_us < cost)
		cost = 2 * hold->give_us;
	bound = cost * DF_HOLD_TIMES;
	if (bound < DF_HOLD_LEAST_US)
		return DF_HOLD_LEAST_US;
	return bound < DF_HOLD_MAX_US ? bound : DF_HOLD_MAX_US;
}

void df_hold_granted(struct df_hold *hold, df_u64 now_us)
{
	df_u32 wait;

	if (hold->waiting) {
		wait = sample_us(hold->wanted_us, now_us);
		if (!hold->wait_us || wait < hold->wait_us)
			hold->wait_us = wait;
		if (hold->hold_us > bound_us(hold))
			hold->hold_us = bound_us(hold);
	}
	hold->granted_us = now_us;
	hold->waiting = 0;
	hold->used = 0;
	hold->recent = 0;
	hold->looked = 0;
	hold->idle = 0;
	hold->shed = 0;
}

df_u64 df_hold_revoked(struct df_hold *hold, df_u32 held, df_u64 now_us)
{
	df_u64 until = hold->granted_us + hold->hold_us, look;

	if ((held != DF_X && held != DF_IX) || !hold->used || until <= now_us)
		return now_us;
	if (hold->looked && !hold->recent) {
		hold->idle = 1;
		return now_us;
	}
	hold->looked = 1;
	hold->recent = 0;
	look = now_us + hold->hold_us / DF_HOLD_LOOKS;
	return look < until ? look : until;
}

void df_hold_shed(struct df_hold *hold, df_u64 now_us)
{
	hold->shed = 1;
	hold->giving = 1;
	hold->shed_us = now_us;
	hold->brief = hold->used && !hold->idle &&
		      now_us - hold->granted_us <= (df_u64)hold->hold_us + DF_HOLD_BRIEF_US;
}

void df_hold_given(struct df_hold *hold, df_u64 now_us)
{
	df_u32 give = sample_us(hold->shed_us, now_us);

	if (!hold->giving)
		return;
	hold->giving = 0;
	hold->give_us = hold->give_us ? (3 * hold->give_us + give + 3) / 4 : give;
}

static void longer(struct df_hold *hold)
{
	hold->hold_us = hold->hold_us ? hold->hold_us * 2 : DF_HOLD_LEAST_US;
	if (hold->hold_us > DF_HOLD_MAX_US)
		hold->hold_us = DF_HOLD_MAX_US;
}

static void shorter(struct df_hold *hold, df_u64 quiet_us)
{
	df_u64 halvings = 1 + quiet_us / DF_HOLD_QUIET_US;

	hold->hold_us = halvings < 32 ? hold->hold_us >> halvings : 0;
	if (hold->hold_us >= DF_HOLD_LEAST_US)
		return;
	hold->hold_us = 0;
	hold->wait_us = 0; /* the next time it bounces, it may cost something else */
}

void df_hold_wanted(struct df_hold *hold, df_u64 now_us)
{
	df_u64 quiet = now_us - hold->shed_us;

	if (!hold->shed)
		return;
	hold->shed = 0; /* once a tenure */
	if (!hold->brief || quiet > DF_HOLD_AGAIN_US) {
		shorter(hold, quiet);
		return;
	}
	hold->waiting = 1;
	hold->wanted_us = now_us;
	longer(hold);
}
