// SPDX-License-Identifier: Apache-2.0
// Simulated time and what lives in it: events in the order of their time, processes with a life, a clock of their own, and
// stalls. An event of a process is dropped when that life has ended and waits while the process stands still; what hardware
// does (the fabric, an HCA) has no process and goes on.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <stdexcept>
#include <string>
#include <vector>

#include "simulation/random.h"
#include "simulation/trace.h"

namespace distfuse::simulation {

/// What the oracle found.
class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Process;

class Scheduler {
 public:
  [[nodiscard]] Time now() const { return now_; }
  void hardware(Time delay, std::function<void()> action);
  /// An event of this life of the process.
  void later(const Process& process, Time delay, std::function<void()> action);
  /// The next event that is due until `end`; false: there is none, and the time is `end`.
  bool step(Time end);
  [[nodiscard]] std::uint64_t events() const { return sequence_; }

 private:
  struct Event {
    Time at;
    std::uint64_t sequence;
    const Process* process;
    std::uint32_t life;
    std::function<void()> action;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.at != b.at ? a.at > b.at : a.sequence > b.sequence;
    }
  };
  void push(Time at, const Process* process, std::function<void()> action);

  Time now_ = 0;
  std::uint64_t sequence_ = 0;
  std::priority_queue<Event, std::vector<Event>, Later> queue_;
};

/// A monotonic clock with a bounded rate error and small jumps ahead. Only intervals of it mean anything.
class Clock {
 public:
  Clock() = default;
  Clock(std::uint64_t start_ms, int ppm) : local_us_(start_ms * 1000), ppm_(ppm) {}
  [[nodiscard]] std::uint64_t ms(Time now) const { return local(now) / 1000; }
  void jump(Time now, std::uint64_t by_us) {
    local_us_ = local(now) + by_us;
    since_ = now;
  }
  /// Real time until this clock shows `ms`, if it does not jump.
  [[nodiscard]] Time until(Time now, std::uint64_t ms) const;

 private:
  [[nodiscard]] std::uint64_t local(Time now) const {
    const auto passed = static_cast<std::int64_t>(now - since_);
    return local_us_ + static_cast<std::uint64_t>(passed + passed * ppm_ / 1'000'000);
  }
  std::uint64_t local_us_ = 0;
  Time since_ = 0;
  std::int64_t ppm_ = 0;
};

using ConnectionId = std::uint64_t;
struct Packet;
struct Hello;

/// `later`: Network::answer follows.
enum class Acceptance : std::uint8_t { accepted, refused, later };

class Process {
 public:
  Process(std::string name, unsigned index) : name_(std::move(name)), index_(index) {}
  virtual ~Process() = default;
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  virtual void start() = 0;
  /// The process is gone; `power`: with its machine.
  virtual void crash(bool power) = 0;

  // The network's calls, as events of this process.
  virtual Acceptance greeted(ConnectionId connection, const Process& from, const Hello& hello,
                             Packet& answer) = 0;
  virtual void connected(ConnectionId connection, const Packet& answer) = 0;
  /// Refused with this answer; or nobody was there (null).
  virtual void not_connected(ConnectionId connection, const Packet* answer) = 0;
  virtual void received(ConnectionId connection, const Packet& packet) = 0;
  /// `by_peer`: the other side closed it, or its kernel did when it died.
  virtual void ended(ConnectionId connection, bool by_peer) = 0;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] unsigned index() const { return index_; }
  [[nodiscard]] bool alive() const { return alive_; }
  [[nodiscard]] std::uint32_t life() const { return life_; }
  [[nodiscard]] Time stalled_until() const { return stalled_until_; }
  Clock clock;

  void begin_life() {
    alive_ = true;
    ++life_;
    stalled_until_ = 0;
  }
  void end_life() {
    alive_ = false;
    ++life_;
  }
  void stall_until(Time until) { stalled_until_ = until; }

 private:
  const std::string name_;
  const unsigned index_;
  bool alive_ = false;
  std::uint32_t life_ = 0;
  Time stalled_until_ = 0;
};

}  // namespace distfuse::simulation
