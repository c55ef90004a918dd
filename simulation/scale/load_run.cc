// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/load_run.h"

#include <algorithm>
#include <stdexcept>

#include "simulation/scale/simulation.h"

namespace distfuse::scale {
namespace {

/// What has been used up so far.
struct Used {
  std::uint64_t operations = 0, acquires = 0, messages = 0;
  Time time = 0, cpu = 0;
  std::vector<Time> cpus;
  std::vector<NicLoad> nics;
};

class LoadRun final : private SimulationObserver {
 public:
  LoadRun(const Parameters& parameters, const LoadOptions& options)
      : options_(options),
        source_(options.workload, options.details, options.clients),
        simulation_(parameters,
                    Shape{options.clients, options.lockds, source_.keys(), options.seed}, *this),
        thinking_(options.clients),
        measured_(options.clients) {}

  LoadResult run() {
    for (std::uint32_t i = 0; i < options_.clients; ++i)
      simulation_.begin_at(i, simulation_.random().around(options_.details.think_ns));
    simulation_.drain();
    simulation_.check_at_rest({});
    if (granted_ != begun_) throw std::runtime_error("an operation never got its lock");
    if (stage_ != Stage::done) throw std::runtime_error("the measurement did not end");
    return result();
  }

 private:
  enum class Stage { warming, measuring, done };

  void begins(std::uint32_t client, Time /*now*/) override {
    if (stage_ == Stage::done) return;
    const Operation operation = source_.next(client, simulation_.random());
    thinking_[client] = operation.think_ns;
    ++begun_;
    measured_[client] = stage_ == Stage::measuring;
    simulation_.begin(client, operation);
  }

  double granted(std::uint32_t client, const Operation& operation, Time waited, Time /*now*/,
                 bool cached) override {
    ++granted_;
    acquires_ += !cached;
    if (measured_[client] && !cached) latencies_.push_back(waited);
    advance();
    return operation.hold_ns;
  }

  /// Counted in acquires: what is cached takes no time, and rounds of revokes are what is to be seen.
  void advance() {
    const auto clients = std::uint64_t{options_.clients};
    if (stage_ == Stage::warming && acquires_ >= source_.warm_acquires() * clients) {
      stage_ = Stage::measuring;
      before_ = used();
      events_before_ = simulation_.events();
    } else if (stage_ == Stage::measuring &&
               (acquires_ - before_.acquires >= options_.acquires * clients ||
                simulation_.events() - events_before_ >= options_.events)) {
      stage_ = Stage::done;
      after_ = used();
    }
  }

  void ended(std::uint32_t client, Time now) override {
    if (stage_ != Stage::done)
      simulation_.begin_at(client, now + simulation_.random().around(thinking_[client]));
  }

  Used used() {
    Used used;
    used.operations = granted_;
    used.acquires = acquires_;
    used.time = simulation_.now();
    for (std::uint32_t i = 0; i < options_.lockds; ++i) {
      auto& lockd = simulation_.lockd(i);
      used.messages += lockd.messages_in() + lockd.messages_out();
      used.cpu += lockd.busy();
      used.cpus.push_back(lockd.busy());
      used.nics.push_back(lockd.nic().load());
    }
    return used;
  }

  LoadResult result() {
    LoadResult result;
    const double length = to_ns(after_.time - before_.time);
    result.operations = after_.operations - before_.operations;
    result.acquires = after_.acquires - before_.acquires;
    const auto operations = static_cast<double>(result.operations);
    result.seconds = length / 1e9;
    result.operations_per_second = operations / result.seconds;
    result.acquires_per_second = static_cast<double>(result.acquires) / result.seconds;
    result.messages_per_operation =
        static_cast<double>(after_.messages - before_.messages) / operations;
    result.lockd_cpu_ns_per_operation = to_ns(after_.cpu - before_.cpu) / operations;
    percentiles(result);
    shares(result, length);
    totals(result);
    return result;
  }

  void percentiles(LoadResult& result) {
    if (latencies_.empty()) return;
    std::ranges::sort(latencies_);
    const auto at = [this](std::size_t percent) {
      return to_ns(latencies_[std::min(latencies_.size() - 1, latencies_.size() * percent / 100)]) /
             1000;
    };
    result.p50_us = at(50);
    result.p99_us = at(99);
    result.max_us = at(100);
  }

  void shares(LoadResult& result, double length) const {
    const auto raise = [length](double& share, Time before, Time after) {
      share = std::max(share, to_ns(after - before) / length);
    };
    for (std::size_t i = 0; i < options_.lockds; ++i) {
      const NicLoad &before = before_.nics[i], &after = after_.nics[i];
      raise(result.lockd_cpu, before_.cpus[i], after_.cpus[i]);
      raise(result.receiver, before.receiver, after.receiver);
      raise(result.atomics, before.atomics, after.atomics);
      raise(result.word, before.hottest_word, after.hottest_word);
      raise(result.sender, before.sender, after.sender);
    }
  }

  void totals(LoadResult& result) {
    for (std::uint32_t i = 0; i < options_.lockds; ++i) {
      auto& lockd = simulation_.lockd(i);
      const auto counters = lockd.counters();
      result.asks += counters.asks;
      result.revokes += counters.revokes;
      result.freezes += counters.freezes;
      result.repairs += counters.repairs;
      result.finds += counters.finds;
      result.longest_queue = std::max(result.longest_queue, lockd.longest_queue());
      result.longest_backlog =
          std::max<std::uint64_t>(result.longest_backlog, lockd.longest_backlog());
      result.lockd_memory_bytes = lockd.memory_bytes();
    }
    result.begun = begun_;
    result.granted = granted_;
    result.events = simulation_.events();
  }

  LoadOptions options_;
  WorkloadSource source_;
  Simulation simulation_;
  std::vector<double> thinking_;
  std::vector<bool> measured_;  // the client's operation was begun in the measured time
  std::vector<Time> latencies_;
  Stage stage_ = Stage::warming;
  Used before_, after_;
  std::uint64_t events_before_ = 0;
  std::uint64_t begun_ = 0, granted_ = 0, acquires_ = 0;
};

}  // namespace

LoadResult run_load(const Parameters& parameters, const LoadOptions& options) {
  return LoadRun(parameters, options).run();
}

}  // namespace distfuse::scale
