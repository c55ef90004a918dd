// SPDX-License-Identifier: Apache-2.0
// Sessions and connections of a mount: what struct df_session_out says is done here.
#include <algorithm>
#include <cstring>
#include <utility>

#include "simulation/client_node.h"
#include "simulation/world.h"

namespace distfuse::simulation {

ClientNode::ClientNode(World& world, unsigned index, unsigned number)
    : Process("client" + std::to_string(number), index), world_(world), number_(number) {}

std::uint64_t ClientNode::ms() const {
  return clock.ms(world_.now());
}

void ClientNode::start() {
  begin_life();
  world_.note(*this, "starts");
  const auto& o = world_.options;
  links_.assign(o.lockds, {});
  locks_.assign(o.keys, {});
  files_.assign(o.keys, {});
  for (auto& file : files_) file.pages.resize(o.pages);
  threads_.assign(o.threads, {});
  storage_.clear();
  storage_.resize(o.storageds);
  for (unsigned i = 0; i < o.lockds; ++i) {
    links_[i].lockd = i;
    connect(links_[i]);
  }
  for (unsigned i = 0; i < o.storageds; ++i) connect_storage(i);
  for (unsigned i = 0; i < o.threads; ++i) next(i, world_.random.below(1000));
  world_.scheduler.later(*this, 500, [this] { disturb(); });
}

void ClientNode::crash(bool power) {
  world_.note(*this, power ? "power lost" : "killed");
  world_.network.process_gone(*this, power);
  end_life();
  links_.clear();
  locks_.clear();
  files_.clear();
  threads_.clear();
  storage_.clear();
}

// ---- connections

ClientNode::Link* ClientNode::link_of(ConnectionId connection) {
  for (auto& link : links_)
    if (link.control == connection || link.lanes_wanted.contains(connection) ||
        std::find(link.lanes.begin(), link.lanes.end(), connection) != link.lanes.end())
      return &link;
  return nullptr;
}

namespace {

Hello hello_of() {
  Hello hello;
  hello.lock.magic = DF_WIRE_MAGIC;
  hello.lock.version = DF_WIRE_VERSION;
  hello.lock.role = DF_ROLE_CONTROL;
  return hello;
}

Hello hello_of(df_role role, std::uint64_t session, const df_u8* token) {
  auto hello = hello_of();
  df_hello_join(&hello.lock, role, session, token);
  return hello;
}

}  // namespace

void ClientNode::connect(Link& link) {
  ++link.generation;
  link.hello_ms = ms();
  link.control = world_.network.connect(
      *this, world_.process(world_.options.clients + link.lockd),
      link.session ? hello_of(DF_ROLE_CONTROL, link.machine.id, link.machine.token) : hello_of());
}

void ClientNode::disconnect(Link& link) {
  ++link.generation;
  link.up = false;
  auto ending = link.lanes;
  ending.insert(ending.end(), link.lanes_wanted.begin(), link.lanes_wanted.end());
  if (link.control != 0) ending.push_back(link.control);
  link.lanes.clear();
  link.lanes_wanted.clear();
  link.control = 0;
  link.lingering.insert(link.lingering.end(), ending.begin(), ending.end());
  if (!trusted(link)) close_lingering(link);
}

void ClientNode::close_lingering(Link& link) {
  for (const auto connection : std::exchange(link.lingering, {}))
    world_.network.close(connection, *this);
}

void ClientNode::connected(ConnectionId connection, const Packet& answer) {
  for (unsigned i = 0; i < storage_.size(); ++i)
    if (storage_[i].connection == connection) {
      storage_[i].up = true;
      if (!storage_[i].pending.empty()) world_.reached(Branch::flush_failed_over);
      for (const auto& [request, pending] : storage_[i].pending) send_call(i, request);
      return;
    }
  auto* link = link_of(connection);
  if (link == nullptr) return world_.network.close(connection, *this);
  if (link->control == connection) {
    link->welcome = answer.welcome;
    link->table = {answer.welcome.buckets, answer.welcome.overflow, answer.welcome.node};
    if (!link->session)
      for (unsigned key = link->lockd; key < locks_.size(); key += world_.options.lockds)
        reset_lock(*link, key);
    for (unsigned i = 0; i < world_.options.lanes; ++i)
      link->lanes_wanted.insert(world_.network.connect(
          *this, world_.process(world_.options.clients + link->lockd),
          hello_of(DF_ROLE_LANE, answer.welcome.session, answer.welcome.token)));
    return;
  }
  link->lanes_wanted.erase(connection);
  link->lanes.push_back(connection);
  if (link->lanes.size() == world_.options.lanes) all_up(*link);
}

void ClientNode::all_up(Link& link) {
  link.up = true;
  if (!link.session) return begin_session(link);
  df_session_out out;
  df_session_welcome(&link.machine, &link.welcome, link.hello_ms, ms(), &out);
  perform(link, out);
}

void ClientNode::begin_session(Link& link) {
  link.session = true;
  df_session_out out;
  df_session_begin(&link.machine, &link.welcome, link.hello_ms, world_.options.give_up_ms, &out);
  world_.note(*this, "session", link.lockd, link.machine.id, link.machine.node);
  perform(link, out);
  answer_freezes(link);
  for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds)
    fsync_step(key);
}

void ClientNode::not_connected(ConnectionId connection, const Packet* answer) {
  for (unsigned i = 0; i < storage_.size(); ++i)
    if (storage_[i].connection == connection) return connect_storage(i);
  auto* link = link_of(connection);
  if (link == nullptr) return;
  if (link->control == connection) {
    link->control = 0;
    failed(*link, answer != nullptr ? &answer->welcome : nullptr);
  } else {
    link->lanes_wanted.erase(connection);
    failed(*link, nullptr);
  }
}

void ClientNode::failed(Link& link, const df_welcome* refusal) {
  disconnect(link);
  if (refusal != nullptr && refusal->refusal == DF_REFUSED_GRACE)
    world_.reached(Branch::hello_in_grace);
  if (!link.session) {
    link.frozen.clear();
    link.freezes.clear();
    world_.scheduler.later(*this, 5000 + world_.random.below(20'000),
                           [this, &link, generation = link.generation] {
                             if (link.generation == generation) connect(link);
                           });
    return;
  }
  df_session_out out;
  if (refusal != nullptr)
    df_session_welcome(&link.machine, refusal, link.hello_ms, ms(), &out);
  else
    df_session_unreachable(&link.machine, ms(), &out);
  perform(link, out);
}

void ClientNode::ended(ConnectionId connection, bool) {
  for (unsigned i = 0; i < storage_.size(); ++i)
    if (storage_[i].connection == connection) return connect_storage(i);
  for (auto& each : links_) std::erase(each.lingering, connection);
  auto* link = link_of(connection);
  if (link == nullptr) return;
  world_.note(*this, "connection ended", link->lockd);
  if (!link->up) return failed(*link, nullptr);
  cut(*link);
}

void ClientNode::cut(Link& link) {
  disconnect(link);
  df_session_out out;
  df_session_cut(&link.machine, ms(), &out);
  perform(link, out);
}

// ---- the machine's orders

bool ClientNode::trusted(const Link& link) const {
  if (link.session && world_.options.mutant == Mutant::trust_whole_lease &&
      link.machine.state != DF_SESSION_LOST)
    return ms() < link.machine.trusted_until + link.machine.lease_ms * 3 / 10;
  return link.session && df_session_trusted(&link.machine, ms()) != 0;
}

bool ClientNode::live_at(unsigned lockd) const {
  return alive() && links_[lockd].session && links_[lockd].machine.state == DF_SESSION_LIVE;
}

void ClientNode::perform(Link& link, const df_session_out& out) {
  if (out.suspect != 0) {
    world_.note(*this, "suspect", link.lockd);
    world_.reached(Branch::suspect);
    close_lingering(link);
  }
  if (out.trust != 0) {
    world_.note(*this, "trusts again", link.lockd);
    world_.reached(Branch::trusted_again);
  }
  if (out.lost != 0) {
    world_.note(*this, "session lost", link.lockd, out.lost);
    world_.reached(out.lost == DF_LOSS_GIVEN_UP ? Branch::session_given_up
                                                : Branch::session_refused);
    return lose(link);
  }
  if (out.detach != 0) {
    for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds) {
      auto& lock = locks_[key];
      if (lock.core.chain != DF_CHAIN_NONE) world_.reached(Branch::detached_in_flight);
      df_lock_detach(&lock.core);
      lock.parked.reset();
      lock.in_flight = false;
      lock.gate_slot = DF_NO_SLOT;
      if (lock.core.gate == DF_GATE_OPEN) lock.shedding = lock.done_said = false;
      lock.unpublished = lock.changed;
      check_cover(key);
      lock.known = lock.seen = false;  // Versions begin anew.
      detach_file_lock(key);
    }
    link.frozen.clear();
    link.freezes.clear();
    link.glimpses = 0;
  }
  if (out.reassert != 0) {
    close_lingering(link);
    reassert(link);
  }
  if (out.resume != 0) {
    world_.note(*this, "resumes", link.lockd);
    for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds) {
      df_out lock_out;
      df_lock_resume(&locks_[key].core, &lock_out);
      output(key, lock_out);
    }
  }
  if (out.renew != 0) renew(link, out.renew_value);
  if (out.connect != 0) {
    disconnect(link);
    connect(link);
  }
  if (out.reclaimed != 0) {
    df_msg message;
    df_msg_init(&message, DF_MSG_RECLAIMED, 0, 0, 0);
    send(link, message);
  }
  if (out.wake_at == ~0ULL || !link.session) return;
  link.tick_at = out.wake_at;
  world_.scheduler.later(*this, clock.until(world_.now(), out.wake_at),
                         [this, &link, at = out.wake_at] {
                           if (link.session && link.tick_at == at) tick(link);
                         });
}

void ClientNode::tick(Link& link) {
  df_session_out out;
  df_session_tick(&link.machine, ms(), &out);
  perform(link, out);
}

void ClientNode::clock_jumped() {
  for (auto& link : links_)
    if (link.session && link.tick_at <= ms()) tick(link);
}

void ClientNode::renew(Link& link, std::uint64_t value) {
  if (link.lanes.empty()) return;
  df_chain chain;
  df_chain_init(&chain, DF_CHAIN_NONE, DF_NO_SLOT);
  df_chain_write(&chain, link.machine.lease_offset, 0, &value, 8);
  const auto lane = link.lanes[world_.random.below(link.lanes.size())];
  world_.network.post(lane, chain, [this, &link, generation = link.generation](auto, auto) {
    if (link.generation != generation || !link.session) return;
    df_session_out out;
    df_session_renewed(&link.machine, ms(), &out);
    perform(link, out);
  });
}

void ClientNode::lose(Link& link) {
  link.session = false;
  link.leaving = false;
  disconnect(link);
  link.frozen.clear();
  link.freezes.clear();
  link.reasserts.clear();
  link.glimpses = 0;
  for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds) {
    lose_pages(key);
    files_[key].lock = {};
    df_out out;
    df_lock_session_lost(&locks_[key].core, &out);
    locks_[key] = {};
    locks_[key].core.lost = 1;
  }
  for (unsigned i = 0; i < threads_.size(); ++i)
    if (world_.lockd_of(threads_[i].key) == link.lockd) fail(i);
  world_.scheduler.later(*this, 1000 + world_.random.below(20'000),
                         [this, &link, generation = link.generation] {
                           if (link.generation == generation && !link.session) connect(link);
                         });
}

// ---- lockd's restart

void ClientNode::reassert(Link& link) {
  world_.note(*this, "re-asserts", link.lockd);
  link.reasserting = true;
  link.reasserts.clear();
  bool lied = !liar;
  for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds) {
    auto& lock = locks_[key];
    if (!lied && df_lock_quiet(&lock.core) != 0 && world_.random.percent(50)) {
      lied = true;
      lock.core.held = DF_X;
      for (unsigned page = 0; page < world_.options.pages; ++page)
        world_.oracle.taint(page_id(key, page));
      world_.note(*this, "lies", key);
    }
    if (lock.core.gate != DF_GATE_OPEN) world_.reached(Branch::reassert_during_shed);
    df_out out;
    if (df_lock_reassert(&lock.core, &out) == 0) continue;
    const bool dirty = std::any_of(files_[key].pages.begin(), files_[key].pages.end(),
                                   [](const Page& page) { return page.dirty; });
    if (dirty) world_.reached(Branch::reasserted_dirty);
    link.reasserts.insert(key);
    output(key, out);
  }
  for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds)
    reclaim_file_lock(link, key);
  link.reasserting = false;
  if (link.reasserts.empty()) reasserted(link, ~0U);
}

/// lockd had no room, or an attempt of somebody was in the way.
void ClientNode::reassert_later(unsigned key) {
  auto& l = link(key);
  world_.scheduler.later(*this, 1000 + world_.random.below(4000),
                         [this, key, &l, generation = l.generation] {
                           if (l.generation != generation || !l.reasserts.contains(key)) return;
                           df_out out;
                           if (df_lock_reassert(&locks_[key].core, &out) != 0)
                             output(key, out);
                           else
                             reasserted(l, key);
                         });
}

void ClientNode::reasserted(Link& link, unsigned key) {
  const bool was = link.reasserts.erase(key) != 0;
  if (link.reasserting || !link.reasserts.empty() || (!was && key != ~0U)) return;
  df_session_out out;
  df_session_reasserted(&link.machine, ms(), &out);
  perform(link, out);
}

// ---- an orderly end

void ClientNode::leave(unsigned lockd) {
  if (lockd < links_.size() && live_at(lockd)) links_[lockd].leaving = true;
}

void ClientNode::try_bye(Link& link) {
  if (!link.leaving || !link.session || link.machine.state != DF_SESSION_LIVE || !link.up) return;
  bool quiet = link.glimpses == 0 && link.freezes.empty();
  for (unsigned i = 0; i < threads_.size(); ++i)
    quiet = quiet && (threads_[i].state == Thread::idle || threads_[i].state == Thread::suspended ||
                      world_.lockd_of(threads_[i].key) != link.lockd);
  for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds) {
    drop(key);
    const auto& lock = locks_[key];
    quiet = quiet && df_lock_quiet(&lock.core) != 0 && !lock.in_flight && !lock.parked &&
            !files_[key].fsyncing && !lock.core.asked && !lock.core.finding;
    for (const auto& page : files_[key].pages) quiet = quiet && page.writing == 0 && !page.dirty;
  }
  if (!quiet) return;
  world_.note(*this, "Bye", link.lockd, link.machine.id);
  world_.reached(Branch::bye);
  df_msg message;
  df_msg_init(&message, DF_MSG_BYE, 0, 0, 0);
  send(link, message);
  link.session = false;
  link.leaving = false;
  link.frozen.clear();
  // lockd closes; it must see the Bye first.
  link.control = 0;
  link.lanes.clear();
  link.up = false;
  ++link.generation;
  for (unsigned key = link.lockd; key < locks_.size(); key += world_.options.lockds) {
    drop_pages(key);
    locks_[key] = {};
    locks_[key].core.lost = 1;
  }
  world_.scheduler.later(*this, 1000 + world_.random.below(20'000),
                         [this, &link, generation = link.generation] {
                           if (link.generation == generation && !link.session) connect(link);
                         });
}

}  // namespace distfuse::simulation
