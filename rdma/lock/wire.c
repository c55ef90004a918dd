/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#include "rdma/lock/wire.h"

#define TO_LOCKD 1u
#define TO_CLIENT 2u

static const struct {
	const char *name;
	df_u8 size;
	df_u8 direction;
} kinds[DF_MSG_TYPES] = {
	[DF_MSG_ASK] = {"Ask", sizeof(struct df_msg_ask), TO_LOCKD},
	[DF_MSG_GRANT] = {"Grant", sizeof(struct df_msg_grant), TO_CLIENT},
	[DF_MSG_REVOKE] = {"Revoke", sizeof(struct df_msg_revoke), TO_CLIENT},
	[DF_MSG_RELEASED] = {"Released", sizeof(struct df_msg_released), TO_LOCKD},
	[DF_MSG_FIND] = {"Find", sizeof(struct df_msg_plain), TO_LOCKD},
	[DF_MSG_FOUND] = {"Found", sizeof(struct df_msg_found), TO_CLIENT},
	[DF_MSG_GLIMPSE] = {"Glimpse", sizeof(struct df_msg_plain), TO_LOCKD | TO_CLIENT},
	[DF_MSG_GLIMPSED] = {"Glimpsed", sizeof(struct df_msg_glimpsed), TO_LOCKD},
	[DF_MSG_GLIMPSE_REPLY] = {"GlimpseReply", sizeof(struct df_msg_glimpse_reply), TO_CLIENT},
	[DF_MSG_FREEZE] = {"Freeze", sizeof(struct df_msg_plain), TO_CLIENT},
	[DF_MSG_STATE] = {"State", sizeof(struct df_msg_state), TO_LOCKD},
	[DF_MSG_THAW] = {"Thaw", sizeof(struct df_msg_plain), TO_CLIENT},
	[DF_MSG_CANCEL] = {"Cancel", sizeof(struct df_msg_plain), TO_LOCKD},
	[DF_MSG_FILE_LOCK] = {"FileLock", sizeof(struct df_msg_file), TO_LOCKD},
	[DF_MSG_FILE_UNLOCK] = {"FileUnlock", sizeof(struct df_msg_file), TO_LOCKD},
	[DF_MSG_FILE_TEST] = {"FileTest", sizeof(struct df_msg_file), TO_LOCKD},
	[DF_MSG_FILE_REPLY] = {"FileReply", sizeof(struct df_msg_file_reply), TO_CLIENT},
	[DF_MSG_FILE_CANCEL] = {"FileCancel", sizeof(struct df_msg_plain), TO_LOCKD},
	[DF_MSG_BYE] = {"Bye", sizeof(struct df_msg_plain), TO_LOCKD},
	[DF_MSG_RECLAIMED] = {"Reclaimed", sizeof(struct df_msg_plain), TO_LOCKD},
	[DF_MSG_RESUME] = {"Resume", sizeof(struct df_msg_plain), TO_CLIENT},
};

df_u32 df_msg_size(df_u32 type)
{
	return type < DF_MSG_TYPES ? kinds[type].size : 0;
}

const char *df_msg_name(df_u32 type)
{
	return type < DF_MSG_TYPES && kinds[type].name ? kinds[type].name : "unknown";
}

int df_msg_from_client(df_u32 type)
{
	return type < DF_MSG_TYPES && (kinds[type].direction & TO_LOCKD);
}

int df_msg_from_lockd(df_u32 type)
{
	return type < DF_MSG_TYPES && (kinds[type].direction & TO_CLIENT);
}

void df_msg_init(union df_msg *message, df_u32 type, df_u32 slot, df_u64 key, df_u64 seq)
{
	memset(message, 0, sizeof(*message));
	message->head.type = (df_u16)type;
	message->head.length = (df_u16)df_msg_size(type);
	message->head.slot = slot;
	message->head.key = key;
	message->head.seq = seq;
}

static int all_zero(const df_u8 *bytes, df_u32 count)
{
	df_u8 seen = 0;

	while (count)
		seen |= bytes[--count];
	return seen == 0;
}

#define RESERVED_IS_ZERO(part) all_zero((part).reserved, sizeof((part).reserved))

static int check_ask(const struct df_msg_ask *ask)
{
	if (!df_mode_valid(ask->want) || !df_mode_valid(ask->held) ||
	    df_covers(ask->held, ask->want) || !df_covers(ask->want, ask->held))
		return DF_CHECK_FIELD;
	return RESERVED_IS_ZERO(*ask) ? DF_CHECK_OK : DF_CHECK_RESERVED;
}

static int check_grant(const struct df_msg_grant *grant)
{
	if (grant->status > DF_GRANT_BUSY || !df_mode_valid(grant->mode) ||
	    (grant->status == DF_GRANTED) != (grant->mode != DF_NL))
		return DF_CHECK_FIELD;
	return RESERVED_IS_ZERO(*grant) ? DF_CHECK_OK : DF_CHECK_RESERVED;
}

/* One byte after the head with a largest value, and seven reserved ones. */
static int check_byte(const union df_msg *message, df_u32 least, df_u32 most)
{
	const df_u8 *body = message->bytes + sizeof(struct df_msg_head);

	if (body[0] < least || body[0] > most)
		return DF_CHECK_FIELD;
	return all_zero(body + 1, 7) ? DF_CHECK_OK : DF_CHECK_RESERVED;
}

static int check_glimpse_reply(const struct df_msg_glimpse_reply *reply)
{
	if (reply->status > DF_GLIMPSE_BUSY || reply->fresh > 1)
		return DF_CHECK_FIELD;
	return RESERVED_IS_ZERO(*reply) ? DF_CHECK_OK : DF_CHECK_RESERVED;
}

static int check_file(const struct df_msg_file *file)
{
	df_u32 extent;

	if (file->head.type == DF_MSG_FILE_UNLOCK) {
		if (file->type != DF_FILE_NONE || (file->flags & DF_FILE_WAIT))
			return DF_CHECK_FIELD;
	} else if (file->type > DF_FILE_WRITE) {
		return DF_CHECK_FIELD;
	}
	if (file->flags & DF_FILE_RECLAIM &&
	    (file->head.type != DF_MSG_FILE_LOCK || file->flags & DF_FILE_WAIT))
		return DF_CHECK_FIELD;
	if (file->flags & ~(DF_FILE_FLOCK | DF_FILE_WAIT | DF_FILE_RECLAIM) ||
	    file->end < file->start || df_key_split_extent(file->head.key, &extent))
		return DF_CHECK_FIELD;
	return RESERVED_IS_ZERO(*file) ? DF_CHECK_OK : DF_CHECK_RESERVED;
}

static int check_file_reply(const struct df_msg_file_reply *reply)
{
	if (reply->error < 0 || reply->type > DF_FILE_NONE)
		return DF_CHECK_FIELD;
	return RESERVED_IS_ZERO(*reply) ? DF_CHECK_OK : DF_CHECK_RESERVED;
}

static int check_body(const union df_msg *message)
{
	switch (message->head.type) {
	case DF_MSG_ASK:
		return check_ask(&message->ask);
	case DF_MSG_GRANT:
		return check_grant(&message->grant);
	case DF_MSG_REVOKE:
		return check_byte(message, DF_IS, DF_X);
	case DF_MSG_RELEASED:
	case DF_MSG_STATE:
		return check_byte(message, DF_NL, DF_X);
	case DF_MSG_FOUND:
		return check_byte(message, DF_FOUND_SLOT, DF_FOUND_BUSY);
	case DF_MSG_GLIMPSED:
		return check_byte(message, 0, 1);
	case DF_MSG_GLIMPSE_REPLY:
		return check_glimpse_reply(&message->glimpse_reply);
	case DF_MSG_FILE_LOCK:
	case DF_MSG_FILE_UNLOCK:
	case DF_MSG_FILE_TEST:
		return check_file(&message->file);
	case DF_MSG_FILE_REPLY:
		return check_file_reply(&message->file_reply);
	default:
		return DF_CHECK_OK; /* a head alone */
	}
}

int df_msg_read(const void *bytes, df_u32 length, union df_msg *message)
{
	int check;

	memset(message, 0, sizeof(*message));
	if (length < sizeof(struct df_msg_head))
		return DF_CHECK_SHORT;
	memcpy(&message->head, bytes, sizeof(struct df_msg_head));
	if (!df_msg_size(message->head.type))
		return DF_CHECK_TYPE;
	if (length != df_msg_size(message->head.type) || message->head.length != length)
		return DF_CHECK_LENGTH;
	memcpy(message, bytes, length);
	check = check_body(message);
	if (check)
		return check;
	/* Everything but the end of a session and a file lock's cancel is about a key. */
	if (!message->head.key && message->head.type != DF_MSG_BYE &&
	    message->head.type != DF_MSG_RECLAIMED && message->head.type != DF_MSG_RESUME &&
	    message->head.type != DF_MSG_FILE_CANCEL)
		return DF_CHECK_FIELD;
	return DF_CHECK_OK;
}

int df_msg_check(const void *bytes, df_u32 length)
{
	union df_msg message;

	return df_msg_read(bytes, length, &message);
}

int df_msg_slot_in(const struct df_msg_head *head, df_u32 slots)
{
	switch (head->type) {
	case DF_MSG_FIND:
	case DF_MSG_FILE_LOCK:
	case DF_MSG_FILE_UNLOCK:
	case DF_MSG_FILE_TEST:
	case DF_MSG_FILE_REPLY:
	case DF_MSG_FILE_CANCEL:
	case DF_MSG_BYE:
	case DF_MSG_RECLAIMED:
	case DF_MSG_RESUME:
		return 1;
	default:
		return head->slot < slots;
	}
}

void df_hello_join(struct df_hello *hello, df_u32 role, df_u64 session, const df_u8 *token)
{
	hello->role = role;
	hello->session = session;
	memcpy(hello->token, token, sizeof(hello->token));
}

int df_token_equal(const df_u8 *a, const df_u8 *b)
{
	/* volatile: no look may be left out because of what an earlier one showed */
	const volatile df_u8 *one = a, *other = b;
	df_u32 i, differ = 0;

	for (i = 0; i < DF_TOKEN_BYTES; i++)
		differ |= (df_u32)(one[i] ^ other[i]);
	return differ == 0;
}

int df_hello_check(const void *bytes, df_u32 length, struct df_hello *hello)
{
	memset(hello, 0, sizeof(*hello));
	if (length < sizeof(*hello))
		return DF_CHECK_SHORT;
	memcpy(hello, bytes, sizeof(*hello));
	if (hello->magic != DF_WIRE_MAGIC)
		return DF_CHECK_MAGIC;
	if (hello->version != DF_WIRE_VERSION)
		return DF_CHECK_VERSION;
	if ((hello->role != DF_ROLE_CONTROL && hello->role != DF_ROLE_LANE) ||
	    (hello->role == DF_ROLE_LANE && hello->session == 0) ||
	    (hello->session == 0 && hello->name[sizeof(hello->name) - 1]))
		return DF_CHECK_FIELD;
	return DF_CHECK_OK;
}

/* The head that Welcomes of all versions have. */
static int welcome_version(const void *bytes, df_u32 length, struct df_welcome *welcome)
{
	struct {
		df_u64 magic;
		df_u32 version;
		df_u32 refusal;
	} head;

	if (length < sizeof(head))
		return DF_CHECK_SHORT;
	memcpy(&head, bytes, sizeof(head));
	if (head.magic != DF_WIRE_MAGIC)
		return DF_CHECK_MAGIC;
	welcome->version = head.version;
	return head.version == DF_WIRE_VERSION ? DF_CHECK_OK : DF_CHECK_VERSION;
}

int df_welcome_check(const void *bytes, df_u32 length, struct df_welcome *welcome)
{
	static const df_u8 no_token[DF_TOKEN_BYTES];
	int check;

	memset(welcome, 0, sizeof(*welcome));
	check = welcome_version(bytes, length, welcome);
	if (check != DF_CHECK_OK)
		return check;
	if (length < sizeof(*welcome))
		return DF_CHECK_SHORT;
	memcpy(welcome, bytes, sizeof(*welcome));
	if (welcome->refusal)
		return welcome->refusal <= DF_REFUSED_MALFORMED ? DF_CHECK_OK : DF_CHECK_FIELD;
	if (welcome->node < DF_NODE_MIN || welcome->node > DF_NODE_MAX || !welcome->session ||
	    !welcome->buckets || !welcome->asks || df_token_equal(welcome->token, no_token))
		return DF_CHECK_FIELD;
	if ((df_u64)welcome->buckets * DF_BUCKET_SLOTS + welcome->overflow != welcome->slots)
		return DF_CHECK_FIELD;
	if (welcome->reserved)
		return DF_CHECK_RESERVED;
	return DF_CHECK_OK;
}

const char *df_check_text(int check)
{
	switch (check) {
	case DF_CHECK_OK:
		return "well-formed";
	case DF_CHECK_SHORT:
		return "truncated";
	case DF_CHECK_TYPE:
		return "unknown type";
	case DF_CHECK_LENGTH:
		return "wrong length";
	case DF_CHECK_FIELD:
		return "a field out of range";
	case DF_CHECK_RESERVED:
		return "reserved bytes set";
	case DF_CHECK_MAGIC:
		return "not the lock protocol";
	case DF_CHECK_VERSION:
		return "another protocol version";
	default:
		return "malformed";
	}
}
