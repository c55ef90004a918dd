// SPDX-License-Identifier: Apache-2.0
#include "client/locks/control.h"

#include <utility>

#include "client/locks/clock.h"
#include "client/locks/welcome.h"

namespace distfuse::client {

using std::chrono::milliseconds;

Result<std::unique_ptr<Control>> Control::connect(fabric::Fabric& fabric,
                                                  const std::string& address, const df_hello& hello,
                                                  milliseconds timeout, df_u32* refusal) {
  std::unique_ptr<Control> control(new Control);
  if (refusal != nullptr) *refusal = 0;
  control->posted_ms_ = now_ms();
  auto worker = fabric.create_worker(*control);
  if (!worker) return worker.error();
  control->worker_ = std::move(*worker);
  auto connection =
      control->worker_->connect(address, std::as_bytes(std::span(&hello, 1)), timeout);
  if (!connection) return connection.error();
  control->connection_ = std::move(*connection);
  while (!control->greeted_ && control->error_.code == 0) {
    if (!control->worker_->progress()) control->worker_->wait(milliseconds(100));
  }
  if (control->error_.code == 0) return control;
  if (refusal != nullptr) *refusal = control->refusal_;
  return control->error_;
}

Control::~Control() {
  stop();
}

void Control::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    worker_->wake();
  }
  thread_.join();
}

void Control::close() {
  stop();
  connection_.reset();
}

void Control::start(Receiver& receiver) {
  receiver_ = &receiver;
  thread_ = std::thread([this] { run(); });
}

void Control::send(const df_msg& message) {
  const std::lock_guard lock(mutex_);
  if (bye_ || ended_) return;
  queue_.push_back(message);
  if (queue_.size() > kMaxQueued && failure_.empty()) failure_ = "lockd does not take messages";
  if (std::exchange(sleeping_, false)) worker_->wake();
}

void Control::fail(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (failure_.empty()) failure_ = reason;
  if (std::exchange(sleeping_, false)) worker_->wake();
}

void Control::say_bye(milliseconds timeout) {
  df_msg message;
  df_msg_init(&message, DF_MSG_BYE, 0, 0, 0);
  std::unique_lock lock(mutex_);
  if (ended_) return;
  queue_.push_back(message);
  bye_ = true;  // Together: the end of the connection may be seen before this thread goes on.
  if (std::exchange(sleeping_, false)) worker_->wake();
  changed_.wait_for(lock, timeout, [this] { return ended_; });
}

/// Sends what is queued; false: the connection does not take more now.
bool Control::flush() {
  while (error_.code == 0) {
    if (sending_.empty()) {
      const std::lock_guard lock(mutex_);
      if (!failure_.empty()) error_ = Error{ENOTCONN, failure_};
      if (queue_.empty()) return true;
      sending_.swap(queue_);
    }
    const df_msg& message = sending_.front();
    auto status =
        connection_->send({reinterpret_cast<const std::byte*>(message.bytes), message.head.length});
    if (!status) {
      if (status.error().code == EAGAIN) return false;
      error_ = status.error();
      return true;
    }
    sending_.pop_front();
  }
  return true;
}

void Control::run() {
  for (const auto& bytes : std::exchange(early_, {})) {
    if (error_.code == 0) take(*connection_, bytes);
  }
  while (true) {
    const bool drained = flush();
    if (error_.code != 0) return end(error_.message);
    if (worker_->progress()) continue;
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return;
      if (drained && (!queue_.empty() || !failure_.empty())) continue;
      sleeping_ = true;
    }
    // A full send queue empties without an event of its own: look again soon.
    worker_->wait(drained ? milliseconds(1000) : milliseconds(1));
    const std::lock_guard lock(mutex_);
    sleeping_ = false;
  }
}

void Control::end(const std::string& reason) {
  bool orderly = false;
  {
    const std::lock_guard lock(mutex_);
    orderly = bye_ || stop_;
    ended_ = true;
    changed_.notify_all();
  }
  if (!orderly) receiver_->lost(reason);
}

void Control::on_connected(fabric::Connection& /*connection*/, std::span<const std::byte> data) {
  auto welcome = read_welcome(data, &refusal_);
  if (!welcome) {
    error_ = welcome.error();
    return;
  }
  welcome_ = *welcome;
  greeted_ = true;
}

void Control::on_message(fabric::Connection& connection, std::span<const std::byte> bytes) {
  if (error_.code != 0) return;
  if (receiver_ == nullptr) {
    // A session that joins while a slot is being repaired is sent its Freeze right behind the Welcome.
    if (early_.size() < kMaxEarly) {
      early_.emplace_back(bytes.begin(), bytes.end());
    } else {
      error_ = Error{EPROTO, connection.peer() + " sent more before the session began than it may"};
    }
    return;
  }
  take(connection, bytes);
}

void Control::take(fabric::Connection& connection, std::span<const std::byte> bytes) {
  df_msg message;
  const int check = df_msg_read(bytes.data(), static_cast<df_u32>(bytes.size()), &message);
  if (check != DF_CHECK_OK) {
    error_ =
        Error{EPROTO, connection.peer() + " sent a malformed message: " + df_check_text(check)};
  } else if (!df_msg_from_lockd(message.head.type) ||
             !df_msg_slot_in(&message.head, welcome_.slots) || !receiver_->receive(message)) {
    error_ = Error{EPROTO, connection.peer() + " sent a " + df_msg_name(message.head.type) +
                               " that has no place here"};
  }
}

void Control::on_completion(fabric::Connection& /*connection*/, std::uint64_t /*cookie*/,
                            const Status& /*status*/) {}

void Control::on_disconnect(fabric::Connection& /*connection*/, const Error& reason) {
  if (error_.code == 0) error_ = Error{greeted_ ? ENOTCONN : reason.code, reason.message};
}

}  // namespace distfuse::client
