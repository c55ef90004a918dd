// SPDX-License-Identifier: Apache-2.0
// The thread that keeps a session alive: the shell around the machine of rdma/lock/session.h, which has the protocol.
//
// Parties: the keeper's thread (owner of machine and lease lane); the table, whose part SessionUser is; a thread for each attempt to
// connect, because that may take seconds and a renewal must not wait for it; any thread, which asks whether the session is trusted.
//
// Epochs: 0 for the first connection, raised by each `detach`. An event of another epoch than the present one is dropped.
//
// Limits: one renewal in flight; one attempt to connect at a time; events: one cut, reasserted and resumed an epoch, one attempt's outcome.
//
// Known weakness: what is called here must return soon, or the next renewal is late: passes over all locks (detach, resume, lost) take some
// 50 ms for 100,000.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "client/locks/clock.h"
#include "client/locks/control.h"
#include "client/locks/lane.h"
#include "rdma/lock/session.h"

namespace distfuse::client {

/// What the machine gives out. Called on the keeper's thread.
class SessionUser {
 public:
  virtual ~SessionUser() = default;
  virtual void session_suspect() = 0;
  virtual void session_trusted() = 0;
  virtual void session_lost(const std::string& reason) = 0;
  /// The link of `epoch` − 1 is dead: locks go to `epoch`, detached.
  virtual void session_detach(std::uint32_t epoch) = 0;
  /// A later incarnation, in grace.
  virtual void session_connected(std::unique_ptr<Control> control) = 0;
  /// Begins; SessionKeeper::reasserted() when it is done.
  virtual void session_reassert() = 0;
  virtual void session_resume() = 0;
  virtual void session_reclaimed() = 0;
};

class SessionKeeper {
 public:
  struct Options {
    std::string address;
    df_hello hello{};  ///< Of the control connection; session 0.
    std::chrono::milliseconds connect_timeout{5000};
    std::chrono::milliseconds give_up{30000};
  };
  SessionKeeper(fabric::Fabric& fabric, Options options, SessionUser& user)
      : fabric_(fabric), options_(std::move(options)), user_(user) {}
  ~SessionKeeper() { stop(); }

  /// The first connection is there. Error: no lane for the lease.
  Status begin(const Control& control);
  /// No call of the user after it.
  void stop();

  // From any thread.
  void cut(std::uint32_t epoch, const std::string& reason);
  void reasserted(std::uint32_t epoch);
  /// A storaged refuses the session.
  void fenced();
  /// Returns when the user has resumed: what lockd sends behind its Resume finds the locks so.
  void resumed(std::uint32_t epoch);

  /// Whether what a held lock covers may be used now.
  [[nodiscard]] bool trusted() const {
    const std::uint64_t until = trusted_until_.load(std::memory_order_acquire);
    return until == ~std::uint64_t{0} || now_ms() < until;
  }
  /// Milliseconds; ~0: without end.
  [[nodiscard]] std::uint64_t trust_left() const {
    const std::uint64_t until = trusted_until_.load(std::memory_order_acquire);
    if (until == ~std::uint64_t{0}) return until;
    const std::uint64_t now = now_ms();
    return until > now ? until - now : 0;
  }
  [[nodiscard]] df_session_state state() const {
    return static_cast<df_session_state>(state_.load(std::memory_order_relaxed));
  }
  [[nodiscard]] std::uint64_t incarnation() const { return incarnation_; }
  [[nodiscard]] std::uint64_t reconnects() const { return reconnects_; }
  [[nodiscard]] std::uint64_t lease_ms() const { return lease_ms_; }
  /// For tests of a daemon that stands still: no renewal leaves and no event is handled while it is set.
  void pause(bool on);
  /// For tests of a network that stands still: renewals leave, and are not seen to complete, while it is set.
  void withhold(bool on);

 private:
  struct Event {
    enum class Kind : std::uint8_t { cut, reasserted, resumed, connected, failed, fenced };
    Kind kind = Kind::cut;
    std::uint32_t epoch = 0;
    std::string reason;
    df_u32 refusal = 0;
    std::unique_ptr<Control> control;
    std::unique_ptr<Lane> lane;
  };

  Result<std::unique_ptr<Lane>> open_lane(const df_welcome& welcome);
  void run();
  void push(Event event);
  void handle(Event& event);
  void handle_connected(Event& event);
  void handle_failed(const Event& event);
  void perform(const df_session_out& out);
  void renew(const df_session_out& out);
  void poll_lane();
  void begin_connect();
  void connect();
  [[nodiscard]] std::string reason_of_loss(df_u8 loss) const;

  fabric::Fabric& fabric_;
  const Options options_;
  SessionUser& user_;

  // Of the keeper's thread.
  df_session machine_{};
  std::unique_ptr<Lane> lane_;
  std::uint64_t wake_at_ = ~std::uint64_t{0};
  std::string last_error_;

  std::atomic<std::uint64_t> trusted_until_{0};
  std::atomic<unsigned> state_{0};
  std::atomic<std::uint64_t> incarnation_{0}, reconnects_{0}, lease_ms_{0};
  std::atomic<std::uint32_t> epoch_{0};  ///< Written by the keeper's thread.

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Event> events_;
  bool polling_ = false;  ///< The keeper's thread sleeps at the lane.
  bool paused_ = false;
  bool withheld_ = false;
  bool stop_ = false;
  bool lost_ = false;
  std::uint32_t resumed_epoch_ = 0;  ///< The last that was resumed, + 1.
  std::thread connector_;
  std::thread thread_;
};

[[nodiscard]] const char* state_name(df_session_state state);

}  // namespace distfuse::client
