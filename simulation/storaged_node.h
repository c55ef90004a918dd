// SPDX-License-Identifier: Apache-2.0
// A storaged with its disk, by the contract of rdma/lock/session.h.
//
// Visible: what reads return; lost with the machine. Durable: what a sync has written down; fences and the incarnation seen
// are durable before they are answered. After a start a lockd's sessions are unknown ("learning") until it has sent Sessions.
// A fence is answered when what the session had on its way to the disk has taken effect. A new connection of a channel ends the
// earlier one first, with what of it has not taken effect: a write that was sent again cannot be carried out twice.
#pragma once

#include <map>
#include <set>
#include <vector>

#include "simulation/network.h"
#include "simulation/oracle.h"

namespace distfuse::simulation {

class StoragedNode : public Process {
 public:
  StoragedNode(World& world, unsigned index, unsigned number);

  void start() override;
  void crash(bool power) override;
  Acceptance greeted(ConnectionId connection, const Process& from, const Hello& hello,
                     Packet& answer) override;
  void connected(ConnectionId, const Packet&) override {}
  void not_connected(ConnectionId, const Packet*) override {}
  void received(ConnectionId connection, const Packet& packet) override;
  void ended(ConnectionId connection, bool by_peer) override;

  [[nodiscard]] Order visible(PageId page) const { return visible_.at(page); }
  [[nodiscard]] Order durable(PageId page) const { return durable_.at(page); }
  /// Nothing of this session is taken any more, now or later.
  [[nodiscard]] bool refuses(const SessionName& session) const;

 private:
  struct Known {
    std::uint64_t incarnation = 0;
    std::uint64_t high = 0;
    std::set<std::uint64_t> ids;
    bool learned = false;  ///< In this life.
  };
  struct Waiting {
    ConnectionId connection;
    StorageCall call;
  };

  void reply(ConnectionId connection, const StorageCall& call, StorageStatus status,
             Order order = 0);
  [[nodiscard]] StorageStatus admit(const SessionName& session) const;
  void request(ConnectionId connection, const StorageCall& call);
  void carry_out(std::uint64_t number);
  void fence(ConnectionId connection, const StorageCall& call);
  void answer_fences(const SessionName& session);
  void learn(ConnectionId connection, const StorageCall& call);
  void forget_running(ConnectionId connection);

  World& world_;
  const unsigned number_;
  std::uint64_t boot_ = 0;
  std::uint64_t next_ = 1;
  std::map<PageId, Order> visible_, durable_;
  std::set<SessionName> fenced_;      // durable
  std::map<unsigned, Known> lockds_;  // incarnation: durable
  std::map<std::uint64_t, Waiting> running_;
  std::vector<Waiting> fences_;  // that wait for running_
  std::map<std::uint64_t, ConnectionId> channels_;
};

}  // namespace distfuse::simulation
