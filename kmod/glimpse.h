/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Glimpse: the size and times of a file that another node writes, without taking its lock away.
 *
 * Parties: a thread in stat that tried S and found it taken (pin.h: dfs_pin_free), so that the slot is known; lockd, which asks the holder of X
 * to publish; the answer, in softirq.
 *
 * Messages: Glimpse and GlimpseReply (wire.h). An answer names its request by seq, counted up from 2^48: below are file locks and the cluster locks' Asks.
 *
 * States of a request: SENT, in `sent`; ANSWERED; LEFT: its thread was killed; it stays counted until the answer or the link's end, for lockd has it.
 *
 * Serialised by: session->spin.
 *
 * Recovery: the link ends: every thread gets -EAGAIN and takes S in the ordinary way, as it does when lockd is busy or the slot has moved.
 *
 * Not always: a file that nobody writes is taken in S, which is cached from then on (inode.c, dfs_look); where glimpses find no writers, most are left out.
 *
 * Limits: a quarter of Welcome.asks at a time, then -EAGAIN.
 */
#ifndef DISTFUSE_KMOD_GLIMPSE_H
#define DISTFUSE_KMOD_GLIMPSE_H

#include <linux/list.h>
#include <linux/types.h>

#include "rdma/lock/wire.h"

struct dfs_lock;
struct dfs_session;

struct dfs_glimpses {
	struct list_head sent;
	u32 count; /* unanswered, with those that were left */
	u64 next_seq;
	u32 luck;  /* glimpses that may yet be for nothing; a guess, not locked */
	u32 tried; /* without luck; likewise */
};

void dfs_glimpses_open(struct dfs_session *session);
/* The link has ended, or the connection was aborted: nobody waits any more. */
void dfs_glimpses_cut(struct dfs_session *session);
/* A GlimpseReply. Softirq. */
int dfs_glimpse_reply(struct dfs_session *session, u32 epoch, const union df_msg *message);

/*
 * 1 and the holder's size and times; 0: nobody holds X, or its holder has changed nothing; -EAGAIN: take S; -EINTR: killed. Sleeps.
 */
int dfs_glimpse(struct dfs_lock *lock, struct df_value *value);

#endif
