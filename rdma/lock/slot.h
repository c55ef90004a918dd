/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The slot: one lock in lockd's registered memory, and the arithmetic on its word.
 *
 * Parties: every client changes word 0 by FAA and CAS over the fabric; lockd by the same atomics through its loopback
 * connection. An X holder (and lockd, for a dead one) WRITEs version and value block; takers of shared modes WRITE
 * their hint byte; only lockd changes a key that is not 0.
 *
 * Serialised by: the word's atomics. A field of the word is changed only by whole units, so FAAs of different parties
 * never carry into one another's fields (limits below).
 *
 * Limits: counts have 16 bits. A session has at most one unit in at most one field of a word, transient attempts
 * included, for it has one lock object a key; with node ids 1..32766 that is at most 32766 live units a field. What dead
 * sessions leave stays until somebody needs the slot, so lockd refuses new sessions when 32768 sessions of one
 * incarnation ended without Bye: 32766 + 32768 < 65536, no field ever carries into the next. The owner field is set by CAS alone, never
 * by FAA. Eras have 32 bits: after 2^32 re-keys of one incarnation (five days at 10,000 a second) an era comes again, and a page kept
 * since exactly that life would be believed; likewise the count after 2^32 changes within one life.
 *
 * Known weakness: a client with the region's key can scribble over any slot. The fabric gives no finer right.
 */
#ifndef DISTFUSE_SLOT_H
#define DISTFUSE_SLOT_H

#include "rdma/lock/df_types.h"

DF_BEGIN_C

enum df_mode { DF_NL = 0, DF_IS = 1, DF_IX = 2, DF_S = 3, DF_X = 4 };
#define DF_MODES 5

#define DF_SLOT_SIZE 128u
#define DF_BUCKET_SLOTS 8u
#define DF_BUCKET_SIZE (DF_SLOT_SIZE * DF_BUCKET_SLOTS)
#define DF_HINTS 64u
#define DF_NO_SLOT 0xffffffffu

#define DF_NODE_MIN 1u
#define DF_NODE_MAX 0x7ffeu
#define DF_NODE_LOCKD 0x7fffu /* the owner while lockd re-keys a slot */

/* What an X holder leaves for the next holder. */
struct df_value {
	df_u64 size;	 /* bytes */
	df_u64 mtime_ns; /* since the epoch, two's complement */
	df_u64 ctime_ns;
	df_u64 flags;
};
/*
 * The block was written in this life of the slot, no holder of X or IX died since, and nobody held IX since. While IX is in the word it
 * counts for nothing: df_slot_value_counts.
 */
#define DF_VALUE_PUBLISHED 1ull
/*
 * Beside PUBLISHED: the metadata server has exactly this size and these times, and what of the inode was changed under X since gave it another ctime.
 * So attributes from the server with the same size and times, of this incarnation of lockd, are those of now, whenever they were asked for.
 */
#define DF_VALUE_EXACT 2ull
/* Beside PUBLISHED, while X is held: the holder has the file open for writing. */
#define DF_VALUE_WRITING 4ull

/*
 * Beside EXACT: the upper half of the flags is a count of this life's versions, and since that version nothing of the inode but size, mtime and ctime has
 * changed. Who knows the rest as of that version or a later one has, with this block, all attributes of now. A holder that leaves no block, or does not
 * know of this, takes it back.
 */
#define DF_VALUE_SINCE 8ull
#define DF_VALUE_SINCE_SHIFT 32

struct df_slot {
	df_u64 word;
	df_u64 key; /* 0: never used */
	df_u64 version;
	struct df_value value;
	df_u64 reserved;
	df_u8 hints[DF_HINTS]; /* [node mod 64] != 0: such a node may hold a shared mode */
};

DF_STATIC_ASSERT(sizeof(struct df_slot) == DF_SLOT_SIZE, "slot size");
DF_STATIC_ASSERT(offsetof(struct df_slot, key) == 8, "key");
DF_STATIC_ASSERT(offsetof(struct df_slot, version) == 16, "version");
DF_STATIC_ASSERT(offsetof(struct df_slot, value) == 24, "value block");
DF_STATIC_ASSERT(offsetof(struct df_slot, hints) == 64, "hints");

/* The word. */
#define DF_WORD_IS_SHIFT 0
#define DF_WORD_IX_SHIFT 16
#define DF_WORD_S_SHIFT 32
#define DF_WORD_OWNER_SHIFT 48
#define DF_WORD_OWNER_MASK (0x7fffull << DF_WORD_OWNER_SHIFT)
#define DF_CONTENDED (1ull << 63)

static inline df_u32 df_word_is(df_u64 word)
{
	return (df_u32)(word >> DF_WORD_IS_SHIFT) & 0xffffu;
}
static inline df_u32 df_word_ix(df_u64 word)
{
	return (df_u32)(word >> DF_WORD_IX_SHIFT) & 0xffffu;
}
static inline df_u32 df_word_s(df_u64 word)
{
	return (df_u32)(word >> DF_WORD_S_SHIFT) & 0xffffu;
}
static inline df_u32 df_word_owner(df_u64 word)
{
	return (df_u32)(word >> DF_WORD_OWNER_SHIFT) & 0x7fffu;
}
static inline int df_word_contended(df_u64 word)
{
	return (word & DF_CONTENDED) != 0;
}

/* What one holder adds to the word. */
static inline df_u64 df_unit(df_u32 mode, df_u32 node)
{
	switch (mode) {
	case DF_IS:
		return 1ull << DF_WORD_IS_SHIFT;
	case DF_IX:
		return 1ull << DF_WORD_IX_SHIFT;
	case DF_S:
		return 1ull << DF_WORD_S_SHIFT;
	case DF_X:
		return (df_u64)node << DF_WORD_OWNER_SHIFT;
	default:
		return 0;
	}
}

static inline int df_mode_valid(df_u32 mode)
{
	return mode < DF_MODES;
}

/* Whether two different holders may have these modes at once. */
static inline int df_compatible(df_u32 a, df_u32 b)
{
	static const df_u8 compatible[DF_MODES] = {
		/* by mode NL .. X; bit n: compatible with mode n */
		0x1f,
		1u << DF_NL | 1u << DF_IS | 1u << DF_IX | 1u << DF_S,
		1u << DF_NL | 1u << DF_IS | 1u << DF_IX,
		1u << DF_NL | 1u << DF_IS | 1u << DF_S,
		1u << DF_NL,
	};
	return compatible[a] >> b & 1u;
}

/* Whether a holder of `held` may do what asks for `wanted`. */
static inline int df_covers(df_u32 held, df_u32 wanted)
{
	return held == wanted || wanted == DF_NL || held == DF_X ||
	       (wanted == DF_IS && held != DF_NL);
}

/* The weakest mode that covers both. There is no SIX: IX and S make X. */
static inline df_u32 df_join(df_u32 a, df_u32 b)
{
	if (df_covers(a, b))
		return a;
	return df_covers(b, a) ? b : (df_u32)DF_X;
}

/* The strongest mode that a holder of `held` may keep when somebody else wants `wanted`. */
static inline df_u32 df_keep(df_u32 held, df_u32 wanted)
{
	if (df_compatible(held, wanted))
		return held;
	if (held == DF_X && (wanted == DF_S || wanted == DF_IS))
		return DF_S;
	if (held == DF_X && wanted == DF_IX)
		return DF_IX;
	return DF_NL;
}

/* Whether `mode` can be had beside everything that the word (without the asker's own unit) says. */
static inline int df_word_admits(df_u64 word, df_u32 mode)
{
	if (df_word_owner(word))
		return mode == DF_NL;
	return (df_compatible(mode, DF_IS) || !df_word_is(word)) &&
	       (df_compatible(mode, DF_IX) || !df_word_ix(word)) &&
	       (df_compatible(mode, DF_S) || !df_word_s(word));
}

/* Whether size and times in a slot that was read may be believed (an X holder may have newer ones: df_glimpse_needed). */
static inline int df_slot_value_counts(const struct df_slot *slot)
{
	return (slot->value.flags & DF_VALUE_PUBLISHED) && !df_word_ix(slot->word);
}

/* Keys. */
#define DF_KEY_INODE_BITS 40
#define DF_KEY_EXTENT_BITS 24
#define DF_KEY_EXTENT_MAX ((1u << DF_KEY_EXTENT_BITS) - 2) /* extent + 1 must fit */

/* The lock of the inode itself. `inode`: 1 .. 2^40 - 1. */
static inline df_u64 df_key_inode(df_u64 inode)
{
	return inode << DF_KEY_EXTENT_BITS;
}
static inline df_u64 df_key_extent(df_u64 inode, df_u32 extent)
{
	return inode << DF_KEY_EXTENT_BITS | (df_u64)(extent + 1);
}
static inline df_u64 df_key_split_inode(df_u64 key)
{
	return key >> DF_KEY_EXTENT_BITS;
}
/* 1 and the extent; 0: the key is an inode's own. */
static inline int df_key_split_extent(df_u64 key, df_u32 *extent)
{
	df_u32 low = (df_u32)key & ((1u << DF_KEY_EXTENT_BITS) - 1);

	if (low)
		*extent = low - 1;
	return low != 0;
}

/* Every client and lockd must agree on it: part of the protocol version. */
static inline df_u32 df_hash_bucket(df_u64 key, df_u32 buckets)
{
	key ^= key >> 33;
	key *= 0xff51afd7ed558ccdull;
	key ^= key >> 33;
	key *= 0xc4ceb9fe1a85ec53ull;
	key ^= key >> 33;
	return (df_u32)(((key >> 32) * buckets) >> 32);
}

/*
 * Versions: era << 32 | count. The count rises with every release of X and IX, whether the block changed or not, and when lockd takes them from the dead: while it is
 * the initial one, nothing of the inode changed in this incarnation of lockd.
 */
static inline df_u64 df_version(df_u32 era, df_u32 count)
{
	return (df_u64)era << 32 | count;
}
static inline df_u32 df_version_era(df_u64 version)
{
	return (df_u32)(version >> 32);
}
/* Whether what was known as of version `known` (0: nothing) is that of now, as the block says that was read with version `now`. */
static inline int df_value_same_since(const struct df_value *value, df_u64 now, df_u64 known)
{
	const df_u64 wanted = DF_VALUE_PUBLISHED | DF_VALUE_EXACT | DF_VALUE_SINCE;

	return (value->flags & wanted) == wanted && known && now >> 32 == known >> 32 &&
	       (df_u32)(value->flags >> DF_VALUE_SINCE_SHIFT) <= (df_u32)known;
}
/* The next version of the same life; the count wraps inside its half. */
static inline df_u64 df_version_next(df_u64 version)
{
	return df_version(df_version_era(version), (df_u32)version + 1);
}

/* The region: primary slots, overflow slots. */
struct df_table {
	df_u32 buckets;
	df_u32 overflow; /* slots */
	df_u32 node;	 /* of this session; lockd: DF_NODE_LOCKD */
};

static inline df_u32 df_table_slots(const struct df_table *table)
{
	return table->buckets * DF_BUCKET_SLOTS + table->overflow;
}
static inline df_u64 df_table_bytes(const struct df_table *table)
{
	return (df_u64)df_table_slots(table) * DF_SLOT_SIZE;
}
static inline df_u64 df_slot_offset(df_u32 slot)
{
	return (df_u64)slot * DF_SLOT_SIZE;
}
/* What lockd writes into a fresh table: slot i has version era i + 1. */
static inline df_u64 df_initial_version(df_u32 slot)
{
	return df_version(slot + 1, 0);
}

/* One-sided operations; a chain takes effect in order. The same for clients and for lockd's loopback. */
enum df_op_kind { DF_OP_READ, DF_OP_WRITE, DF_OP_CAS, DF_OP_FAA };

struct df_op {
	df_u8 kind;    /* enum df_op_kind */
	df_u8 data;    /* WRITE: the source is chain->bytes + data */
	df_u16 length; /* READ, WRITE: bytes */
	df_u32 reserved;
	df_u64 offset;	 /* in lockd's region */
	df_u64 operand;	 /* FAA: addend; CAS: new value */
	df_u64 expected; /* CAS */
};

#define DF_CHAIN_OPS 4
/*
 * At most one atomic and one READ a chain: its completion hands over the atomic's old value and what was read (128 bytes
 * of a slot, or 1024 of a bucket).
 */
struct df_chain {
	df_u32 kind; /* the issuer's, for traces */
	df_u32 slot; /* that it works on; DF_NO_SLOT for a bucket's READ */
	df_u32 count;
	df_u32 reserved;
	struct df_op op[DF_CHAIN_OPS];
	df_u8 bytes[DF_SLOT_SIZE];
};

void df_chain_init(struct df_chain *chain, df_u32 kind, df_u32 slot);
void df_chain_read(struct df_chain *chain, df_u64 offset, df_u32 length);
/* Copies `length` bytes into the chain at `data`. */
void df_chain_write(struct df_chain *chain, df_u64 offset, df_u32 data, const void *source,
		    df_u32 length);
void df_chain_cas(struct df_chain *chain, df_u64 offset, df_u64 expected, df_u64 desired);
void df_chain_faa(struct df_chain *chain, df_u64 offset, df_u64 addend);

DF_END_C

#endif
