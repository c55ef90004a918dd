// SPDX-License-Identifier: Apache-2.0
// The role meta: each request is run to its end on the meta thread, in order of arrival, and answered at once; what must be
// durable before its answer (SyncMetadata, FenceSession) is answered after the next sync of the log, which a sync thread
// makes for all that wait (group commit).
//
// Bound: answers that wait for a sync are requests that the server has admitted (max_connections × credits).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

#include "rpc/server.h"
#include "storaged/living_sessions.h"
#include "storaged/meta/metadata_store.h"
#include "storaged/role.h"
#include "storaged/worker_thread.h"

namespace distfuse::storaged {

struct MetaServiceStatus {
  MetadataCounters store;
  rpc::ServerCounters server;
  bool learning = false;
  std::uint64_t incarnation = 0;  ///< Of the lockd that told who lives.
};

class MetaService final : public rpc::Handler, public Role {
 public:
  MetaService() = default;
  MetaService(const MetaService&) = delete;
  MetaService& operator=(const MetaService&) = delete;

  /// Before the first progress of `server`, which outlives stop(). `purge_wanted` is called on the meta thread when there are
  /// chunks to remove or orphans, which will leave some.
  void start(rpc::Server& server, std::unique_ptr<MetadataStore> store,
             std::function<void()> purge_wanted);
  bool progress() override { return false; }  // all of it is in the server's
  void stop() override;
  [[nodiscard]] bool idle() const override { return waiting_.empty() && !syncing_; }
  [[nodiscard]] MetadataStore& store() { return *store_; }
  [[nodiscard]] MetaServiceStatus status() const {
    return {store_->counters(), server_->counters(), living_.learning(), living_.incarnation()};
  }

  bool session_allowed(rpc::SessionId session) override {
    return !fenced_.contains(session) && living_.lives(session);
  }
  [[nodiscard]] bool learning() const override { return living_.learning(); }
  void on_sessions(rpc::Sessions&& sessions, rpc::DataResponder responder) override;
  void on_metadata(const rpc::Peer& peer, const rpc::RequestContext& context,
                   rpc::MetadataRequest&& request, rpc::MetadataResponder responder) override;

 private:
  using Waiting = std::vector<std::pair<rpc::MetadataResponder, rpc::MetadataReply>>;
  void after_sync(rpc::MetadataResponder responder, rpc::MetadataReply reply);
  void start_sync();
  void answer(Waiting& waiting, int error);

  rpc::Server* server_ = nullptr;
  LivingSessions living_;
  std::unique_ptr<MetadataStore> store_;
  std::function<void()> purge_wanted_;
  std::unordered_set<rpc::SessionId> fenced_;  // since the start; the store knows all
  Waiting waiting_;                            // for the next sync
  bool syncing_ = false;
  std::unique_ptr<WorkerThread> worker_;
};

}  // namespace distfuse::storaged
