// SPDX-License-Identifier: Apache-2.0
// The control connection to lockd and the one thread that owns it.
//
// Parties: the control thread (owner of worker and connection, caller of the Receiver); any thread that sends.
//
// Order: messages leave in the order of the calls of send(). Who wants the order of a lock's events calls it under that
// lock's mutex; send() never waits, so that is allowed.
//
// Limits: kMaxQueued messages wait at most. What a session can have due: an Ask, Find, Glimpse or File* for each of
// Welcome.asks, a Cancel for each, and one answer (Released, Glimpsed, State) for each message that lockd has sent and that was
// handled; lockd itself ends a session that has some 130,000 messages undrained. A queue that is longer means that lockd does not
// read: the session ends.
//
// Recovery: none here: the end of the connection, or that it cannot go on, is reported once. It is not closed then: lockd would see an end
// by our own will, and trust nothing that we still do. link.h has what follows.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/result.h"
#include "rdma/fabric/fabric.h"
#include "rdma/lock/wire.h"

namespace distfuse::client {

class Receiver {
 public:
  virtual ~Receiver() = default;
  /// Control thread. false: the message has no place here; the session ends.
  virtual bool receive(const df_msg& message) = 0;
  /// Control thread, once, as its last call.
  virtual void lost(const std::string& reason) = 0;
};

class Control final : private fabric::Handler {
 public:
  /// Error: see read_welcome; not reachable. `refusal`, if given: lockd's (enum df_refusal), 0: it did not answer.
  static Result<std::unique_ptr<Control>> connect(fabric::Fabric& fabric,
                                                  const std::string& address, const df_hello& hello,
                                                  std::chrono::milliseconds timeout,
                                                  df_u32* refusal = nullptr);
  ~Control() override;

  [[nodiscard]] const df_welcome& welcome() const { return welcome_; }
  /// When the Hello left: a lease counts from there.
  [[nodiscard]] std::uint64_t posted_ms() const { return posted_ms_; }
  /// Starts the thread. `receiver` lives until stop().
  void start(Receiver& receiver);
  /// Any thread; never waits.
  void send(const df_msg& message);
  /// Any thread: the session cannot go on.
  void fail(const std::string& reason);
  /// Sends Bye and waits until lockd has closed the connection or `timeout` is over. Nothing is sent afterwards.
  void say_bye(std::chrono::milliseconds timeout);
  /// Ends the thread, without a report. Not from a call of the receiver.
  void stop();
  /// The same, and lockd sees the end.
  void close();

 private:
  static constexpr std::size_t kMaxQueued = std::size_t{1} << 18;
  static constexpr std::size_t kMaxEarly =
      8192;  ///< A Freeze for each slot that lockd can have under repair.

  Control() = default;
  void run();
  void take(fabric::Connection& connection, std::span<const std::byte> bytes);
  bool flush();
  void end(const std::string& reason);
  void on_connected(fabric::Connection& connection, std::span<const std::byte> data) override;
  void on_message(fabric::Connection& connection, std::span<const std::byte> bytes) override;
  void on_completion(fabric::Connection& connection, std::uint64_t cookie,
                     const Status& status) override;
  void on_disconnect(fabric::Connection& connection, const Error& reason) override;

  // Of the owner thread.
  std::unique_ptr<fabric::Worker> worker_;
  std::unique_ptr<fabric::Connection> connection_;
  Receiver* receiver_ = nullptr;
  std::vector<std::vector<std::byte>> early_;  ///< Came before start().
  df_welcome welcome_{};
  df_u32 refusal_ = 0;
  std::uint64_t posted_ms_ = 0;
  bool greeted_ = false;
  Error error_{0, {}};  ///< Set: the connection is ended, or must be.
  std::deque<df_msg> sending_;

  std::mutex mutex_;
  std::deque<df_msg> queue_;
  bool sleeping_ = false;
  bool stop_ = false;
  bool bye_ = false;
  bool ended_ = false;
  std::string failure_;
  std::condition_variable changed_;
  std::thread thread_;
};

}  // namespace distfuse::client
