// SPDX-License-Identifier: Apache-2.0
// The connections to one incarnation of lockd, and what belongs to its table: geometry, slot gates, requests under way.
//
// Parties: the table, which has one link at a time; whoever runs a chain or asks something, who borrows it (a shared reference).
//
// A link has the epoch of the table for which it was made. Each lock knows the epoch it is in; what comes back from a link of another
// epoch is dropped. So nothing of a connection that ended is reported to a lock afterwards.
//
// Recovery: none. A link that is closed stays closed: lanes lend no more, requests end, gates let nobody in. The end of the
// control connection, or of a lane, is reported once to the table; which detaches its locks and makes the next link.
#pragma once

#include <functional>
#include <memory>

#include "client/locks/control.h"
#include "client/locks/lane.h"
#include "client/locks/requests.h"
#include "client/locks/slot_gates.h"

namespace distfuse::client {

class Link;

/// What a link tells the table. From the link's control thread, but slot gates answer from the thread that left last.
class LinkUser {
 public:
  virtual ~LinkUser() = default;
  /// false: the message has no place here; the session ends.
  virtual bool receive(Link& link, const df_msg& message) = 0;
  virtual void answer_freeze(Link& link, const df_msg& message) = 0;
  /// The control connection ended by itself.
  virtual void link_ended(Link& link, const std::string& reason) = 0;
};

class Link final : private Receiver {
 public:
  /// Starts the control thread, which calls `user` from then on. `geometry` outlives the link.
  Link(LinkUser& user, std::uint32_t number, const df_table& its_geometry,
       std::unique_ptr<Control> connection, std::unique_ptr<LanePool> pool, Requests::Hook hook);
  /// Must not run on its own control thread.
  ~Link() override;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  void start() { control->start(*this); }
  /// Ends all waits at lanes, gates and requests; the control connection stays.
  void close();

  const std::uint32_t epoch;
  const df_table& geometry;
  const std::unique_ptr<Control> control;
  const std::unique_ptr<LanePool> lanes;
  SlotGates gates;
  Requests requests;

 private:
  bool receive(const df_msg& message) override { return user_.receive(*this, message); }
  void lost(const std::string& reason) override { user_.link_ended(*this, reason); }

  LinkUser& user_;
};

using LinkRef = std::shared_ptr<Link>;

}  // namespace distfuse::client
