// SPDX-License-Identifier: Apache-2.0
#include "lockd/cluster_storage.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

namespace distfuse::lockd {

namespace {

/// How long one attempt waits for a storaged that is away; also how long a stop can take.
constexpr std::chrono::milliseconds kAttempt{2000};

std::string explain(int code, const std::string& message) {
  return message.empty() ? std::strerror(code) : message;
}

}  // namespace

Result<std::unique_ptr<Storage>> ClusterStorage::create(const config::Cluster& cluster) {
  rpc::ClientOptions options;
  options.meta = cluster.meta().meta_listen;
  options.data = cluster.data_addresses();
  options.cluster_id = cluster.id;
  options.role = rpc::Role::lockd;
  options.device = cluster.fabric.storage_device();
  options.channels = 1;  // Its connections are the ones that are watched.
  options.give_up = kAttempt;
  auto client = rpc::Client::create(options);
  if (!client.ok()) return client.error();
  return std::unique_ptr<Storage>(
      new ClusterStorage(std::move(client).value(), options.meta, options.data));
}

Status ClusterStorage::fence(SessionId session) {
  auto& fenced = fenced_[session];
  Status status;
  const auto failed = [&](const std::string& who, int code, const std::string& message) {
    if (status.ok()) status = Error{code, fmt::format("{}: {}", who, explain(code, message))};
  };

  std::vector<rpc::DataCall> calls;
  for (std::uint32_t target = 0; target < data_.size(); ++target) {
    if (fenced.data.contains(target)) continue;
    auto& call = calls.emplace_back();
    call.target = target;
    call.request.ino = session;
    call.request.op = static_cast<std::uint16_t>(rpc::DataOp::fence);
  }
  if (!calls.empty()) {
    const auto all = client_->run(calls);
    for (const auto& call : calls) {
      if (call.error == 0)
        fenced.data.insert(call.target);
      else
        failed("data target " + data_[call.target], call.error,
               all.ok() ? "" : all.error().message);
    }
  }
  if (!fenced.meta) {
    const auto reply = client_->call(rpc::FenceSession{session}, 0, 0);
    if (reply.ok())
      fenced.meta = true;
    else
      failed("meta target " + meta_, reply.error().code, reply.error().message);
  }
  if (status.ok()) fenced_.erase(session);
  return status;
}

bool ClusterStorage::needs_sessions() {
  for (std::uint32_t target = 0; target < told_.size(); ++target)
    if (told_[target] == 0 || client_->connection(target) != told_[target]) return true;
  return false;
}

Status ClusterStorage::tell(const LiveSessions& live) {
  std::vector<SessionId> ids = live.ids;
  std::vector<rpc::DataCall> calls;
  for (std::uint32_t target = 0; target < told_.size(); ++target) {
    if (told_[target] != 0 && client_->connection(target) == told_[target]) continue;
    told_[target] = 0;
    auto& call = calls.emplace_back();
    call.target = target;
    call.request.op = static_cast<std::uint16_t>(rpc::DataOp::sessions);
    call.request.ino = live.incarnation;
    call.request.chunk = live.high;
    call.request.length = static_cast<std::uint32_t>(ids.size() * sizeof(SessionId));
    call.buffer = reinterpret_cast<std::byte*>(ids.data());
  }
  const auto all = client_->run(calls);
  Status status;
  for (const auto& call : calls) {
    const auto who =
        call.target < data_.size() ? "data target " + data_[call.target] : "meta target " + meta_;
    if (call.error == 0)
      told_[call.target] = call.connection;
    else if (call.error == ESTALE)
      return Error{ESTALE, who};
    else if (status.ok())
      status = Error{
          call.error,
          fmt::format("{}: {}", who, explain(call.error, all.ok() ? "" : all.error().message))};
  }
  return status;
}

void ClusterStorage::wait(int wake_fd, std::chrono::milliseconds timeout) {
  client_->watch(wake_fd, timeout);
}

}  // namespace distfuse::lockd
