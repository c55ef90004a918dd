/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the dead leave in a word: client 2 or 3 dies anywhere in the middle of anything, lockd learns it after the fence; the owner is taken
 * off, counts are repaired by Freeze, State, Thaw, and with JOINERS client 3 is a session that joins at any time, during the repair too.
 */
#define N 3
#ifndef DEATHS
#define DEATHS 1
#endif
#ifdef JOIN
#define JOINERS 8
#define INITIAL 6
#else
#define JOINERS 0
#define INITIAL 14
#endif
#ifndef ONE
#define ONE 1, 24, 0, 0
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
