// SPDX-License-Identifier: Apache-2.0
// Locks of a mount: what struct df_out says is done here; the gate per slot that Freeze needs (rdma/lock/client.h).
#include <algorithm>
#include <cstring>

#include "simulation/client_node.h"
#include "simulation/world.h"

namespace distfuse::simulation {

void ClientNode::reset_lock(Link& link, unsigned key) {
  locks_[key] = {};
  df_lock_init(&locks_[key].core, &link.table, df_key_inode(key + 1));
  // One that is made without a lockd waits for Resume like the others.
  if (link.session &&
      (link.machine.state == DF_SESSION_CONNECTING || link.machine.state == DF_SESSION_RECLAIMING))
    df_lock_detach(&locks_[key].core);
}

void ClientNode::output(unsigned key, const df_out& out) {
  auto& lock = locks_[key];
  auto& l = link(key);
  if ((out.wake & (DF_WAKE_GRANTED | DF_WAKE_REASSERTED)) != 0) lock.known = true;
  check_cover(key);
  if ((out.wake & DF_WAKE_RELEASED) != 0) lock.shedding = lock.done_said = false;
  if (out.wake != 0) wake(key, out.wake);
  if (out.shed != 0) {
    if ((out.wake & DF_WAKE_GRANTED) != 0) world_.reached(Branch::revoke_overtakes_grant);
    begin_shed(key, out.keep);
  }
  for (unsigned i = 0; i < out.messages; ++i) send(l, out.message[i]);
  if (out.post != 0) post(key, out.chain);
  if ((out.wake & DF_WAKE_FORFEITED) != 0) {
    world_.note(*this, "forfeited", key);
    world_.reached(Branch::forfeited);
    if (!world_.oracle.tainted(page_id(key, 0)))
      throw Violation(name() + " forfeits a lock that nobody lied about");
    // Forget, without writing; who is inside fails.
    lose_pages(key);
    lock.changed = lock.unpublished = false;
    lock.keep = DF_NL;
    for (unsigned i = 0; i < threads_.size(); ++i)
      if (threads_[i].key == key && threads_[i].pinned) fail(i, true);
    shed_progress(key);
    fsync_step(key);
  }
  if ((out.wake & DF_WAKE_REASSERTED) != 0) world_.reached(Branch::reasserted);
  if ((out.wake & (DF_WAKE_REASSERTED | DF_WAKE_FORFEITED)) != 0) reasserted(l, key);
}

void ClientNode::send(Link& link, const df_msg& message) {
  if (df_msg_check(&message, message.head.length) != DF_CHECK_OK)
    throw Violation(name() + " would send a malformed " + df_msg_name(message.head.type));
  world_.note(*this, df_msg_name(message.head.type), message.head.key >> 24U, message.head.slot,
              message.head.seq);
  if (message.head.type == DF_MSG_ASK && message.ask.held != DF_NL)
    world_.reached(Branch::upgrade_asked);
  if (message.head.type == DF_MSG_FIND) world_.reached(Branch::find_asked);
  Packet packet;
  packet.lock = message;
  world_.network.send(link.control, *this, std::move(packet));
}

// ---- chains

namespace {

bool parked_when_frozen(const df_chain& chain) {
  return chain.kind == DF_CHAIN_TAKE || chain.kind == DF_CHAIN_RELEASE ||
         chain.kind == DF_CHAIN_PUBLISH;
}

/// The word's operation among a chain's; null: it has none.
const df_op* atomic_of(const df_chain& chain) {
  for (df_u32 i = 0; i < chain.count; ++i)
    if (chain.op[i].kind == DF_OP_CAS || chain.op[i].kind == DF_OP_FAA) return &chain.op[i];
  return nullptr;
}

}  // namespace

void ClientNode::post(unsigned key, const df_chain& chain) {
  auto& lock = locks_[key];
  if (lock.in_flight || lock.parked) throw Violation(name() + ": a second chain of one lock");
  if (parked_when_frozen(chain) && link(key).frozen.contains(chain.slot)) {
    world_.reached(Branch::freeze_parked);
    lock.parked = chain;
    return;
  }
  start_chain(key, chain);
}

void ClientNode::start_chain(unsigned key, const df_chain& chain) {
  auto& lock = locks_[key];
  auto& l = link(key);
  lock.in_flight = true;
  if (chain.slot != DF_NO_SLOT && chain.kind != DF_CHAIN_CLAIM) lock.gate_slot = chain.slot;
  if (l.lanes.empty()) return;
  world_.note(*this, "chain", key, chain.kind, chain.slot);
  auto posted = chain;
  // The mutant: an attempt that met the contended bit is not taken off the word again.
  if (chain.kind == DF_CHAIN_UNDO && lock.core.woken != 0 &&
      world_.options.mutant == Mutant::undo_forgets)
    posted.op[0].operand = 0;
  world_.network.post(l.lanes[key / links_.size() % l.lanes.size()], posted,
                      [this, key, chain, generation = l.generation](auto old, auto image) {
                        if (link(key).generation != generation || !locks_[key].in_flight) return;
                        chain_done(key, chain, old, image);
                      });
}

void ClientNode::note_chain(unsigned key, const df_chain& chain, std::uint64_t old) {
  const auto* atomic = atomic_of(chain);
  auto& lock = locks_[key];
  switch (chain.kind) {
    case DF_CHAIN_UNDO:
      if (df_word_contended(old) != 0 && lock.core.woken == 0)
        world_.reached(Branch::undo_saw_contended);
      break;
    case DF_CHAIN_CLAIM:
      if (old != 0 && old != lock.core.key) world_.reached(Branch::claim_lost);
      break;
    case DF_CHAIN_TAKE:
      if (atomic != nullptr && atomic->kind == DF_OP_CAS && atomic->expected != 0 &&
          atomic->expected == old)
        world_.reached(Branch::upgrade_in_place);
      break;
    default:
      break;
  }
}

void ClientNode::chain_done(unsigned key, const df_chain& chain, std::uint64_t old,
                            const df_u8* image) {
  auto& lock = locks_[key];
  world_.note(*this, "chain done", key, chain.kind, old);
  note_chain(key, chain, old);
  lock.in_flight = false;
  df_out out;
  df_lock_chain_done(&lock.core, old, image, &out);
  if (chain.kind == DF_CHAIN_TAKE && out.post != 0 && out.chain.kind == DF_CHAIN_UNDO &&
      lock.core.refind != 0)
    world_.reached(Branch::rekeyed_under_take);
  if (out.post == 0 || out.chain.kind != DF_CHAIN_UNDO) lock.gate_slot = DF_NO_SLOT;
  output(key, out);
  answer_freezes(link(key));
}

// ---- messages

void ClientNode::received(ConnectionId connection, const Packet& packet) {
  for (unsigned i = 0; i < storage_.size(); ++i)
    if (storage_[i].connection == connection) return storage_reply(i, packet.reply);
  auto* link = link_of(connection);
  if (link == nullptr || link->control != connection) return;
  lock_message(*link, packet.lock);
}

void ClientNode::lock_message(Link& link, const df_msg& message) {
  const auto& head = message.head;
  world_.note(*this, "got", head.type, head.key >> 24U, head.slot);
  switch (head.type) {
    case DF_MSG_RESUME: {
      df_session_out out;
      df_session_resumed(&link.machine, ms(), &out);
      return perform(link, out);
    }
    case DF_MSG_GLIMPSE_REPLY:
      link.glimpses -= link.glimpses != 0 ? 1 : 0;
      if (message.glimpse_reply.fresh != 0) world_.reached(Branch::glimpse_fresh);
      return;
    case DF_MSG_FILE_REPLY:
      return file_reply(link, message.file_reply);
    case DF_MSG_FREEZE:
      return freeze(link, message);
    case DF_MSG_THAW:
      return thaw(link, head.slot);
    default:
      break;
  }
  const auto key = static_cast<unsigned>((head.key >> DF_KEY_EXTENT_BITS) - 1);
  if (key >= locks_.size()) {
    df_msg reply;
    if (df_client_unknown(&message, &reply) == 1) send(link, reply);
    return;
  }
  auto& lock = locks_[key];
  df_value value{};
  const df_value* publish = nullptr;
  if (head.type == DF_MSG_GLIMPSE && lock.unpublished && lock.core.held == DF_X &&
      lock.core.chain != DF_CHAIN_RELEASE && lock.core.lost == 0) {
    lock.unpublished = false;
    value = value_of(key);
    publish = &value;
  }
  if (head.type == DF_MSG_REVOKE) {
    if (lock.core.chain == DF_CHAIN_TAKE) world_.reached(Branch::revoke_overtakes_take);
    if (lock.core.held == DF_NL && lock.core.chain == DF_CHAIN_NONE)
      world_.reached(Branch::hints_failed);
    if (lock.core.held != DF_NL && lock.core.asked != 0)
      world_.reached(Branch::second_upgrader_revoked);
  }
  if (head.type == DF_MSG_FOUND && message.found.status == DF_FOUND_SLOT &&
      head.slot >= link.table.buckets * DF_BUCKET_SLOTS)
    world_.reached(Branch::overflow_assigned);
  if (head.type == DF_MSG_GRANT) {
    if (message.grant.status == DF_GRANT_CANCELLED) world_.reached(Branch::cancelled);
    if (message.grant.status == DF_GRANTED && lock.core.cancelling != 0)
      world_.reached(Branch::grant_despite_cancel);
    lock.cancelled = false;
  }
  df_out out;
  if (df_lock_message(&lock.core, &message, publish, &out) != 0)
    throw Violation(name() + " breaks off at " + df_msg_name(head.type));
  output(key, out);
}

// ---- freeze

void ClientNode::freeze(Link& link, const df_msg& message) {
  world_.reached(Branch::frozen);
  link.frozen.insert(message.head.slot);
  link.freezes.push_back(message);
  const auto before = link.freezes.size();
  answer_freezes(link);
  if (link.freezes.size() == before) world_.reached(Branch::freeze_waited_for_chain);
}

void ClientNode::thaw(Link& link, df_u32 slot) {
  link.frozen.erase(slot);
  std::erase_if(link.freezes, [slot](const df_msg& freeze) { return freeze.head.slot == slot; });
  for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds) {
    auto& lock = locks_[key];
    if (!lock.parked || lock.parked->slot != slot) continue;
    const auto chain = *lock.parked;
    lock.parked.reset();
    start_chain(key, chain);
  }
}

/// Those for whose slots no chain of ours is on its way.
void ClientNode::answer_freezes(Link& link) {
  for (std::size_t i = 0; i < link.freezes.size();) {
    const df_msg message = link.freezes[i];
    bool busy = false;
    for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds)
      busy = busy || locks_[key].gate_slot == message.head.slot;
    if (busy) {
      ++i;
      continue;
    }
    link.freezes.erase(link.freezes.begin() + static_cast<std::ptrdiff_t>(i));
    const auto key = static_cast<unsigned>((message.head.key >> DF_KEY_EXTENT_BITS) - 1);
    if (key >= locks_.size() || world_.lockd_of(key) != link.lockd) {
      df_msg reply;
      if (df_client_unknown(&message, &reply) == 1) send(link, reply);
      continue;
    }
    df_out out;
    if (df_lock_message(&locks_[key].core, &message, nullptr, &out) != 0)
      throw Violation(name() + " breaks off at Freeze");
    output(key, out);
  }
}

// ---- waking

void ClientNode::wake(unsigned key, df_u32 wake) {
  auto& lock = locks_[key];
  if ((wake & DF_WAKE_GRANTED) != 0) {
    lock.granted_at = world_.now();
    world_.note(*this, "granted", key, lock.core.held);
    check_value(key);
  }
  if ((wake & DF_WAKE_BUSY) != 0) world_.reached(Branch::lockd_busy);
  if ((wake & DF_WAKE_BUSY) != 0 && link(key).reasserts.contains(key)) return reassert_later(key);
  for (unsigned i = 0; i < threads_.size(); ++i) {
    auto& thread = threads_[i];
    if (thread.key != key || (thread.state != Thread::waiting && thread.state != Thread::trying))
      continue;
    if ((wake & DF_WAKE_GRANTED) != 0 &&
        df_lock_pin_granted(&lock.core, thread.mode) == DF_PIN_OK) {
      pinned(i);
    } else if ((wake & DF_WAKE_WOULD_BLOCK) != 0 && thread.state == Thread::trying) {
      world_.reached(Branch::would_block);
      finish(i);
    } else if ((wake & DF_WAKE_BUSY) != 0) {
      if (thread.state == Thread::trying) {
        finish(i);
        continue;
      }
      thread.state = Thread::retry;
      later(i, thread.pause_ms * 1000 + world_.random.below(500), &ClientNode::want);
      thread.pause_ms = std::min(thread.pause_ms * 2, 100U);
    }
  }
}

/// The value block is the last writer's, or says that it was not published. Where storageds lose what was not synced the content changes
/// without a lock.
void ClientNode::check_value(unsigned key) const {
  const auto& lock = locks_[key];
  const auto& o = world_.options;
  if (df_covers(lock.core.held, DF_S) == 0 || lock.changed || !trusted(link(key)) ||
      (o.kill_storaged != 0 && o.power_percent != 0) || world_.oracle.tainted(page_id(key, 0)) ||
      (lock.core.value.flags & DF_VALUE_PUBLISHED) == 0)
    return;
  if (lock.core.value.size != value_of(key).size)
    throw Violation(name() + ": the value block of key " + std::to_string(key) + " says " +
                    std::to_string(lock.core.value.size) + ", the last write is " +
                    std::to_string(value_of(key).size));
}

/// Pages from before are trusted again only if the slot's version stayed.
void ClientNode::check_cover(unsigned key) {
  auto& lock = locks_[key];
  const bool covers = lock.core.lost == 0 && df_covers(lock.core.held, DF_S) != 0;
  if (covers == lock.covered) return;
  lock.covered = covers;
  if (!covers) {
    lock.seen = lock.known;
    lock.seen_version = lock.core.version;
    return;
  }
  const auto& pages = files_[key].pages;
  const bool any =
      std::any_of(pages.begin(), pages.end(), [](const Page& page) { return page.present; });
  if (!any) return;
  if (world_.options.keep_pages && lock.seen && lock.seen_version == lock.core.version) {
    world_.reached(Branch::pages_kept);
    return;
  }
  world_.reached(Branch::pages_dropped);
  drop_pages(key);
}

void ClientNode::forget_if_quiet(unsigned key) {
  auto& l = link(key);
  auto& lock = locks_[key];
  if (!l.session || lock.core.lost != 0 || df_lock_quiet(&lock.core) == 0 || lock.in_flight ||
      lock.parked || lock.core.asked != 0 || lock.core.finding != 0)
    return;
  drop_pages(key);
  reset_lock(l, key);
}

}  // namespace distfuse::simulation
