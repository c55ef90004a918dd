// SPDX-License-Identifier: Apache-2.0
#include "lockd/testing/honest_client.h"

#include <cstdio>
#include <cstdlib>

namespace distfuse::lockd::testing {

namespace {

void require(bool good, int line = __builtin_LINE()) {
  if (good) return;
  std::fprintf(stderr, "honest_client.cc:%d: an honest client breaks off\n", line);
  std::abort();
}

}  // namespace

HonestClient::HonestClient(ArrayShell& shell, ConnectionId control, const df_welcome& welcome,
                           const std::vector<std::uint64_t>& keys)
    : shell_(shell),
      control_(control),
      session_(welcome.session),
      token_(std::to_array(welcome.token)),
      table_{welcome.buckets, welcome.overflow, welcome.node} {
  for (const auto key : keys) df_lock_init(&locks_.emplace_back().core, &table_, key);
}

bool HonestClient::waits(std::size_t lock) const {
  const auto thread = locks_[lock].thread;
  return thread == Thread::waiting || thread == Thread::trying || thread == Thread::retry;
}

bool HonestClient::quiet(std::size_t lock) const {
  return df_lock_quiet(&locks_[lock].core) != 0;
}

HonestClient::Holds HonestClient::holds(std::size_t lock) const {
  const auto& core = locks_[lock].core;
  if (phase_ == Phase::away || locks_[lock].again != Again::no) return {};
  if (core.asked != 0 && core.held != DF_NL) return {};  // A grant may have replaced it already.
  if (core.chain == DF_CHAIN_TAKE || core.chain == DF_CHAIN_UNDO) return {};
  const bool given_up = core.chain == DF_CHAIN_RELEASE && locks_[lock].chain->done;
  return {given_up ? core.kept : core.held, core.slot};
}

std::uint32_t HonestClient::effective(std::size_t lock) const {
  const auto& core = locks_[lock].core;
  return core.chain == DF_CHAIN_RELEASE ? core.kept : core.held;
}

std::optional<df_msg> HonestClient::say() {
  if (outbox_.empty()) return std::nullopt;
  const auto message = outbox_.front();
  outbox_.pop_front();
  return message;
}

// ---- the application

void HonestClient::want(Lock& lock) {
  df_out out;
  const bool try_only = lock.thread == Thread::trying;
  if (!try_only) lock.thread = Thread::waiting;
  const int result = df_lock_want(&lock.core, lock.mode, try_only ? 1 : 0, &out);
  require(result != DF_WANT_LOST);
  if (result == DF_WANT_HELD) {
    require(df_lock_pin(&lock.core, lock.mode) == DF_PIN_OK);
    lock.thread = Thread::holding;
  } else if (result == DF_WANT_BUSY) {
    lock.thread = Thread::idle;
  } else {
    output(lock, out);
  }
}

void HonestClient::act(std::size_t index, std::uint32_t mode, bool try_only) {
  auto& lock = locks_[index];
  switch (lock.thread) {
    case Thread::holding:
      df_lock_unpin(&lock.core);
      lock.thread = Thread::idle;
      return;
    case Thread::retry:
      return want(lock);
    case Thread::idle:
      lock.mode = mode;
      if (df_lock_pin(&lock.core, mode) == DF_PIN_OK) {
        lock.thread = Thread::holding;
        return;
      }
      lock.thread = try_only ? Thread::trying : Thread::waiting;
      return want(lock);
    default:
      return;
  }
}

void HonestClient::let_go(std::size_t index) {
  const auto thread = locks_[index].thread;
  if (thread == Thread::holding || thread == Thread::retry) act(index, DF_NL, false);
}

void HonestClient::cancel(std::size_t index) {
  auto& lock = locks_[index];
  if (lock.thread != Thread::waiting) return;
  lock.thread = Thread::idle;
  df_out out;
  df_lock_cancel(&lock.core, &out);
  output(lock, out);
}

void HonestClient::drop(std::size_t index) {
  df_out out;
  if (df_lock_drop(&locks_[index].core, &out) == 0) output(locks_[index], out);
}

void HonestClient::glimpse(std::size_t index) {
  const auto& core = locks_[index].core;
  if (core.slot == DF_NO_SLOT || glimpses_ >= 2 ||
      df_glimpse_needed(&shell_.slots[core.slot], core.key, table_.node) == 0)
    return;
  df_msg message;
  df_msg_init(&message, DF_MSG_GLIMPSE, core.slot, core.key, ++glimpses_ | 1ULL << 40);
  send(message);
}

// ---- what the core asks for

void HonestClient::output(Lock& lock, const df_out& out) {
  if ((out.wake & DF_WAKE_RELEASED) != 0) lock.shedding = false;
  if (out.wake != 0) wake(lock, out.wake);
  if (out.shed != 0) lock.shedding = true;
  for (unsigned i = 0; i < out.messages; ++i) {
    require(df_msg_check(&out.message[i], out.message[i].head.length) == DF_CHECK_OK);
    send(out.message[i]);
  }
  if (out.post == 0) return;
  require(lock.chain == nullptr);
  lock.chain = std::make_unique<Chain>();
  lock.chain->chain = out.chain;
  const auto kind = out.chain.kind;
  lock.parked = (kind == DF_CHAIN_TAKE || kind == DF_CHAIN_RELEASE || kind == DF_CHAIN_PUBLISH) &&
                frozen_.contains(out.chain.slot);
  if (!lock.parked && out.chain.slot != DF_NO_SLOT && kind != DF_CHAIN_CLAIM)
    lock.gate_slot = out.chain.slot;
}

void HonestClient::wake(Lock& lock, std::uint32_t wake) {
  require((wake & DF_WAKE_LOST) == 0);
  if (lock.again != Again::no) {
    require((wake & DF_WAKE_GRANTED) == 0);
    forfeited_ += (wake & DF_WAKE_FORFEITED) != 0 ? 1 : 0;
    if ((wake & DF_WAKE_BUSY) != 0) lock.again = Again::busy;
    if ((wake & (DF_WAKE_REASSERTED | DF_WAKE_FORFEITED)) != 0) lock.again = Again::no;
    return;
  }
  if (lock.thread != Thread::waiting && lock.thread != Thread::trying) return;
  if ((wake & DF_WAKE_GRANTED) != 0 && df_lock_pin_granted(&lock.core, lock.mode) == DF_PIN_OK) {
    lock.thread = Thread::holding;
  } else if ((wake & DF_WAKE_WOULD_BLOCK) != 0 && lock.thread == Thread::trying) {
    lock.thread = Thread::idle;
  } else if ((wake & DF_WAKE_BUSY) != 0) {
    lock.thread = lock.thread == Thread::trying ? Thread::idle : Thread::retry;
  }
}

bool HonestClient::step_chain(std::size_t index) {
  auto& lock = locks_[index];
  if (!lock.chain || lock.parked) return false;
  if (!lock.chain->done) {
    lock.chain->image = shell_.perform(lock.chain->chain, lock.chain->old);
    lock.chain->done = true;
    return true;
  }
  const auto chain = std::move(lock.chain);
  df_out out;
  df_lock_chain_done(&lock.core, chain->old, chain->image.empty() ? nullptr : chain->image.data(),
                     &out);
  if (out.post == 0 || out.chain.kind != DF_CHAIN_UNDO) lock.gate_slot = DF_NO_SLOT;
  output(lock, out);
  return true;
}

bool HonestClient::step_shed(std::size_t index) {
  auto& lock = locks_[index];
  if (!lock.shedding || lock.core.pins != 0) return false;
  if (lock.core.gate == DF_GATE_REVOKING) {
    require(df_lock_close_gate(&lock.core) == 0);
    return true;
  }
  const df_value value{1, 2, 3, 0};
  df_out out;
  require(df_lock_shed_done(&lock.core, lock.core.keep, lock.core.held == DF_X ? &value : nullptr,
                            &out) == 0);
  lock.shedding = false;
  output(lock, out);
  return true;
}

// ---- what lockd says

HonestClient::Lock* HonestClient::find(std::uint64_t key) {
  for (auto& lock : locks_)
    if (lock.core.key == key) return &lock;
  return nullptr;
}

void HonestClient::thaw(std::uint32_t slot) {
  frozen_.erase(slot);
  std::erase_if(freezes_, [&](const df_msg& freeze) { return freeze.head.slot == slot; });
  for (auto& lock : locks_) {
    if (!lock.parked || lock.chain->chain.slot != slot) continue;
    lock.parked = false;
    lock.gate_slot = slot;
  }
}

bool HonestClient::step_inbox() {
  if (inbox_.empty()) return false;
  const auto message = inbox_.front();
  inbox_.pop_front();
  switch (message.head.type) {
    case DF_MSG_GLIMPSE_REPLY:
      --glimpses_;
      return true;
    case DF_MSG_FILE_REPLY:
      return true;
    case DF_MSG_FREEZE:
      frozen_.insert(message.head.slot);
      freezes_.push_back(message);
      return true;
    case DF_MSG_RESUME:
      resume();
      return true;
    case DF_MSG_THAW:
      thaw(message.head.slot);
      return true;
    default:
      break;
  }
  auto* lock = find(message.head.key);
  if (lock == nullptr) {
    df_msg reply;
    require(df_client_unknown(&message, &reply) == 1);
    send(reply);
    return true;
  }
  const df_value value{4, 5, 6, 0};
  df_out out;
  require(df_lock_message(&lock->core, &message,
                          message.head.type == DF_MSG_GLIMPSE ? &value : nullptr, &out) == 0);
  output(*lock, out);
  return true;
}

/// Answers the first Freeze whose slot no lock is inside of.
bool HonestClient::step_freeze() {
  for (auto freeze = freezes_.begin(); freeze != freezes_.end(); ++freeze) {
    const auto slot = freeze->head.slot;
    if (std::any_of(locks_.begin(), locks_.end(),
                    [&](const Lock& lock) { return lock.gate_slot == slot; }))
      continue;
    const auto message = *freeze;
    freezes_.erase(freeze);
    auto* lock = find(message.head.key);
    if (lock == nullptr) {
      df_msg reply;
      require(df_client_unknown(&message, &reply) == 1);
      send(reply);
    } else {
      df_out out;
      require(df_lock_message(&lock->core, &message, nullptr, &out) == 0);
      output(*lock, out);
    }
    return true;
  }
  return false;
}

// ---- lockd's restart

void HonestClient::detach() {
  phase_ = Phase::away;
  inbox_.clear();
  outbox_.clear();
  frozen_.clear();
  freezes_.clear();
  glimpses_ = 0;
  for (auto& lock : locks_) {
    lock.chain.reset();
    lock.parked = false;
    lock.gate_slot = DF_NO_SLOT;
    lock.again = Again::no;
    df_lock_detach(&lock.core);
  }
}

void HonestClient::rejoin(ConnectionId control, const df_welcome& welcome) {
  require(welcome.session == session_ && welcome.node == table_.node && welcome.grace_ms != 0);
  control_ = control;
  phase_ = Phase::reasserting;
  for (auto& lock : locks_) reassert(lock);
}

void HonestClient::reassert(Lock& lock) {
  df_out out;
  lock.again = Again::under_way;
  if (df_lock_reassert(&lock.core, &out) == 0)
    lock.again = Again::no;
  else
    output(lock, out);
}

bool HonestClient::step_reassert() {
  if (phase_ != Phase::reasserting) return false;
  bool all = true;
  for (auto& lock : locks_) {
    if (lock.again == Again::busy) reassert(lock);
    all = all && lock.again == Again::no;
  }
  if (!all) return false;
  phase_ = Phase::reclaimed;
  df_msg message;
  df_msg_init(&message, DF_MSG_RECLAIMED, 0, 0, 0);
  send(message);
  return true;
}

void HonestClient::resume() {
  require(phase_ == Phase::reclaimed);
  phase_ = Phase::live;
  for (auto& lock : locks_) {
    df_out out;
    df_lock_resume(&lock.core, &out);
    output(lock, out);
  }
}

}  // namespace distfuse::lockd::testing
