// SPDX-License-Identifier: Apache-2.0
// Lanes: connections to lockd for one-sided operations, each with a worker of its own, lent to one thread at a time.
//
// Parties: threads that have a chain to run; the pool. The borrower posts and progresses the worker itself; nobody else touches it.
//
// Limits: LanePool::limit lanes; a borrower waits for one when all are out, holding nothing. It gets one, because whoever has
// one waits for nothing but the completion of its chains, which needs no other client. A lane holds kChains chains.
//
// Recovery: none. A chain that fails, or a lane that cannot be opened when no other is there, ends the link: what an
// atomic did whose completion was not seen is not known. close() ends the waits for completions within kLook.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "rdma/fabric/fabric.h"
#include "rdma/lock/wire.h"

namespace distfuse::client {

/// Of a chain: the atomic's old value, and what the READ brought (valid until the lane's next post with that index).
struct ChainResult {
  std::uint64_t old = 0;
  const std::byte* image = nullptr;
};

class Lane final : private fabric::Handler {
 public:
  static constexpr unsigned kChains = fabric::kMaxOutstanding;
  static constexpr std::chrono::milliseconds kLook{
      100};  ///< How often a wait looks whether the session still lives.

  static Result<std::unique_ptr<Lane>> open(fabric::Fabric& fabric, const std::string& address,
                                            const df_hello& hello,
                                            std::chrono::milliseconds timeout);

  /// `index` < kChains, not in flight. Error: ENOTCONN.
  Status post(const df_chain& chain, unsigned index);
  /// Spins for a moment, then sleeps, until a posted chain is complete; its index. Error: ENOTCONN.
  Result<unsigned> next(const std::atomic<bool>& closed);
  [[nodiscard]] ChainResult result(unsigned index) const;
  /// One look, without spinning: a posted chain that is complete; else sleeps until something happens, wake() or `timeout`, and answers
  /// nothing. Error: ENOTCONN.
  Result<std::optional<unsigned>> poll(std::chrono::milliseconds timeout);
  /// Any thread.
  void wake() { worker_->wake(); }
  /// post and next for one.
  Result<ChainResult> run(const df_chain& chain, const std::atomic<bool>& closed);

  [[nodiscard]] bool usable() const { return error_.code == 0 && in_flight_ == 0; }
  [[nodiscard]] const Error& error() const { return error_; }

 private:
  // Per chain: 8 bytes for the atomic, a bucket's image, the sources of WRITEs.
  static constexpr std::size_t kImageOffset = 64;
  static constexpr std::size_t kSourceOffset = kImageOffset + DF_BUCKET_SIZE;
  static constexpr std::size_t kStride = kSourceOffset + DF_SLOT_SIZE;

  Lane() = default;
  Status connect(const std::string& address, const df_hello& hello,
                 std::chrono::milliseconds timeout);
  void on_connected(fabric::Connection& connection, std::span<const std::byte> data) override;
  void on_message(fabric::Connection& connection, std::span<const std::byte> message) override;
  void on_completion(fabric::Connection& connection, std::uint64_t cookie,
                     const Status& status) override;
  void on_disconnect(fabric::Connection& connection, const Error& reason) override;

  std::unique_ptr<fabric::Worker> worker_;
  std::unique_ptr<fabric::Connection> connection_;
  std::span<std::byte> memory_;
  std::vector<unsigned> done_;  ///< ≤ kChains.
  unsigned in_flight_ = 0;
  bool connected_ = false;
  Error error_{0, {}};
};

class LanePool {
 public:
  LanePool(fabric::Fabric& fabric, std::string address, const df_hello& hello, unsigned limit,
           std::chrono::milliseconds connect_timeout);

  class Loan {
   public:
    Loan(LanePool* pool, std::unique_ptr<Lane> lane) : pool_(pool), lane_(std::move(lane)) {}
    Loan(Loan&&) noexcept = default;
    Loan& operator=(Loan&&) = delete;
    ~Loan() {
      if (lane_ != nullptr) pool_->give_back(std::move(lane_));
    }
    Lane* operator->() { return lane_.get(); }

   private:
    LanePool* pool_;
    std::unique_ptr<Lane> lane_;
  };

  /// Waits while all are out. Error: ENOTCONN: closed, or none can be opened.
  Result<Loan> borrow();
  /// Ends waits now and lends no more.
  void close();
  [[nodiscard]] const std::atomic<bool>& closed() const { return closed_; }

 private:
  void give_back(std::unique_ptr<Lane> lane);

  fabric::Fabric& fabric_;
  const std::string address_;
  const df_hello hello_;
  const std::chrono::milliseconds connect_timeout_;
  std::atomic<bool> closed_ = false;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Lane>>
      idle_;  ///< ≤ limit_; the last used is lent first: its caches are warm.
  unsigned open_ = 0;
  unsigned limit_;
};

}  // namespace distfuse::client
