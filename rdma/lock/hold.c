/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Why, how it is used, limits: hold.h. */
#include "rdma/lock/hold.h"

void df_hold_granted(struct df_hold *hold, df_u64 now_us)
{
	hold->granted_us = now_us;
	hold->used = 0;
	hold->shed = 0;
}

df_u64 df_hold_revoked(const struct df_hold *hold, df_u64 now_us)
{
	df_u64 until = hold->granted_us + hold->hold_us;

	return hold->used && until > now_us ? until : now_us;
}

void df_hold_shed(struct df_hold *hold, df_u64 now_us)
{
	hold->shed = 1;
	hold->shed_us = now_us;
	hold->brief =
		hold->used && now_us - hold->granted_us <= (df_u64)hold->hold_us + DF_HOLD_BRIEF_US;
}

static void longer(struct df_hold *hold)
{
	hold->hold_us = hold->hold_us ? hold->hold_us * 2 : DF_HOLD_FIRST_US;
	if (hold->hold_us > DF_HOLD_MAX_US)
		hold->hold_us = DF_HOLD_MAX_US;
}

static void shorter(struct df_hold *hold, df_u64 quiet_us)
{
	df_u64 halvings = 1 + quiet_us / DF_HOLD_QUIET_US;

	hold->hold_us = halvings < 32 ? hold->hold_us >> halvings : 0;
	if (hold->hold_us < DF_HOLD_FIRST_US)
		hold->hold_us = 0;
}

void df_hold_wanted(struct df_hold *hold, df_u64 now_us)
{
	df_u64 quiet = now_us - hold->shed_us;

	if (!hold->shed)
		return;
	hold->shed = 0; /* once a tenure */
	if (hold->brief && quiet <= DF_HOLD_AGAIN_US)
		longer(hold);
	else
		shorter(hold, quiet);
}
