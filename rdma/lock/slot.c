/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#include "rdma/lock/slot.h"

void df_chain_init(struct df_chain *chain, df_u32 kind, df_u32 slot)
{
	memset(chain, 0, sizeof(*chain));
	chain->kind = kind;
	chain->slot = slot;
}

/* The callers are in this folder and build chains of fixed shape: four operations are enough for each. */
static struct df_op *next_op(struct df_chain *chain, df_u32 kind, df_u64 offset)
{
	struct df_op *op = &chain->op[chain->count++];

	op->kind = (df_u8)kind;
	op->offset = offset;
	return op;
}

void df_chain_read(struct df_chain *chain, df_u64 offset, df_u32 length)
{
	next_op(chain, DF_OP_READ, offset)->length = (df_u16)length;
}

void df_chain_write(struct df_chain *chain, df_u64 offset, df_u32 data, const void *source,
		    df_u32 length)
{
	struct df_op *op = next_op(chain, DF_OP_WRITE, offset);

	op->data = (df_u8)data;
	op->length = (df_u16)length;
	memcpy(chain->bytes + data, source, length);
}

void df_chain_cas(struct df_chain *chain, df_u64 offset, df_u64 expected, df_u64 desired)
{
	struct df_op *op = next_op(chain, DF_OP_CAS, offset);

	op->length = 8;
	op->expected = expected;
	op->operand = desired;
}

void df_chain_faa(struct df_chain *chain, df_u64 offset, df_u64 addend)
{
	struct df_op *op = next_op(chain, DF_OP_FAA, offset);

	op->length = 8;
	op->operand = addend;
}
