// SPDX-License-Identifier: Apache-2.0
// A client that keeps the rules, over an ArrayShell's table: the real client core, a lock a key and one application thread a lock.
// Each call moves one thing that could happen next; what it says to lockd and hears from it waits in queues. It outlives lockd: it
// comes back to the next one, takes what it holds again, and goes on with Resume.
//
// Serialised by: the caller. A client that would break a rule of its own, or is told what it cannot believe, aborts.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "lockd/testing/array_shell.h"
#include "rdma/lock/client.h"

namespace distfuse::lockd::testing {

class HonestClient {
 public:
  /// `keys`: the locks that it works with.
  HonestClient(ArrayShell& shell, ConnectionId control, const df_welcome& welcome,
               const std::vector<std::uint64_t>& keys);

  [[nodiscard]] ConnectionId control() const { return control_; }
  [[nodiscard]] SessionId session() const { return session_; }
  [[nodiscard]] const SessionToken& token() const { return token_; }
  [[nodiscard]] std::uint32_t node() const { return table_.node; }
  [[nodiscard]] std::size_t locks() const { return locks_.size(); }
  [[nodiscard]] std::size_t undelivered() const { return inbox_.size(); }
  [[nodiscard]] bool waits(std::size_t lock) const;
  [[nodiscard]] bool quiet(std::size_t lock) const;

  /// Connected, and not waiting for Resume.
  [[nodiscard]] bool live() const { return phase_ == Phase::live; }
  [[nodiscard]] bool away() const { return phase_ == Phase::away; }
  /// Has not said Reclaimed yet.
  [[nodiscard]] bool coming_back() const {
    return phase_ == Phase::away || phase_ == Phase::reasserting ||
           (phase_ == Phase::reclaimed && !outbox_.empty());
  }
  /// Locks that it could not have again after a restart of lockd.
  [[nodiscard]] unsigned forfeited() const { return forfeited_; }

  /// What the word must show for this lock: mode and slot; nothing while an upgrade is being granted or it is taken again.
  struct Holds {
    std::uint32_t mode = DF_NL;
    std::uint32_t slot = DF_NO_SLOT;
  };
  [[nodiscard]] Holds holds(std::size_t lock) const;
  /// What it holds, an attempt to give up counted as done.
  [[nodiscard]] std::uint32_t effective(std::size_t lock) const;

  void hear(const df_msg& message) { inbox_.push_back(message); }
  /// The next message to lockd.
  std::optional<df_msg> say();
  void send(const df_msg& message) { outbox_.push_back(message); }

  /// Idle: asks for `mode` (S or X ..; `try_only`); holding: lets go; after BUSY: asks again.
  void act(std::size_t lock, std::uint32_t mode, bool try_only);
  /// As act, but nothing new begins.
  void let_go(std::size_t lock);
  void cancel(std::size_t lock);
  void drop(std::size_t lock);
  void glimpse(std::size_t lock);
  /// These move one thing of the lock on; false: there was nothing to move.
  bool step_chain(std::size_t lock);
  bool step_shed(std::size_t lock);
  bool step_inbox();
  bool step_freeze();

  /// lockd is gone: nothing that is in flight will be answered.
  void detach();
  /// In grace: begins to take again what it holds.
  void rejoin(ConnectionId control, const df_welcome& welcome);
  /// Goes on with that; says Reclaimed when all is there.
  bool step_reassert();

 private:
  enum class Phase : std::uint8_t { live, away, reasserting, reclaimed };
  enum class Again : std::uint8_t { no, under_way, busy };
  enum class Thread : std::uint8_t { idle, waiting, trying, retry, holding };
  struct Chain {
    df_chain chain{};
    bool done = false;  ///< Its effect is in the table.
    std::uint64_t old = 0;
    std::vector<std::byte> image;
  };
  struct Lock {
    df_lock core{};
    std::unique_ptr<Chain> chain;  ///< In flight.
    bool parked = false;
    bool shedding = false;
    std::uint32_t gate_slot = DF_NO_SLOT;  ///< The stay inside the slot's gate.
    Again again = Again::no;               ///< Being taken again in a new table.
    Thread thread = Thread::idle;
    std::uint32_t mode = DF_NL;
  };

  void output(Lock& lock, const df_out& out);
  void wake(Lock& lock, std::uint32_t wake);
  void want(Lock& lock);
  void reassert(Lock& lock);
  void resume();
  void thaw(std::uint32_t slot);
  Lock* find(std::uint64_t key);

  ArrayShell& shell_;
  ConnectionId control_;
  SessionId session_;
  SessionToken token_;
  df_table table_;
  std::deque<Lock> locks_;
  std::deque<df_msg> inbox_;
  std::deque<df_msg> outbox_;
  std::set<std::uint32_t> frozen_;
  std::deque<df_msg> freezes_;  ///< Not answered yet.
  std::uint64_t glimpses_ = 0;
  Phase phase_ = Phase::live;
  unsigned forfeited_ = 0;
};

}  // namespace distfuse::lockd::testing
