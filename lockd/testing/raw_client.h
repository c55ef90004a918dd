// SPDX-License-Identifier: Apache-2.0
// A client of lockd for tests: the lock core's client side (rdma/lock/client.h) over a real fabric, one thread, no caches but a
// number per lock that stands for "what the lock covers": it travels in the value block's size.
//
// A waiting call runs the event loop; so revokes are served only while some call of this client runs (run_for to idle).
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "lockd/sessions.h"
#include "rdma/fabric/fabric.h"
#include "rdma/lock/client.h"

namespace distfuse::lockd::testing {

using std::chrono::milliseconds;

struct RawClientOptions {
  fabric::Options fabric{"ucx", "lo"};
  std::string lockd;
  std::string cluster_id;
  std::string name = "raw";
  std::uint32_t version = DF_WIRE_VERSION;
  milliseconds timeout{5000};
  std::uint64_t session = 0;                    ///< To come back as; 0: a new one.
  SessionToken token{};                         ///< Of that session.
  std::uint64_t lane_session = 0;               ///< Of its lane, in place of the true one.
  std::optional<SessionToken> lane_token = {};  ///< The same.
};

class RawClient : private fabric::Handler {
 public:
  static Result<std::unique_ptr<RawClient>> connect(const RawClientOptions& options);
  ~RawClient() override;

  [[nodiscard]] const df_welcome& welcome() const { return welcome_; }
  [[nodiscard]] SessionToken token() const { return std::to_array(welcome_.token); }
  [[nodiscard]] bool lost() const { return lost_; }

  /// Pins `mode`. False: not within the timeout (given up), or lost.
  bool acquire(std::uint64_t key, df_mode mode, milliseconds timeout = milliseconds(10000));
  /// Starts to wait for `mode`; has(key) tells when it is pinned.
  void want(std::uint64_t key, df_mode mode);
  [[nodiscard]] bool pinned(std::uint64_t key);
  void unpin(std::uint64_t key);
  /// Unpinned before: gives it up altogether and returns when it is gone.
  bool drop(std::uint64_t key, milliseconds timeout = milliseconds(10000));
  [[nodiscard]] df_mode held(std::uint64_t key);
  [[nodiscard]] std::uint32_t slot(std::uint64_t key);
  /// What the lock covers; to be looked at under S, set under X.
  [[nodiscard]] std::uint64_t value(std::uint64_t key);
  void set_value(std::uint64_t key, std::uint64_t value);

  /// File locks: sends; the answer comes by file_reply(seq).
  std::uint64_t file_send(df_msg_type type, std::uint64_t ino, std::uint64_t owner,
                          df_file_type lock, std::uint8_t flags, std::uint64_t start,
                          std::uint64_t end);
  std::optional<df_msg_file_reply> file_reply(std::uint64_t seq,
                                              milliseconds timeout = milliseconds(5000));
  void file_cancel(std::uint64_t seq);
  /// Glimpse of a slot that is known: what lockd answers.
  std::optional<df_msg_glimpse_reply> glimpse(std::uint64_t key,
                                              milliseconds timeout = milliseconds(5000));

  /// Bytes on the control connection, whatever they are.
  Status send_raw(std::span<const std::byte> bytes);
  Status send_raw_on_lane(std::span<const std::byte> bytes);
  /// Called when a chain of this kind is about to be posted (to die there).
  std::function<void(std::uint32_t kind)> before_post;
  std::function<void(std::uint32_t kind)> after_post;
  std::function<void(const df_msg&)> on_any_message;
  /// Gives up all locks and says Bye.
  bool bye();

  /// From now on the lease is renewed while a call of this client runs; else it never is.
  void renew_lease() { renews_ = true; }
  /// After a restart: takes the lock again that it held before, by the ordinary chain. False: it cannot be had.
  bool reassert(std::uint64_t key, df_mode mode) { return acquire(key, mode, milliseconds(2000)); }
  void reclaimed();
  [[nodiscard]] bool resumed() const { return resumed_; }

  void run_for(milliseconds time);
  bool run_until(const std::function<bool()>& done, milliseconds timeout);

  std::uint64_t asks = 0, finds = 0, revokes = 0, freezes = 0;  ///< Seen or sent.

 private:
  struct Lock {
    df_lock core{};
    df_mode wanted = DF_NL;  ///< Of the one waiter.
    bool pinned = false;
    bool shedding = false;
    bool dirty = false;
    bool retry = false;  ///< BUSY.
    std::uint64_t value = 0;
    std::uint64_t value_version = ~0ULL;
    std::uint32_t wakes = 0;
  };
  struct Posted {
    Lock* lock = nullptr;
    std::uint32_t kind = 0;
    std::uint32_t slot = 0;
  };
  struct alignas(64) Buffer {
    std::array<std::byte, DF_SLOT_SIZE> bytes;
    std::uint64_t old;
    alignas(64) std::array<std::byte, DF_BUCKET_SIZE> image;
  };

  explicit RawClient(const RawClientOptions& options) : options_(options) {}
  Status start();
  Result<std::unique_ptr<fabric::Connection>> connect_as(df_role role, std::uint64_t session,
                                                         const SessionToken& token);
  Lock& lock_of(std::uint64_t key);
  void perform(Lock& lock, df_out& out);
  void wake(Lock& lock, std::uint32_t bits);
  void ask_again(Lock& lock);
  void try_shed(Lock& lock);
  void submit(Lock& lock, const df_chain& chain);
  void post(Lock& lock, const df_chain& chain);
  void renew();
  void leave(std::uint32_t slot);
  void send_message(const df_msg& message);
  void on_lock_message(const df_msg& message);
  void answer(const df_msg& message);

  void on_connected(fabric::Connection& connection, std::span<const std::byte> data) override;
  void on_message(fabric::Connection& connection, std::span<const std::byte> message) override;
  void on_completion(fabric::Connection& connection, std::uint64_t cookie,
                     const Status& status) override;
  void on_disconnect(fabric::Connection& connection, const Error& reason) override;

  const RawClientOptions options_;
  std::unique_ptr<fabric::Fabric> fabric_;
  std::unique_ptr<fabric::Worker> worker_;
  std::unique_ptr<fabric::Connection> control_, lane_;
  Buffer* buffers_ = nullptr;
  std::vector<std::uint64_t> free_;
  std::array<Posted, fabric::kMaxOutstanding> posted_{};
  df_table table_{};
  df_welcome welcome_{};
  std::optional<df_welcome> answer_;
  std::string trouble_;
  bool lost_ = false;
  std::map<std::uint64_t, Lock> locks_;
  std::set<std::uint32_t> frozen_;
  std::map<std::uint32_t, unsigned> inside_;         ///< TAKE..UNDO and RELEASE under way, by slot.
  std::map<std::uint32_t, df_msg> freeze_waits_;     ///< Until nobody is inside.
  std::deque<std::pair<Lock*, df_chain>> parked_;    ///< On frozen slots.
  std::deque<std::pair<Lock*, df_chain>> unposted_;  ///< For want of buffers.
  std::deque<df_msg> outgoing_;
  std::map<std::uint64_t, df_msg_file_reply> file_replies_;
  std::map<std::uint64_t, df_msg_glimpse_reply> glimpse_replies_;
  std::uint64_t next_seq_ = 1;
  bool renews_ = false, renewing_ = false, resumed_ = false;
  std::chrono::steady_clock::time_point renew_at_{};
  std::uint64_t lease_value_ = 0;
  std::byte* lease_memory_ = nullptr;
};

}  // namespace distfuse::lockd::testing
