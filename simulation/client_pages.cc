// SPDX-License-Identifier: Apache-2.0
// The page cache of a mount: shed, writeback, fsync; and its calls to the storageds.
#include <algorithm>
#include <utility>

#include "simulation/client_node.h"
#include "simulation/lockd_node.h"
#include "simulation/storaged_node.h"
#include "simulation/world.h"

namespace distfuse::simulation {

PageId ClientNode::page_id(unsigned key, unsigned page) const {
  return PageId{key} * world_.options.pages + page;
}

SessionName ClientNode::session(unsigned key) const {
  return {world_.lockd_of(key), link(key).machine.id};
}

// ---- giving up

void ClientNode::begin_shed(unsigned key, df_u32 keep) {
  auto& lock = locks_[key];
  lock.shedding = true;
  lock.done_said = false;
  lock.keep = keep;
  const auto earliest = lock.granted_at + world_.options.min_hold;
  const Time wait = earliest > world_.now() ? earliest - world_.now() : 1 + world_.random.below(20);
  world_.scheduler.later(*this, wait, [this, key] { shed_progress(key); });
}

/// Sweep, close the gate when nobody is inside, sweep what guests dirtied, give up.
void ClientNode::shed_progress(unsigned key) {
  auto& lock = locks_[key];
  auto& l = link(key);
  if (!lock.shedding || lock.done_said || !l.session || lock.core.lost != 0) return;
  if (flush_all(key)) return;
  if (lock.core.gate == DF_GATE_REVOKING && df_lock_close_gate(&lock.core) != 0) return;
  if (lock.core.gate != DF_GATE_CLOSED) return;
  if (flush_all(key)) return;
  const df_u32 kept =
      lock.keep == DF_S && world_.random.percent(20) ? df_u32{DF_NL} : df_u32{lock.keep};
  if (kept == DF_S && lock.core.held == DF_X) world_.reached(Branch::downgraded_to_shared);
  const auto value = value_of(key);
  const bool changed = lock.changed;
  lock.changed = lock.unpublished = false;
  lock.done_said = true;
  df_out out;
  if (df_lock_shed_done(&lock.core, kept, changed ? &value : nullptr, &out) != 0)
    throw Violation(name() + ": shed_done is refused");
  output(key, out);
}

/// The last write's number stands for size and times.
df_value ClientNode::value_of(unsigned key) const {
  df_value value{};
  for (unsigned i = 0; i < world_.options.pages; ++i)
    value.size = std::max<df_u64>(value.size, world_.oracle.truth(page_id(key, i)));
  return value;
}

void ClientNode::drop_pages(unsigned key) {
  for (auto& page : files_[key].pages)
    if (!page.dirty && page.writing == 0) page.present = false;
}

/// The lock is lost: what was dirty is an error of the file, once.
void ClientNode::lose_pages(unsigned key) {
  auto& file = files_[key];
  for (unsigned i = 0; i < file.pages.size(); ++i) {
    auto& page = file.pages[i];
    if (page.dirty || page.writing != 0) {
      world_.note(*this, "dirty page lost", page_id(key, i), page.order);
      world_.reached(Branch::dirty_lost);
      file.error = true;
      std::erase_if(file.unreported, [&](const auto& write) {
        return write.first == i && write.second > page.flushed;
      });
    }
    page.present = page.dirty = false;
    page.writing = 0;
  }
  file.syncing.clear();
  file.direct = 0;
  for (auto& storage : storage_)
    std::erase_if(storage.pending, [key](const auto& entry) { return entry.second.key == key; });
}

// ---- writeback

/// True: something is still on its way.
bool ClientNode::flush_all(unsigned key) {
  bool busy = false;
  for (unsigned i = 0; i < files_[key].pages.size(); ++i) {
    flush(key, i);
    busy = busy || files_[key].pages[i].writing != 0;
  }
  return busy;
}

/// ORDER: one write of a page at a time; storaged keeps none between requests.
void ClientNode::flush(unsigned key, unsigned index) {
  auto& page = files_[key].pages[index];
  if (!page.dirty || page.writing != 0) return;
  page.writing = page.order;
  StorageCall write;
  write.op = StorageOp::write;
  write.order = page.order;
  call(key, index, std::move(write), [this, key, index, order = page.order](const StorageReply& r) {
    flushed(key, index, order, r);
  });
}

void ClientNode::flushed(unsigned key, unsigned index, Order order, const StorageReply& reply) {
  auto& page = files_[key].pages[index];
  page.writing = 0;
  page.flushed = order;
  if (page.order == order) page.dirty = false;
  ++files_[key].acknowledged[world_.storaged_of(page_id(key, index))];
  note_boot(key, world_.storaged_of(page_id(key, index)), reply.boot);
  progress(key);
}

/// A write that an earlier boot of the machine took and did not sync may be gone.
void ClientNode::note_boot(unsigned key, unsigned storaged, std::uint64_t boot) {
  auto& file = files_[key];
  const auto [it, fresh] = file.unsynced.emplace(storaged, boot);
  if (fresh || it->second == boot) return;
  world_.note(*this, "writes lost with a storaged", key, storaged);
  it->second = boot;
  file.error = true;
  std::erase_if(file.unreported, [&](const auto& write) {
    const auto& page = file.pages[write.first];
    return world_.storaged_of(page_id(key, write.first)) == storaged &&
           write.second <= page.flushed;
  });
}

void ClientNode::progress(unsigned key) {
  shed_progress(key);
  fsync_step(key);
}

// ---- fsync

/// Brings what was written before it to the disks; goes on by itself when a flush or a sync was answered, or a session began.
void ClientNode::fsync_step(unsigned key) {
  auto& file = files_[key];
  if (!file.fsyncing || !link(key).session) return;
  bool busy = false;
  for (const auto& [index, order] : file.covered) {
    auto& page = file.pages[index];
    if (page.flushed >= order || (!page.dirty && page.writing == 0)) continue;  // there, or lost
    flush(key, index);
    busy = true;
  }
  if (busy) return;
  for (unsigned s = 0; s < storage_.size(); ++s) {
    if (file.synced.contains(s)) continue;
    if (!file.unsynced.contains(s)) continue;
    busy = true;
    if (!file.syncing.insert(s).second) continue;
    StorageCall sync;
    sync.op = StorageOp::sync;
    sync.key = key;
    // Of all pages, the first that lives there says where to.
    unsigned page = 0;
    while (page < file.pages.size() && world_.storaged_of(page_id(key, page)) != s) ++page;
    call(key, page, std::move(sync),
         [this, key, s, before = file.acknowledged[s]](const auto& reply) {
           auto& mine = files_[key];
           note_boot(key, s, reply.boot);
           if (mine.acknowledged[s] == before) mine.unsynced.erase(s);
           mine.syncing.erase(s);
           mine.synced.insert(s);
           fsync_step(key);
         });
  }
  if (!busy) fsync_end(key);
}

void ClientNode::fsync_end(unsigned key) {
  auto& file = files_[key];
  const auto covered = std::move(file.covered);
  file.covered.clear();
  file.fsyncing = false;
  file.syncing.clear();
  file.synced.clear();
  const bool error = std::exchange(file.error, false);
  world_.note(*this, error ? "fsync fails" : "fsync", key, covered.size());
  if (error) world_.reached(Branch::error_at_fsync);
  for (const auto& write : covered) {
    const auto it = std::find(file.unreported.begin(), file.unreported.end(), write);
    if (it == file.unreported.end()) {
      if (!error) throw Violation(name() + ": a lost write without an error");
      continue;
    }
    file.unreported.erase(it);
    const auto page = page_id(key, write.first);
    const auto durable = world_.storageds[world_.storaged_of(page)]->durable(page);
    if (!error && durable < write.second && !world_.oracle.tainted(page))
      throw Violation(name() + ": write " + std::to_string(write.second) + " of page " +
                      std::to_string(page) + " was fsynced and the disk has " +
                      std::to_string(durable));
  }
  for (unsigned i = 0; i < threads_.size(); ++i)
    if (threads_[i].state == Thread::syncing && threads_[i].key == key) finish(i);
}

// ---- calls

void ClientNode::connect_storage(unsigned s) {
  auto& storage = storage_[s];
  storage.up = false;
  storage.connection = 0;
  world_.scheduler.later(*this, 200 + world_.random.below(3000), [this, s] {
    Hello hello;
    hello.channel = number_ + 1;
    storage_[s].connection = world_.network.connect(*this, *world_.storageds[s], hello);
  });
}

void ClientNode::call(unsigned key, unsigned page, StorageCall what,
                      std::function<void(const StorageReply&)> done) {
  const auto s = world_.storaged_of(page_id(key, page));
  what.lockd = world_.lockd_of(key);
  what.session = link(key).machine.id;
  what.page = page_id(key, page);
  what.request = next_request_++;
  const auto request = what.request;
  storage_[s].pending.emplace(request, Storage::Pending{std::move(what), key, std::move(done)});
  send_call(s, request);
}

void ClientNode::send_call(unsigned s, std::uint64_t request) {
  auto& storage = storage_[s];
  const auto it = storage.pending.find(request);
  if (!storage.up || it == storage.pending.end()) return;
  Packet packet;
  packet.call = it->second.call;
  world_.network.send(storage.connection, *this, std::move(packet));
}

void ClientNode::storage_reply(unsigned s, const StorageReply& reply) {
  auto& storage = storage_[s];
  const auto it = storage.pending.find(reply.request);
  if (it == storage.pending.end()) return;
  if (reply.status == StorageStatus::learning) {
    // One at a time, as rpc/client.cc has it: over the next connection it goes by itself.
    world_.scheduler.later(*this, 1000 + world_.random.below(4000),
                           [this, s, request = reply.request, connection = storage.connection] {
                             if (storage_[s].connection == connection) send_call(s, request);
                           });
    return;
  }
  const auto key = it->second.key;
  const bool ours = it->second.call.session == link(key).machine.id && link(key).session;
  if (reply.status == StorageStatus::fenced) {
    // Fenced: whatever lockd says, this session is of no use any more. Nothing is trusted from here on; the connection ends.
    storage.pending.erase(it);
    if (!ours) return;
    world_.note(*this, "is refused by a storaged", s);
    if (world_.lockds[world_.lockd_of(key)]->joined(link(key).machine.id))
      throw Violation(name() + ": a storaged refuses a session that is live at lockd");
    return lose(link(key));
  }
  const auto done = std::move(it->second.done);
  storage.pending.erase(it);
  if (ours) done(reply);
}

}  // namespace distfuse::simulation
