// SPDX-License-Identifier: Apache-2.0
// The thread that writes the list of sessions: changes that arrive while it syncs share the next sync.
//
// A `begin` that cannot be written is answered so, at once: the mount comes again. What the list must not lack (`lost`, `end`) is tried
// again, in order, until it can be.
//
// Limits: three changes a session of the table.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "lockd/session_log.h"

namespace distfuse::lockd {

class Recorder {
 public:
  using Done = std::function<void(SessionChange::Kind, SessionId, bool durable)>;
  /// `done` is called on the recorder's thread, once a change.
  Recorder(std::unique_ptr<SessionLog> log, Done done);
  ~Recorder();  ///< Writes what it was given, once more if that fails.
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  /// From any thread.
  void record(const SessionChange& change);
  [[nodiscard]] const std::vector<ListedSession>& listed() const { return log_->listed(); }

 private:
  void run();
  std::vector<SessionChange> write(std::vector<SessionChange> changes);

  const std::unique_ptr<SessionLog> log_;
  const Done done_;
  bool trouble_ = false;  ///< Logged already. The thread's.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<SessionChange> asked_;  ///< Protected by mutex_.
  bool stop_ = false;                 ///< Protected by mutex_.
  std::thread thread_;
};

}  // namespace distfuse::lockd
