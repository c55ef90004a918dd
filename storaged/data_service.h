// SPDX-License-Identifier: Apache-2.0
// The role data: requests from the RPC server into the chunk store and back. All of it on the data thread, but for what
// fsyncs the list of fenced sessions.
//
// Fencing: from a Fence on, the session's new requests are refused; the answer waits until those that were already at the
// store have taken effect, and until the fence is on disk. So nothing of the session happens after the answer, nor after a
// restart.
//
// Bounds: the server admits max_connections × credits requests. Of those at most the store's max_operations are at the
// store and the pool's buffers are in use; the rest wait here (64 bytes each), reads for a buffer, others for the store, each in
// order of arrival; writes without a buffer wait at their sender. Freed buffers go to reads and to writes in turn.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "rpc/server.h"
#include "storaged/buffer_pool.h"
#include "storaged/data/chunk_store.h"
#include "storaged/fenced_sessions.h"
#include "storaged/living_sessions.h"
#include "storaged/role.h"
#include "storaged/worker_thread.h"

namespace distfuse::storaged {

struct DataServiceStatus {
  ChunkStoreStatistics store;
  rpc::ServerCounters server;
  std::uint64_t requests = 0;
  std::uint64_t waiting = 0;
  std::uint64_t buffers_taken = 0;
  std::uint64_t fenced_sessions = 0;
  bool learning = false;
  std::uint64_t incarnation = 0;  ///< Of the lockd that told who lives.
};

class DataService final : public rpc::Handler, public Role {
 public:
  DataService() = default;
  ~DataService() override;
  DataService(const DataService&) = delete;
  DataService& operator=(const DataService&) = delete;

  /// Before the first progress of `server`, which outlives stop().
  void start(rpc::Server& server, std::unique_ptr<ChunkStore> store,
             std::unique_ptr<FencedSessions> fenced);
  bool progress() override;
  [[nodiscard]] int event_fd() const { return store_->event_fd(); }
  [[nodiscard]] bool idle() const override;
  void stop() override;
  [[nodiscard]] DataServiceStatus status() const;

  bool session_allowed(rpc::SessionId session) override {
    return !fenced_->contains(session) && living_.lives(session);
  }
  [[nodiscard]] bool learning() const override { return living_.learning(); }
  void on_sessions(rpc::Sessions&& sessions, rpc::DataResponder responder) override;
  std::byte* write_buffer(const rpc::DataRequest& request) override;
  void drop_write_buffer(std::byte* buffer) override;
  void on_data(const rpc::Peer& peer, const rpc::DataRequest& request, std::byte* payload,
               rpc::DataResponder responder) override;

 private:
  struct Task {
    rpc::SessionId session = 0;
    rpc::DataRequest request{};
    Buffer* buffer = nullptr;
    rpc::DataResponder responder;
  };
  struct Fence {
    rpc::SessionId session = 0;
    rpc::DataResponder responder;
  };

  void give_buffer(Task& task);
  void to_store(Task& task);
  void submit(Task& task);
  void completed(Task& task, const ChunkOutcome& outcome);
  void release(Buffer& buffer);
  void share_out_buffers();
  void fence(rpc::SessionId session, rpc::DataResponder responder);
  void persist(Fence fence);
  Task& allocate();
  void forget(Task& task);

  rpc::Server* server_ = nullptr;
  LivingSessions living_;
  BufferPool pool_;
  std::unique_ptr<FencedSessions> fenced_;
  std::vector<std::unique_ptr<Task>> tasks_;
  std::vector<Task*> free_;
  std::deque<Task*> waiting_for_buffer_;
  std::deque<Task*> waiting_for_store_;
  bool buffers_freed_ = false;
  bool writes_wait_ = false;  // write_buffer() said none
  bool writes_next_ = false;  // whose turn it is
  std::unordered_map<rpc::SessionId, std::uint32_t>
      running_;                // at the store or waiting for it, by session
  std::vector<Fence> fences_;  // that wait for running_
  std::size_t persisting_ = 0;
  std::uint64_t requests_ = 0;
  std::unique_ptr<ChunkStore> store_;
  std::unique_ptr<WorkerThread> worker_;
};

}  // namespace distfuse::storaged
