/* SPDX-License-Identifier: GPL-2.0-only */
/* What a mount counts: one list, shown in debugfs (debug.c) and added to with dfs_count(). Per processor; sums are exact when nothing runs. */
#ifndef DISTFUSE_KMOD_COUNTERS_H
#define DISTFUSE_KMOD_COUNTERS_H

#include <linux/percpu.h>
#include <linux/types.h>

#define DFS_COUNTERS(COUNTER)                                                                      \
	COUNTER(requests)	   /* read by the client daemon */                                 \
	COUNTER(requests_resent)   /* after a daemon was lost */                                   \
	COUNTER(chains)		   /* of verbs posted, without renewals */                         \
	COUNTER(renewals)	   /* of the lease posted */                                       \
	COUNTER(messages_sent)	   /* to lockd */                                                  \
	COUNTER(messages_received) /* of lockd */                                                  \
	COUNTER(pins)		   /* had at once: the lock was held */                            \
	COUNTER(pins_waited)	   /* that waited for the lock or the gate */                      \
	COUNTER(takes)		   /* of free locks: one chain */                                  \
	COUNTER(asks)		   /* of locks that were not free */                               \
	COUNTER(glimpses)	   /* answered: looks at what another node writes */               \
	COUNTER(revokes)	   /* received */                                                  \
	COUNTER(sheds)		   /* of what a lock covered */                                    \
	COUNTER(attributes_kept)   /* believed again: the slot told that nothing changed */        \
	COUNTER(pages_read)	   /* asked for */                                                 \
	COUNTER(pages_written)	   /* sent */                                                      \
	COUNTER(sessions_lost)

enum dfs_counter {
#define DFS_COUNTER_ID(name) DFS_COUNT_##name,
	DFS_COUNTERS(DFS_COUNTER_ID)
#undef DFS_COUNTER_ID
		DFS_COUNTER_NUMBER
};

struct dfs_counters {
	u64 value[DFS_COUNTER_NUMBER];
};

#define dfs_count_by(connection, name, number)                                                     \
	this_cpu_add((connection)->counters->value[DFS_COUNT_##name], number)
#define dfs_count(connection, name) dfs_count_by(connection, name, 1)

#endif
