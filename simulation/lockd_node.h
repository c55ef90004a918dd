// SPDX-License-Identifier: Apache-2.0
// A lockd: the shell around lockd::Daemon (lockd/daemon.h). Its table is a piece of memory that hardware works on, stalled or not; its
// loopback carries out chains in order; its fences go to every storaged until each has answered.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "lockd/daemon.h"
#include "simulation/network.h"

namespace distfuse::simulation {

class LockdNode : public Process, public Memory, private lockd::DaemonActions {
 public:
  LockdNode(World& world, unsigned index, unsigned number);

  void start() override;
  void crash(bool power) override;
  Acceptance greeted(ConnectionId connection, const Process& from, const Hello& hello,
                     Packet& answer) override;
  void connected(ConnectionId connection, const Packet& answer) override;
  void not_connected(ConnectionId connection, const Packet* answer) override;
  void received(ConnectionId connection, const Packet& packet) override;
  void ended(ConnectionId connection, bool by_peer) override;
  df_u8* at(std::uint64_t offset, std::uint64_t length) override;

  [[nodiscard]] const df_slot* slots() const {
    return reinterpret_cast<const df_slot*>(region_.data());
  }
  [[nodiscard]] df_u32 slot_count() const { return df_table_slots(&table_); }
  [[nodiscard]] bool joined(std::uint64_t session) const {
    const auto* known = alive() ? daemon_->sessions().find(session) : nullptr;
    return known != nullptr && known->joined();
  }
  [[nodiscard]] df_lockd_counters counters() const { return daemon_->lock_counters(); }
  /// What is still to be done, in words; empty: nothing.
  [[nodiscard]] std::string unrest() const;

 private:
  void post(std::uint64_t cookie, const df_chain& chain) override;
  void send(lockd::ConnectionId connection, std::span<const std::byte> message) override;
  void close(lockd::ConnectionId connection) override;
  void fence(lockd::SessionId session) override;
  std::vector<bool> owners_in_table() override;
  lockd::SessionToken new_token() override;
  void record(const lockd::SessionChange& change) override;
  void greet(lockd::ConnectionId connection, const lockd::Greeting& greeting) override;
  std::uint64_t lease_word(lockd::NodeId node) override;

  void loop_step();
  void loop_done();
  void connect_storage(unsigned storaged);
  void send_fence(unsigned storaged, std::uint64_t session);
  void fence_answered(unsigned storaged, std::uint64_t session);
  [[nodiscard]] bool forgotten(const df_msg& message) const;
  void tell_time();
  void after_event();
  void append();
  void apply(const lockd::SessionChange& change);
  void note_expiry(std::uint64_t session);

  struct Storage {
    ConnectionId connection = 0;
    bool up = false;
    std::map<std::uint64_t, std::uint64_t> asked;  ///< Request → session.
  };
  struct Running {
    RunningChain chain;
    std::uint64_t cookie = 0;
  };

  World& world_;
  const unsigned number_;
  df_table table_{};
  std::uint32_t incarnation_ = 0;                       // on disk
  std::map<std::uint64_t, lockd::ListedSession> list_;  // on disk
  std::deque<lockd::SessionChange> unsynced_;           // appended, not on disk yet
  lockd::Milliseconds tick_at_ = lockd::kNever;
  std::vector<std::uint64_t> region_;
  std::unique_ptr<lockd::Daemon> daemon_;
  std::deque<Running> loop_, loop_done_;
  Time last_loop_ = 0;
  std::vector<Storage> storage_;
  std::map<std::uint64_t, std::set<unsigned>>
      fences_;  ///< Session → storageds that have not answered.
  std::uint64_t next_request_ = 1;
  std::uint64_t tokens_ = 0;
  bool greeting_ = false;                     ///< A Hello is being handled.
  std::map<df_u32, std::uint64_t> freezing_;  ///< Slot → the Freeze's number.
  std::uint64_t rekeys_ = 0, repairs_ = 0, expired_ = 0;
};

}  // namespace distfuse::simulation
