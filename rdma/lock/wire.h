/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Messages between a client and lockd: layouts, version, and the checks that come before belief.
 *
 * Parties: a client's control connection, in order, both ways. Lanes (one-sided operations only) carry none.
 *
 *   connect data    Hello              client -> lockd, role control (session 0: a new one; else: to re-assert, session.h) or lane (its session)
 *   accept data     Welcome            lockd -> client; the first one of a session gives it its token
 *   lock            Ask, Released, Find, Glimpse, Glimpsed, State, Cancel     client -> lockd
 *                   Grant, Revoke, Found, GlimpseReply, Glimpse, Freeze, Thaw lockd -> client
 *   file locks      FileLock, FileUnlock, FileTest, FileCancel                client -> lockd
 *                   FileReply                                                 lockd -> client
 *   lockd's restart Reclaimed                                                 client -> lockd, after everything was re-asserted
 *                   Resume                                                    lockd -> client, when new locks may be taken
 *   end             Bye                                                       client -> lockd, after everything was given up
 *
 * `seq` in the head: of Ask, Find, Glimpse (from a client), File*: the client's request id, echoed by the answer. Of
 * Revoke, Freeze, Glimpse (from lockd): lockd's number, echoed by Released, State, Glimpsed; a Released with seq n answers every
 * Revoke up to n for that slot; seq 0 answers none (a wake-up). Glimpsed likewise.
 *
 * Token: 16 random bytes that lockd makes for each session and keeps with it, also over its restart. Every later Hello that names the session
 * repeats them; any other is refused with SESSION, and the session does not notice. For session ids are no secret (lockd's status shows
 * them, requests to storageds carry them), and whoever may name a session in a Hello can post in its name, or take its place in grace. No clock
 * and no counter is in it: nothing that a client sees says anything about another's. It travels in the clear: who listens in on the network
 * is not kept out.
 *
 * A Hello has room for the mount's name or a token, not for both: rdma_cm leaves a user 56 bytes. Only a Hello without a session brings
 * a name; lockd keeps it.
 *
 * Limits: every message has one fixed size; nothing is optional. Reserved bytes are 0. A receiver drops a peer whose
 * message df_msg_read refuses.
 */
#ifndef DISTFUSE_WIRE_H
#define DISTFUSE_WIRE_H

#include "rdma/lock/slot.h"

DF_BEGIN_C

#define DF_WIRE_MAGIC 0x6b636f4c53554644ull /* "DFUSLock" */
#define DF_WIRE_VERSION 3u
#define DF_CLUSTER_ID_BYTES 16
#define DF_TOKEN_BYTES 16

enum df_role { DF_ROLE_CONTROL = 1, DF_ROLE_LANE = 2 };

/* Why a Welcome refuses. The connection is accepted for the answer's sake and then closed by lockd. */
enum df_refusal {
	DF_ACCEPTED = 0,
	DF_REFUSED_VERSION = 1, /* Welcome.version is lockd's */
	DF_REFUSED_CLUSTER = 2,
	DF_REFUSED_NO_NODE_ID = 3, /* too many sessions, or too many died in this incarnation */
	DF_REFUSED_SESSION =
		4, /* a session that is not there, or not any more: it was fenced; or not its token */
	DF_REFUSED_GRACE = 5, /* a new session while others re-assert: come again */
	DF_REFUSED_MALFORMED = 6,
};

struct df_hello {
	df_u64 magic;
	df_u32 version;
	df_u32 role;
	df_u8 cluster[DF_CLUSTER_ID_BYTES];
	df_u64 session; /* lane: of the control connection; control: 0, or the session to re-assert */
	union {
		df_u8 name[16]; /* session 0: of the mount, NUL-padded, for lockd's status */
		df_u8 token[DF_TOKEN_BYTES]; /* else: of that session */
	};
};
DF_STATIC_ASSERT(sizeof(struct df_hello) == 56, "connect private data");

struct df_welcome {
	df_u64 magic;
	df_u32 version;
	df_u32 refusal; /* enum df_refusal; if not 0 the rest but `version` says nothing */
	df_u64 session;
	df_u64 incarnation;
	df_u32 node;
	df_u32 lease_ms;     /* 0: no lease */
	df_u32 buckets;	     /* of DF_BUCKET_SLOTS slots */
	df_u32 slots;	     /* primary and overflow */
	df_u32 overflow;     /* slots after the primary ones */
	df_u32 asks;	     /* Ask, Find, Glimpse and File* that a session may have unanswered */
	df_u64 lease_offset; /* in the region: 8 bytes, WRITEn with any new value to renew */
	df_u32 grace_ms; /* 0: go ahead; else: re-assert within it, take nothing new until Resume */
	df_u32 reserved;
	df_u8 token[DF_TOKEN_BYTES]; /* of the session; never all zero */
};
DF_STATIC_ASSERT(sizeof(struct df_welcome) == 88, "accept private data, at most 136");

enum df_msg_type {
	DF_MSG_ASK = 1,
	DF_MSG_GRANT = 2,
	DF_MSG_REVOKE = 3,
	DF_MSG_RELEASED = 4,
	DF_MSG_FIND = 5,
	DF_MSG_FOUND = 6,
	DF_MSG_GLIMPSE = 7,
	DF_MSG_GLIMPSED = 8,
	DF_MSG_GLIMPSE_REPLY = 9,
	DF_MSG_FREEZE = 10,
	DF_MSG_STATE = 11,
	DF_MSG_THAW = 12,
	DF_MSG_CANCEL = 13,
	DF_MSG_FILE_LOCK = 14,
	DF_MSG_FILE_UNLOCK = 15,
	DF_MSG_FILE_TEST = 16,
	DF_MSG_FILE_REPLY = 17,
	DF_MSG_FILE_CANCEL = 18,
	DF_MSG_BYE = 19,
	DF_MSG_RECLAIMED = 20,
	DF_MSG_RESUME = 21,
};
#define DF_MSG_TYPES 22

struct df_msg_head {
	df_u16 type;
	df_u16 length; /* of the whole message */
	df_u32 slot;   /* 0 where it means nothing */
	df_u64 key;
	df_u64 seq;
};
DF_STATIC_ASSERT(sizeof(struct df_msg_head) == 24, "message head");

/* Wants `want`, has `held` in the word. The undo of an attempt is done. */
struct df_msg_ask {
	struct df_msg_head head;
	df_u8 want; /* IS .. X */
	df_u8 held; /* weaker than want */
	df_u8 reserved[6];
};

enum df_grant_status {
	DF_GRANTED = 0,
	DF_GRANT_STALE = 1,	/* the slot has another key: find again */
	DF_GRANT_CANCELLED = 2, /* by Cancel: nothing was granted */
	DF_GRANT_BUSY = 3,	/* lockd has no room for the waiter; try again later */
};

struct df_msg_grant {
	struct df_msg_head head;
	df_u8 status; /* enum df_grant_status */
	df_u8 mode;   /* GRANTED: what is in the word now, in place of what was held */
	df_u8 reserved[6];
	df_u64 version;
	struct df_value value;
};

struct df_msg_revoke {
	struct df_msg_head head;
	df_u8 wanted; /* keep at most df_keep(held, wanted) */
	df_u8 reserved[7];
};

struct df_msg_released {
	struct df_msg_head head; /* seq: see above */
	df_u8 kept;		 /* what is in the word now */
	df_u8 reserved[7];
};

enum df_find_status {
	DF_FOUND_SLOT = 0,
	DF_FOUND_BUSY = 1, /* lockd has no room for the request; try again later */
};

struct df_msg_found {
	struct df_msg_head head; /* slot: where */
	df_u8 status;		 /* enum df_find_status */
	df_u8 reserved[7];
};

/* Ask's and Find's siblings without a body: Find, Glimpse, Freeze, Thaw, Cancel, FileCancel, Bye, Reclaimed, Resume. */
struct df_msg_plain {
	struct df_msg_head head;
};

struct df_msg_glimpsed {
	struct df_msg_head head;
	df_u8 published; /* 0: nothing new, or not held in X */
	df_u8 reserved[7];
};

enum df_glimpse_status { DF_GLIMPSE_OK = 0, DF_GLIMPSE_STALE = 1, DF_GLIMPSE_BUSY = 2 };

struct df_msg_glimpse_reply {
	struct df_msg_head head;
	df_u8 status; /* enum df_glimpse_status */
	df_u8 fresh;  /* the X holder has published for this request */
	df_u8 reserved[6];
	df_u64 word; /* as it was when lockd looked last */
	df_u64 version;
	struct df_value value;
};

struct df_msg_state {
	struct df_msg_head head;
	df_u8 held; /* what this session has in the slot's word; nothing of it changes until Thaw */
	df_u8 reserved[7];
};

enum df_file_type { DF_FILE_READ = 0, DF_FILE_WRITE = 1, DF_FILE_NONE = 2 };
#define DF_FILE_FLOCK 1u /* flock, not fcntl: start 0, end max */
#define DF_FILE_WAIT 2u
#define DF_FILE_RECLAIM 4u /* FileLock in grace: was held before lockd's restart */

/* FileLock, FileUnlock, FileTest. key: df_key_inode. */
struct df_msg_file {
	struct df_msg_head head;
	df_u64 owner; /* the kernel's lock owner, unique in the session */
	df_u64 start;
	df_u64 end; /* inclusive, >= start */
	df_s32 pid;
	df_u8 type; /* enum df_file_type; FileUnlock: NONE; others: READ or WRITE */
	df_u8 flags;
	df_u8 reserved[2];
};

/* To each FileLock, FileUnlock, FileTest one; FileCancel makes a waiting FileLock answer EINTR, if it still waits. */
struct df_msg_file_reply {
	struct df_msg_head head;
	df_s32 error; /* 0, or a positive errno: EAGAIN, EDEADLK, EINTR, ENOLCK */
	df_s32 pid;   /* FileTest: of a lock in the way */
	df_u64 owner;
	df_u64 start;
	df_u64 end;
	df_u8 type; /* FileTest: NONE: free */
	df_u8 reserved[7];
};

DF_STATIC_ASSERT(sizeof(struct df_msg_ask) == 32, "Ask");
DF_STATIC_ASSERT(sizeof(struct df_msg_grant) == 72, "Grant");
DF_STATIC_ASSERT(sizeof(struct df_msg_revoke) == 32, "Revoke");
DF_STATIC_ASSERT(sizeof(struct df_msg_released) == 32, "Released");
DF_STATIC_ASSERT(sizeof(struct df_msg_found) == 32, "Found");
DF_STATIC_ASSERT(sizeof(struct df_msg_plain) == 24, "Find and others");
DF_STATIC_ASSERT(sizeof(struct df_msg_glimpsed) == 32, "Glimpsed");
DF_STATIC_ASSERT(sizeof(struct df_msg_glimpse_reply) == 80, "GlimpseReply");
DF_STATIC_ASSERT(sizeof(struct df_msg_state) == 32, "State");
DF_STATIC_ASSERT(sizeof(struct df_msg_file) == 56, "FileLock");
DF_STATIC_ASSERT(sizeof(struct df_msg_file_reply) == 64, "FileReply");

union df_msg {
	struct df_msg_head head;
	struct df_msg_ask ask;
	struct df_msg_grant grant;
	struct df_msg_revoke revoke;
	struct df_msg_released released;
	struct df_msg_found found;
	struct df_msg_plain plain;
	struct df_msg_glimpsed glimpsed;
	struct df_msg_glimpse_reply glimpse_reply;
	struct df_msg_state state;
	struct df_msg_file file;
	struct df_msg_file_reply file_reply;
	df_u8 bytes[80];
};

enum df_check {
	DF_CHECK_OK = 0,
	DF_CHECK_SHORT = -1,	/* no whole head */
	DF_CHECK_TYPE = -2,	/* unknown */
	DF_CHECK_LENGTH = -3,	/* not the type's */
	DF_CHECK_FIELD = -4,	/* a value outside of its range */
	DF_CHECK_RESERVED = -5, /* not zero */
	DF_CHECK_MAGIC = -6,
	DF_CHECK_VERSION = -7,
};

/* The size of a type's messages; 0: no such type. */
df_u32 df_msg_size(df_u32 type);
/* Whether these bytes are one whole message with every field in range. Slots are checked by df_msg_slot_in. */
int df_msg_check(const void *bytes, df_u32 length);
/* Checks and copies (the bytes may be unaligned). */
int df_msg_read(const void *bytes, df_u32 length, union df_msg *message);
/* Whether a slot index in the head is inside the table (types without one: yes). */
int df_msg_slot_in(const struct df_msg_head *head, df_u32 slots);
/* Whether a client sends this type to lockd, or lockd to a client. Glimpse: both. */
int df_msg_from_client(df_u32 type);
int df_msg_from_lockd(df_u32 type);
/* Zeroes the message and fills its head. */
void df_msg_init(union df_msg *message, df_u32 type, df_u32 slot, df_u64 key, df_u64 seq);
/* For logs: "Ask"; never NULL. */
const char *df_msg_name(df_u32 type);
const char *df_check_text(int check);

/* Makes a Hello name a session: `role` is a lane of it, or control to re-assert it. The mount's name goes. */
void df_hello_join(struct df_hello *hello, df_u32 role, df_u64 session, const df_u8 *token);
/* Whether two tokens are the same; takes as long wherever they differ. */
int df_token_equal(const df_u8 *a, const df_u8 *b);
/* A Hello of another version passes with DF_CHECK_VERSION, so that lockd can say which one it speaks. */
int df_hello_check(const void *bytes, df_u32 length, struct df_hello *hello);
/*
 * Geometry is checked too: sums fit, slots = buckets * 8 + overflow. DF_CHECK_VERSION: version is filled in, nothing else is; a Welcome of
 * another version may have another length.
 */
int df_welcome_check(const void *bytes, df_u32 length, struct df_welcome *welcome);

DF_END_C

#endif
