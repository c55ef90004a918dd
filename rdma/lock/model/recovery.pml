/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Sessions once more, for progress: grace ends, and a lost session's locks become free, whatever the clients do, if every process runs
 * again and again and faults are as many as said. Locks are left out: nothing here waits for one.
 */
#define WITHOUT_LOCKS
#include "session.pml"

#define grace_goes_on (up && grace)
#define being_lost (loss[0] != NOT_LOST && loss[0] != GIVEN)

ltl ends { [] ((grace_goes_on -> <> !grace_goes_on) && (being_lost -> <> !being_lost)) }
