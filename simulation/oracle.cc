// SPDX-License-Identifier: Apache-2.0
#include "simulation/oracle.h"

#include <fmt/format.h>

namespace distfuse::simulation {

void Oracle::settle(PageId id, const SessionName& session) {
  auto& page = pages_[id];
  const auto& writer = orders_[page.truth];
  if (page.truth == 0 || writer == session) return;
  const auto there = visible(id);
  if (there >= page.truth || page.also.contains(page.truth)) return;
  if (!refused(id, writer) && !page.tainted)
    throw Violation(
        fmt::format("page {} is used while write {} of session {:#x} is dirty there and storaged "
                    "would take it (it has {})",
                    id, page.truth, writer.id, there));
  page.truth = there;
}

Order Oracle::write(PageId id, const SessionName& session) {
  settle(id, session);
  orders_.push_back(session);
  pages_[id].truth = orders_.size() - 1;
  pages_[id].also.clear();
  return pages_[id].truth;
}

void Oracle::read(PageId id, const SessionName& session, Order order) {
  settle(id, session);
  ++reads_;
  auto& page = pages_[id];
  if (order == page.truth || page.also.contains(order) || page.tainted) return;
  throw Violation(fmt::format("a read of page {} returned write {}, the last one is {}", id, order,
                              page.truth));
}

Order Oracle::apply(PageId id, const SessionName& session, Order order, Order before) {
  auto& page = pages_[id];
  if (order == 0) {
    settle(id, session);
    orders_.push_back(session);
    page.truth = order = orders_.size() - 1;
    page.also.clear();
    return order;
  }
  if (page.tainted) return order;
  if (order < before)
    throw Violation(
        fmt::format("write {} lands on write {} of page {}: it came too late", order, before, id));
  if (order != page.truth && orders_[page.truth] != session && page.truth != before)
    throw Violation(fmt::format("write {} of page {} lands under write {} of another session",
                                order, id, page.truth));
  return order;
}

void Oracle::lost_unsynced(PageId id, Order seen, Order durable) {
  auto& page = pages_[id];
  page.also.insert(seen);
  if (page.truth == seen) page.truth = durable;
}

}  // namespace distfuse::simulation
