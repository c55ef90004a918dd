// SPDX-License-Identifier: Apache-2.0
#include "simulation/trace.h"

#include <fmt/format.h>

#include <algorithm>

namespace distfuse::simulation {

std::string Trace::tail(std::size_t most, const std::vector<std::string>& names) const {
  const auto kept = std::min<std::uint64_t>({count_, ring_.size(), most});
  std::string text;
  for (auto i = count_ - kept; i < count_; ++i) {
    const auto& event = ring_[i % ring_.size()];
    text += fmt::format("  {:>10}.{:03} ms  {:<11} {:<28} {} {} {}\n", event.at / 1000,
                        event.at % 1000, event.who < names.size() ? names[event.who] : "world",
                        event.what, event.a, event.b, event.c);
  }
  return text;
}

}  // namespace distfuse::simulation
