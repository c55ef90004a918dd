/* SPDX-License-Identifier: GPL-2.0-only */
/* Pins on the cluster locks of up to DFS_MAX_PINS inodes: see LOCKING.md. */
#ifndef DISTFUSE_KMOD_PIN_H
#define DISTFUSE_KMOD_PIN_H

#include <linux/fs.h>

#define DFS_MAX_PINS 4

struct dfs_pins {
	u32 count;
	struct inode *inode[DFS_MAX_PINS]; /* ascending; each held by a reference while `owned` */
	bool owned;			   /* the pins belong to a request: inodes are referenced */
};

/*
 * Pins `mode` (DF_S or DF_X) on one inode; waits for the lock, killable. 0; -EINTR; -EIO: no trusted session in the stated
 * time; -ENOTCONN: the connection was aborted.
 */
int dfs_pin(struct dfs_pins *pins, struct inode *inode, u32 mode);
/* The same for several, in ascending order whatever the order given; NULLs and repetitions are skipped. All or none. */
int dfs_pin_all(struct dfs_pins *pins, u32 mode, struct inode *const *inodes, u32 count);
/* One pin if it costs no wait and no message: false if not. May be called where sleeping is not allowed. */
bool dfs_pin_try(struct dfs_pins *pins, struct inode *inode, u32 mode);
/* One pin if the lock is free: at most one chain, never a message to lockd. May be called with a pin on another inode. Sleeps. */
bool dfs_pin_free(struct dfs_pins *pins, struct inode *inode, u32 mode);
void dfs_unpin(struct dfs_pins *pins);
/* The session under one of them was lost: nothing may be changed in the next one. */
bool dfs_pins_lost(const struct dfs_pins *pins);
/* The pins go to another owner that outlives the caller: the inodes are referenced, *pins is empty. */
void dfs_pins_move(struct dfs_pins *to, struct dfs_pins *pins);

#endif
