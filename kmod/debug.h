/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef DISTFUSE_KMOD_DEBUG_H
#define DISTFUSE_KMOD_DEBUG_H

struct dfs_connection;

/* From the mount to the unmount, while the session is there. */
void dfs_debug_mounted(struct dfs_connection *connection);
void dfs_debug_unmounted(struct dfs_connection *connection);
int dfs_debug_init(void);
void dfs_debug_exit(void);

#endif
