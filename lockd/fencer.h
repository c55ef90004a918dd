// SPDX-License-Identifier: Apache-2.0
// Fencing: before the locks of a lost session go to anyone, every storaged must refuse what that session still sends. And teaching: a
// storaged that starts accepts nothing until it has been told who lives.
//
// Parties: the service, which asks; one fencer thread, which blocks in calls to the storageds and retries as long as one is
// away; the service again, told by `done`. A session waits here, in state fencing, for as long as it takes: giving its
// locks away unfenced would let its late writes land on top of the next holder's.
//
// Order: the one thread sends both, one after the other, and asks for the list of the living right before it sends it: who is on a
// list and lost since is fenced after it.
//
// Limits: as many sessions as the session table holds (each once).
#pragma once

#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "common/descriptor.h"
#include "common/result.h"
#include "lockd/daemon.h"

namespace distfuse::lockd {

/// What refuses the requests of fenced sessions. Used by the fencer thread alone.
class Storage {
 public:
  virtual ~Storage() = default;
  /// One attempt at all that have not refused the session yet; blocks for seconds at most. Error: who was not reached.
  [[nodiscard]] virtual Status fence(SessionId session) = 0;
  /// Whether some were not told who lives since they were connected, or are not connected.
  [[nodiscard]] virtual bool needs_sessions() { return false; }
  /// One attempt at all of those; blocks for seconds at most. Error: who was not reached; ESTALE: who knows a later incarnation, above all
  /// others that were not reached.
  [[nodiscard]] virtual Status tell(const LiveSessions& live) {
    (void)live;
    return {};
  }
  /// Sleeps until `wake_fd` can be read, a connection ends, or the timeout. Negative: no timeout.
  virtual void wait(int wake_fd, std::chrono::milliseconds timeout);
};

class Fencer {
 public:
  /// On the fencer thread: `done` once per session; `who_lives` when live() is to be called; `over` when a storaged (that it names)
  /// has refused this incarnation: this lockd must end.
  Fencer(std::unique_ptr<Storage> storage, std::function<void(SessionId)> done,
         std::function<void()> who_lives, std::function<void(const std::string&)> over,
         std::chrono::milliseconds retry = std::chrono::milliseconds(200));
  ~Fencer();  ///< Sessions that still wait stay unfenced.
  Fencer(const Fencer&) = delete;
  Fencer& operator=(const Fencer&) = delete;

  /// From any thread.
  void fence(SessionId session);
  /// From any thread: the answer to who_lives.
  void live(LiveSessions live);

 private:
  struct Pending {
    SessionId session;
    std::string trouble;  ///< Logged already.
  };
  void run();
  bool attempt(Pending& pending);
  void teach();
  void wake();
  bool stopping();
  void sleep(std::chrono::milliseconds timeout);

  const std::unique_ptr<Storage> storage_;
  const std::function<void(SessionId)> done_;
  const std::function<void()> who_lives_;
  const std::function<void(const std::string&)> over_;
  const std::chrono::milliseconds retry_;
  const Descriptor wake_;       ///< eventfd
  std::list<Pending> pending_;  ///< The thread's, as are the two below.
  bool asked_who_lives_ = false;
  std::string trouble_;  ///< Of teaching; logged already.
  std::mutex mutex_;
  std::list<Pending> asked_;          ///< Protected by mutex_.
  std::optional<LiveSessions> live_;  ///< Protected by mutex_.
  bool stop_ = false;                 ///< Protected by mutex_.
  std::thread thread_;
};

}  // namespace distfuse::lockd
