// SPDX-License-Identifier: Apache-2.0
// The lock daemon's shell: one thread that owns the fabric worker, the slot table and every connection, and runs the Daemon.
//
// The thread sleeps in Worker::wait unless something arrived, and looks at the lease words every lease/8 while there are sessions.
// Uncontended locks are one-sided operations of the clients: they bring nothing here. Other threads (admin, fencer, recorder) leave
// functions in the inbox and wake it.
//
// Limits: outgoing messages of a session DaemonLimits::outgoing(), else it is lost; refused connections kept for their answer's
// sake kMaxRefused, for kRefusedTime. The inbox holds one function per fencing session, three per session on
// the list, one per admin query.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/config.h"
#include "common/result.h"
#include "lockd/daemon.h"
#include "lockd/fencer.h"
#include "lockd/loopback.h"
#include "lockd/recorder.h"
#include "rdma/fabric/fabric.h"

namespace distfuse::lockd {

struct ServiceOptions {
  std::string cluster_id;  ///< 32 hex digits.
  fabric::Options fabric;
  std::string listen;           ///< host:port
  std::uint32_t slots = 65536;  ///< Primary ones; a quarter more is the overflow area.
  std::uint32_t incarnation = 1;
  DaemonLimits limits;
  std::uint32_t lease_ms = 0;  ///< 0: none; else a list of sessions is needed.
};

class Service : private fabric::Handler, private DaemonActions {
 public:
  /// Opens the fabric, makes the table and listens; `list` (null without leases) has the sessions that may come back. Error: what
  /// the fabric says (EADDRINUSE, ENODEV …), ENOMEM, EINVAL.
  static Result<std::unique_ptr<Service>> create(const ServiceOptions& options,
                                                 std::unique_ptr<Storage> storage,
                                                 std::unique_ptr<SessionLog> list = nullptr);
  ~Service() override;

  [[nodiscard]] const std::string& address() const { return address_; }  ///< host:port bound.
  void run();   ///< The service thread; until stop().
  void stop();  ///< From any thread.
  /// JSON; from any thread but run()'s. Error: ETIMEDOUT.
  [[nodiscard]] Result<std::string> status();

 private:
  struct Peer {
    std::unique_ptr<fabric::Connection> connection;   ///< Null while its request waits.
    std::unique_ptr<fabric::ConnectRequest> request;  ///< Of a Hello that is answered later.
    std::deque<std::vector<std::byte>> outgoing;
  };
  using Clock = std::chrono::steady_clock;

  explicit Service(const ServiceOptions& options) : options_(options), started_(Clock::now()) {}
  Status init(std::unique_ptr<Storage> storage, std::unique_ptr<SessionLog> list);
  Status make_table();
  [[nodiscard]] df_table table() const;

  void on_connect_request(std::unique_ptr<fabric::ConnectRequest> request) override;
  void on_connected(fabric::Connection& connection, std::span<const std::byte> data) override;
  void on_message(fabric::Connection& connection, std::span<const std::byte> message) override;
  void on_completion(fabric::Connection& connection, std::uint64_t cookie,
                     const Status& status) override;
  void on_disconnect(fabric::Connection& connection, const Error& reason) override;
  [[noreturn]] static void table_gone(const Error& reason);
  [[noreturn]] void incarnation_over(const std::string& who) const;

  void post(std::uint64_t cookie, const df_chain& chain) override;
  void send(ConnectionId connection, std::span<const std::byte> message) override;
  void close(ConnectionId connection) override;
  void fence(SessionId session) override;
  std::vector<bool> owners_in_table() override;
  SessionToken new_token() override;
  void record(const SessionChange& change) override;
  void greet(ConnectionId connection, const Greeting& greeting) override;
  std::uint64_t lease_word(NodeId node) override;

  void keep(ConnectionId id, std::unique_ptr<fabric::Connection> connection);
  void accept(ConnectionId id, std::unique_ptr<fabric::ConnectRequest> request,
              const Daemon::Greeting& greeting);
  bool step();
  bool run_inbox();
  void send_queued();
  void drop_overrun();
  void drop_refused();
  void tell_time();
  [[nodiscard]] std::chrono::milliseconds patience() const;
  void enter(std::function<void()> function);
  [[nodiscard]] std::string describe();

  const ServiceOptions options_;
  const Clock::time_point started_;
  std::string address_;
  std::unique_ptr<fabric::Fabric> fabric_;
  std::unique_ptr<fabric::Region> region_;
  std::unique_ptr<fabric::Worker> worker_;
  std::unique_ptr<Loopback> loopback_;
  std::unique_ptr<Daemon> daemon_;
  std::unordered_map<ConnectionId, Peer> peers_;
  std::vector<std::unique_ptr<fabric::Connection>>
      closed_;                         ///< Destroyed when no callback of theirs can be running.
  std::set<ConnectionId> blocked_;     ///< With outgoing messages.
  std::vector<ConnectionId> overrun_;  ///< Did not drain.
  std::deque<std::pair<ConnectionId, Clock::time_point>> refused_;
  ConnectionId next_connection_ = 1;
  std::uint64_t wakeups_ = 0;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::vector<std::function<void()>> inbox_;  ///< Protected by mutex_.
  std::unique_ptr<Recorder> recorder_;        ///< Its thread calls enter().
  std::unique_ptr<Fencer> fencer_;            ///< Last: its thread calls enter().
};

}  // namespace distfuse::lockd
