// SPDX-License-Identifier: GPL-2.0-only
/* The session's machine, its link and its life. The contract is in session.h. */
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/timekeeping.h>

#include "connection.h"
#include "lock.h"
#include "race.h"
#include "session.h"

#define DFS_CONNECT_MS 5000u
/* A message of the connection manager that is lost is sent again after 4.3 s, fixed. */
#define DFS_FIRST_ATTEMPTS 3
#define DFS_NEVER (~(u64)0)
#define DFS_FRESH_LEAST_MS 50u
#define DFS_FRESH_MOST_MS 1000u

/* Time stands for a lease: it goes on while the machine sleeps. */
u64 dfs_now_ms(void)
{
	return ktime_to_ms(ktime_get_boottime());
}

u64 dfs_now_us(void)
{
	return ktime_to_us(ktime_get());
}

bool dfs_session_trusted(const struct dfs_session *session)
{
	return dfs_now_ms() < READ_ONCE(session->trusted_until_ms);
}

static void dfs_event(struct dfs_session *session, enum dfs_session_event event)
{
	set_bit(event, &session->events);
	mod_delayed_work(session->machine_queue, &session->machine_work, 0);
}

/* --- from the link --------------------------------------------------------------------------- */

static int dfs_lock_of_message(struct dfs_session *session, u32 epoch, const union df_msg *message)
{
	struct dfs_lock *lock = dfs_lock_find(session, message->head.key);
	union df_msg reply;
	int error;

	if (lock) {
		error = dfs_lock_message(lock, epoch, message);
		dfs_lock_put(lock);
		return error;
	}
	error = df_client_unknown(message, &reply);
	if (error == 1)
		dfs_session_send(session, epoch, &reply);
	return error < 0 ? -EPROTO : 0;
}

static int dfs_on_message(struct dfs_link *link, const void *bytes, u32 length)
{
	struct dfs_session *session = dfs_link_data(link);
	union df_msg message;
	u32 type;

	if (df_msg_read(bytes, length, &message) != DF_CHECK_OK)
		return -EPROTO;
	type = message.head.type;
	if (!df_msg_from_lockd(type) ||
	    !df_msg_slot_in(&message.head, df_table_slots(READ_ONCE(session->table))))
		return -EPROTO;
	dfs_count(session->connection, messages_received);
	switch (type) {
	case DF_MSG_RESUME:
		dfs_event(session, DFS_EVENT_RESUMED);
		return 0;
	case DF_MSG_FREEZE:
	case DF_MSG_THAW:
		return dfs_gates_message(session, &message);
	case DF_MSG_GLIMPSE_REPLY:
		return dfs_glimpse_reply(session, dfs_link_epoch(link), &message);
	case DF_MSG_FILE_REPLY:
		return dfs_files_message(session, dfs_link_epoch(link), &message);
	default:
		return dfs_lock_of_message(session, dfs_link_epoch(link), &message);
	}
}

static void dfs_on_ended(struct dfs_link *link, bool peer, const char *reason)
{
	struct dfs_session *session = dfs_link_data(link);

	/* Maybe under our spin: a post or a send that fails ends the link. */
	WRITE_ONCE(session->cut_reason, reason);
	WRITE_ONCE(session->cut_epoch, dfs_link_epoch(link));
	dfs_event(session, DFS_EVENT_CUT);
	wake_up_all(&session->changed);
}

static const struct dfs_link_owner dfs_link_owner = {
	.message = dfs_on_message,
	.ended = dfs_on_ended,
};

/* --- for locks ------------------------------------------------------------------------------- */

static bool dfs_chain_gated(u32 kind)
{
	return kind == DF_CHAIN_TAKE || kind == DF_CHAIN_RELEASE || kind == DF_CHAIN_PUBLISH;
}

bool dfs_session_post(struct dfs_session *session, u32 epoch, struct dfs_post *post)
{
	bool posted = false;

	spin_lock_bh(&session->spin);
	if (session->epoch == epoch && session->link) {
		posted = true;
		dfs_count(session->connection, chains);
		if (dfs_fails(DFS_RACE_chain_post, session->connection))
			dfs_link_break(session->link, "a chain could not be posted: injected");
		if (!dfs_chain_gated(post->chain.kind) || dfs_gate_enter(session, post))
			dfs_link_post(session->link, post);
	}
	spin_unlock_bh(&session->spin);
	return posted;
}

void dfs_session_break(struct dfs_session *session, u32 epoch, const char *reason)
{
	spin_lock_bh(&session->spin);
	if (session->epoch == epoch && session->link)
		dfs_link_break(session->link, reason);
	spin_unlock_bh(&session->spin);
}

void dfs_session_send(struct dfs_session *session, u32 epoch, const union df_msg *message)
{
	spin_lock_bh(&session->spin);
	if (session->epoch == epoch && session->link) {
		dfs_count(session->connection, messages_sent);
		dfs_link_send(session->link, message);
	}
	spin_unlock_bh(&session->spin);
}

/* --- performing what the machine asks for; machine_work alone ---------------------------------- */

static void dfs_renewal_done(struct dfs_post *post, int error, u64 old, const void *image)
{
	struct dfs_session *session = container_of(post, struct dfs_session, renewal);

	WRITE_ONCE(session->renewal_in_flight, false);
	if (!error)
		dfs_event(session, DFS_EVENT_RENEWED);
}

static void dfs_renew(struct dfs_session *session, u64 value)
{
	struct dfs_link *link;

	spin_lock_bh(&session->spin);
	link = session->link;
	spin_unlock_bh(&session->spin);
	if (!link || READ_ONCE(session->renewal_in_flight))
		return;
	WRITE_ONCE(session->renewal_in_flight, true);
	dfs_count(session->connection, renewals);
	df_chain_init(&session->renewal.chain, DF_CHAIN_NONE, DF_NO_SLOT);
	df_chain_write(&session->renewal.chain, session->machine.lease_offset, 0, &value,
		       sizeof(value));
	session->renewal.done = dfs_renewal_done;
	dfs_link_renew(link, &session->renewal);
}

static void dfs_one_detach(struct dfs_lock *lock, void *argument)
{
	dfs_lock_detach(lock, *(u32 *)argument);
}

static void dfs_one_resume(struct dfs_lock *lock, void *argument)
{
	dfs_lock_resume(lock);
}

static void dfs_one_lost(struct dfs_lock *lock, void *argument)
{
	dfs_lock_lost(lock, true);
}

static void dfs_one_suspect(struct dfs_lock *lock, void *argument)
{
	dfs_lock_suspect(lock);
}

static void dfs_one_reassert(struct dfs_lock *lock, void *argument)
{
	struct dfs_session *session = lock->session;

	spin_lock_bh(&session->spin);
	session->to_reassert++;
	spin_unlock_bh(&session->spin);
	if (!dfs_lock_reassert(lock))
		dfs_session_reassert_done(session, *(u32 *)argument);
}

void dfs_session_reassert_done(struct dfs_session *session, u32 epoch)
{
	bool last;

	spin_lock_bh(&session->spin);
	last = session->epoch == epoch && session->to_reassert && --session->to_reassert == 0;
	spin_unlock_bh(&session->spin);
	if (last)
		dfs_event(session, DFS_EVENT_REASSERTED);
}

static void dfs_close_retired(struct dfs_session *session)
{
	struct dfs_link *retired;

	spin_lock_bh(&session->spin);
	retired = session->retired;
	session->retired = NULL;
	spin_unlock_bh(&session->spin);
	if (retired)
		dfs_link_close(retired);
}

/* Nothing of the present link is believed from here on. */
static void dfs_detach(struct dfs_session *session)
{
	struct dfs_link *link;
	u32 epoch;

	dfs_close_retired(session);
	spin_lock_bh(&session->spin);
	link = session->link;
	session->link = NULL;
	session->live = false;
	session->retired = link;
	epoch = ++session->epoch;
	session->to_reassert = 0;
	spin_unlock_bh(&session->spin);
	if (link)
		dfs_link_stop(link);
	dfs_gates_forget(session);
	dfs_files_detach(session);
	dfs_glimpses_cut(session);
	dfs_locks_each(session, dfs_one_detach, &epoch);
}

static void dfs_reassert(struct dfs_session *session)
{
	u32 epoch;

	spin_lock_bh(&session->spin);
	epoch = session->epoch;
	session->to_reassert = 2; /* file locks, and the round itself */
	spin_unlock_bh(&session->spin);
	dfs_files_reassert(session);
	dfs_locks_each(session, dfs_one_reassert, &epoch);
	dfs_session_reassert_done(session, epoch);
}

static void dfs_resume(struct dfs_session *session)
{
	spin_lock_bh(&session->spin);
	session->live = true;
	dfs_files_resume(session);
	spin_unlock_bh(&session->spin);
	dfs_locks_each(session, dfs_one_resume, NULL);
	wake_up_all(&session->changed);
}

static const char *dfs_loss_text(u32 loss)
{
	switch (loss) {
	case DF_LOSS_REFUSED:
		return "lockd has ended it (the mount was not heard of for a whole lease)";
	case DF_LOSS_GIVEN_UP:
		return "no lockd could be reached in the stated time";
	case DF_LOSS_GEOMETRY:
		return "the next lockd's table makes no sense for it";
	default:
		return "it was ended";
	}
}

static void dfs_connect(struct dfs_session *session, const struct df_session *back)
{
	struct df_hello hello = session->hello;

	if (back)
		df_hello_join(&hello, DF_ROLE_CONTROL, back->id, back->token);
	/* An attempt to come back may still run when its session is lost: it ends first, and what it found is dropped. */
	session->next_hello = hello;
	session->connect_again = session->attempting;
	if (session->attempting)
		return;
	session->attempting = true;
	session->connect_hello = hello;
	queue_work(system_unbound_wq, &session->connect_work);
}

/* True: the attempt that has ended is of no use any more, and the next one has begun. */
static bool dfs_attempt_void(struct dfs_session *session)
{
	struct dfs_link *link = session->next_link;

	session->attempting = false;
	if (!session->connect_again)
		return false;
	session->connect_again = false;
	session->next_link = NULL;
	if (link && !session->connect_error)
		dfs_link_close(link);
	session->attempting = true;
	session->connect_hello = session->next_hello;
	queue_work(system_unbound_wq, &session->connect_work);
	return true;
}

static void dfs_lose(struct dfs_session *session, u32 loss)
{
	pr_err("distfuse: session %#llx is lost: %s; what was not written fails with EIO once, the "
	       "mount goes on with a new session\n",
	       session->id, dfs_loss_text(loss));
	WRITE_ONCE(session->trusted_until_ms, 0);
	dfs_count(session->connection, sessions_lost);
	spin_lock_bh(&session->spin);
	session->lost = true;
	session->id = 0;
	spin_unlock_bh(&session->spin);
	dfs_detach(session);
	dfs_close_retired(session);
	dfs_locks_each(session, dfs_one_lost, NULL);
	dfs_files_lost(session);
	wake_up_all(&session->changed);
	session->connecting = true;
	session->begun_ms = dfs_now_ms();
	session->fresh_pause_ms = DFS_FRESH_LEAST_MS;
	session->fresh_at_ms = 0;
	dfs_connect(session, NULL);
}

static u64 dfs_perform(struct dfs_session *session, const struct df_session_out *out)
{
	union df_msg message;

	WRITE_ONCE(session->trusted_until_ms,
		   session->machine.state == DF_SESSION_LOST ? 0 : session->machine.trusted_until);
	if (out->suspect) {
		dfs_locks_each(session, dfs_one_suspect, NULL);
		/* Nothing is trusted: lockd may take our end for what it is. */
		dfs_close_retired(session);
	}
	if (out->lost) {
		dfs_lose(session, out->lost);
		return DFS_NEVER;
	}
	if (out->detach)
		dfs_detach(session);
	if (out->reassert)
		dfs_reassert(session);
	if (out->resume)
		dfs_resume(session);
	if (out->renew)
		dfs_renew(session, out->renew_value);
	if (out->connect)
		dfs_connect(session, &session->machine);
	if (out->reclaimed) {
		df_msg_init(&message, DF_MSG_RECLAIMED, 0, 0, 0);
		dfs_session_send(session, session->epoch, &message);
	}
	return out->wake_at;
}

/* --- events; machine_work alone ----------------------------------------------------------------- */

static struct df_table *dfs_table_of(struct dfs_session *session, const struct df_welcome *welcome)
{
	struct dfs_table_entry {
		struct list_head link;
		struct df_table table;
	} *entry = kzalloc(sizeof(*entry), GFP_KERNEL | __GFP_NOFAIL);

	entry->table.buckets = welcome->buckets;
	entry->table.overflow = welcome->overflow;
	entry->table.node = welcome->node;
	list_add(&entry->link, &session->tables);
	return &entry->table;
}

/* The link is the session's from here on. */
static void dfs_adopt(struct dfs_session *session, struct dfs_link *link,
		      const struct df_welcome *welcome)
{
	struct df_table *table = dfs_table_of(session, welcome);

	spin_lock_bh(&session->spin);
	session->link = link;
	WRITE_ONCE(session->table, table);
	session->id = welcome->session;
	session->incarnation = welcome->incarnation;
	session->lease_ms = welcome->lease_ms;
	session->files.asks = welcome->asks;
	session->lost = false;
	spin_unlock_bh(&session->spin);
	dfs_close_retired(session);
	dfs_link_start(link);
}

static u64 dfs_welcome_fresh(struct dfs_session *session, struct dfs_link *link)
{
	struct df_session_out out;
	u64 wake;

	session->connecting = false;
	dfs_adopt(session, link, &session->next_welcome);
	df_session_begin(&session->machine, &session->next_welcome, session->next_posted_ms,
			 session->give_up_ms, &out);
	wake = dfs_perform(session, &out);
	dfs_resume(session);
	return wake;
}

static u64 dfs_handle_welcome(struct dfs_session *session)
{
	struct dfs_link *link = session->next_link;
	struct df_session_out out;

	if (dfs_attempt_void(session))
		return DFS_NEVER;
	session->next_link = NULL;
	if (session->connecting)
		return dfs_welcome_fresh(session, link);
	if (session->machine.state != DF_SESSION_CONNECTING) {
		dfs_link_close(link);
		return DFS_NEVER;
	}
	dfs_adopt(session, link, &session->next_welcome);
	df_session_welcome(&session->machine, &session->next_welcome, session->next_posted_ms,
			   dfs_now_ms(), &out);
	return dfs_perform(session, &out);
}

/* The next attempt at a new session: after a pause that doubles, somewhere in its second half, for every other node has lost lockd at the same time. */
static void dfs_fresh_later(struct dfs_session *session)
{
	u32 half = session->fresh_pause_ms / 2;

	session->fresh_at_ms = dfs_now_ms() + half + get_random_u32() % (half + 1);
	session->fresh_pause_ms = min(2 * session->fresh_pause_ms, DFS_FRESH_MOST_MS);
}

/* No answer, or a refusal. */
static u64 dfs_handle_unreachable(struct dfs_session *session)
{
	struct df_session_out out;

	if (dfs_attempt_void(session))
		return DFS_NEVER;
	if (session->connecting) {
		dfs_fresh_later(session);
		return session->fresh_at_ms;
	}
	if (session->connect_error == -EPROTO)
		df_session_welcome(&session->machine, &session->next_welcome,
				   session->next_posted_ms, dfs_now_ms(), &out);
	else
		df_session_unreachable(&session->machine, dfs_now_ms(), &out);
	return dfs_perform(session, &out);
}

static u64 dfs_handle(struct dfs_session *session, enum dfs_session_event event)
{
	struct df_session_out out;

	switch (event) {
	case DFS_EVENT_CUT:
		if (session->connecting || session->cut_epoch != session->epoch)
			return DFS_NEVER;
		pr_warn("distfuse: session %#llx: connection to lockd: %s\n", session->id,
			session->cut_reason);
		df_session_cut(&session->machine, dfs_now_ms(), &out);
		break;
	case DFS_EVENT_FENCED:
		if (session->connecting || session->machine.id != READ_ONCE(session->fenced))
			return DFS_NEVER;
		df_session_fenced(&session->machine, dfs_now_ms(), &out);
		break;
	case DFS_EVENT_RENEWED:
		df_session_renewed(&session->machine, dfs_now_ms(), &out);
		break;
	case DFS_EVENT_REASSERTED:
		df_session_reasserted(&session->machine, dfs_now_ms(), &out);
		break;
	case DFS_EVENT_RESUMED:
		df_session_resumed(&session->machine, dfs_now_ms(), &out);
		break;
	case DFS_EVENT_WELCOME:
		return dfs_handle_welcome(session);
	case DFS_EVENT_UNREACHABLE:
		return dfs_handle_unreachable(session);
	default:
		return DFS_NEVER;
	}
	return dfs_perform(session, &out);
}

static void dfs_machine_run(struct work_struct *work)
{
	struct dfs_session *session =
		container_of(to_delayed_work(work), struct dfs_session, machine_work);
	u64 wake = DFS_NEVER, now;
	u32 event;

	if (test_bit(DFS_EVENT_STOP, &session->events))
		return;
	for (event = DFS_EVENT_CUT; event < DFS_EVENT_STOP; event++)
		if (test_and_clear_bit(event, &session->events))
			wake = min(wake, dfs_handle(session, event));
	now = dfs_now_ms();
	if (session->connecting) {
		if (!session->attempting && now >= session->fresh_at_ms)
			dfs_connect(session, NULL);
		/* An attempt under way ends with an event. */
		wake = session->attempting ? DFS_NEVER : session->fresh_at_ms;
	} else {
		struct df_session_out out;

		df_session_tick(&session->machine, now, &out);
		wake = min(wake, dfs_perform(session, &out));
	}
	if (session->events)
		wake = 0;
	if (wake != DFS_NEVER) {
		now = dfs_now_ms();
		queue_delayed_work(session->machine_queue, &session->machine_work,
				   wake > now ? msecs_to_jiffies(wake - now) : 0);
	}
}

/* --- connecting --------------------------------------------------------------------------------- */

static int dfs_connect_once(struct dfs_session *session, const struct df_hello *hello)
{
	session->next_posted_ms = dfs_now_ms();
	return dfs_link_open(&session->address, hello, DFS_CONNECT_MS, &dfs_link_owner, session,
			     READ_ONCE(session->epoch), &session->next_welcome,
			     &session->next_link);
}

static void dfs_connect_run(struct work_struct *work)
{
	struct dfs_session *session = container_of(work, struct dfs_session, connect_work);

	session->connect_error = dfs_connect_once(session, &session->connect_hello);
	dfs_event(session, session->connect_error ? DFS_EVENT_UNREACHABLE : DFS_EVENT_WELCOME);
}

static int dfs_session_address(struct dfs_session *session, const struct dfs_ioc_new *new)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)&session->address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&session->address;

	switch (new->lockd_family) {
	case AF_INET:
		v4->sin_family = AF_INET;
		v4->sin_port = htons(new->lockd_port);
		memcpy(&v4->sin_addr, new->lockd_address, sizeof(v4->sin_addr));
		return 0;
	case AF_INET6:
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(new->lockd_port);
		memcpy(&v6->sin6_addr, new->lockd_address, sizeof(v6->sin6_addr));
		return 0;
	default:
		return -EAFNOSUPPORT;
	}
}

static struct dfs_session *dfs_session_alloc(struct dfs_connection *connection,
					     const struct dfs_ioc_new *new)
{
	struct dfs_session *session = kvzalloc(sizeof(*session), GFP_KERNEL);

	if (!session)
		return NULL;
	session->connection = connection;
	session->give_up_ms = new->give_up_ms;
	session->max_locks = new->max_locks;
	session->epoch = 1;
	spin_lock_init(&session->spin);
	INIT_LIST_HEAD(&session->tables);
	INIT_LIST_HEAD(&session->locks);
	INIT_LIST_HEAD(&session->idle);
	INIT_LIST_HEAD(&session->renewal.link);
	init_waitqueue_head(&session->changed);
	dfs_gates_init(session);
	dfs_files_open(session);
	dfs_glimpses_open(session);
	INIT_DELAYED_WORK(&session->machine_work, dfs_machine_run);
	INIT_WORK(&session->connect_work, dfs_connect_run);
	session->hello.magic = DF_WIRE_MAGIC;
	session->hello.version = DF_WIRE_VERSION;
	session->hello.role = DF_ROLE_CONTROL;
	memcpy(session->hello.cluster, new->cluster, sizeof(session->hello.cluster));
	memcpy(session->hello.name, new->name, sizeof(session->hello.name));
	session->machine_queue =
		alloc_ordered_workqueue("distfuse-session", WQ_MEM_RECLAIM | WQ_HIGHPRI);
	session->shed_queue = alloc_workqueue("distfuse-shed", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!session->machine_queue || !session->shed_queue || dfs_locks_open(session)) {
		if (session->machine_queue)
			destroy_workqueue(session->machine_queue);
		if (session->shed_queue)
			destroy_workqueue(session->shed_queue);
		kvfree(session);
		return NULL;
	}
	return session;
}

static void dfs_session_free(struct dfs_session *session)
{
	struct list_head *entry, *next;

	dfs_files_close(session);
	destroy_workqueue(session->shed_queue);
	destroy_workqueue(session->machine_queue);
	rhashtable_destroy(&session->lock_map);
	list_for_each_safe(entry, next, &session->tables)
		kfree(entry); /* the list is the entry's first member */
	kvfree(session);
}

int dfs_session_open(struct dfs_connection *connection, struct dfs_ioc_new *new)
{
	struct dfs_session *session = dfs_session_alloc(connection, new);
	struct df_session_out out;
	u64 wake;
	int error, i;

	if (!session)
		return -ENOMEM;
	error = dfs_session_address(session, new);
	if (!error) {
		for (i = 0, error = -ETIMEDOUT; error == -ETIMEDOUT && i < DFS_FIRST_ATTEMPTS; i++)
			error = dfs_connect_once(session, &session->hello);
	}
	if (error) {
		new->refusal = error == -EPROTO ? session->next_welcome.refusal : 0;
		dfs_session_free(session);
		return error;
	}
	connection->session = session;
	session->live = true;
	df_session_begin(&session->machine, &session->next_welcome, session->next_posted_ms,
			 session->give_up_ms, &out);
	dfs_adopt(session, session->next_link, &session->next_welcome);
	session->next_link = NULL;
	new->session = session->id;
	new->incarnation = session->incarnation;
	new->lease_ms = session->lease_ms;
	wake = dfs_perform(session, &out);
	queue_delayed_work(session->machine_queue, &session->machine_work,
			   wake == DFS_NEVER ? HZ : 0);
	return 0;
}

static bool dfs_session_unused(struct dfs_connection *connection, struct dfs_session *session);

/* Locks first, then Bye, then the link. */
void dfs_session_close(struct dfs_connection *connection)
{
	struct dfs_session *session = connection->session;
	union df_msg bye;
	u32 left;

	if (!session)
		return;
	left = dfs_locks_close(session);
	spin_lock(&connection->spin);
	connection->session = NULL;
	spin_unlock(&connection->spin);
	if (left)
		pr_err("distfuse: session %#llx: %u locks could not be given up\n", session->id,
		       left);
	spin_lock_bh(&session->spin);
	session->stopping = true;
	spin_unlock_bh(&session->spin);
	dfs_files_wake(session);
	wait_event(session->changed, dfs_session_unused(connection, session));
	set_bit(DFS_EVENT_STOP, &session->events);
	cancel_work_sync(&session->connect_work);
	cancel_delayed_work_sync(&session->machine_work);
	if (session->next_link)
		dfs_link_close(session->next_link);
	if (session->link) {
		df_msg_init(&bye, DF_MSG_BYE, 0, 0, 0);
		dfs_link_send(session->link, &bye);
		/* lockd ends the connection when it has read it. */
		wait_event_timeout(session->changed, test_bit(DFS_EVENT_CUT, &session->events), HZ);
		dfs_link_close(session->link);
	}
	dfs_close_retired(session);
	dfs_session_free(session);
}

/* The session cannot go until it is let go. NULL: it has ended. */
static struct dfs_session *dfs_session_use(struct dfs_connection *connection)
{
	struct dfs_session *session;

	spin_lock(&connection->spin);
	session = connection->session;
	if (session)
		session->awaiting++;
	spin_unlock(&connection->spin);
	return session;
}

static void dfs_session_unuse(struct dfs_connection *connection, struct dfs_session *session)
{
	spin_lock(&connection->spin);
	/* Under the spin, which the one who frees takes afterwards. */
	if (--session->awaiting == 0)
		wake_up_all(&session->changed);
	spin_unlock(&connection->spin);
}

static bool dfs_session_unused(struct dfs_connection *connection, struct dfs_session *session)
{
	bool unused;

	spin_lock(&connection->spin);
	unused = !session->awaiting;
	spin_unlock(&connection->spin);
	return unused;
}

void dfs_session_aborted(struct dfs_connection *connection)
{
	struct dfs_session *session = dfs_session_use(connection);

	if (!session)
		return;
	dfs_files_wake(session);
	dfs_glimpses_cut(session);
	dfs_locks_each(session, dfs_lock_aborted, NULL);
	wake_up_all(&session->changed);
	dfs_session_unuse(connection, session);
}

void dfs_session_fenced(struct dfs_connection *connection, u64 id)
{
	struct dfs_session *session = dfs_session_use(connection);

	if (!session)
		return;
	if (id && READ_ONCE(session->id) == id) {
		WRITE_ONCE(session->fenced, id);
		dfs_event(session, DFS_EVENT_FENCED);
	}
	dfs_session_unuse(connection, session);
}

void dfs_session_daemon_changed(struct dfs_connection *connection)
{
	struct dfs_session *session = dfs_session_use(connection);

	if (!session)
		return;
	wake_up_all(&session->changed);
	dfs_session_unuse(connection, session);
}

int dfs_session_describe(struct dfs_connection *connection, u64 *session, u64 *incarnation,
			 u32 *lease_ms)
{
	struct dfs_session *of = dfs_session_use(connection);

	if (!of)
		return -ENOTCONN;
	spin_lock_bh(&of->spin);
	*session = of->id;
	*incarnation = of->incarnation;
	*lease_ms = of->lease_ms;
	spin_unlock_bh(&of->spin);
	dfs_session_unuse(connection, of);
	return 0;
}

u64 dfs_session_number(struct dfs_connection *connection)
{
	u64 number;

	/* The session is freed after the pointer went under this spin. */
	spin_lock(&connection->spin);
	number = connection->session ? READ_ONCE(connection->session->id) : 0;
	spin_unlock(&connection->spin);
	return number;
}

bool dfs_session_of_cluster(struct dfs_connection *connection, const u8 *cluster)
{
	struct dfs_session *of = dfs_session_use(connection);
	bool same;

	if (!of)
		return true; /* it is being unmounted: the attach will say so */
	same = !memcmp(of->hello.cluster, cluster, sizeof(of->hello.cluster));
	dfs_session_unuse(connection, of);
	return same;
}

/* Whether the daemon's work is over. */
static bool dfs_daemon_over(const struct dfs_daemon *daemon)
{
	return READ_ONCE(daemon->connection->aborted) ||
	       READ_ONCE(daemon->connection->daemon) != daemon->number;
}

int dfs_session_await(const struct dfs_daemon *daemon, struct dfs_ioc_session *session)
{
	struct dfs_connection *connection = daemon->connection;
	struct dfs_session *of = dfs_session_use(connection);
	int error;

	if (!of)
		return -ENOTCONN;
	error = wait_event_interruptible(of->changed, READ_ONCE(of->id) != session->known ||
							      READ_ONCE(of->stopping) ||
							      dfs_daemon_over(daemon));
	spin_lock_bh(&of->spin);
	if (!error && (of->stopping || dfs_daemon_over(daemon)))
		error = -ENOTCONN;
	session->session = of->id;
	session->incarnation = of->incarnation;
	spin_unlock_bh(&of->spin);
	dfs_session_unuse(connection, of);
	return error ? (error == -ENOTCONN ? error : -EINTR) : 0;
}
