// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/client_node.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace distfuse::scale {
namespace {

constexpr Time kFirstPause = 1'000'000 * kNanosecond;
constexpr Time kLongestPause = 100 * kFirstPause;
constexpr double kMicrosecond = 1000 * kNanosecond;

}  // namespace

std::uint32_t ClientNode::lock_of(std::uint32_t lockd, df_u64 key) {
  for (std::uint32_t i = 0; i < locks_.size(); ++i)
    if (locks_[i].core.key == key) return i;
  Lock& lock = locks_.emplace_back();
  df_lock_init(&lock.core, &table_, key);
  lock.lockd = lockd;
  return static_cast<std::uint32_t>(locks_.size() - 1);
}

ClientNode::Lock* ClientNode::find(std::uint32_t lockd, df_u64 key) {
  for (Lock& lock : locks_)
    if (lock.core.key == key && lock.lockd == lockd) return &lock;
  return nullptr;
}

df_u64 ClientNode::hold_clock(Time now) const {
  return static_cast<df_u64>(static_cast<double>(now) * parameters_.hold_divisor / kMicrosecond);
}

Time ClientNode::leaves(Time now) {
  nic_free_ = std::max(nic_free_, now + from_ns(parameters_.client_post_ns)) +
              from_ns(parameters_.client_nic_ns);
  return nic_free_;
}

Time ClientNode::handled_at(Time arrives) {
  const Time at = std::max(arrives + from_ns(parameters_.client_wake_ns), handling_free_);
  handling_free_ = at + from_ns(parameters_.client_message_ns);
  return at;
}

// --- the thread

void ClientNode::begin(const Operation& operation, std::uint32_t lockd, Time now) {
  operation_ = operation;
  operation_lock_ = lock_of(lockd, operation.key);
  begun_ = now;
  pause_ = kFirstPause;
  if (df_lock_pin(&locks_[operation_lock_].core, operation.mode) == DF_PIN_OK)
    granted(true);
  else
    want(now);
}

void ClientNode::want(Time now) {
  Lock& lock = locks_[operation_lock_];
  df_out out;
  waiting_ = true;
  switch (df_lock_want(&lock.core, operation_.mode, 0, &out)) {
    case DF_WANT_HELD:
      if (df_lock_pin(&lock.core, operation_.mode) != DF_PIN_OK)
        throw std::runtime_error("a lock is held, and not to be pinned");
      granted(false);
      break;
    case DF_WANT_STARTED:
      df_hold_wanted(&lock.hold, hold_clock(now));
      perform(operation_lock_, out, now);
      break;
    default:
      throw std::runtime_error("a want is refused");
  }
}

void ClientNode::retry(Time now) {
  if (!waiting_) return;
  pause_ = std::min(2 * pause_, kLongestPause);
  want(now);
}

void ClientNode::granted(bool cached) {
  waiting_ = false;
  df_hold_used(&locks_[operation_lock_].hold);
  network_.pinned(operation_.key, operation_.mode, 1);
  network_.operation_granted(index_, operation_, begun_, cached);
}

void ClientNode::end(Time now) {
  Lock& lock = locks_[operation_lock_];
  df_lock_unpin(&lock.core);
  network_.pinned(operation_.key, operation_.mode, -1);
  if (lock.shed_waits) {
    begin_shed(operation_lock_, now);
  } else if (operation_.drop) {
    df_out out;
    if (df_lock_drop(&lock.core, &out) == 0) perform(operation_lock_, out, now);
  }
}

// --- what the core gives out

void ClientNode::perform(std::uint32_t index, const df_out& out, Time now) {
  if (out.wake != 0) wake(index, out.wake, now);
  if (out.shed != 0) {
    locks_[index].keep = out.keep;
    if (locks_[index].core.revoke_seq != 0) df_hold_shed(&locks_[index].hold, hold_clock(now));
    begin_shed(index, now);
  }
  for (std::uint32_t i = 0; i < out.messages; ++i) send(locks_[index].lockd, out.message[i], now);
  if (out.post != 0) post(index, out.chain, now);
}

void ClientNode::wake(std::uint32_t index, std::uint32_t wake, Time now) {
  if ((wake & DF_WAKE_LOST) != 0) throw std::runtime_error("a session is lost");
  if ((wake & DF_WAKE_GRANTED) != 0) df_hold_granted(&locks_[index].hold, hold_clock(now));
  if (!waiting_ || index != operation_lock_) return;
  if ((wake & DF_WAKE_GRANTED) != 0 &&
      df_lock_pin_granted(&locks_[index].core, operation_.mode) == DF_PIN_OK)
    granted(false);
  else if ((wake & DF_WAKE_BUSY) != 0)
    network_.operation_retries_at(index_, now + pause_);
}

void ClientNode::begin_shed(std::uint32_t index, Time now) {
  Lock& lock = locks_[index];
  lock.shed_waits = df_lock_close_gate(&lock.core) != 0;
  if (lock.shed_waits) return;
  const double length = lock.core.held == DF_X   ? parameters_.shed_exclusive_ns
                        : lock.core.held == DF_S ? parameters_.shed_shared_ns
                                                 : 0;
  network_.shed_ends_at(index_, index, now + from_ns(length));
}

void ClientNode::shed_ended(std::uint32_t index, Time now) {
  Lock& lock = locks_[index];
  const df_value value{1, 1, 1, 0};
  df_out out;
  df_hold_given(&lock.hold, hold_clock(now));
  if (df_lock_shed_done(&lock.core, lock.keep, lock.core.held == DF_X ? &value : nullptr, &out) !=
      0)
    throw std::runtime_error("a shed is refused");
  perform(index, out, now);
}

void ClientNode::send(std::uint32_t lockd, const df_msg& message, Time now) {
  network_.send_to_lockd(index_, lockd, message, leaves(now));
}

void ClientNode::post(std::uint32_t index, const df_chain& chain, Time now) {
  Lock& lock = locks_[index];
  const bool of_word = chain.kind == DF_CHAIN_TAKE || chain.kind == DF_CHAIN_RELEASE ||
                       chain.kind == DF_CHAIN_PUBLISH;
  if (of_word && frozen(lock.lockd, chain.slot)) {
    lock.parked = true;
    lock.parked_chain = chain;
    return;
  }
  lock.staying = of_word || chain.kind == DF_CHAIN_UNDO;
  network_.post_chain(index_, index, lock.lockd, chain, leaves(now));
}

// --- what comes in

void ClientNode::chain_completed(std::uint32_t index, df_u64 old, const df_slot* image, Time now) {
  Lock& lock = locks_[index];
  df_out out;
  df_lock_chain_done(&lock.core, old, image, &out);
  lock.staying = out.post != 0 && out.chain.kind == DF_CHAIN_UNDO;
  perform(index, out, now);
  answer_freezes(index, now);
}

void ClientNode::message(std::uint32_t lockd, const df_msg& message, Time now) {
  Lock* lock = find(lockd, message.head.key);
  if (message.head.type == DF_MSG_FREEZE || message.head.type == DF_MSG_THAW) {
    message.head.type == DF_MSG_FREEZE ? freeze(lockd, message, now) : thaw(lockd, message, now);
    return;
  }
  if (lock == nullptr) {
    df_msg reply;
    if (df_client_unknown(&message, &reply) != 1)
      throw std::runtime_error("an answer for a lock that is not there");
    send(lockd, reply, now);
    return;
  }
  if (message.head.type == DF_MSG_REVOKE && lock->core.held != DF_NL &&
      parameters_.hold_divisor > 0) {
    const df_u64 serve = df_hold_revoked(&lock->hold, lock->core.held, hold_clock(now));
    if (serve > hold_clock(now)) {
      const double later = static_cast<double>(serve) * kMicrosecond / parameters_.hold_divisor;
      return network_.deliver_later(index_, lockd, message, static_cast<Time>(later) + kNanosecond);
    }
  }
  df_out out;
  if (df_lock_message(&lock->core, &message, nullptr, &out) != 0)
    throw std::runtime_error(std::string("a client breaks off at ") +
                             df_msg_name(message.head.type));
  perform(lock_of(lockd, message.head.key), out, now);
}

// --- frozen slots

bool ClientNode::frozen(std::uint32_t lockd, std::uint32_t slot) const {
  return std::ranges::find(frozen_, std::pair{lockd, slot}) != frozen_.end();
}

void ClientNode::freeze(std::uint32_t lockd, const df_msg& message, Time now) {
  if (!frozen(lockd, message.head.slot)) frozen_.emplace_back(lockd, message.head.slot);
  if (find(lockd, message.head.key) == nullptr) {
    df_msg reply;
    df_client_unknown(&message, &reply);
    send(lockd, reply, now);
    return;
  }
  const auto index = lock_of(lockd, message.head.key);
  locks_[index].freezes.push_back(message);
  answer_freezes(index, now);
}

void ClientNode::answer_freezes(std::uint32_t index, Time now) {
  Lock& lock = locks_[index];
  if (lock.staying || lock.freezes.empty()) return;
  for (const df_msg& message : std::exchange(lock.freezes, {})) {
    df_out out;
    if (df_lock_message(&lock.core, &message, nullptr, &out) != 0)
      throw std::runtime_error("a client breaks off at Freeze");
    perform(index, out, now);
  }
}

void ClientNode::thaw(std::uint32_t lockd, const df_msg& message, Time now) {
  std::erase(frozen_, std::pair{lockd, message.head.slot});
  Lock* lock = find(lockd, message.head.key);
  if (lock == nullptr) return;
  lock->freezes.clear();
  if (!std::exchange(lock->parked, false)) return;
  post(lock_of(lockd, message.head.key), df_chain(lock->parked_chain), now);
}

}  // namespace distfuse::scale
