// SPDX-License-Identifier: GPL-2.0-only
/* The module: begins and ends its parts, in reverse order. */
#include <linux/module.h>

#include "connection.h"
#include "debug.h"
#include "inode.h"
#include "lock.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static const struct {
	int (*begin)(void);
	void (*end)(void);
} dfs_parts[] = {
	{dfs_request_cache_init, dfs_request_cache_exit},
	{dfs_lock_cache_init, dfs_lock_cache_exit},
	{dfs_inode_cache_init, dfs_inode_cache_exit},
	{dfs_debug_init, dfs_debug_exit},
	{dfs_super_init, dfs_super_exit},
	{dfs_device_init, dfs_device_exit},
};

static int __init dfs_module_init(void)
{
	size_t i;
	int error;

	for (i = 0; i < ARRAY_SIZE(dfs_parts); i++) {
		error = dfs_parts[i].begin();
		if (error) {
			while (i--)
				dfs_parts[i].end();
			return error;
		}
	}
	return 0;
}

static void __exit dfs_module_exit(void)
{
	size_t i = ARRAY_SIZE(dfs_parts);

	while (i--)
		dfs_parts[i].end();
}

module_init(dfs_module_init);
module_exit(dfs_module_exit);
MODULE_LICENSE("GPL");
MODULE_AUTHOR("DistFUSE");
MODULE_DESCRIPTION(
	"A cluster filesystem with a coherent write-back page cache, its locks taken over RDMA");
