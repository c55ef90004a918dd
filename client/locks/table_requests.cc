// SPDX-License-Identifier: Apache-2.0
// Calls that are not a lock's own: glimpses, and file locks by message.
#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "client/locks/table.h"

namespace distfuse::client {

namespace {

using std::chrono::milliseconds;

constexpr int kBusyTries = 50;  // With pauses up to 20 ms: about a second.

df_slot slot_at(const std::byte* image, unsigned index) {
  df_slot slot;
  std::memcpy(&slot, image + index * sizeof(slot), sizeof(slot));
  return slot;
}

class CreditLoan {
 public:
  explicit CreditLoan(Credits& credits) : credits_(credits) {}
  CreditLoan(const CreditLoan&) = delete;
  CreditLoan& operator=(const CreditLoan&) = delete;
  ~CreditLoan() {
    if (taken_) credits_.give();
  }
  bool take() { return taken_ = credits_.try_take(); }
  /// The loan outlives this: who calls give() later.
  void hand_over() { taken_ = false; }

 private:
  Credits& credits_;
  bool taken_ = false;
};

df_u8 type_of(std::int16_t type) {
  return type == F_RDLCK ? DF_FILE_READ : type == F_WRLCK ? DF_FILE_WRITE : DF_FILE_NONE;
}

}  // namespace

// --- glimpses ---------------------------------------------------------------------------------

/// Asks lockd. FileTest and FileUnlock it answers at once. Find and Glimpse may need another client, which may stand still: so an interrupted
/// caller leaves, and its credit comes back with the answer. Error: ECONNRESET: the link ended first.
Result<df_msg> Table::call_over(Link& link, const df_msg& message, const Interrupted& interrupted) {
  CreditLoan credit(*call_credits_);
  while (!credit.take()) {
    if (lost_) return Error{ENOTCONN, "the session with lockd is lost"};
    if (interrupted && interrupted()) return Error{EINTR, "interrupted while waiting to ask lockd"};
    call_credits_->wait(kPoll);
  }
  if (!interrupted) return link.requests.ask(message);
  auto answer = link.requests.ask_or_leave(message, interrupted, [this] { call_credits_->give(); });
  if (!answer && answer.error().code == EINTR) credit.hand_over();
  return answer;
}

/// The same, of whichever lockd there is: what was asked of one that ended is asked of the next.
Result<df_msg> Table::call(const df_msg& message, const Interrupted& interrupted) {
  while (true) {
    auto link = live_link(interrupted);
    if (!link) return link.error();
    auto answer = call_over(**link, message, interrupted);
    if (answer || answer.error().code != ECONNRESET) return answer;
  }
}

/// Error: ECONNRESET: the link ended.
Status Table::run_read(Link& link, df_u64 offset, df_u32 length, std::span<std::byte> into) {
  df_chain chain;
  df_chain_init(&chain, DF_CHAIN_FIND, DF_NO_SLOT);
  df_chain_read(&chain, offset, length);
  auto lane = link.lanes->borrow();
  if (!lane) {
    link_failed(link, lane.error());
    return Error{ECONNRESET, lane.error().message};
  }
  auto result = (*lane)->run(chain, link.lanes->closed());
  if (!result) {
    link_failed(link, result.error());
    return Error{ECONNRESET, result.error().message};
  }
  std::memcpy(into.data(), result->image, length);
  return {};
}

/// The key's slot and what is in it; DF_NO_SLOT: it has none, so nobody holds the lock.
Result<Table::Located> Table::find_in_bucket(Link& link, df_u64 key,
                                             const Interrupted& interrupted) {
  std::byte image[DF_BUCKET_SIZE];
  const df_u32 bucket = df_hash_bucket(key, link.geometry.buckets);
  DISTFUSE_TRY(run_read(link, df_u64{bucket} * DF_BUCKET_SIZE, DF_BUCKET_SIZE, image));
  bool room = false;
  for (unsigned i = 0; i < DF_BUCKET_SLOTS; ++i) {
    const auto slot = slot_at(image, i);
    if (slot.key == key) return Located{bucket * DF_BUCKET_SLOTS + i, slot};
    room |= slot.key == 0;
  }
  if (room) return Located{};
  // A full bucket: it may be in the overflow area, which only lockd knows.
  df_msg find;
  df_msg_init(&find, DF_MSG_FIND, 0, key, 0);
  auto found = call_over(link, find, interrupted);
  if (!found) return found.error();
  if (found->found.status != DF_FOUND_SLOT) return Error{EAGAIN, "lockd has no room for a request"};
  return locate(link, key, found->head.slot, interrupted);
}

Result<Table::Located> Table::locate(Link& link, df_u64 key, df_u32 slot,
                                     const Interrupted& interrupted) {
  if (slot == DF_NO_SLOT) return find_in_bucket(link, key, interrupted);
  std::byte image[DF_SLOT_SIZE];
  DISTFUSE_TRY(run_read(link, df_slot_offset(slot), DF_SLOT_SIZE, image));
  const auto content = slot_at(image, 0);
  if (content.key != key) return Error{EAGAIN, "the slot has another key now"};
  return Located{slot, content};
}

/// One try; EAGAIN: the slot moved, or lockd had no room; ECONNRESET: the link ended.
Result<std::optional<ValueBlock>> Table::glimpse_once(df_u64 key, df_u32 slot,
                                                      const Interrupted& interrupted) {
  auto link = live_link(interrupted);
  if (!link) return link.error();
  if (slot >= df_table_slots(&(*link)->geometry)) slot = DF_NO_SLOT;  // Of a table that is gone.
  auto located = locate(**link, key, slot, interrupted);
  if (!located) return located.error();
  if (located->slot == DF_NO_SLOT ||
      df_glimpse_needed(&located->image, key, (*link)->geometry.node) == 0) {
    return std::optional<ValueBlock>{};
  }
  df_msg glimpse;
  df_msg_init(&glimpse, DF_MSG_GLIMPSE, located->slot, key, 0);
  auto reply = call_over(**link, glimpse, interrupted);
  if (!reply) return reply.error();
  const auto& answer = reply->glimpse_reply;
  if (answer.status != DF_GLIMPSE_OK) return Error{EAGAIN, "the glimpse came at a bad time"};
  if (answer.fresh == 0 || (answer.value.flags & DF_VALUE_PUBLISHED) == 0) {
    return std::optional<ValueBlock>{};
  }
  return std::optional(ValueBlock{answer.value.size,
                                  static_cast<std::int64_t>(answer.value.mtime_ns),
                                  static_cast<std::int64_t>(answer.value.ctime_ns)});
}

Result<std::optional<ValueBlock>> Table::glimpse(Ino ino, const Interrupted& interrupted) {
  df_u32 slot = DF_NO_SLOT;
  if (const auto lock = locks_.find(ino)) {
    Guard guard(lock->mutex);
    if (lock->core.held == DF_X) {
      // Our own, but being given up, or the caller would have a pin: shed may not have told the server yet.
      guard.unlock();
      return owner_.publish(ino);
    }
    if (lock->covers(Mode::s) && keeper_->trusted())
      return std::optional<ValueBlock>{};  // Nobody else holds X.
    slot = lock->core.slot;
  }
  counts_.glimpses.fetch_add(1, std::memory_order_relaxed);
  auto result = glimpse_once(df_key_inode(ino), slot, interrupted);
  milliseconds pause{0};
  for (int i = 1; i < kBusyTries && !result; ++i) {
    if (result.error().code == ECONNRESET)
      i = 0;  // The next link is waited for as long as it may take.
    if (result.error().code != EAGAIN && result.error().code != ECONNRESET) break;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2 + milliseconds(1), milliseconds(20));
    result = glimpse_once(df_key_inode(ino), DF_NO_SLOT, interrupted);
  }
  return result;
}

// --- file locks -------------------------------------------------------------------------------

df_msg Table::file_message(df_u32 type, const FileLock& lock) const {
  df_msg message;
  df_msg_init(&message, type, 0, df_key_inode(lock.ino), 0);
  auto& file = message.file;
  file.owner = lock.owner;
  file.start = lock.flock ? 0 : lock.start;
  file.end = lock.flock ? ~df_u64{0} : lock.end;
  file.pid = lock.pid;
  file.type = type == DF_MSG_FILE_UNLOCK ? df_u8{DF_FILE_NONE} : type_of(lock.type);
  file.flags = lock.flock ? DF_FILE_FLOCK : 0;
  return message;
}

Result<df_msg> Table::wait_for_file_lock(df_msg message, const Interrupted& interrupted) {
  CreditLoan credit(*wait_credits_);
  if (!credit.take())
    return Error{ENOLCK, "too many file locks of this mount are being waited for"};
  message.file.flags |= DF_FILE_WAIT;
  while (true) {
    auto link = live_link(interrupted);
    if (!link) return link.error();
    auto answer = (*link)->requests.ask(message, interrupted, DF_MSG_FILE_CANCEL);
    if (answer || answer.error().code != ECONNRESET) return answer;
  }
}

void Table::note_file_owner(const FileLock& lock) {
  const std::lock_guard guard(file_owners_mutex_);
  auto& owners = file_owners_[lock.ino];
  const std::pair owner(lock.owner, lock.flock);
  if (std::ranges::find(owners, owner) == owners.end()) owners.push_back(owner);
}

Status Table::file_lock(const FileLock& lock, bool wait, const Interrupted& interrupted) {
  const bool unlock = lock.type == F_UNLCK;
  if (!lock.flock && lock.start > lock.end) return Error{EINVAL, "an empty range"};
  if (!unlock)
    note_file_owner(lock);  // Before: a release must not miss a lock that is being granted.
  const auto message = file_message(unlock ? DF_MSG_FILE_UNLOCK : DF_MSG_FILE_LOCK, lock);
  const auto reply = wait && !unlock ? wait_for_file_lock(message, interrupted) : call(message);
  if (!reply) return reply.error();
  const int error = reply->file_reply.error;
  if (error != 0) return Error{error, std::strerror(error)};
  return {};
}

Result<LockTable::FileLock> Table::file_lock_test(const FileLock& lock) {
  const auto reply = call(file_message(DF_MSG_FILE_TEST, lock));
  if (!reply) return reply.error();
  const auto& answer = reply->file_reply;
  if (answer.error != 0) return Error{answer.error, std::strerror(answer.error)};
  FileLock result = lock;
  result.type = F_UNLCK;
  if (answer.type == DF_FILE_NONE) return result;
  result.type = answer.type == DF_FILE_READ ? F_RDLCK : F_WRLCK;
  result.owner = answer.owner;
  result.start = answer.start;
  result.end = answer.end;
  result.pid = answer.pid;
  return result;
}

void Table::file_lock_release_owner(Ino ino, std::uint64_t owner) {
  std::vector<bool> kinds;
  {
    const std::lock_guard guard(file_owners_mutex_);
    const auto found = file_owners_.find(ino);
    if (found == file_owners_.end()) return;
    std::erase_if(found->second, [&](const auto& entry) {
      if (entry.first != owner) return false;
      kinds.push_back(entry.second);
      return true;
    });
    if (found->second.empty()) file_owners_.erase(found);
  }
  for (const bool flock : kinds) {
    const FileLock all{ino, owner, flock, F_UNLCK, 0, ~std::uint64_t{0}, 0};
    (void)call(file_message(DF_MSG_FILE_UNLOCK, all));  // A lost session has freed them anyway.
  }
}

}  // namespace distfuse::client
