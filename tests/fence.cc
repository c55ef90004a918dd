// SPDX-License-Identifier: Apache-2.0
#include "tests/fence.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/config.h"
#include "rpc/client.h"

namespace distfuse::tests {

std::uint64_t session_of(const Cluster& cluster, const std::string& client) {
  const nlohmann::json status = cluster.status();
  for (const auto& daemon : status["daemons"]) {
    if (daemon["kind"] != "lockd") continue;
    for (const auto& each : daemon["status"]["sessions"])
      if (each["name"] == client) return each["session"];
  }
  return 0;
}

void fence_everywhere(const Cluster& cluster, std::uint64_t session) {
  const auto config = config::load_cluster(cluster.root() + "/cluster.toml");
  ASSERT_TRUE(config.ok()) << config.error().message;
  rpc::ClientOptions options;
  options.meta = config->meta().meta_listen;
  options.data = config->data_addresses();
  options.cluster_id = config->id;
  options.role = rpc::Role::lockd;
  options.device = config->fabric.storage_device();
  options.channels = 1;
  auto client = rpc::Client::create(options);
  ASSERT_TRUE(client.ok()) << client.error().message;
  for (std::uint32_t target = 0; target < options.data.size(); ++target) {
    rpc::DataCall call;
    call.target = target;
    call.request.ino = session;
    call.request.op = static_cast<std::uint16_t>(rpc::DataOp::fence);
    const auto status = (*client)->run({&call, 1});
    ASSERT_TRUE(status.ok()) << status.error().message;
  }
  const auto fenced = (*client)->call(rpc::FenceSession{session}, 0, 0);
  ASSERT_TRUE(fenced.ok()) << fenced.error().message;
}

}  // namespace distfuse::tests
