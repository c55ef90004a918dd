// SPDX-License-Identifier: Apache-2.0
// What every read must return and every fsync must have kept.
//
// A write has an order number, counted up over the whole cluster at the moment when it takes effect: a cached one when the page is
// dirtied under X, a direct one when storaged applies it. A page's truth is the last of them. Other contents are right in two
// cases only:
//   - the writer's session is refused by the storaged of the page and the write never got there: lost with its session. The
//     truth is then what storaged has. While storaged would still take the write, nobody else may touch the page.
//   - the machine of a storaged went down: what was not synced is gone there; it may live on in caches until the next write.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include "simulation/process.h"

namespace distfuse::simulation {

using Order = std::uint64_t;  ///< 0: never written.
using PageId = std::uint64_t;

/// A client's session at one lockd; session ids alone repeat from lockd to lockd.
struct SessionName {
  unsigned lockd = 0;
  std::uint64_t id = 0;
  friend bool operator==(const SessionName&, const SessionName&) = default;
  friend auto operator<=>(const SessionName&, const SessionName&) = default;
};

class Oracle {
 public:
  explicit Oracle(std::uint64_t pages) : pages_(pages), orders_(1) {}

  std::function<Order(PageId)> visible;
  std::function<bool(PageId, const SessionName&)> refused;

  /// A page is dirtied under X.
  Order write(PageId page, const SessionName& session);
  /// A read under a lock returned `order`.
  void read(PageId page, const SessionName& session, Order order);
  /// storaged applies a write over `before`. `order` 0: a direct one, numbered here.
  Order apply(PageId page, const SessionName& session, Order order, Order before);
  /// The page went back from `seen` to `durable`.
  void lost_unsynced(PageId page, Order seen, Order durable);
  /// The word lock was broken by a liar: nothing is promised for the page from now on.
  void taint(PageId page) { pages_[page].tainted = true; }
  [[nodiscard]] bool tainted(PageId page) const { return pages_[page].tainted; }
  [[nodiscard]] Order truth(PageId page) const { return pages_[page].truth; }
  [[nodiscard]] std::uint64_t reads() const { return reads_; }

 private:
  struct Page {
    Order truth = 0;
    bool tainted = false;
    std::set<Order> also;  ///< Lost to a machine's end, may still be seen in caches.
  };
  /// Who reads or writes now sees nothing of a dirty page elsewhere: that must be lost for good.
  void settle(PageId page, const SessionName& session);

  std::vector<Page> pages_;
  std::vector<SessionName> orders_;  ///< By order.
  std::uint64_t reads_ = 0;
};

}  // namespace distfuse::simulation
