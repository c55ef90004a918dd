// SPDX-License-Identifier: Apache-2.0
// What the workers of both fabrics do alike: the connections by number, what is to be told to the handler of them, and deadlines.
//
// Serialised by: the worker's owner thread. Limits: kMaxOutstanding + 1 events a connection.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>

#include "rdma/fabric/fabric.h"

namespace distfuse::fabric {

/// `Tracked`: a Connection that befriends this class and has outstanding_ (chains whose completion was not delivered), reason_ (once
/// ended), deadline_, and has_deadline(): it is being set up.
template <typename Tracked>
class ConnectionSet {
 public:
  using Clock = std::chrono::steady_clock;

  void insert(std::uint64_t number, Tracked& connection) { by_number_[number] = &connection; }
  void erase(std::uint64_t number) { by_number_.erase(number); }
  [[nodiscard]] Tracked* find(std::uint64_t number) const {
    const auto found = by_number_.find(number);
    return found == by_number_.end() ? nullptr : found->second;
  }
  [[nodiscard]] bool empty() const { return by_number_.empty(); }
  [[nodiscard]] std::size_t size() const { return by_number_.size(); }
  [[nodiscard]] auto begin() const { return by_number_.begin(); }
  [[nodiscard]] auto end() const { return by_number_.end(); }

  void completed(std::uint64_t number, std::uint64_t cookie) {
    events_.push_back({Kind::completed, number, cookie});
  }
  void failed(std::uint64_t number, std::uint64_t cookie) {
    events_.push_back({Kind::failed, number, cookie});
  }
  void ended(std::uint64_t number) { events_.push_back({Kind::ended, number, 0}); }
  [[nodiscard]] bool has_events() const { return !events_.empty(); }

  /// Completions, and after the last of them the end of a connection. Answers whether there was anything.
  bool deliver(Handler& handler) {
    const std::size_t count = events_.size();  // What handlers add comes next time.
    for (std::size_t i = 0; i < count; ++i) {
      const auto event = events_.front();
      events_.pop_front();
      auto* connection = find(event.number);
      if (connection == nullptr) continue;
      if (event.kind == Kind::ended) {
        handler.on_disconnect(*connection, Error(connection->reason_));
        continue;
      }
      --connection->outstanding_;
      const Status status = event.kind == Kind::completed ? Status{} : Status{connection->reason_};
      handler.on_completion(*connection, event.cookie, status);
    }
    return count != 0;
  }

  [[nodiscard]] std::optional<Clock::time_point> next_deadline() const {
    std::optional<Clock::time_point> next;
    for (const auto& [number, connection] : by_number_) {
      if (!connection->has_deadline()) continue;
      next = next ? std::min(*next, connection->deadline_) : connection->deadline_;
    }
    return next;
  }

  /// Calls `fail` for each that was not set up in time.
  template <typename Fail>
  void expire(Clock::time_point now, Fail fail) const {
    for (const auto& [number, connection] : by_number_)
      if (connection->has_deadline() && connection->deadline_ <= now)
        fail(*connection, Error{ETIMEDOUT, connection->peer_ + " does not answer"});
  }

 private:
  enum class Kind : std::uint8_t { completed, failed, ended };
  struct Event {
    Kind kind;
    std::uint64_t number;
    std::uint64_t cookie;
  };
  std::unordered_map<std::uint64_t, Tracked*> by_number_;
  std::deque<Event> events_;
};

/// Milliseconds for epoll_wait: until the deadline, `timeout` at most. Negative: no end.
[[nodiscard]] inline int wait_ms(std::chrono::milliseconds timeout,
                                 std::optional<std::chrono::steady_clock::time_point> deadline) {
  using std::chrono::milliseconds;
  auto left = timeout;
  if (deadline) {
    const auto until =
        std::max(milliseconds(0),
                 std::chrono::ceil<milliseconds>(*deadline - std::chrono::steady_clock::now()));
    left = left.count() < 0 ? until : std::min(left, until);
  }
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), -1, 1 << 30));
}

}  // namespace distfuse::fabric
