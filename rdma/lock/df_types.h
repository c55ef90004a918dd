/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Fixed-width types and the three string functions for code that both the kernel and user space compile. Nothing else
 * of either side's library is used in this folder.
 */
#ifndef DISTFUSE_DF_TYPES_H
#define DISTFUSE_DF_TYPES_H

#ifdef __KERNEL__
#include <linux/stddef.h>
#include <linux/string.h>
#include <linux/types.h>
typedef __u8 df_u8;
typedef __u16 df_u16;
typedef __u32 df_u32;
typedef __u64 df_u64;
typedef __s32 df_s32;
#else
#include <stddef.h>
#include <stdint.h>
#include <string.h>
typedef uint8_t df_u8;
typedef uint16_t df_u16;
typedef uint32_t df_u32;
typedef uint64_t df_u64;
typedef int32_t df_s32;
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "slots and messages are little-endian and are used in place: a big-endian host needs conversions here"
#endif

#ifdef __cplusplus
#define DF_STATIC_ASSERT(condition, text) static_assert(condition, text)
#define DF_BEGIN_C extern "C" {
#define DF_END_C }
#else
#define DF_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#define DF_BEGIN_C
#define DF_END_C
#endif

#endif
