/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the files of lockd's core share: lockd.c (sessions, dispatch), lockd_queue.c, lockd_requests.c, lockd_repair.c, lockd_find.c. */
#ifndef DISTFUSE_LOCKD_INTERNAL_H
#define DISTFUSE_LOCKD_INTERNAL_H

#include "rdma/lock/lockd.h"

enum df_waiter_kind { DF_WAITER_ASK, DF_WAITER_FIND, DF_WAITER_GLIMPSE };

enum df_find_state {
	DF_FIND_PENDING,  /* another Find works on the bucket */
	DF_FIND_BUCKET,	  /* READ of the bucket in flight */
	DF_FIND_CLAIM,	  /* CAS of an empty slot's key in flight */
	DF_FIND_OVERFLOW, /* READ of some overflow slots in flight */
	DF_FIND_QUEUED,	  /* waits in the queue of a slot for its X */
};

enum df_glimpse_state { DF_GLIMPSE_FIRST, DF_GLIMPSE_AWAIT, DF_GLIMPSE_LAST };

/* A request that has no answer yet: Ask, Find or Glimpse. */
struct df_waiter {
	struct df_waiter *next; /* of the object's queue; free list */
	struct df_waiter *prev; /* of the object's queue */
	struct df_waiter *
		list_next; /* of all Finds, of the Glimpses that await one session, of the Asks of one hash */
	df_u64 key;
	df_u64 seq;   /* the client's */
	df_u64 asked; /* GLIMPSE: our number at the holder */
	df_u32 node;  /* 0: gone, nobody to answer */
	df_u32 slot;  /* FIND: the candidate */
	df_u8 kind;
	df_u8 state; /* FIND, GLIMPSE */
	df_u8 want;
	df_u8 held;
	df_u8 fresh; /* GLIMPSE: the holder published */
};

enum df_object_state {
	DF_OBJECT_ARMING,
	DF_OBJECT_READY,
	DF_OBJECT_READING,
	DF_OBJECT_GRANTING,
	DF_OBJECT_CLEARING,
	DF_OBJECT_FREEZING,  /* States awaited */
	DF_OBJECT_SUMMING,   /* all are here; READ in flight */
	DF_OBJECT_REPAIRING, /* CAS to the sum in flight */
	DF_OBJECT_REKEYING,
	DF_OBJECT_DISARMING,
};

enum df_stage { DF_STAGE_NOBODY, DF_STAGE_LIKELY, DF_STAGE_ALL };

struct df_object {
	struct df_object *hash_next; /* free list */
	struct df_object *list_next; /* of all objects in use */
	struct df_object *list_prev;
	struct df_waiter *head;
	struct df_waiter *tail;
	df_u64 *owes; /* a bit per node: Released for `revoke_seq`, or State for `freeze_seq` */
	df_u64 revoke_seq;
	df_u64 freeze_seq;
	df_u64 sum;	 /* of the States so far */
	df_u64 sharers;	 /* of them, a bit per hint */
	df_u64 expected; /* of the CAS in flight */
	df_u64 desired;
	df_u64 looked;	      /* the key that the queue was last looked through for */
	struct df_slot image; /* as read last; image.word is the word as known last */
	df_u32 slot;
	df_u32 spared; /* the head at the last revoke, not asked; 0: none */
	df_u32 owing;  /* bits in `owes` */
	df_u32 batch;  /* waiters at the head that the CAS in flight is for */
	df_u8 state;
	df_u8 stage;
	df_u8 wanted;	/* of revoke_seq */
	df_u8 recheck;	/* something happened while a chain was in flight */
	df_u8 stale;	/* perhaps somebody in the queue asked for another key than `looked` */
	df_u8 refreeze; /* a session went while States were being added up */
};

struct df_lockd_session {
	struct df_lockd_session *next; /* of the live ones */
	struct df_lockd_session *prev;
	struct df_waiter *glimpses; /* that await this session's Glimpsed */
	df_u32 node;
	df_u32 requests;
	df_u8 live;
	df_u8 dropped;
};

struct df_overflow {
	df_u64 key;	/* 0: never used */
	df_u32 next;	/* of its hash chain; DF_NO_SLOT: end */
	df_u8 reserved; /* a Find has it as candidate */
};

struct df_lockd {
	struct df_lockd_config config;
	struct df_lockd_shell shell;
	struct df_table table;
	df_u64 seq;    /* the last that we gave out */
	df_u32 era;    /* the last that we gave out */
	df_u32 victim; /* rotates over a bucket */
	df_u32 hand;   /* rotates over the overflow area */
	df_u32 hash_mask;
	df_u32 ask_mask;
	df_u32 overflow_mask;
	df_u32 overflow_used;
	df_u8 grace;
	struct df_lockd_session *live;
	struct df_object *objects; /* in use */
	struct df_object *free_objects;
	struct df_waiter *free_waiters;
	struct df_waiter *finds;
	struct df_lockd_session *session; /* by node id */
	struct df_object *object;
	struct df_waiter *waiter;
	struct df_object **hash;
	struct df_waiter **ask; /* by slot and node: Asks whose session lives */
	struct df_overflow *overflow;
	df_u32 *overflow_hash;
	struct df_lockd_counters count;
};

/* lockd.c */
void df_lockd_send(struct df_lockd *lockd, df_u32 node, const union df_msg *message);
void df_lockd_drop(struct df_lockd *lockd, df_u32 node, int reason);
struct df_waiter *df_waiter_new(struct df_lockd *lockd, df_u32 kind, df_u32 node,
				const struct df_msg_head *head);
void df_waiter_free(struct df_lockd *lockd, struct df_waiter *waiter);
void df_object_post(struct df_lockd *lockd, struct df_object *object, df_u32 state,
		    const struct df_chain *chain);
void df_waiter_post(struct df_lockd *lockd, struct df_waiter *waiter, df_u32 state,
		    const struct df_chain *chain);
static inline df_u64 df_lockd_next_seq(struct df_lockd *lockd)
{
	return ++lockd->seq;
}
static inline int df_lockd_is_live(const struct df_lockd *lockd, df_u32 node)
{
	return node <= lockd->config.sessions && lockd->session[node].live;
}

/* lockd_queue.c */
struct df_object *df_object_find(struct df_lockd *lockd, df_u32 slot);
/* Finds or makes the slot's object and queues the waiter. -1: no object left. */
int df_queue_add(struct df_lockd *lockd, df_u32 slot, struct df_waiter *waiter);
/* Takes a waiter out of the middle. */
void df_queue_unlink(struct df_object *object, struct df_waiter *waiter);
/* Sends Grant with this status, and frees the waiter. */
void df_queue_answer(struct df_lockd *lockd, struct df_object *object, struct df_waiter *waiter,
		     df_u32 status);
void df_queue_chain_done(struct df_lockd *lockd, struct df_object *object, df_u64 old,
			 const struct df_slot *image);
/* Something about the slot changed: look at the word again. */
void df_queue_touch(struct df_lockd *lockd, struct df_object *object);
/* The word is as in object->image; do what can be done. */
void df_queue_pump(struct df_lockd *lockd, struct df_object *object);
struct df_waiter *df_queue_pop(struct df_object *object);
int df_owes(const struct df_object *object, df_u32 node);
void df_owes_set(struct df_object *object, df_u32 node);
int df_owes_clear(struct df_object *object, df_u32 node);
void df_chain_hints(struct df_chain *chain, struct df_object *object);

/* lockd_requests.c */
/* The session's Ask for the slot under this key, or NULL: there is at most one. */
struct df_waiter *df_ask_find(struct df_lockd *lockd, df_u32 node, df_u32 slot, df_u64 key);
void df_ask_insert(struct df_lockd *lockd, struct df_waiter *ask);
void df_ask_remove(struct df_lockd *lockd, struct df_waiter *ask);
void df_queue_ask(struct df_lockd *lockd, df_u32 node, const struct df_msg_ask *ask);
void df_queue_released(struct df_lockd *lockd, df_u32 node, const struct df_msg_released *released);
void df_queue_cancel(struct df_lockd *lockd, df_u32 node, const struct df_msg_head *head);
void df_queue_session_gone(struct df_lockd *lockd, struct df_object *object, df_u32 node);

/* lockd_repair.c */
void df_repair_clear_owner(struct df_lockd *lockd, struct df_object *object);
void df_repair_freeze(struct df_lockd *lockd, struct df_object *object);
void df_repair_state(struct df_lockd *lockd, df_u32 node, const struct df_msg_state *state);
void df_repair_session_joined(struct df_lockd *lockd, struct df_object *object, df_u32 node);
void df_repair_session_gone(struct df_lockd *lockd, struct df_object *object);
void df_repair_chain_done(struct df_lockd *lockd, struct df_object *object, df_u64 old,
			  const struct df_slot *image);
static inline int df_repair_in_progress(const struct df_object *object)
{
	return object->state == DF_OBJECT_FREEZING || object->state == DF_OBJECT_SUMMING ||
	       object->state == DF_OBJECT_REPAIRING;
}

/* lockd_find.c */
void df_find(struct df_lockd *lockd, df_u32 node, const struct df_msg_head *head);
void df_find_chain_done(struct df_lockd *lockd, struct df_waiter *find, df_u64 old,
			const struct df_slot *image);
/* The slot is X for us (owner 0x7fff): give it the Find's key. */
void df_find_rekey(struct df_lockd *lockd, struct df_object *object, struct df_waiter *find);
void df_find_rekeyed(struct df_lockd *lockd, struct df_object *object, df_u64 old);
/* Its candidate cannot be had now. */
void df_find_busy(struct df_lockd *lockd, struct df_waiter *find);

/* lockd_glimpse.c */
void df_glimpse(struct df_lockd *lockd, df_u32 node, const struct df_msg_head *head);
void df_glimpse_chain_done(struct df_lockd *lockd, struct df_waiter *glimpse,
			   const struct df_slot *image);
void df_glimpse_done(struct df_lockd *lockd, df_u32 node, const struct df_msg_glimpsed *glimpsed);
/* As asker and as holder. */
void df_glimpse_session_gone(struct df_lockd *lockd, df_u32 node);

#endif
