// SPDX-License-Identifier: Apache-2.0
// A channel: a UCX worker and its links to the targets, used by one thread at a time, which progresses it.
//
// A link: down → connecting (rpc/handshake.h) → up → closing (UCX still owns buffers) → down. A flight is one request: unsent →
// sent → answered, and back to unsent when its link fails. Memory of a flight is given back only when UCX has finished every
// operation on it: a retry never races with what is left of the attempt before.
//
// Limits: as many flights in flight per link as the server's Welcome grants; the rest of a batch waits here.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "rpc/client.h"
#include "rpc/handshake.h"
#include "rpc/metadata_codec.h"
#include "rpc/ucx.h"
#include "rpc/wire.h"

namespace distfuse::rpc {

/// One storageds' address and role; shared by all channels of a client.
struct Target {
  std::string address;
  wire::Service service = wire::kData;
  std::string name;                 ///< For logs.
  std::atomic<bool> away{false};    ///< Logged as away.
  std::atomic<bool> failed{false};  ///< Logged as given up or refusing.
};

/// What all channels of a client share; immutable but for the counters.
struct ClientState {
  ClientOptions options;
  std::vector<std::unique_ptr<Target>> targets;  ///< The data targets, then the meta target.
  std::shared_ptr<UcxContext> context;
  std::atomic<std::uint64_t> connects{0}, retries{0}, failures{0};
};

class Channel;

struct Flight {
  enum class Kind : std::uint8_t { probe, metadata, data };
  enum class State : std::uint8_t { unsent, sent, answered, failed };
  Kind kind = Kind::probe;
  State state = State::unsent;
  bool receiving = false;  ///< The reply's bulk is on its way.
  std::uint32_t target = 0;
  std::uint32_t operations = 0;  ///< UCX's, on this flight's memory.
  std::uint64_t call = 0;
  Channel* channel = nullptr;
  DataCall* data = nullptr;
  std::span<const std::byte> request;  ///< metadata: encoded.
  Bytes* reply = nullptr;              ///< metadata: encoded.
  std::uint64_t boot = 0;              ///< metadata: of the machine that answered.
  wire::DataRequestHeader header{};
  int error = 0;  ///< After failed.
};

class Channel {
 public:
  static Result<std::unique_ptr<Channel>> create(ClientState& state, unsigned index);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  /// Runs all flights to answered or failed. Answers with the reason of the last failure.
  std::string execute(std::span<Flight> flights, std::chrono::milliseconds give_up);
  [[nodiscard]] unsigned index() const { return index_; }
  /// A call was given up, and the target has not been reached since: perhaps for this channel alone (wire.h, a request that never ends).
  [[nodiscard]] bool gave_up() const;
  /// As in Client.
  [[nodiscard]] std::uint64_t connection(std::uint32_t target) const;
  void watch(int wake_fd, std::chrono::milliseconds timeout);

  std::vector<Flight> scratch;  ///< The borrower's, so that a batch needs no allocation once warm.

 private:
  using Clock = std::chrono::steady_clock;
  struct Link {
    enum class State : std::uint8_t { down, connecting, up, closing };
    State state = State::down;
    bool failed = false;  ///< Seen from a callback or the stream; acted upon in advance().
    bool wanted = false;  ///< By the flights of this execute().
    bool endpoint_closed = true;
    const std::uint64_t channel = draw_token();  ///< What the target knows this channel by.
    std::uint64_t attempts = 0;                  ///< To connect.
    std::string reason;
    std::optional<Handshake> handshake;
    Descriptor stream;
    ucp_ep_h endpoint = nullptr;
    std::uint64_t number = 0;  ///< Of the connection.
    std::uint64_t boot = 0;    ///< Of the target's machine, as this connection's Welcome said.
    std::uint64_t own_token = 0;
    std::uint64_t server_token = 0;
    std::uint32_t credits = 0;
    std::uint32_t in_flight = 0;
    Clock::time_point away_since{};  ///< No answer since; epoch: all is well.
    Clock::time_point next_attempt{};
    Clock::time_point last_answer{};
    std::chrono::milliseconds backoff{0};
  };

  Channel(ClientState& state, unsigned index) : state_(state), index_(index) {}
  bool advance(std::uint32_t target, Clock::time_point now);
  bool advance_down(std::uint32_t target, Clock::time_point now);
  bool advance_connecting(std::uint32_t target, Clock::time_point now);
  bool advance_up(std::uint32_t target, Clock::time_point now);
  bool advance_closing(std::uint32_t target, Clock::time_point now);
  void connected(std::uint32_t target, Handshake& handshake, Clock::time_point now);
  void went_down(std::uint32_t target, Clock::time_point now);
  void fail_flights(std::uint32_t target, int error, const std::string& reason);
  void close_endpoint(Link& link);
  bool send_ready();
  void send(Flight& flight, Link& link);
  void receive(Flight& flight, void* data, void* memory, std::size_t length);
  void answered(Flight& flight);
  void break_link(Link& link, std::string reason);
  void sleep(Clock::time_point now);
  [[nodiscard]] bool finished() const;

  void on_reply(bool metadata, std::span<const std::byte> header, void* data, std::size_t length,
                bool rendezvous, bool& in_progress);
  void on_data_reply(Flight& flight, Link& link, const DataReply& reply, void* data,
                     std::size_t length, bool rendezvous);
  void on_metadata_reply(Flight& flight, Link& link, void* data, std::size_t length,
                         bool rendezvous);

  ClientState& state_;
  unsigned index_;
  std::unique_ptr<UcxWorker> worker_;
  std::vector<std::unique_ptr<Link>> links_;  ///< By target.
  std::span<Flight> flights_;
  std::uint64_t first_call_ = 0;  ///< Call number of flights_[0] in this round of attempts.
  std::uint64_t next_call_ = 1;
  std::uint64_t connections_ = 0;  ///< Made so far.
  std::uint32_t unsent_ = 0;
  std::chrono::milliseconds give_up_{0};
  std::string last_failure_;
  std::vector<pollfd> poll_;
};

}  // namespace distfuse::rpc
