/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Clients that want without end: whoever waits gets the lock, although the others come again and again. Fair: every process runs
 * again and again, and lockd reads each connection again and again.
 */
#define N 3
#define DEATHS 0
#define JOINERS 0
#ifndef INITIAL
#define INITIAL 6
#endif
#define ENDLESS
#ifndef ONE
#define ONE 0, 16, 0, 0
#endif
#ifndef TWO
#define TWO 0, 24, 0, 0
#endif
#ifndef THREE
#define THREE 0, 8, 0, 0
#endif
#include "word.pml"
#include "client.pml"
#include "lockd.pml"

#define one_waits (waiting & 2)
#define one_is_read (len(up[0]) == 0)
ltl fair { ([] <> one_is_read) -> [] (one_waits -> <> !one_waits) }
