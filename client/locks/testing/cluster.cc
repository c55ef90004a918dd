// SPDX-License-Identifier: Apache-2.0
#include "client/locks/testing/cluster.h"

#include <cstdio>
#include <cstdlib>

namespace distfuse::client::testing {

namespace {

/// Without storageds there is nothing to refuse.
class NoStorage final : public lockd::Storage {
 public:
  explicit NoStorage(std::shared_ptr<std::atomic<unsigned>> fenced) : fenced_(std::move(fenced)) {}
  Status fence(lockd::SessionId /*session*/) override {
    ++*fenced_;
    return {};
  }

 private:
  std::shared_ptr<std::atomic<unsigned>> fenced_;
};

[[noreturn]] void fail(const Error& error) {
  std::fprintf(stderr, "test cluster: %s\n", error.message.c_str());
  std::abort();
}

}  // namespace

Cluster::Cluster(std::uint32_t slots, std::uint32_t lease_ms) {
  options_.cluster_id = kId;
  options_.fabric = {"ucx", "lo"};
  options_.listen = "127.0.0.1:0";
  options_.slots = slots;
  options_.lease_ms = lease_ms;
  options_.incarnation = 0;
  start();
}

void Cluster::start() {
  ++options_.incarnation;
  std::unique_ptr<lockd::SessionLog> list;
  if (options_.lease_ms != 0) {
    auto opened = lockd::SessionLog::open(folder_.path(), kId, options_.lease_ms);
    if (!opened) fail(opened.error());
    list = std::move(*opened);
  }
  auto service =
      lockd::Service::create(options_, std::make_unique<NoStorage>(fenced_), std::move(list));
  if (!service) fail(service.error());
  service_ = std::move(*service);
  options_.listen = service_->address();
  thread_ = std::thread([this] { service_->run(); });
}

Cluster::~Cluster() {
  stop();
}

void Cluster::stop() {
  if (service_ == nullptr) return;
  service_->stop();
  thread_.join();
  service_.reset();
}

std::string Cluster::status() const {
  if (service_ == nullptr) return "lockd is down";
  auto status = service_->status();
  return status ? *status : status.error().message;
}

LockTableOptions Cluster::options(const std::string& name) const {
  LockTableOptions options;
  options.device = "lo";
  options.lockd = options_.listen;
  options.cluster_id = kId;
  options.mount_name = name;
  options.give_up = std::chrono::milliseconds(5000);
  options.lanes = 8;
  options.revokers = 4;
  return options;
}

std::unique_ptr<LockTable> Cluster::table(const LockTableOptions& options,
                                          CacheOwner& owner) const {
  auto table = LockTable::create(options, owner);
  if (!table) fail(table.error());
  return std::move(*table);
}

std::unique_ptr<LockTable> Cluster::table(const std::string& name, CacheOwner& owner) const {
  return table(options(name), owner);
}

}  // namespace distfuse::client::testing
