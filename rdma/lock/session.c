/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Parties, lease, loss, restart, states: session.h. */
#include "rdma/lock/session.h"

#define NEVER (~0ull)
#define CONNECT_PAUSE_MS 50u
#define CONNECT_PAUSE_MAX_MS 1000u

static int connected(const struct df_session *session)
{
	return session->state == DF_SESSION_LIVE || session->state == DF_SESSION_SUSPECT ||
	       session->state == DF_SESSION_RECLAIMING;
}

static df_u64 trust_of(const struct df_session *session, df_u64 posted_ms)
{
	return session->lease_ms ? posted_ms + session->lease_ms * 7 / 10 : NEVER;
}

static df_u64 renewal_period(const struct df_session *session)
{
	return session->lease_ms >= 4 ? session->lease_ms / 4 : 1;
}

static df_u64 earlier(df_u64 a, df_u64 b)
{
	return a < b ? a : b;
}

static df_u64 wake_at(const struct df_session *session)
{
	df_u64 at = NEVER;

	if (session->state == DF_SESSION_LOST)
		return NEVER;
	if (!session->suspected)
		at = session->trusted_until;
	if (session->state == DF_SESSION_CONNECTING)
		return earlier(earlier(at, session->connect_at),
			       session->cut_at + session->give_up_ms);
	if (session->renewing)
		return earlier(at, session->suspected ? session->posted_at + session->give_up_ms
						      : NEVER);
	return earlier(at, session->renew_at);
}

static void suspect(struct df_session *session, struct df_session_out *out)
{
	if (session->suspected)
		return;
	session->suspected = 1;
	out->suspect = 1;
	if (session->state == DF_SESSION_LIVE)
		session->state = DF_SESSION_SUSPECT;
}

static void lose(struct df_session *session, df_u32 why, struct df_session_out *out)
{
	suspect(session, out);
	session->trusted_until = 0;
	session->state = DF_SESSION_LOST;
	session->renewing = 0;
	session->loss = (df_u8)why;
	out->lost = (df_u8)why;
}

/* Something was said to lockd at `posted_ms` and is known to have arrived. */
static void believe(struct df_session *session, df_u64 posted_ms, df_u64 now_ms,
		    struct df_session_out *out)
{
	df_u64 until = trust_of(session, posted_ms);

	if (until > session->trusted_until)
		session->trusted_until = until;
	if (!session->suspected || now_ms >= session->trusted_until)
		return;
	session->suspected = 0;
	out->trust = 1;
	if (session->state == DF_SESSION_SUSPECT)
		session->state = DF_SESSION_LIVE;
}

static void connect_now(struct df_session *session, struct df_session_out *out)
{
	session->connect_at = NEVER;
	out->connect = 1;
}

/* What the time alone brings about. */
static void pass_time(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	if (session->state == DF_SESSION_LOST)
		return;
	if (now_ms >= session->trusted_until)
		suspect(session, out);
	if (session->state == DF_SESSION_CONNECTING) {
		if (now_ms - session->cut_at >= session->give_up_ms)
			lose(session, DF_LOSS_GIVEN_UP, out);
		else if (now_ms >= session->connect_at)
			connect_now(session, out);
		return;
	}
	/* A connection that neither works nor ends. */
	if (session->renewing && session->suspected &&
	    now_ms - session->posted_at >= session->give_up_ms) {
		lose(session, DF_LOSS_GIVEN_UP, out);
		return;
	}
	if (session->renewing || now_ms < session->renew_at)
		return;
	session->renewing = 1;
	session->posted_at = now_ms;
	session->renew_at = now_ms + renewal_period(session);
	out->renew = 1;
	out->renew_value = ++session->renew_value;
}

static void finish(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	pass_time(session, now_ms, out);
	out->wake_at = wake_at(session);
}

/* What a table's Welcome says of the lease. */
static void adopt(struct df_session *session, const struct df_welcome *welcome, df_u64 posted_ms)
{
	session->incarnation = welcome->incarnation;
	session->lease_ms = welcome->lease_ms;
	session->lease_offset = welcome->lease_offset;
	session->renewing = 0;
	session->renew_at = session->lease_ms ? posted_ms + renewal_period(session) : NEVER;
}

void df_session_begin(struct df_session *session, const struct df_welcome *welcome,
		      df_u64 posted_ms, df_u64 give_up_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	memset(session, 0, sizeof(*session));
	session->id = welcome->session;
	session->node = welcome->node;
	memcpy(session->token, welcome->token, sizeof(session->token));
	session->give_up_ms = give_up_ms;
	session->state = DF_SESSION_LIVE;
	session->connect_at = NEVER;
	adopt(session, welcome, posted_ms);
	session->trusted_until = trust_of(session, posted_ms);
	out->wake_at = wake_at(session);
}

void df_session_tick(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	finish(session, now_ms, out);
}

void df_session_renewed(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	if (connected(session) && session->renewing) {
		session->renewing = 0;
		believe(session, session->posted_at, now_ms, out);
	}
	finish(session, now_ms, out);
}

void df_session_cut(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	if (connected(session)) {
		session->state = DF_SESSION_CONNECTING;
		session->renewing = 0;
		session->cut_at = now_ms;
		session->connect_pause_ms = CONNECT_PAUSE_MS;
		if (!session->lease_ms)
			session->trusted_until = now_ms;
		out->detach = 1;
		connect_now(session, out);
	}
	finish(session, now_ms, out);
}

static int refused_for_now(const struct df_welcome *welcome)
{
	return welcome->refusal == DF_REFUSED_GRACE || welcome->refusal == DF_REFUSED_NO_NODE_ID;
}

static void try_later(struct df_session *session, df_u64 now_ms)
{
	session->connect_at = now_ms + session->connect_pause_ms;
	session->connect_pause_ms *= 2;
	if (session->connect_pause_ms > CONNECT_PAUSE_MAX_MS)
		session->connect_pause_ms = CONNECT_PAUSE_MAX_MS;
}

/* The same session in a later table, while that is still in grace: nothing else can be re-asserted in. */
static int makes_sense(const struct df_session *session, const struct df_welcome *welcome)
{
	return welcome->session == session->id && welcome->node == session->node &&
	       df_token_equal(welcome->token, session->token) &&
	       welcome->incarnation > session->incarnation && welcome->grace_ms;
}

void df_session_welcome(struct df_session *session, const struct df_welcome *welcome,
			df_u64 posted_ms, df_u64 now_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	if (session->state != DF_SESSION_CONNECTING) {
		finish(session, now_ms, out);
		return;
	}
	if (welcome->refusal && refused_for_now(welcome)) {
		try_later(session, now_ms);
	} else if (welcome->refusal) {
		lose(session, DF_LOSS_REFUSED, out);
	} else if (!makes_sense(session, welcome)) {
		lose(session, DF_LOSS_GEOMETRY, out);
	} else {
		session->state = DF_SESSION_RECLAIMING;
		session->reasserted = 0;
		adopt(session, welcome, posted_ms);
		believe(session, posted_ms, now_ms, out);
		out->reassert = 1;
	}
	finish(session, now_ms, out);
}

void df_session_unreachable(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	if (session->state == DF_SESSION_CONNECTING && session->connect_at == NEVER)
		try_later(session, now_ms);
	finish(session, now_ms, out);
}

void df_session_fenced(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	if (session->state != DF_SESSION_LOST)
		lose(session, DF_LOSS_FENCED, out);
	finish(session, now_ms, out);
}

void df_session_reasserted(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	if (session->state == DF_SESSION_RECLAIMING && !session->reasserted) {
		session->reasserted = 1;
		out->reclaimed = 1;
	}
	finish(session, now_ms, out);
}

void df_session_resumed(struct df_session *session, df_u64 now_ms, struct df_session_out *out)
{
	memset(out, 0, sizeof(*out));
	if (session->state == DF_SESSION_RECLAIMING && !session->reasserted) {
		lose(session, DF_LOSS_GEOMETRY, out);
	} else if (session->state == DF_SESSION_RECLAIMING) {
		session->state = session->suspected ? DF_SESSION_SUSPECT : DF_SESSION_LIVE;
		out->resume = 1;
	}
	finish(session, now_ms, out);
}
