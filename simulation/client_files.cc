// SPDX-License-Identifier: Apache-2.0
// File locks of a mount: asked for at lockd, held for a while, sent again to a new lockd in its grace.
#include <cerrno>

#include "simulation/client_node.h"
#include "simulation/world.h"

namespace distfuse::simulation {

void ClientNode::send_file(Link& link, unsigned key, df_u32 type, df_u8 flags) {
  df_msg message;
  df_msg_init(&message, type, 0, df_key_inode(key + 1), next_file_++);
  message.file.owner = number_ + 1;
  message.file.end = ~0ULL;
  message.file.type = type == DF_MSG_FILE_LOCK ? DF_FILE_WRITE : DF_FILE_NONE;
  message.file.flags = flags;
  files_[key].lock.request = message.head.seq;
  send(link, message);
}

void ClientNode::file_lock(unsigned i) {
  auto& thread = threads_[i];
  auto& l = link(thread.key);
  auto& lock = files_[thread.key].lock;
  const auto state = l.machine.state;
  if (lock.state != FileLock::free || (state != DF_SESSION_LIVE && state != DF_SESSION_RECLAIMING))
    return finish(i);
  thread.state = Thread::filing;
  lock = {FileLock::asked, 0, false, i};
  const bool wait = world_.random.percent(60);
  send_file(l, thread.key, DF_MSG_FILE_LOCK, wait ? DF_FILE_WAIT : 0);
}

void ClientNode::file_unlock(unsigned i) {
  auto& thread = threads_[i];
  auto& l = link(thread.key);
  if (l.machine.state != DF_SESSION_LIVE) return later(i, 1000, &ClientNode::file_unlock);
  files_[thread.key].lock.state = FileLock::unlocking;
  send_file(l, thread.key, DF_MSG_FILE_UNLOCK, 0);
}

void ClientNode::file_reply(Link& link, const df_msg_file_reply& reply) {
  const auto key = static_cast<unsigned>((reply.head.key >> DF_KEY_EXTENT_BITS) - 1);
  auto& lock = files_.at(key).lock;
  if (lock.state == FileLock::free || lock.request != reply.head.seq) return;
  if (lock.reclaiming) {
    lock.reclaiming = false;
    if (reply.error != 0)
      throw Violation(name() + ": a file lock did not survive lockd: error " +
                      std::to_string(reply.error));
    world_.reached(Branch::file_lock_reclaimed);
    return file_locked(key);
  }
  if (lock.state == FileLock::asked && reply.error == 0) {
    if (world_.now() - threads_[lock.thread].since > 20 * world_.options.latency)
      world_.reached(Branch::file_lock_waited);
    lock.state = FileLock::held;
    file_locked(key);
    return later(lock.thread, world_.random.spread(world_.options.hold), &ClientNode::file_unlock);
  }
  if (reply.error == EAGAIN && link.machine.state == DF_SESSION_RECLAIMING)
    world_.reached(Branch::file_lock_in_grace);
  lock.state = FileLock::free;
  finish(lock.thread);
}

/// Nobody else who is trusted has it.
void ClientNode::file_locked(unsigned key) {
  world_.note(*this, "file lock", key);
  if (!trusted(link(key))) return;
  for (const auto& other : world_.clients) {
    if (other.get() == this || !other->alive()) continue;
    const auto theirs = other->files_[key].lock.state;
    if ((theirs == FileLock::held) && other->trusted(other->link(key)))
      throw Violation(name() + " and " + other->name() + " hold the file lock of key " +
                      std::to_string(key));
  }
}

/// A request on its way will not be answered; what is held stays held.
void ClientNode::detach_file_lock(unsigned key) {
  auto& lock = files_[key].lock;
  lock.reclaiming = false;
  if (lock.state != FileLock::asked && lock.state != FileLock::unlocking) return;
  const auto thread = lock.thread;
  lock.state = FileLock::free;
  finish(thread);
}

void ClientNode::reclaim_file_lock(Link& link, unsigned key) {
  auto& lock = files_[key].lock;
  if (lock.state != FileLock::held) return;
  lock.reclaiming = true;
  send_file(link, key, DF_MSG_FILE_LOCK, DF_FILE_RECLAIM);
}

}  // namespace distfuse::simulation
