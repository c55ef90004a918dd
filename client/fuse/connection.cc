// SPDX-License-Identifier: Apache-2.0
// The mount's beginning and end: who it talks to, what it agrees on with the kernel.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>

#include "client/fuse/filesystem.h"

namespace distfuse::client {

Filesystem::Filesystem(const MountOptions& options)
    : options_(options),
      targets_(static_cast<std::uint32_t>(options.cluster.data_addresses().size())) {}

Filesystem::~Filesystem() {
  stop();
}

Status Filesystem::connect() {
  const config::Cluster& cluster = options_.cluster;
  LockTableOptions lock_options;
  lock_options.fabric_kind = cluster.fabric.kind;
  lock_options.device = cluster.fabric.device;
  lock_options.lockd = cluster.lockd.listen;
  lock_options.cluster_id = cluster.id;
  lock_options.mount_name = options_.name;
  lock_options.max_locks = cluster.client.max_locks;
  lock_options.give_up = std::chrono::seconds(cluster.client.give_up_s);
  auto locks = LockTable::create(lock_options, *this);
  if (!locks) return locks.error();
  locks_ = std::move(*locks);

  rpc::ClientOptions rpc_options;
  rpc_options.meta = cluster.meta().meta_listen;
  rpc_options.data = cluster.data_addresses();
  rpc_options.cluster_id = cluster.id;
  rpc_options.session = locks_->session().session;
  rpc_options.device = cluster.fabric.device;
  rpc_options.give_up = std::chrono::seconds(cluster.client.give_up_s);
  auto client = rpc::Client::create(rpc_options);
  if (!client) return client.error();
  rpc_ = std::move(*client);
  DISTFUSE_TRY(rpc_->check_reachable(std::chrono::seconds(10)));
  data_ = std::make_unique<FileData>(*rpc_, targets_);
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
}

void Filesystem::stop() {
  stop_serving();
  stopping_ = true;
  if (flusher_.joinable()) {
    {
      const std::lock_guard lock(flusher_mutex_);
      flusher_stop_ = true;
    }
    flusher_wake_.notify_one();
    flusher_.join();
  }
  if (data_ != nullptr && !lost_) flush_dirty();
  locks_.reset();  // sheds everything, ends the session
  data_.reset();
  rpc_.reset();
}

std::string Filesystem::status_json() const {
  const LockCounters locks = locks_->counters();
  const rpc::ClientCounters calls = rpc_->counters();
  const SessionInfo session = locks_->session();
  const nlohmann::json status{{"mountpoint", options_.mountpoint},
                              {"name", options_.name},
                              {"session", session.session},
                              {"node_id", session.node_id},
                              {"incarnation", session.incarnation},
                              {"lost", lost_.load()},
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
