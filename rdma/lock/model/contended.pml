/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Three clients and one slot, no faults: take, undo and ask, queue, grant, revoke, downgrade, upgrade, disarm.
 * A client's script: operations, modes (a bit each: IS 2, IX 4, S 8, X 16), how many of them may be tries, 1: may drop the lock once.
 */
#define N 3
#define DEATHS 0
#define JOINERS 0
#define INITIAL 14
#ifndef ONE
#define ONE 2, 24, 1, 0
#endif
#ifndef TWO
#define TWO 1, 24, 0, 0
#endif
#ifndef THREE
#define THREE 1, 24, 0, 0
#endif
#include "word.pml"
#include "client.pml"
#include "lockd.pml"
#include "rest.pml"
