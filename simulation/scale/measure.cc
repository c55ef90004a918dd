// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <utility>
#include <vector>

#include "rdma/lock/lockd.h"

namespace distfuse::scale {
namespace {

using Clock = std::chrono::steady_clock;

double median(std::vector<double>& times) {
  if (times.empty()) return 0;
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::ranges::nth_element(times, middle);
  return *middle;
}

/// What the clock itself takes.
double clock_ns() {
  std::vector<double> times;
  for (int i = 0; i < 1000; ++i) {
    const auto begin = Clock::now();
    times.push_back(static_cast<double>((Clock::now() - begin).count()));
  }
  return median(times);
}

/// lockd's core with a fabric that is done at once, and clients that obey at once.
class HandOver {
 public:
  HandOver(std::uint32_t sessions, std::uint32_t queue) : sessions_(sessions), queue_(queue) {
    df_lockd_config config{};
    config.buckets = 1;
    config.overflow = 1;
    config.sessions = sessions;
    config.objects = 16;
    config.waiters = sessions + 16;
    config.asks = 16;
    memory_.resize(df_lockd_memory(&config) / sizeof(df_u64));
    slots_.resize(DF_BUCKET_SLOTS + config.overflow);
    for (std::uint32_t i = 0; i < slots_.size(); ++i) df_lockd_prepare_slot(&slots_[i], i);
    slots_[0].key = kKey;
    df_lockd_shell shell{};
    shell.context = this;
    shell.post = [](void* context, df_u64 cookie, const df_chain* chain) {
      static_cast<HandOver*>(context)->chains_.emplace_back(cookie, *chain);
    };
    shell.send = [](void* context, df_u32 node, const df_msg* message) {
      static_cast<HandOver*>(context)->sent_.emplace_back(node, *message);
    };
    shell.drop = [](void* /*context*/, df_u32 /*node*/, int reason) {
      throw std::runtime_error(df_drop_text(reason));
    };
    core_ = df_lockd_init(memory_.data(), &config, &shell);
    if (core_ == nullptr) throw std::runtime_error("lockd refuses its configuration");
    for (std::uint32_t node = 1; node <= sessions; ++node) df_lockd_session_joined(core_, node);
  }

  CoreTimes run(int turns) {
    slots_[0].word = df_unit(DF_X, 1);
    std::uint32_t next = 2;
    for (std::uint32_t i = 0; i <= queue_; ++i) ask(next++, nullptr);
    for (int i = 0; i < turns; ++i) {
      settle();
      ask(next, &asks_);
      next = next % sessions_ + 1;
    }
    const double clock = clock_ns();
    return {median(asks_) - clock, median(released_) - clock, median(chains_done_) - clock,
            median(stages_) - clock};
  }

 private:
  static constexpr df_u64 kKey = df_u64{1} << DF_KEY_EXTENT_BITS;

  template <typename Call>
  static void timed(std::vector<double>* times, Call call) {
    const auto begin = Clock::now();
    call();
    if (times != nullptr) times->push_back(static_cast<double>((Clock::now() - begin).count()));
  }

  void ask(std::uint32_t node, std::vector<double>* times) {
    df_msg message;
    df_msg_init(&message, DF_MSG_ASK, 0, kKey, ++requests_);
    message.ask.want = DF_X;
    timed(times, [&] { df_lockd_message(core_, node, &message); });
  }

  /// Until one hand-over is done: its Revoke is obeyed.
  void settle() {
    for (bool granted = false; !granted || !chains_.empty();) {
      if (!chains_.empty()) {
        complete();
      } else if (!sent_.empty()) {
        const auto [node, message] = sent_.front();
        sent_.pop_front();
        granted = granted || message.head.type == DF_MSG_GRANT;
        if (message.head.type == DF_MSG_REVOKE) release(node, message);
      } else {
        throw std::runtime_error("lockd's core has nothing to do and nobody was granted");
      }
    }
  }

  void release(std::uint32_t node, const df_msg& revoke) {
    if (df_word_owner(slots_[0].word) == node) slots_[0].word -= df_unit(DF_X, node);
    df_msg message;
    df_msg_init(&message, DF_MSG_RELEASED, 0, kKey, revoke.head.seq);
    timed(&released_, [&] { df_lockd_message(core_, node, &message); });
  }

  void complete() {
    const auto [cookie, chain] = chains_.front();
    chains_.pop_front();
    df_u64 old = 0, word = 0;
    df_slot image{};
    bool reads = false;
    for (std::uint32_t i = 0; i < chain.count; ++i) {
      const df_op& op = chain.op[i];
      auto* at = reinterpret_cast<df_u8*>(slots_.data()) + op.offset;
      if (op.kind == DF_OP_READ) {
        std::memcpy(&image, at, sizeof(image));
        reads = true;
      } else if (op.kind == DF_OP_WRITE) {
        std::memcpy(at, chain.bytes + op.data, op.length);
      } else {
        std::memcpy(&old, at, sizeof(old));
        word = op.kind == DF_OP_FAA ? old + op.operand : old == op.expected ? op.operand : old;
        std::memcpy(at, &word, sizeof(word));
      }
    }
    const auto sent = sent_.size();
    const auto begin = Clock::now();
    df_lockd_chain_done(core_, cookie, old, reads ? &image : nullptr);
    const auto length = static_cast<double>((Clock::now() - begin).count());
    const bool stage = sent_.size() > sent && sent_.back().second.head.type == DF_MSG_REVOKE;
    (stage ? stages_ : chains_done_).push_back(length);
  }

  std::uint32_t sessions_, queue_;
  std::vector<df_u64> memory_;
  std::vector<df_slot> slots_;
  df_lockd* core_ = nullptr;
  std::deque<std::pair<df_u64, df_chain>> chains_;
  std::deque<std::pair<std::uint32_t, df_msg>> sent_;
  std::vector<double> asks_, released_, chains_done_, stages_;
  df_u64 requests_ = 0;
};

}  // namespace

CoreTimes measure_hand_over(std::uint32_t sessions, std::uint32_t queue) {
  return HandOver(sessions, queue).run(2000);
}

CoreCosts measure_core() {
  constexpr std::uint32_t kFew = 16, kMany = 10000, kQueue = 9000;
  const CoreTimes few = measure_hand_over(kFew, 1);
  const CoreTimes sessions = measure_hand_over(kMany, 1);
  const CoreTimes queue = measure_hand_over(kMany, kQueue);
  const auto mean = [](const CoreTimes& times) {
    return (times.ask + times.released + times.chain) / 3;
  };
  return {mean(few), std::max(0.0, mean(queue) - mean(sessions)) / kQueue,
          std::max(0.0, sessions.stage - few.stage) / (kMany - kFew)};
}

}  // namespace distfuse::scale
