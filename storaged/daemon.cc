// SPDX-License-Identifier: Apache-2.0
#include "storaged/daemon.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>

#include "storaged/boot.h"
#include "storaged/data/file_chunk_store.h"
#include "storaged/data_service.h"
#include "storaged/meta/rocksdb_metadata_store.h"
#include "storaged/meta_service.h"
#include "storaged/purger.h"
#include "storaged/role_thread.h"

namespace distfuse::storaged {
namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPurgeGiveUp{3};

Json to_json(const rpc::ServerCounters& counters) {
  return {{"connections", counters.connections},
          {"refused", counters.refused},
          {"dropped", counters.dropped},
          {"requests", counters.requests},
          {"replies", counters.replies}};
}

Json to_json(const MetaServiceStatus& status) {
  return {{"rpc", to_json(status.server)},
          {"learning", status.learning},
          {"incarnation", status.incarnation},
          {"operations", status.store.operations},
          {"errors", status.store.errors},
          {"replayed", status.store.replayed},
          {"refused", status.store.refused},
          {"syncs", status.store.syncs},
          {"inodes", status.store.inodes},
          {"orphans", status.store.orphans},
          {"purges_pending", status.store.purges_pending},
          {"reply_records", status.store.reply_records},
          {"fenced_sessions", status.store.fenced_sessions}};
}

Json to_json(const DataServiceStatus& status) {
  return {{"rpc", to_json(status.server)},
          {"learning", status.learning},
          {"incarnation", status.incarnation},
          {"requests", status.requests},
          {"waiting", status.waiting},
          {"buffers_taken", status.buffers_taken},
          {"fenced_sessions", status.fenced_sessions},
          {"operations", status.store.operations},
          {"errors", status.store.errors},
          {"bytes_read", status.store.bytes_read},
          {"bytes_written", status.store.bytes_written},
          {"dirty_chunks", status.store.dirty_chunks},
          {"open_files", status.store.open_files}};
}

/// Bytes of the target: its capacity, or what the filesystem has.
Json space(const std::string& directory, const ChunkStoreStatistics& statistics) {
  struct statvfs filesystem {};
  if (::statvfs(directory.c_str(), &filesystem) != 0) return nullptr;
  std::uint64_t total = filesystem.f_frsize * filesystem.f_blocks;
  std::uint64_t available = filesystem.f_frsize * filesystem.f_bavail;
  std::uint64_t used = total - filesystem.f_frsize * filesystem.f_bfree;
  if (statistics.capacity != 0) {
    total = std::min(total, statistics.capacity);
    used = statistics.used;
    available = std::min(available, total > used ? total - used : 0);
  }
  return {{"total", total}, {"used", used}, {"available", available}};
}

class DaemonImpl final : public Daemon {
 public:
  DaemonImpl(const config::Cluster& cluster, const config::Storaged& self)
      : cluster_(cluster), self_(self) {}
  ~DaemonImpl() override {
    if (purger_)
      purger_->stop();  // while the meta thread still answers it; freed when that wakes it no more
    meta_.reset();
    data_.reset();
  }
  DaemonImpl(const DaemonImpl&) = delete;
  DaemonImpl& operator=(const DaemonImpl&) = delete;

  Status open();
  [[nodiscard]] std::string ready_line() const override;
  [[nodiscard]] std::string status() override;

 private:
  Result<std::unique_ptr<rpc::Server>> listen(rpc::Handler& handler, bool data);
  Status open_meta(std::unique_ptr<MetaService> service, std::unique_ptr<rpc::Server> server);
  Status open_data(std::unique_ptr<DataService> service, std::unique_ptr<rpc::Server> server);
  Status open_purger();

  const config::Cluster cluster_;
  const config::Storaged self_;
  const Clock::time_point started_ = Clock::now();
  MetaService* meta_service_ = nullptr;  // of meta_
  DataService* data_service_ = nullptr;  // of data_
  std::string meta_address_;
  std::string data_address_;
  std::unique_ptr<Purger> purger_;
  std::atomic<Purger*> waking_{nullptr};  // purger_, from when it can be woken
  std::unique_ptr<RoleThread> data_;
  std::unique_ptr<RoleThread> meta_;
};

Result<std::unique_ptr<rpc::Server>> DaemonImpl::listen(rpc::Handler& handler, bool data) {
  rpc::ServerOptions options;
  options.listen = data ? self_.data_listen : self_.meta_listen;
  options.cluster_id = cluster_.id;
  options.device = cluster_.fabric.storage_device();
  options.data = data;
  options.metadata = !data;
  auto boot = boot_number();
  if (!boot) return boot.error();
  options.boot = *boot;
  return rpc::Server::create(options, handler);
}

Status DaemonImpl::open() {
  std::unique_ptr<MetaService> meta;
  std::unique_ptr<DataService> data;
  std::unique_ptr<rpc::Server> meta_server;
  std::unique_ptr<rpc::Server> data_server;
  if (self_.meta) {
    meta = std::make_unique<MetaService>();
    auto server = listen(*meta, false);
    if (!server) return server.error();
    meta_server = std::move(*server);
  }
  if (self_.data) {
    data = std::make_unique<DataService>();
    auto server = listen(*data, true);
    if (!server) return server.error();
    data_server = std::move(*server);
  }
  if (meta) DISTFUSE_TRY(open_meta(std::move(meta), std::move(meta_server)));
  if (data) DISTFUSE_TRY(open_data(std::move(data), std::move(data_server)));
  if (meta_) meta_->start();
  if (data_) data_->start();
  return meta_ ? open_purger() : Status{};
}

Status DaemonImpl::open_meta(std::unique_ptr<MetaService> service,
                             std::unique_ptr<rpc::Server> server) {
  RocksdbMetadataOptions options;
  options.directory = self_.meta_dir;
  options.cluster_id = cluster_.id;
  options.data_targets = static_cast<std::uint32_t>(cluster_.data_addresses().size());
  auto store = open_rocksdb_metadata_store(options);
  if (!store) return store.error();
  meta_service_ = service.get();
  meta_address_ = server->address();
  meta_service_->start(*server, std::move(*store), [this] {
    if (Purger* purger = waking_.load()) purger->wake();
  });
  auto thread = RoleThread::create("meta", std::move(server), std::move(service), -1);
  if (!thread) return thread.error();
  meta_ = std::move(*thread);
  return {};
}

Status DaemonImpl::open_data(std::unique_ptr<DataService> service,
                             std::unique_ptr<rpc::Server> server) {
  FileChunkStoreOptions options;
  options.directory = self_.data_dir;
  options.cluster_id = cluster_.id;
  options.capacity = self_.capacity;
  auto store = open_file_chunk_store(options);
  if (!store) return store.error();
  auto fenced = FencedSessions::open(self_.data_dir);
  if (!fenced) return fenced.error();
  data_service_ = service.get();
  data_address_ = server->address();
  data_service_->start(*server, std::move(*store), std::move(*fenced));
  auto thread =
      RoleThread::create("data", std::move(server), std::move(service), data_service_->event_fd());
  if (!thread) return thread.error();
  data_ = std::move(*thread);
  return {};
}

Status DaemonImpl::open_purger() {
  rpc::ClientOptions options;
  options.data = cluster_.data_addresses();
  options.cluster_id = cluster_.id;
  options.role = rpc::Role::storaged;
  options.device = cluster_.fabric.storage_device();
  options.channels = 1;
  options.give_up = kPurgeGiveUp;
  const auto count = static_cast<std::uint32_t>(options.data.size());
  auto client = rpc::Client::create(options);
  if (!client) return client.error();
  purger_ =
      std::make_unique<Purger>(meta_->server(), meta_service_->store(), std::move(*client), count);
  waking_.store(purger_.get());
  return {};
}

std::string DaemonImpl::ready_line() const {
  std::string line = "ready";
  if (self_.meta) line += " meta=" + meta_address_;
  if (self_.data) line += " data=" + data_address_;
  return line;
}

std::string DaemonImpl::status() {
  const auto parse = [](const std::string& text) { return Json::parse(text); };
  const auto up = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - started_).count();
  Json roles = Json::array();
  Json answer = {{"daemon", "storaged"}, {"name", self_.name},     {"version", DISTFUSE_VERSION},
                 {"pid", ::getpid()},    {"cluster", cluster_.id}, {"uptime_s", up}};
  if (meta_) {
    roles.push_back("meta");
    answer["meta"] = parse(
        meta_->ask([this] { return to_json(meta_service_->status()).dump(); }, R"({"busy":true})"));
    answer["meta"]["address"] = meta_address_;
    answer["meta"]["directory"] = self_.meta_dir;
  }
  if (data_) {
    roles.push_back("data");
    answer["data"] = parse(data_->ask(
        [this] {
          const DataServiceStatus status = data_service_->status();
          Json json = to_json(status);
          json["capacity"] = space(self_.data_dir, status.store);
          return json.dump();
        },
        R"({"busy":true})"));
    answer["data"]["address"] = data_address_;
    answer["data"]["directory"] = self_.data_dir;
  }
  answer["roles"] = roles;
  return answer.dump();
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::start(const config::Cluster& cluster,
                                              const std::string& name) {
  const config::Storaged* self = cluster.find_storaged(name);
  if (self == nullptr) {
    std::string names;
    for (const config::Storaged& known : cluster.storaged)
      names += (names.empty() ? "" : ", ") + known.name;
    return Error{ENOENT, fmt::format("the cluster file has no storaged named '{}'; it names: {}",
                                     name, names)};
  }
  auto daemon = std::make_unique<DaemonImpl>(cluster, *self);
  DISTFUSE_TRY(daemon->open());
  return std::unique_ptr<Daemon>(std::move(daemon));
}

}  // namespace distfuse::storaged
