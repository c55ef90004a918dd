// SPDX-License-Identifier: Apache-2.0
// The simulated fabric.
//
// A connection carries messages, in order in each direction, or (a lane) chains of one-sided operations, each operation and
// each completion in order. Every delay is drawn; between connections there is no order at all, nor between a chain and a
// message until the chain's completion was seen.
//
// The end of a connection reaches its two sides at different times. Until a side has seen it, what was on the way to that
// side still arrives, operations on lockd's memory included; what is sent after the break is lost. A partition holds
// everything back; ended in time it was only a delay, else the connections break.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "rdma/lock/slot.h"
#include "rdma/lock/wire.h"
#include "simulation/process.h"

namespace distfuse::simulation {

struct World;

struct Hello {
  df_hello lock{};  ///< To lockd.
  std::uint64_t channel =
      0;  ///< To a storaged: who connects; a later connection of the same ends the earlier.
};

enum class StorageOp : std::uint8_t { read, write, sync, fence, sessions };
enum class StorageStatus : std::uint8_t { ok, fenced, learning, refused };

struct StorageCall {
  StorageOp op = StorageOp::read;
  unsigned lockd = 0;
  std::uint64_t session = 0;  ///< Whose request; `fence`: who is to be refused.
  std::uint64_t request = 0;
  std::uint64_t page = 0;
  std::uint64_t key = 0;    ///< `sync`: all pages of it that are here.
  std::uint64_t order = 0;  ///< `write`: of the oracle; 0: given when it is applied (direct).
  std::uint64_t incarnation = 0;
  std::uint64_t high = 0;
  std::vector<std::uint64_t> ids;
};

struct StorageReply {
  std::uint64_t request = 0;
  StorageStatus status = StorageStatus::ok;
  std::uint64_t order = 0;  ///< `read`.
  std::uint64_t boot =
      0;  ///< Of the storaged's machine: what was not synced in an earlier one may be gone.
};

struct Packet {
  df_msg lock{};
  df_welcome welcome{};
  StorageCall call;
  StorageReply reply;
};

using ChainDone = std::function<void(std::uint64_t old, const df_u8* image)>;

/// Who carries out one-sided operations.
class Memory {
 public:
  virtual ~Memory() = default;
  /// 8 bytes at `offset`, or `length` of them. Out of range: a Violation.
  virtual df_u8* at(std::uint64_t offset, std::uint64_t length) = 0;
};

/// One operation; true after the chain's last one. Shared by lanes and lockd's loopback.
struct RunningChain {
  df_chain chain{};
  df_u32 next = 0;
  std::uint64_t old = 0;
  std::vector<df_u8> image;
  bool execute(Memory& memory);
};

class Network {
 public:
  explicit Network(World& world) : world_(world) {}

  ConnectionId connect(Process& from, Process& to, const Hello& hello);
  void send(ConnectionId connection, const Process& from, Packet packet);
  /// To a connection that was greeted with Acceptance::later.
  void answer(ConnectionId connection, bool accepted, Packet packet);
  /// On a lane; `done` is an event of the client.
  void post(ConnectionId lane, const df_chain& chain, ChainDone done);
  /// This side ends it, at once here; the other side sees it later. No ended() for the closer.
  void close(ConnectionId connection, const Process& by);
  /// It breaks; side 0 is who connected. kNever: that side does not notice by itself.
  void cut(ConnectionId connection, Time notice0, Time notice1);
  void process_gone(Process& process, bool power);
  void partition(const Process& a, const Process& b, Time length);
  [[nodiscard]] bool partitioned(const Process& a, const Process& b) const;
  void heal_all() { heals_.clear(); }
  /// Connections that stand between the two, or of the first with anyone.
  [[nodiscard]] std::vector<ConnectionId> between(const Process& a, const Process* b) const;
  /// The memory that lanes to this process work on.
  std::function<Memory&(Process&)> memory_of;

 private:
  struct Connection {
    Process* end[2] = {nullptr, nullptr};
    std::uint32_t life[2] = {0, 0};
    bool open[2] = {false, false};
    bool broken = false;
    bool answered = false;  ///< Side 0 knows that it is connected.
    Hello hello;
    std::deque<Packet> queue[2];  ///< Towards side i.
    Time last[2] = {0, 0};
    // Lane: towards side 1, completions towards side 0.
    std::deque<std::pair<RunningChain, ChainDone>> running;
    std::deque<std::pair<RunningChain, ChainDone>> done;
    Time last_operation = 0;
    Time last_completion = 0;
  };
  using Iterator = std::map<ConnectionId, Connection>::iterator;

  Time delay();
  [[nodiscard]] Time held_back(const Connection& connection) const;
  void arrive(ConnectionId id);
  void give_up(ConnectionId id);
  void deliver(ConnectionId id, int to);
  void operation(ConnectionId id);
  void completion(ConnectionId id);
  void see_end(ConnectionId id, int side, bool by_peer);
  void forget_if_dead(ConnectionId id);
  int side_of(const Connection& connection, const Process& process) const;

  World& world_;
  ConnectionId next_ = 1;
  std::map<ConnectionId, Connection> connections_;
  std::map<std::pair<unsigned, unsigned>, Time> heals_;
};

}  // namespace distfuse::simulation
