// SPDX-License-Identifier: Apache-2.0
// Fencing: before the locks of a lost session go to anyone, every storaged must refuse what that session still sends.
//
// Parties: the service, which asks; one fencer thread, which blocks in calls to the storageds and retries as long as one is
// away; the service again, told by `done`. A session waits here, in state fencing, for as long as it takes: giving its
// locks away unfenced would let its late writes land on top of the next holder's.
//
// Limits: as many sessions as the session table holds (each once).
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "common/result.h"
#include "lockd/sessions.h"

namespace distfuse::lockd {

/// What refuses the requests of fenced sessions. Used by the fencer thread alone.
class Storage {
 public:
  virtual ~Storage() = default;
  /// One attempt at all that have not refused the session yet; blocks for seconds at most. Error: who was not reached.
  [[nodiscard]] virtual Status fence(SessionId session) = 0;
};

class Fencer {
 public:
  /// `done` is called on the fencer thread, once per session.
  Fencer(std::unique_ptr<Storage> storage, std::function<void(SessionId)> done,
         std::chrono::milliseconds retry = std::chrono::milliseconds(200));
  ~Fencer();  ///< Sessions that still wait stay unfenced.
  Fencer(const Fencer&) = delete;
  Fencer& operator=(const Fencer&) = delete;

  /// From any thread.
  void fence(SessionId session);

 private:
  struct Pending {
    SessionId session;
    std::string trouble;  ///< Logged already.
  };
  void run();
  bool attempt(Pending& pending);

  const std::unique_ptr<Storage> storage_;
  const std::function<void(SessionId)> done_;
  const std::chrono::milliseconds retry_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Pending> asked_;  ///< Protected by mutex_.
  bool stop_ = false;         ///< Protected by mutex_.
  std::thread thread_;
};

}  // namespace distfuse::lockd
