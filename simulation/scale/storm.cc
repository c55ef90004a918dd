// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/storm.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "simulation/scale/simulation.h"

namespace distfuse::scale {
namespace {

constexpr df_u64 kFile = df_u64{1} << DF_KEY_EXTENT_BITS;

df_u64 memory_of(std::uint32_t sessions, std::uint32_t objects) {
  df_lockd_config config{};
  config.buckets = 64;
  config.overflow = 16;
  config.sessions = sessions;
  config.objects = objects;
  config.waiters = 65536;
  config.asks = 16;
  return df_lockd_memory(&config);
}

class Storm final : private SimulationObserver {
 public:
  Storm(const Parameters& parameters, const StormOptions& options)
      : options_(options),
        simulation_(parameters, Shape{options.sessions, 1, 1, options.seed}, *this) {}

  StormResult run() {
    StormResult result;
    read(0);
    for (std::uint32_t i = 0; i < options_.lost; ++i) simulation_.lose(i);
    const auto before = mark();
    simulation_.begin_at(options_.sessions - 1, simulation_.now());
    writing_ = true;
    simulation_.drain();
    const auto written = mark();
    result.revoke_us = to_ns(writer_waited_) / 1000;
    result.messages = written.messages - before.messages;
    result.lockd_cpu_us = to_ns(written.cpu - before.cpu) / 1000;
    writing_ = false;
    herd(result);
    const auto after = mark();
    result.herd_messages = after.messages - written.messages;
    result.herd_cpu_us = to_ns(after.cpu - written.cpu) / 1000;
    finish(result);
    return result;
  }

 private:
  struct Mark {
    std::uint64_t messages;
    Time cpu;
  };
  Mark mark() {
    auto& lockd = simulation_.lockd(0);
    return {lockd.messages_in() + lockd.messages_out(), lockd.busy()};
  }

  void read(std::uint32_t first) {
    const Time now = simulation_.now();
    for (std::uint32_t i = first; i < options_.readers; ++i) simulation_.begin_at(i, now);
    simulation_.drain();
  }

  void herd(StormResult& result) {
    waited_.clear();
    read(options_.lost);
    if (waited_.size() != options_.readers - options_.lost)
      throw std::runtime_error("a reader did not get its lock back");
    if (waited_.empty()) return;
    std::ranges::sort(waited_);
    result.herd_p50_us = to_ns(waited_[waited_.size() / 2]) / 1000;
    result.herd_all_us = to_ns(waited_.back()) / 1000;
  }

  void finish(StormResult& result) {
    simulation_.check_at_rest({});
    const auto counters = simulation_.lockd(0).counters();
    result.revokes = counters.revokes;
    result.freezes = counters.freezes;
    result.repairs = counters.repairs;
    result.events = simulation_.events();
    result.lockd_memory_bytes = memory_of(options_.sessions, 4096);
    result.object_bytes = (memory_of(options_.sessions, 8192) - result.lockd_memory_bytes) / 4096;
  }

  void begins(std::uint32_t client, Time /*now*/) override {
    simulation_.begin(client,
                      Operation{kFile, writing_ ? df_u32{DF_X} : df_u32{DF_S}, 0, 0, false});
  }
  double granted(std::uint32_t /*client*/, const Operation& operation, Time waited, Time /*now*/,
                 bool /*cached*/) override {
    if (operation.mode == DF_X)
      writer_waited_ = waited;
    else
      waited_.push_back(waited);
    return 0;
  }
  void ended(std::uint32_t /*client*/, Time /*now*/) override {}

  StormOptions options_;
  Simulation simulation_;
  std::vector<Time> waited_;
  Time writer_waited_ = 0;
  bool writing_ = false;
};

}  // namespace

StormResult run_storm(const Parameters& parameters, const StormOptions& options) {
  if (options.readers >= options.sessions || options.lost > options.readers)
    throw std::runtime_error("a storm has fewer readers than sessions and loses no more of them");
  return Storm(parameters, options).run();
}

}  // namespace distfuse::scale
