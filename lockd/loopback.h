// SPDX-License-Identifier: Apache-2.0
// lockd's own way into its slot table: the lock core's chains, posted through the fabric's loopback connection, because an
// adapter's atomics need not be atomic with the CPU's. Chains take effect in the order posted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "common/result.h"
#include "rdma/fabric/fabric.h"
#include "rdma/lock/slot.h"

namespace distfuse::lockd {

class Loopback {
 public:
  static Result<std::unique_ptr<Loopback>> create(fabric::Worker& worker, fabric::Region& table,
                                                  std::size_t max_queued);

  /// Posts it when there is room on the connection, and all before it have been.
  void post(std::uint64_t cookie, const df_chain& chain);

  struct Completion {
    std::uint64_t cookie;
    std::uint64_t old;  ///< Of the chain's atomic.
    bool read;          ///< Whether it had a READ; if not, the image means nothing.
    alignas(df_slot) std::array<std::byte, DF_BUCKET_SIZE> image;
  };
  /// For Handler::on_completion of connection(): what the chain brought; more chains are posted.
  Completion completed(std::uint64_t entry);
  [[nodiscard]] const fabric::Connection* connection() const { return connection_.get(); }
  [[nodiscard]] std::uint64_t posted() const { return posted_; }

 private:
  /// Registered memory of one chain in flight: sources of its WRITEs, its atomic's old value, what it READ.
  struct alignas(64) Entry {
    std::array<std::byte, DF_SLOT_SIZE> bytes;
    std::uint64_t old;
    alignas(64) std::array<std::byte, DF_BUCKET_SIZE> image;
  };
  struct Queued {
    std::uint64_t cookie;
    df_chain chain;
  };

  Loopback(std::unique_ptr<fabric::Connection> connection, Entry* entries, std::size_t max_queued);
  void pump();
  Status post_now(std::size_t entry, const df_chain& chain);

  std::unique_ptr<fabric::Connection> connection_;
  Entry* const entries_;  ///< kMaxOutstanding of them, the worker's.
  const std::size_t max_queued_;
  std::vector<std::size_t> free_;
  struct Posted {
    std::uint64_t cookie = 0;
    bool read = false;
  };
  std::array<Posted, fabric::kMaxOutstanding> in_flight_{};
  /// Waits for room. The core has at most one chain in flight per contended slot, Find and Glimpse: `objects` + `waiters`.
  std::deque<Queued> queue_;
  std::uint64_t posted_ = 0;
};

}  // namespace distfuse::lockd
