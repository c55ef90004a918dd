/* SPDX-License-Identifier: GPL-2.0-only */
/* For the file operations of regular files. */
#ifndef DISTFUSE_KMOD_OPEN_H
#define DISTFUSE_KMOD_OPEN_H

#include <linux/fs.h>

int dfs_open(struct inode *inode, struct file *file);
int dfs_release(struct inode *inode, struct file *file);

/* pages.c */
extern const struct vm_operations_struct dfs_vm_operations;

#endif
