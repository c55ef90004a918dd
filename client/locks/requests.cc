// SPDX-License-Identifier: Apache-2.0
#include "client/locks/requests.h"

namespace distfuse::client {

namespace {

constexpr std::chrono::milliseconds kPoll{
    50};  // How often a waiting call asks whether it was interrupted.

df_u32 answer_to(df_u32 type) {
  switch (type) {
    case DF_MSG_GLIMPSE:
      return DF_MSG_GLIMPSE_REPLY;
    case DF_MSG_FIND:
      return DF_MSG_FOUND;
    default:
      return DF_MSG_FILE_REPLY;
  }
}

Error cut_error() {
  return {ECONNRESET, "the connection to lockd ended"};
}

}  // namespace

/// With the mutex held.
std::uint64_t Requests::send(df_msg& message, Waiting& waiting) {
  const std::uint64_t id = next_++;
  message.head.seq = id;
  waiting_[id] = &waiting;
  control_.send(message);
  return id;
}

Result<df_msg> Requests::ask(df_msg message, const Interrupted& interrupted, df_u32 cancel) {
  Waiting waiting{answer_to(message.head.type), {}, &message};
  std::unique_lock lock(mutex_);
  if (closed_) return cut_error();
  const std::uint64_t id = send(message, waiting);
  bool cancelled = false;
  while (!waiting.answer && !closed_) {
    answered_.wait_for(lock, kPoll);
    if (waiting.answer || closed_ || cancelled || cancel == 0 || !interrupted) continue;
    lock.unlock();
    cancelled = interrupted();
    if (cancelled) {
      df_msg stop;
      df_msg_init(&stop, cancel, message.head.slot, message.head.key, id);
      control_.send(stop);
    }
    lock.lock();
  }
  waiting_.erase(id);
  if (!waiting.answer) return cut_error();
  return *waiting.answer;
}

Result<df_msg> Requests::ask_or_leave(df_msg message, const Interrupted& interrupted,
                                      std::function<void()> late) {
  Waiting waiting{answer_to(message.head.type), {}, &message};
  std::unique_lock lock(mutex_);
  if (closed_) return cut_error();
  const std::uint64_t id = send(message, waiting);
  bool leave = false;
  auto asked_at = std::chrono::steady_clock::now();
  while (!waiting.answer && !closed_ && !leave) {
    answered_.wait_for(lock, kPoll);
    // Each answer wakes everybody: who waits for another asks only so often.
    if (!interrupted || std::chrono::steady_clock::now() - asked_at < kPoll) continue;
    lock.unlock();
    leave = interrupted();
    lock.lock();
    asked_at = std::chrono::steady_clock::now();
  }
  waiting_.erase(id);
  if (waiting.answer) return *waiting.answer;
  if (closed_) return cut_error();
  left_.emplace(id, Left{waiting.type, std::move(late)});
  return Error{EINTR, "interrupted while waiting for lockd"};
}

bool Requests::answer(const df_msg& message) {
  const std::lock_guard lock(mutex_);
  if (closed_) return true;  // Its asker has gone.
  if (const auto left = left_.find(message.head.seq);
      left != left_.end() && left->second.type == message.head.type) {
    left->second.late();
    left_.erase(left);
    return true;
  }
  const auto found = waiting_.find(message.head.seq);
  if (found == waiting_.end() || found->second->type != message.head.type ||
      found->second->answer) {
    return false;
  }
  const df_u32 asked = found->second->request->head.type;
  if (hook_ && (asked == DF_MSG_FILE_LOCK || asked == DF_MSG_FILE_UNLOCK) &&
      message.file_reply.error == 0)
    hook_(*found->second->request);
  found->second->answer = message;
  answered_.notify_all();
  return true;
}

void Requests::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (auto& [id, left] : left_) left.late();
  left_.clear();
  answered_.notify_all();
}

}  // namespace distfuse::client
