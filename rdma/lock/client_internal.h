/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the files of the client's core share: client_acquire.c (find, take, ask), client_recover.c (detach, re-assert), client.c (the rest). */
#ifndef DISTFUSE_CLIENT_INTERNAL_H
#define DISTFUSE_CLIENT_INTERNAL_H

#include "rdma/lock/client.h"

/* client.c */
void df_out_begin(struct df_out *out);
void df_begin_shed(struct df_lock *lock, df_u64 seq, df_u32 keep, struct df_out *out);
df_u64 df_own_unit(const struct df_lock *lock, df_u32 mode);
df_u64 df_word_offset(const struct df_lock *lock);
void df_chain_hint(struct df_lock *lock, struct df_chain *chain);
struct df_chain *df_begin_chain(struct df_lock *lock, df_u32 kind, struct df_out *out);
union df_msg *df_add_message(struct df_out *out, df_u32 type, df_u32 slot, df_u64 key, df_u64 seq);
void df_send_released(struct df_lock *lock, df_u64 seq, struct df_out *out);
/* What may go on now that a chain has ended. */
void df_advance(struct df_lock *lock, struct df_out *out);

/* client_acquire.c */
void df_begin_acquire(struct df_lock *lock, df_u32 mode, struct df_out *out);
void df_end_acquire(struct df_lock *lock, df_u32 wake, struct df_out *out);
void df_granted(struct df_lock *lock, df_u64 version, const struct df_value *value,
		struct df_out *out);
void df_send_ask(struct df_lock *lock, struct df_out *out);
void df_post_find(struct df_lock *lock, struct df_out *out);
void df_find_again(struct df_lock *lock, struct df_out *out);
void df_slot_found(struct df_lock *lock, df_u32 slot, struct df_out *out);
void df_take_done(struct df_lock *lock, df_u64 old, const struct df_slot *slot, struct df_out *out);
void df_undo_done(struct df_lock *lock, df_u64 old, struct df_out *out);
void df_find_done(struct df_lock *lock, const struct df_slot *slots, struct df_out *out);
void df_claim_done(struct df_lock *lock, df_u64 old, struct df_out *out);

/* client_recover.c: the steps of the above while `asserting`. */
void df_assert_take(struct df_lock *lock, struct df_out *out);
void df_assert_taken(struct df_lock *lock, df_u64 old, const struct df_slot *slot,
		     struct df_out *out);
void df_assert_failed(struct df_lock *lock, struct df_out *out);

#endif
