/* SPDX-License-Identifier: GPL-2.0-only */
/* For the file operations of regular files. */
#ifndef DISTFUSE_KMOD_OPEN_H
#define DISTFUSE_KMOD_OPEN_H

#include <linux/fs.h>

int dfs_open(struct inode *inode, struct file *file);
int dfs_release(struct inode *inode, struct file *file);

/*
 * direct.c: some of what the iterator has, at iocb->ki_pos, which it moves on; the caller holds i_rwsem. 0: the end of the file (reads). -EOPNOTSUPP: this memory
 * goes through the page cache.
 */
ssize_t dfs_direct(struct kiocb *iocb, struct iov_iter *iter, bool write);

/* pages.c */
extern const struct vm_operations_struct dfs_vm_operations;

#endif
