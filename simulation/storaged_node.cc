// SPDX-License-Identifier: Apache-2.0
#include "simulation/storaged_node.h"

#include <algorithm>
#include <utility>

#include "simulation/world.h"

namespace distfuse::simulation {

StoragedNode::StoragedNode(World& world, unsigned index, unsigned number)
    : Process("storaged" + std::to_string(number), index), world_(world), number_(number) {
  for (PageId page = 0; page < world.pages(); ++page)
    if (world.storaged_of(page) == number) visible_[page] = durable_[page] = 0;
}

void StoragedNode::start() {
  begin_life();
  world_.note(*this, "starts", boot_);
  for (auto& [lockd, known] : lockds_) known.learned = false;
}

void StoragedNode::crash(bool power) {
  world_.note(*this, power ? "power lost" : "killed");
  world_.network.process_gone(*this, power);
  end_life();
  running_.clear();
  fences_.clear();
  channels_.clear();
  if (!power) return;
  ++boot_;
  for (auto& [page, order] : visible_) {
    if (order == durable_[page]) continue;
    world_.reached(Branch::storaged_lost_unsynced);
    world_.oracle.lost_unsynced(page, order, durable_[page]);
    order = durable_[page];
  }
}

Acceptance StoragedNode::greeted(ConnectionId connection, const Process&, const Hello& hello,
                                 Packet&) {
  const auto [it, fresh] = channels_.emplace(hello.channel, connection);
  if (!fresh) {
    world_.network.close(it->second, *this);
    forget_running(it->second);
    it->second = connection;
  }
  return Acceptance::accepted;
}

void StoragedNode::forget_running(ConnectionId connection) {
  std::set<SessionName> sessions;
  std::erase_if(running_, [&](const auto& running) {
    if (running.second.connection != connection) return false;
    sessions.insert({running.second.call.lockd, running.second.call.session});
    return true;
  });
  std::erase_if(fences_, [&](const Waiting& fence) { return fence.connection == connection; });
  for (const auto& session : sessions) answer_fences(session);
}

void StoragedNode::ended(ConnectionId connection, bool) {
  forget_running(connection);
  std::erase_if(channels_, [&](const auto& channel) { return channel.second == connection; });
}

void StoragedNode::reply(ConnectionId connection, const StorageCall& call, StorageStatus status,
                         Order order) {
  Packet packet;
  packet.reply = {call.request, status, order, boot_};
  world_.network.send(connection, *this, std::move(packet));
}

StorageStatus StoragedNode::admit(const SessionName& session) const {
  if (fenced_.contains(session)) return StorageStatus::fenced;
  const auto it = lockds_.find(session.lockd);
  if (it == lockds_.end() || !it->second.learned) return StorageStatus::learning;
  return session.id > it->second.high || it->second.ids.contains(session.id)
             ? StorageStatus::ok
             : StorageStatus::fenced;
}

/// Under way counts as taken; unlisted sessions can come back into no list.
bool StoragedNode::refuses(const SessionName& session) const {
  if (admit(session) != StorageStatus::fenced) return false;
  return std::none_of(running_.begin(), running_.end(), [&](const auto& running) {
    return running.second.call.lockd == session.lockd && running.second.call.session == session.id;
  });
}

void StoragedNode::received(ConnectionId connection, const Packet& packet) {
  switch (packet.call.op) {
    case StorageOp::fence:
      return fence(connection, packet.call);
    case StorageOp::sessions:
      return learn(connection, packet.call);
    default:
      return request(connection, packet.call);
  }
}

void StoragedNode::request(ConnectionId connection, const StorageCall& call) {
  const auto status = admit({call.lockd, call.session});
  if (status != StorageStatus::ok) {
    if (status == StorageStatus::learning) world_.reached(Branch::storaged_learning);
    if (status == StorageStatus::fenced && call.op == StorageOp::write)
      world_.reached(Branch::write_fenced);
    return reply(connection, call, status);
  }
  const auto number = next_++;
  running_.emplace(number, Waiting{connection, call});
  // No order between requests: several are on their way to the disk at once.
  world_.scheduler.later(*this, 1 + world_.random.spread(world_.options.disk),
                         [this, number] { carry_out(number); });
}

void StoragedNode::carry_out(std::uint64_t number) {
  const auto it = running_.find(number);
  if (it == running_.end()) return;
  const auto [connection, call] = std::move(it->second);
  running_.erase(it);
  const SessionName session{call.lockd, call.session};
  Order order = 0;
  if (call.op == StorageOp::write) {
    order = world_.oracle.apply(call.page, session, call.order, visible_.at(call.page));
    visible_[call.page] = order;
    world_.note(*this, "write applied", call.page, order);
  } else if (call.op == StorageOp::read) {
    order = visible_.at(call.page);
  } else {
    for (auto& [page, durable] : durable_)
      if (page / world_.options.pages == call.key) durable = visible_[page];
    world_.note(*this, "synced", call.key);
  }
  reply(connection, call, StorageStatus::ok, order);
  answer_fences(session);
}

// ---- sessions

void StoragedNode::fence(ConnectionId connection, const StorageCall& call) {
  fenced_.insert({call.lockd, call.session});
  world_.note(*this, "fence", call.lockd, call.session);
  fences_.push_back({connection, call});
  const auto before = fences_.size();
  answer_fences({call.lockd, call.session});
  if (fences_.size() == before) world_.reached(Branch::fence_waited_for_write);
}

/// Those for which nothing is under way any more.
void StoragedNode::answer_fences(const SessionName& session) {
  for (const auto& [number, running] : running_)
    if (running.call.lockd == session.lockd && running.call.session == session.id) return;
  std::erase_if(fences_, [&](const Waiting& fence) {
    if (fence.call.lockd != session.lockd || fence.call.session != session.id) return false;
    reply(fence.connection, fence.call, StorageStatus::ok);
    return true;
  });
}

void StoragedNode::learn(ConnectionId connection, const StorageCall& call) {
  auto& known = lockds_[call.lockd];
  if (call.incarnation < known.incarnation) return reply(connection, call, StorageStatus::refused);
  known.incarnation = call.incarnation;
  known.high = call.high;
  known.ids = {call.ids.begin(), call.ids.end()};
  known.learned = true;
  world_.note(*this, "learned the sessions of", call.lockd, call.incarnation, call.ids.size());
  reply(connection, call, StorageStatus::ok);
}

}  // namespace distfuse::simulation
