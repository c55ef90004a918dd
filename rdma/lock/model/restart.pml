/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * lockd dies in the middle of anything: a new table; each client learns it when it likes, detaches, re-asserts what it certainly has, and goes
 * on with Resume, which comes when all have. Absentees, leases and fences: session.pml.
 */
#define N 3
#define DEATHS 0
#define JOINERS 0
#define INITIAL 14
#ifndef RESTARTS
#define RESTARTS 1
#endif
#ifndef ONE
#define ONE 2, 24, 1, 0
#endif
#ifndef TWO
#define TWO 1, 24, 0, 0
#endif
#ifndef THREE
#define THREE 1, 8, 0, 0
#endif
#include "word.pml"
#include "client.pml"
#include "lockd.pml"
#include "rest.pml"
