// SPDX-License-Identifier: Apache-2.0
// The storage RPC, target side: a Server belongs to one thread, which sleeps on event_fd() together
// with whatever else it waits for:
//
//   for (;;) {
//     while (server.progress()) {}
//     if (server.arm()) poll(server.event_fd(), and others);
//   }
//
// Every method but post() and every handler call happens on that thread. rpc/wire.h describes the
// protocol, the limits and what becomes of a peer that breaks it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"
#include "rpc/client.h"
#include "rpc/data.h"
#include "rpc/metadata.h"

namespace distfuse::rpc {

class Server;

/// Who sent a request.
struct Peer {
  Role role = Role::client;
  SessionId session = 0;
  std::string name;  ///< For logs.
};

/// The right and the duty to answer one request, once, now or later, on the server's thread, while
/// the Server lives. Moved, not copied. Destroyed unanswered: the peer gets EIO. A peer that has
/// gone meanwhile is no error: the answer is dropped.
class ResponderBase {
 public:
  ResponderBase() = default;
  ResponderBase(Server* server, std::uint32_t slot) : server_(server), slot_(slot) {}
  ResponderBase(ResponderBase&& other) noexcept
      : server_(std::exchange(other.server_, nullptr)), slot_(other.slot_) {}
  ResponderBase& operator=(ResponderBase&& other) noexcept {
    std::swap(server_, other.server_);
    std::swap(slot_, other.slot_);
    return *this;
  }
  ~ResponderBase();
  explicit operator bool() const { return server_ != nullptr; }  ///< Not yet answered.

 protected:
  Server* server_ = nullptr;
  std::uint32_t slot_ = 0;
};

class MetadataResponder : public ResponderBase {
 public:
  using ResponderBase::ResponderBase;
  void reply(const MetadataReply& reply);
  /// Bytes from encode_reply(), as a reply cache keeps them. Copied.
  void reply_encoded(std::span<const std::byte> bytes);
};

/// Called once on the server's thread when memory is no longer read by the transport.
struct Release {
  void (*call)(void* argument) = nullptr;
  void* argument = nullptr;
};

class DataResponder : public ResponderBase {
 public:
  using ResponderBase::ResponderBase;
  /// No bulk. `error`: errno, 0: success.
  void reply(int error, std::uint32_t offset = 0, std::uint32_t length = 0);
  /// Success with bulk (read, statfs), ≤ kMaxBulk, which stays as it is until `release`.
  void reply_bulk(std::span<const std::byte> bulk, Release release);
};

/// Who lives, as lockd of `incarnation` says: those above `high`, which began later, and `ids`.
struct Sessions {
  std::uint64_t incarnation = 0;
  SessionId high = 0;
  std::vector<SessionId> ids;
};

class Handler {
 public:
  virtual ~Handler() = default;
  /// False: the session is fenced; its connections and requests are refused with kFenced. Asked for
  /// every request.
  virtual bool session_allowed(SessionId session) = 0;
  /// True: requests of everyone but lockd are answered kLearning. Asked for every request.
  [[nodiscard]] virtual bool learning() const { return false; }
  /// From lockd. Answered 0, or ESTALE: a later incarnation was seen.
  virtual void on_sessions(Sessions&& sessions, DataResponder responder);
  /// Checked already: sizes, names, the context's session is the peer's, FenceSession comes from
  /// lockd.
  virtual void on_metadata(const Peer& peer, const RequestContext& context,
                           MetadataRequest&& request, MetadataResponder responder);
  /// For write: memory of request.length bytes that the payload is received into; stays until
  /// on_data or drop_write_buffer. nullptr: none now; asked again, in order, after
  /// Server::resume_writes().
  virtual std::byte* write_buffer(const DataRequest& request);
  /// The payload did not arrive (the peer has gone).
  virtual void drop_write_buffer(std::byte* buffer);
  /// Checked already: op, flags, offset + length ≤ chunk_size ≤ kMaxBulk, the session is the
  /// peer's, role lockd for fence and storaged for remove. `payload`: of write, from
  /// write_buffer(); else null.
  virtual void on_data(const Peer& peer, const DataRequest& request, std::byte* payload,
                       DataResponder responder);
};

struct ServerOptions {
  std::string listen;          ///< host:port; port 0: any.
  std::string cluster_id;      ///< 32 hex digits.
  std::string device;          ///< UCX_NET_DEVICES; empty: any.
  bool metadata = false;       ///< Serves metadata requests.
  bool data = false;           ///< Serves data requests.
  std::uint32_t credits = 16;  ///< Requests in flight of one connection.
  std::uint32_t max_connections = 4096;
  std::uint64_t boot = 0;  ///< Another with each start of the machine; 0: clients are not told.
};

struct ServerCounters {
  std::uint64_t connections = 0, refused = 0, dropped = 0, requests = 0, replies = 0;
};

class Server {
 public:
  /// Binds. `handler` outlives the server. Error: EADDRINUSE, EADDRNOTAVAIL, EINVAL, ENODEV, with
  /// what to do.
  static Result<std::unique_ptr<Server>> create(const ServerOptions& options, Handler& handler);
  virtual ~Server() =
      default;  ///< Ends every connection. All Responders are answered or destroyed before.

  [[nodiscard]] virtual std::string address() const = 0;  ///< host:port bound.
  [[nodiscard]] virtual int event_fd()
      const = 0;                         ///< Readable when progress() has work; valid after arm().
  [[nodiscard]] virtual bool arm() = 0;  ///< True: the thread may sleep on event_fd().
  virtual bool progress() = 0;  ///< Runs what is ready, never sleeps; whether anything was.
  /// arm and poll(event_fd) for a thread that waits for nothing else. Negative: no timeout.
  virtual void wait(std::chrono::milliseconds timeout) = 0;
  /// From any thread: `function` is run by progress(), in order. The caller bounds how many are
  /// under way.
  virtual void post(std::function<void()> function) = 0;
  /// Asks write_buffer() again for the writes that wait for memory.
  virtual void resume_writes() = 0;
  /// Ends the connections of a session (after a fence).
  virtual void disconnect_session(SessionId session) = 0;
  /// Ends those of all sessions that are not to be kept.
  virtual void disconnect_sessions(const std::function<bool(SessionId)>& keep) = 0;
  [[nodiscard]] virtual ServerCounters counters() const = 0;

 private:
  friend class ResponderBase;
  friend class MetadataResponder;
  friend class DataResponder;
  virtual void answer_dropped(std::uint32_t slot) = 0;
  virtual void answer_metadata(std::uint32_t slot, std::span<const std::byte> bytes) = 0;
  virtual void answer_data(std::uint32_t slot, const DataReply& reply,
                           std::span<const std::byte> bulk, Release release) = 0;
};

inline ResponderBase::~ResponderBase() {
  if (server_ != nullptr) server_->answer_dropped(slot_);
}

}  // namespace distfuse::rpc
