/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracepoints, /sys/kernel/tracing/events/distfuse/: distfuse_lock for each event that a cluster lock's core took in (what it holds now, and what came of
 * it); distfuse_request_queued, _sent and _ended for each request to the client daemon.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM distfuse

#if !defined(DISTFUSE_KMOD_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define DISTFUSE_KMOD_TRACE_H

#include <linux/tracepoint.h>

#include "connection.h"
#include "lock.h"

/* clang-format off */
#define DFS_TRACE_MODES {DF_NL, "-"}, {DF_IS, "IS"}, {DF_IX, "IX"}, {DF_S, "S"}, {DF_X, "X"}
#define DFS_TRACE_GATES {DF_GATE_OPEN, "open"}, {DF_GATE_REVOKING, "revoking"}, {DF_GATE_CLOSED, "closed"}
#define DFS_TRACE_WAKES								\
	{DF_WAKE_GRANTED, "granted"}, {DF_WAKE_WOULD_BLOCK, "would_block"},	\
	{DF_WAKE_RELEASED, "released"}, {DF_WAKE_BUSY, "busy"}, {DF_WAKE_LOST, "lost"}, \
	{DF_WAKE_REASSERTED, "reasserted"}, {DF_WAKE_FORFEITED, "forfeited"}

TRACE_EVENT(distfuse_lock,
	TP_PROTO(const struct dfs_lock *lock, const struct df_out *out),
	TP_ARGS(lock, out),
	TP_STRUCT__entry(
		__field(u64, key)
		__field(u32, slot)
		__field(u32, pins)
		__field(u32, wake)
		__field(u8, held)
		__field(u8, want)
		__field(u8, gate)
		__field(u8, chain)
		__field(u8, message)
		__field(bool, shed)
	),
	TP_fast_assign(
		__entry->key = lock->key;
		__entry->slot = lock->core.slot;
		__entry->pins = lock->core.pins;
		__entry->wake = out->wake;
		__entry->held = lock->core.held;
		__entry->want = lock->core.want;
		__entry->gate = lock->core.gate;
		__entry->chain = out->post ? out->chain.kind : 0;
		__entry->message = out->messages ? out->message[0].head.type : 0;
		__entry->shed = out->shed;
	),
	TP_printk("inode=%llu slot=%d held=%s want=%s gate=%s pins=%u wake=%s chain=%u message=%u%s",
		  __entry->key >> DF_KEY_EXTENT_BITS, (int)__entry->slot,
		  __print_symbolic(__entry->held, DFS_TRACE_MODES),
		  __print_symbolic(__entry->want, DFS_TRACE_MODES),
		  __print_symbolic(__entry->gate, DFS_TRACE_GATES), __entry->pins,
		  __print_flags(__entry->wake, "|", DFS_TRACE_WAKES), __entry->chain,
		  __entry->message, __entry->shed ? " shed" : "")
);

DECLARE_EVENT_CLASS(distfuse_request,
	TP_PROTO(const struct dfs_request *request),
	TP_ARGS(request),
	TP_STRUCT__entry(
		__field(u64, unique)
		__field(u64, inode)
		__field(u32, opcode)
		__field(u32, bytes)
		__field(dev_t, device)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->unique = request->head.unique;
		__entry->inode = request->head.nodeid;
		__entry->opcode = request->head.opcode;
		__entry->bytes = request->head.len;
		__entry->device = request->connection->device;
		__entry->error = request->error;
	),
	TP_printk("device=%u:%u unique=%llu opcode=%u inode=%llu bytes=%u error=%d",
		  MAJOR(__entry->device), MINOR(__entry->device), __entry->unique,
		  __entry->opcode, __entry->inode, __entry->bytes, __entry->error)
);

DEFINE_EVENT(distfuse_request, distfuse_request_queued,
	TP_PROTO(const struct dfs_request *request), TP_ARGS(request));
DEFINE_EVENT(distfuse_request, distfuse_request_sent,
	TP_PROTO(const struct dfs_request *request), TP_ARGS(request));
DEFINE_EVENT(distfuse_request, distfuse_request_ended,
	TP_PROTO(const struct dfs_request *request), TP_ARGS(request));
/* clang-format on */

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
