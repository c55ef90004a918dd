/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Memory, sessions, and who handles what. Protocol: lockd.h. */
#include "rdma/lock/lockd_internal.h"

#define DIED_MAX 32768u /* see slot.h, Limits */

enum { COOKIE_OBJECT = 1, COOKIE_WAITER = 2 };

const char *df_drop_text(int reason)
{
	switch (reason) {
	case DF_DROP_MESSAGE:
		return "sent a message that no client may send";
	case DF_DROP_SLOT:
		return "named a slot outside of the table";
	case DF_DROP_FLOOD:
		return "had more requests unanswered than allowed";
	case DF_DROP_DUPLICATE:
		return "asked twice for one slot";
	case DF_DROP_ANSWER:
		return "gave an answer that cannot be true";
	case DF_DROP_STATE:
		return "said to hold what it cannot hold";
	default:
		return "broke the protocol";
	}
}

/* --- memory ------------------------------------------------------------------------------- */

static df_u32 power_of_two(df_u32 least)
{
	df_u32 size = 1;

	while (size < least)
		size *= 2;
	return size;
}

static df_u64 owes_words(const struct df_lockd_config *config)
{
	return config->sessions / 64 + 1;
}

static void *carve(df_u8 *base, df_u64 *used, df_u64 count, df_u64 size)
{
	void *at = base ? base + *used : NULL;

	*used += (count * size + 7) & ~7ull;
	return at;
}

/* Lays the arrays out; with base NULL it only counts. */
static df_u64 lay_out(struct df_lockd *lockd, df_u8 *base, const struct df_lockd_config *config,
		      df_u64 **owes)
{
	df_u64 used = 0;
	struct df_lockd layout;

	carve(base, &used, 1, sizeof(*lockd));
	layout.session = carve(base, &used, config->sessions + 1, sizeof(*layout.session));
	layout.object = carve(base, &used, config->objects, sizeof(*layout.object));
	layout.waiter = carve(base, &used, config->waiters, sizeof(*layout.waiter));
	layout.hash = carve(base, &used, power_of_two(config->objects), sizeof(*layout.hash));
	layout.ask = carve(base, &used, power_of_two(config->waiters), sizeof(*layout.ask));
	layout.overflow = carve(base, &used, config->overflow, sizeof(*layout.overflow));
	layout.overflow_hash =
		carve(base, &used, power_of_two(config->overflow), sizeof(*layout.overflow_hash));
	*owes = carve(base, &used, config->objects * owes_words(config), sizeof(**owes));
	if (lockd) {
		lockd->session = layout.session;
		lockd->object = layout.object;
		lockd->waiter = layout.waiter;
		lockd->hash = layout.hash;
		lockd->ask = layout.ask;
		lockd->overflow = layout.overflow;
		lockd->overflow_hash = layout.overflow_hash;
	}
	return used;
}

df_u64 df_lockd_memory(const struct df_lockd_config *config)
{
	df_u64 *owes;

	if (!config->buckets || config->buckets > 1u << 27 || config->overflow > 1u << 27 ||
	    !config->sessions || config->sessions > DF_NODE_MAX || !config->objects ||
	    config->objects > 1u << 24 || !config->waiters || config->waiters > 1u << 24 ||
	    !config->asks)
		return 0;
	return lay_out(NULL, NULL, config, &owes);
}

struct df_lockd *df_lockd_init(void *memory, const struct df_lockd_config *config,
			       const struct df_lockd_shell *shell)
{
	struct df_lockd *lockd = memory;
	df_u64 bytes = df_lockd_memory(config), *owes;
	df_u32 i;

	if (!bytes)
		return NULL;
	memset(memory, 0, bytes);
	lay_out(lockd, memory, config, &owes);
	lockd->config = *config;
	lockd->shell = *shell;
	lockd->table.buckets = config->buckets;
	lockd->table.overflow = config->overflow;
	lockd->table.node = DF_NODE_LOCKD;
	lockd->era = df_table_slots(&lockd->table); /* those of the fresh slots are below */
	lockd->hash_mask = power_of_two(config->objects) - 1;
	lockd->ask_mask = power_of_two(config->waiters) - 1;
	lockd->overflow_mask = power_of_two(config->overflow) - 1;
	for (i = 0; i <= config->sessions; i++)
		lockd->session[i].node = i;
	for (i = 0; i < config->objects; i++) {
		lockd->object[i].owes = owes + i * owes_words(config);
		lockd->object[i].hash_next = lockd->free_objects;
		lockd->free_objects = &lockd->object[i];
	}
	for (i = 0; i < config->waiters; i++) {
		lockd->waiter[i].next = lockd->free_waiters;
		lockd->free_waiters = &lockd->waiter[i];
	}
	for (i = 0; i <= lockd->overflow_mask; i++)
		lockd->overflow_hash[i] = DF_NO_SLOT;
	return lockd;
}

void df_lockd_prepare_slot(struct df_slot *slot, df_u32 index)
{
	memset(slot, 0, sizeof(*slot));
	slot->version = df_initial_version(index);
}

struct df_waiter *df_waiter_new(struct df_lockd *lockd, df_u32 kind, df_u32 node,
				const struct df_msg_head *head)
{
	struct df_waiter *waiter = lockd->free_waiters;

	if (!waiter)
		return NULL;
	lockd->free_waiters = waiter->next;
	memset(waiter, 0, sizeof(*waiter));
	waiter->kind = (df_u8)kind;
	waiter->node = node;
	waiter->slot = head->slot;
	waiter->key = head->key;
	waiter->seq = head->seq;
	lockd->session[node].requests++;
	lockd->count.waiters++;
	return waiter;
}

void df_waiter_free(struct df_lockd *lockd, struct df_waiter *waiter)
{
	if (waiter->node) {
		lockd->session[waiter->node].requests--;
		if (waiter->kind == DF_WAITER_ASK)
			df_ask_remove(lockd, waiter);
	}
	waiter->next = lockd->free_waiters;
	lockd->free_waiters = waiter;
	lockd->count.waiters--;
}

/* --- output ------------------------------------------------------------------------------- */

void df_lockd_send(struct df_lockd *lockd, df_u32 node, const union df_msg *message)
{
	if (df_lockd_is_live(lockd, node) && !lockd->session[node].dropped)
		lockd->shell.send(lockd->shell.context, node, message);
}

void df_lockd_drop(struct df_lockd *lockd, df_u32 node, int reason)
{
	if (lockd->session[node].dropped)
		return;
	lockd->session[node].dropped = 1;
	lockd->count.drops++;
	lockd->shell.drop(lockd->shell.context, node, reason);
}

static df_u64 cookie_of(df_u64 kind, df_u64 index)
{
	return kind << 32 | index;
}

void df_object_post(struct df_lockd *lockd, struct df_object *object, df_u32 state,
		    const struct df_chain *chain)
{
	object->state = (df_u8)state;
	lockd->shell.post(lockd->shell.context,
			  cookie_of(COOKIE_OBJECT, (df_u64)(object - lockd->object)), chain);
}

void df_waiter_post(struct df_lockd *lockd, struct df_waiter *waiter, df_u32 state,
		    const struct df_chain *chain)
{
	waiter->state = (df_u8)state;
	lockd->shell.post(lockd->shell.context,
			  cookie_of(COOKIE_WAITER, (df_u64)(waiter - lockd->waiter)), chain);
}

void df_lockd_grace(struct df_lockd *lockd, int on)
{
	lockd->grace = on != 0;
}

/* --- events ------------------------------------------------------------------------------- */

int df_lockd_session_joined(struct df_lockd *lockd, df_u32 node)
{
	struct df_object *object;
	struct df_lockd_session *session;

	if (node < DF_NODE_MIN || node > lockd->config.sessions || lockd->count.died >= DIED_MAX ||
	    lockd->session[node].live)
		return -1;
	session = &lockd->session[node];
	session->live = 1;
	session->dropped = 0;
	session->requests = 0;
	session->prev = NULL;
	session->next = lockd->live;
	if (lockd->live)
		lockd->live->prev = session;
	lockd->live = session;
	lockd->count.sessions++;
	for (object = lockd->objects; object; object = object->list_next)
		df_repair_session_joined(lockd, object, node);
	return 0;
}

static void unlink_session(struct df_lockd *lockd, struct df_lockd_session *session)
{
	if (session->prev)
		session->prev->next = session->next;
	else
		lockd->live = session->next;
	if (session->next)
		session->next->prev = session->prev;
	session->live = 0;
	lockd->count.sessions--;
}

void df_lockd_session_gone(struct df_lockd *lockd, df_u32 node, int clean)
{
	struct df_object *object, *next;
	df_u32 i;

	if (!df_lockd_is_live(lockd, node))
		return;
	unlink_session(lockd, &lockd->session[node]);
	lockd->count.died += !clean;
	df_glimpse_session_gone(lockd, node);
	for (object = lockd->objects; object; object = next) {
		next = object->list_next;
		df_queue_session_gone(lockd, object, node);
	}
	/* What is left has a chain in flight or is a Find, and ends by itself; nobody is there to be told. Few and rare. */
	for (i = 0; lockd->session[node].requests && i < lockd->config.waiters; i++) {
		struct df_waiter *waiter = &lockd->waiter[i];

		if (waiter->node == node && waiter->kind != DF_WAITER_ASK)
			waiter->node = 0;
	}
	lockd->session[node].requests = 0;
}

/* What is bounded per session, and whether there is room. */
static int admit_request(struct df_lockd *lockd, df_u32 node)
{
	if (lockd->session[node].requests < lockd->config.asks)
		return 1;
	df_lockd_drop(lockd, node, DF_DROP_FLOOD);
	return 0;
}

static void dispatch(struct df_lockd *lockd, df_u32 node, const union df_msg *message)
{
	switch (message->head.type) {
	case DF_MSG_ASK:
		if (admit_request(lockd, node))
			df_queue_ask(lockd, node, &message->ask);
		break;
	case DF_MSG_FIND:
		if (admit_request(lockd, node))
			df_find(lockd, node, &message->head);
		break;
	case DF_MSG_GLIMPSE:
		if (admit_request(lockd, node))
			df_glimpse(lockd, node, &message->head);
		break;
	case DF_MSG_RELEASED:
		df_queue_released(lockd, node, &message->released);
		break;
	case DF_MSG_GLIMPSED:
		df_glimpse_done(lockd, node, &message->glimpsed);
		break;
	case DF_MSG_STATE:
		df_repair_state(lockd, node, &message->state);
		break;
	case DF_MSG_CANCEL:
		df_queue_cancel(lockd, node, &message->head);
		break;
	default:
		df_lockd_drop(lockd, node, DF_DROP_MESSAGE);
		break;
	}
}

void df_lockd_message(struct df_lockd *lockd, df_u32 node, const union df_msg *message)
{
	if (!df_lockd_is_live(lockd, node) || lockd->session[node].dropped)
		return;
	if (!df_msg_slot_in(&message->head, df_table_slots(&lockd->table)))
		df_lockd_drop(lockd, node, DF_DROP_SLOT);
	else
		dispatch(lockd, node, message);
}

void df_lockd_chain_done(struct df_lockd *lockd, df_u64 cookie, df_u64 old, const void *image)
{
	df_u32 index = (df_u32)cookie;
	struct df_waiter *waiter;

	if (cookie >> 32 == COOKIE_OBJECT) {
		df_queue_chain_done(lockd, &lockd->object[index], old, image);
		return;
	}
	waiter = &lockd->waiter[index];
	if (waiter->kind == DF_WAITER_FIND)
		df_find_chain_done(lockd, waiter, old, image);
	else
		df_glimpse_chain_done(lockd, waiter, image);
}

void df_lockd_read_counters(const struct df_lockd *lockd, struct df_lockd_counters *counters)
{
	*counters = lockd->count;
}

df_u32 df_lockd_session_requests(const struct df_lockd *lockd, df_u32 node)
{
	return node <= lockd->config.sessions ? lockd->session[node].requests : 0;
}
