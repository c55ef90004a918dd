// SPDX-License-Identifier: Apache-2.0
// The mount's beginning and end: who it talks to, what it agrees on with the kernel.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "client/fuse/filesystem.h"

namespace distfuse::client {

Filesystem::Filesystem(const MountOptions& options)
    : options_(options),
      targets_(static_cast<std::uint32_t>(options.cluster.data_addresses().size())) {}

Filesystem::~Filesystem() {
  stop();
}

Status Filesystem::connect() {
  const auto give_up =
      std::chrono::steady_clock::now() + std::chrono::seconds(options_.cluster.client.give_up_s);
  auto first = make_generation(generation_);
  // lockd has restarted, and is waiting for those that had a session.
  while (!first && first.error().code == EAGAIN && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    first = make_generation(generation_);
  }
  if (!first) return first.error();
  session_owner_ = std::move(first->owner);
  rpc_ = std::move(first->rpc);
  data_ = std::move(first->data);
  locks_ = std::move(first->locks);
  DISTFUSE_TRY(rpc_->check_reachable(std::chrono::seconds(10)));
  auto root = fetch_attributes(rpc::kRootIno);
  if (!root) return Error{root.error().code, "the meta target has no root directory"};
  return {};
}

/// No writeback cache: a write is at the storageds when it returns. No AUTO_INVAL_DATA: pages go when their lock goes, and for no other
/// reason. No ATOMIC_O_TRUNC: it would hold back writeback of the file while an open waits for its lock. No splicing: for payloads
/// of a megabyte and less the pipe costs more than the copy.
void Filesystem::init(fuse_conn_info* connection) {
  const unsigned wanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS |
                          FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_READDIRPLUS |
                          FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_ASYNC_DIO |
                          FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_CACHE_SYMLINKS;
  connection->want = connection->capable & wanted;
  connection->max_write = 1 << 20;
  connection->max_readahead = std::min<unsigned>(connection->max_readahead, 4 << 20);
  // Writeback that a sweep waits for must not queue behind reads that wait for another lock. 65535 is the protocol's limit.
  connection->max_background = 65535;
  connection->congestion_threshold = 65535;
  connection->time_gran = 1;
}

void Filesystem::start(fuse_session* session) {
  fuse_ = session;
  serving_ = true;
  flusher_ = std::thread([this] { flusher_main(); });
  renewer_ = std::thread([this] { renewer_main(); });
}

void Filesystem::stop() {
  stop_serving();
  stopping_ = true;
  if (renewer_.joinable()) {
    {
      const std::lock_guard lock(renewer_mutex_);
      renewer_stop_ = true;
      renewer_wake_.notify_all();
    }
    renewer_.join();
  }
  if (flusher_.joinable()) {
    {
      const std::lock_guard lock(flusher_mutex_);
      flusher_stop_ = true;
    }
    flusher_wake_.notify_one();
    flusher_.join();
  }
  if (data_ != nullptr && !lost()) flush_dirty();
  locks_.reset();  // sheds everything, ends the session
  data_.reset();
  rpc_.reset();
}

std::string Filesystem::status_json() const {
  const std::shared_lock generation(generation_mutex_);
  const LockCounters locks = locks_->counters();
  const rpc::ClientCounters calls = rpc_->counters();
  const SessionInfo session = locks_->session();
  const nlohmann::json status{{"mountpoint", options_.mountpoint},
                              {"name", options_.name},
                              {"session", session.session},
                              {"node_id", session.node_id},
                              {"incarnation", session.incarnation},
                              {"lost", lost()},
                              {"lease",
                               {{"state", session.state},
                                {"lease_ms", session.lease_ms},
                                {"trusted_ms", session.lease_ms == 0 ? 0 : session.trusted_ms},
                                {"reconnects", session.reconnects},
                                {"lost_sessions", lost_sessions_.load()},
                                {"forfeited_locks", session.forfeited},
                                {"file_locks", session.file_locks}}},
                              {"inodes", inodes_.size()},
                              {"entries", entries_.size()},
                              {"locks",
                               {{"held", locks.held},
                                {"hits", locks.hits},
                                {"free_takes", locks.free_takes},
                                {"asks", locks.asks},
                                {"revokes", locks.revokes},
                                {"sweeps", locks.sweeps},
                                {"resweeps", locks.resweeps},
                                {"glimpses", locks.glimpses},
                                {"finds", locks.finds}}},
                              {"rpc",
                               {{"metadata_calls", calls.metadata_calls},
                                {"data_calls", calls.data_calls},
                                {"connects", calls.connects},
                                {"retries", calls.retries},
                                {"failures", calls.failures}}}};
  return status.dump();
}

}  // namespace distfuse::client
