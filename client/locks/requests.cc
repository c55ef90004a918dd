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

}  // namespace

Result<df_msg> Requests::ask(df_msg message, const Interrupted& interrupted, df_u32 cancel) {
  Waiting waiting{answer_to(message.head.type), {}};
  std::unique_lock lock(mutex_);
  if (closed_) return Error{ENOTCONN, "the session is lost"};
  const std::uint64_t id = next_++;
  message.head.seq = id;
  waiting_[id] = &waiting;
  control_.send(message);
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
  if (!waiting.answer) return Error{ENOTCONN, "the session is lost"};
  return *waiting.answer;
}

bool Requests::answer(const df_msg& message) {
  const std::lock_guard lock(mutex_);
  const auto found = waiting_.find(message.head.seq);
  if (found == waiting_.end() || found->second->type != message.head.type ||
      found->second->answer) {
    return false;
  }
  found->second->answer = message;
  answered_.notify_all();
  return true;
}

void Requests::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  answered_.notify_all();
}

}  // namespace distfuse::client
