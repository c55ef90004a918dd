// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/verbs_counters.h"

#include <mutex>
#include <unordered_set>

namespace distfuse::fabric::verbs {

namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_set<const CounterCell*> cells;  // Of live workers.
  Counters gone;                                 // Of the others.
};

Registry& registry() {
  static auto& the_one = *new Registry;  // Never destroyed: workers may outlive statics.
  return the_one;
}

}  // namespace

CounterCell::CounterCell() {
  const std::lock_guard lock(registry().mutex);
  registry().cells.insert(this);
}

CounterCell::~CounterCell() {
  const std::lock_guard lock(registry().mutex);
  registry().cells.erase(this);
  add_to(registry().gone);
}

Counters counters() {
  const std::lock_guard lock(registry().mutex);
  Counters sum = registry().gone;
  for (const auto* cell : registry().cells) cell->add_to(sum);
  return sum;
}

}  // namespace distfuse::fabric::verbs
