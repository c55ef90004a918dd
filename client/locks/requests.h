// SPDX-License-Identifier: Apache-2.0
// Requests to lockd that are not a lock's own: Glimpse, Find on its behalf, FileLock, FileUnlock, FileTest. Matched by `seq`, which
// here is above 2^32: the ids of the locks' own Asks and Finds are below. Of one connection: when that ends, everything asked ends with
// ECONNRESET, and who wants may ask again on the next.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>

#include "client/locks/control.h"
#include "client/locks/lock_table.h"

namespace distfuse::client {

class Requests {
 public:
  /// Told of each FileLock and FileUnlock that was answered with 0; control thread, before its asker hears of it.
  using Hook = std::function<void(const df_msg& request)>;
  Requests(Control& control, Hook hook) : control_(control), hook_(std::move(hook)) {}

  static constexpr std::uint64_t kFirst = std::uint64_t{1} << 32;
  static bool is_ours(std::uint64_t seq) { return seq >= kFirst; }

  /// Sends (seq filled in) and waits for the answer. `cancel`: a message type to be sent when the caller was interrupted; the answer
  /// still comes. Error: ECONNRESET.
  Result<df_msg> ask(df_msg message, const Interrupted& interrupted = {}, df_u32 cancel = 0);
  /// The same, but an interrupted caller leaves at once: EINTR. Then `late` is called, by the control thread, when the answer is there;
  /// until then lockd counts the request.
  Result<df_msg> ask_or_leave(df_msg message, const Interrupted& interrupted,
                              std::function<void()> late);
  /// Control thread. false: nobody waits for it.
  bool answer(const df_msg& message);
  /// Ends all waits; what `late` waits for counts as answered.
  void close();

 private:
  struct Waiting {
    df_u32 type;  ///< Of the answer.
    std::optional<df_msg> answer;
    const df_msg* request;
  };
  struct Left {
    df_u32 type;
    std::function<void()> late;
  };

  std::uint64_t send(df_msg& message, Waiting& waiting);

  Control& control_;
  const Hook hook_;
  std::mutex mutex_;
  std::condition_variable answered_;
  std::map<std::uint64_t, Waiting*> waiting_;  ///< ≤ Welcome.asks.
  std::map<std::uint64_t, Left> left_;  ///< Their callers were interrupted; also ≤ Welcome.asks.
  std::uint64_t next_ = kFirst;
  bool closed_ = false;
};

}  // namespace distfuse::client
