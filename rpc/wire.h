// SPDX-License-Identifier: Apache-2.0
// The storage RPC protocol.
//
// Parties: a client channel (one UCX worker; a mount has up to 64, lockd and the meta target one or a few) and a server (one
// UCX worker and one TCP listener per role of a storaged). A *connection* is a TCP stream and a pair of UCX endpoints.
//
// Connecting, on the TCP stream: client sends Hello and its worker's address; server answers Welcome with its own, or
// Refused with errno and a sentence, and closes. Both then create an endpoint to the other's address. From there the stream is
// silent: it ends when either process ends (kill -9 included), which is how death is noticed at once, over shared memory
// too; a byte on it ends the connection. UCX's own listener is not used: it believes its peer's bytes.
//
// A channel has one connection to a target at a time. Hello names the channel and counts its attempts; the server ends what the channel
// had before, and answers Welcome when that is gone altogether: its endpoint closed, none of its requests running, or able to
// run, at the handler. So nothing of an earlier connection takes effect after anything of a later one: what the client sends again runs
// after the first run, and what it does next after both. (A queue pair's worth of requests on the way to a dead connection is
// dropped: nobody knows its token.) Meanwhile the new connection is *held*, without endpoint or slot, one per channel: the next
// attempt ends it, and so does the client's end of its stream.
//   A request that never ends (a disk that hangs): that channel gets no Welcome, its calls fail with EIO after the client's give_up,
//   which is what such a disk is worth; other channels and clients notice nothing; the first attempt after its end is welcome.
//   A restarted server has none of this to wait for: its requests died with its process.
//
// Daemons of one mount (mode `kernel`): a session may outlive the client process, and the next one sends again what the former had not been
// answered. Hello.daemon counts them. A client's Hello ends all connections of its session that belong to earlier daemons, of whatever channel,
// and is held until none of their requests runs, or can run; one of an earlier daemon than a connection that is here belongs to is refused. So nothing of a
// former daemon takes effect after anything of a later one. (A former one that lived on would have to come back while the later one has no
// connection at all: the module has let it answer everything, or has seen the end of its process, before there is a later one.)
//
// Boot: Welcome says which start of its machine the server runs in (ServerOptions::boot). What was answered under another number
// and not synced may be gone (client/cache/unsynced.h).
//
// Requests and replies are active messages. Each carries the token that its receiver drew for the connection (nobody else
// knows it) and the client's call number, which the reply repeats. Payloads up to kEagerMax travel in the message; longer
// ones by rendezvous, the receiver naming the memory, so bulk lands in its final buffer.
//   AM 1 metadata request: RequestHeader | Cap'n Proto Request        AM 3 metadata reply: ReplyHeader | Cap'n Proto Reply
//   AM 2 data request: RequestHeader, DataRequest | bulk of write, sessions   AM 4 data reply: ReplyHeader, DataReply | bulk of read
//
// Order: none between requests. Serialisation is the handlers' business.
//
// Limits: Welcome grants `credits` requests in flight per connection; a client keeps its further requests back, so an
// honest one never meets the limit, and one that exceeds it is dropped. So a server holds at most
// max_connections × credits unanswered requests; what waits for write memory is kept by the sender (rendezvous), but for payloads of
// ≤ kEagerMax: 4096 × 16 × 8 KiB = 512 MiB if every connection that may exist fills its window with small writes while no
// memory is free; the usual 64 channels of one mount: 8 MiB.
//
// Learning: a storaged that has started answers `learning` to everyone but lockd until lockd's `sessions` request (the one data request that the
// meta target takes) has told it who lives; the client sends again by itself.
//
// Recovery: whatever ends a connection, the client makes a new one and sends again what was unanswered, same request ids. Data
// requests are idempotent; metadata requests are answered from the store's reply cache. Of a dead connection a server drops what has not
// reached the handler, and the answers of the rest.
//
// Limit: a request that the client has given up (EIO) may still take effect, until the channel's next Welcome. Its caller was
// told that it does not know.
//
// A bad peer (malformed, oversized, unknown, more than its credits, another session's requests) loses its connection and is
// logged once; nobody else notices.
//
// Known weakness: after a well-formed Hello (cluster id included) UCX itself parses the peer's worker address and packets, and UCX
// trusts them. The address is protected against accidents by a checksum, not against malice. Within a cluster, peers that
// know the cluster id are trusted not to attack UCX.
//
// Known weakness too: no shared memory below UCX (rpc/ucx.cc says why), so a round trip on one machine costs a TCP wake-up; and an
// eager message of several fragments is put together by UCX in memory of its own before its length is checked here.
#pragma once

#include <cstdint>

#include "rpc/client.h"
#include "rpc/data.h"

namespace distfuse::rpc::wire {

inline constexpr std::uint64_t kMagic = 0x4346525053464400;  ///< Never changes.
inline constexpr std::uint32_t kProtocolVersion = 4;
inline constexpr std::size_t kMaxAddress =
    4096;  ///< UCX worker address: 50 bytes a transport and device.
inline constexpr std::size_t kMaxReason = 512;
inline constexpr std::size_t kEagerMax =
    8000;  ///< With the headers below UCX's 8256-byte shared-memory segments.

enum class Kind : std::uint16_t { hello = 1, welcome = 2, refused = 3 };

/// In front of everything on the stream. It and Refused stay as they are in all versions.
struct FrameHead {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint16_t kind;
  std::uint16_t length;  ///< Of what follows.
};
static_assert(sizeof(FrameHead) == 16);

struct Hello {  ///< Then `address_length` bytes.
  char cluster_id[32];
  std::uint64_t session;
  std::uint64_t token;  ///< Drawn by the client: replies carry it.
  std::uint64_t
      channel;  ///< Drawn by the client, of the channel at this target: nobody else knows it. Not 0.
  std::uint64_t attempt;  ///< Counts up within the channel.
  std::uint64_t daemon;   ///< Counts up within the session; 0: a session has one client process.
  std::uint32_t role;
  std::uint32_t
      services;  ///< kMetadata or kData: what the client wants; refused by a server of another role.
  std::uint32_t address_length;
  std::uint32_t address_hash;
};
static_assert(sizeof(Hello) == 88);

enum Service : std::uint32_t { kMetadata = 1, kData = 2 };

struct Welcome {        ///< Then `address_length` bytes.
  std::uint64_t token;  ///< Drawn by the server: requests carry it.
  std::uint64_t boot;   ///< Of the server's machine; 0: not told.
  std::uint32_t credits;
  std::uint32_t address_length;
  std::uint32_t address_hash;
  std::uint32_t reserved;
};
static_assert(sizeof(Welcome) == 32);

struct Refused {  ///< Then the reason, up to the frame's end.
  std::int32_t error;
};
static_assert(sizeof(Refused) == 4);

inline constexpr std::size_t kMaxFrame = sizeof(FrameHead) + sizeof(Hello) + kMaxAddress;

enum Message : unsigned {
  kMetadataRequest = 1,
  kDataRequest = 2,
  kMetadataReply = 3,
  kDataReply = 4
};

struct RequestHeader {
  std::uint64_t token;
  std::uint64_t call;
};
struct ReplyHeader {
  std::uint64_t token;
  std::uint64_t call;
};
struct DataRequestHeader {
  RequestHeader head;
  DataRequest request;
};
struct DataReplyHeader {
  ReplyHeader head;
  DataReply reply;
};
static_assert(sizeof(DataRequestHeader) == 72 && sizeof(DataReplyHeader) == 40);

}  // namespace distfuse::rpc::wire
