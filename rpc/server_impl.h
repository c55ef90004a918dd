// SPDX-License-Identifier: Apache-2.0
// The server's inside, shared by server.cc (thread, streams, connections) and server_requests.cc (messages, answers).
//
// A connection: handshake → (held → ) open → doomed (broken, or its stream ended, or its channel connects anew; from any callback) →
// closing (endpoint being closed) → gone, when the endpoint is closed and no slot refers to it. Held: its hello is good, and an
// earlier connection of its channel, or of an earlier daemon of its session, is not gone yet. A slot is one request from its message to the end of its answer:
// receiving → (waiting for write memory) → ready → handling → sending → free.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "rpc/metadata_codec.h"
#include "rpc/server.h"
#include "rpc/stream.h"
#include "rpc/ucx.h"
#include "rpc/wire.h"

namespace distfuse::rpc {

using Clock = std::chrono::steady_clock;

inline MetadataReply error_reply(int error) {
  MetadataReply reply;
  reply.error = error;
  return reply;
}

class ServerImpl final : public Server {
 public:
  ServerImpl(ServerOptions options, Handler& handler)
      : options_(std::move(options)), handler_(handler) {}
  ~ServerImpl() override;
  Status start();

  [[nodiscard]] std::string address() const override { return local_address(listener_.get()); }
  [[nodiscard]] int event_fd() const override { return events_.get(); }
  [[nodiscard]] bool arm() override;
  bool progress() override;
  void wait(std::chrono::milliseconds timeout) override;
  void post(std::function<void()> function) override;
  void resume_writes() override;
  void disconnect_session(SessionId session) override;
  void disconnect_sessions(const std::function<bool(SessionId)>& keep) override;
  [[nodiscard]] ServerCounters counters() const override { return counters_; }

 private:
  struct Connection {
    ServerImpl* server = nullptr;
    std::uint64_t token = 0;       ///< In every request.
    std::uint64_t peer_token = 0;  ///< In every reply.
    Descriptor stream;
    FrameReader reader;  ///< While in handshake or held.
    bool held = false;
    std::uint64_t channel = 0;   ///< Key of channels_; 0: said no good hello.
    SessionId session = 0;       ///< With `channel`.
    std::uint64_t daemon = 0;    ///< With `channel`.
    Clock::time_point deadline;  ///< Of the handshake.
    Peer peer;
    ucp_ep_h endpoint = nullptr;  ///< Null: in handshake or held.
    std::uint32_t unanswered = 0;
    std::uint32_t slots = 0;
    bool doomed = false;
    bool endpoint_closed = false;
  };

  struct Channel {
    SessionId session = 0;
    std::uint32_t role = 0;
    std::uint64_t attempt = 0;      ///< The last.
    Connection* present = nullptr;  ///< Held or open; null: doomed.
    std::uint32_t connections = 0;  ///< Not gone yet, `present` among them.
  };

  struct Slot {
    enum class State : std::uint8_t { free, receiving, waiting, ready, handling, sending };
    ServerImpl* server = nullptr;
    Connection* connection = nullptr;
    std::uint32_t index = 0;
    State state = State::free;
    bool metadata = false;
    std::uint64_t call = 0;
    DataRequest request{};
    std::byte* payload = nullptr;  ///< The handler's memory, until on_data.
    void* descriptor = nullptr;    ///< Of a rendezvous whose receive has not started.
    Bytes bytes;  ///< A metadata message, or a small payload that waits for memory.
    wire::DataReplyHeader header{};
    Release release;
  };

  // server.cc
  void control(bool& worked);
  void accept_streams(bool& worked);
  void stream_event(Connection& connection);
  void hello(Connection& connection);
  Status check_hello(const Connection& connection, const wire::Hello& hello,
                     std::span<const std::byte> address);
  void refuse(Connection& connection, const Error& error);
  bool join_channel(Connection& connection, const wire::Hello& hello);
  void leave_channel(Connection& connection);
  bool succeed(const wire::Hello& hello);
  [[nodiscard]] bool has_predecessor(const Connection& connection) const;
  void admit_held();
  void admit(Connection& connection);
  void open(Connection& connection, const wire::Hello& hello, std::span<const std::byte> address);
  void expire_handshakes();
  void watch(int fd, std::uint64_t id);
  void set_timer(bool on);
  void doom(Connection& connection);
  void violation(Connection& connection, const std::string& what);
  void reap();
  void close_endpoint(Connection& connection);
  bool run_posted();

  // server_requests.cc
  ucs_status_t on_message(bool metadata, std::span<const std::byte> header, void* data,
                          std::size_t length, bool rendezvous);
  ucs_status_t metadata_message(Slot& slot, void* data, std::size_t length, bool rendezvous);
  ucs_status_t data_message(Slot& slot, void* data, std::size_t length, bool rendezvous);
  bool take_write_memory(Slot& slot);
  void receive(Slot& slot, void* descriptor, void* memory, std::size_t length);
  void received(Slot& slot, bool success);
  void make_ready(Slot& slot);
  bool dispatch_ready();
  void dispatch(Slot& slot);
  void dispatch_metadata(Slot& slot);
  void dispatch_data(Slot& slot);
  void release_waiting(Connection& connection);
  Slot& take_slot(Connection& connection);
  void free_slot(Slot& slot);
  void send(Slot& slot, unsigned id, std::size_t header_length, std::span<const std::byte> payload);
  Slot& answering(std::uint32_t index);
  void answer_dropped(std::uint32_t slot) override;
  void answer_metadata(std::uint32_t slot, std::span<const std::byte> bytes) override;
  void answer_data(std::uint32_t slot, const DataReply& reply, std::span<const std::byte> bulk,
                   Release release) override;

  ServerOptions options_;
  Handler& handler_;
  std::unique_ptr<UcxWorker> worker_;
  Descriptor listener_, timer_, wake_;
  Descriptor control_;  ///< epoll: listener, timer, streams.
  Descriptor events_;   ///< epoll: control_, wake_, the worker's event descriptor.

  std::unordered_map<std::uint64_t, std::unique_ptr<Connection>> connections_;  ///< By token.
  std::unordered_map<std::uint64_t, Channel>
      channels_;  ///< Of the connections that said a good hello; ≤ those and those in closing_.
  std::vector<Connection*> doomed_;
  std::vector<std::unique_ptr<Connection>> closing_;
  bool reap_again_ = false;       ///< The last slot of a connection in closing_ was freed.
  std::uint32_t held_ = 0;        ///< Connections.
  std::uint32_t handshakes_ = 0;  ///< Without those held: of these there is one a channel.
  bool accepting_ = true;
  bool timer_on_ = false;
  std::uint32_t ticks_ = 0;

  std::deque<Slot>
      slots_;  ///< Grows to max_connections × 2 × credits at most: as many sending as unanswered.
  std::vector<std::uint32_t> free_;
  std::deque<Slot*> ready_;    ///< ≤ slots_.
  std::deque<Slot*> waiting_;  ///< ≤ slots_; writes in the order of their messages.

  std::mutex posted_mutex_;
  std::vector<std::function<void()>> posted_;  ///< Protected by posted_mutex_.
  std::atomic<bool> has_posted_{false};
  ServerCounters counters_;
};

}  // namespace distfuse::rpc
