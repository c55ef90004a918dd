// SPDX-License-Identifier: Apache-2.0
// The fencer's way to the storageds of a cluster: FenceSession to the meta target, DataOp::fence to each data target, and
// DataOp::sessions to all, once a connection: a storaged that started anew is a new connection.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/result.h"
#include "lockd/fencer.h"
#include "rpc/client.h"

namespace distfuse::lockd {

/// The storageds of a cluster.
class ClusterStorage : public Storage {
 public:
  static Result<std::unique_ptr<Storage>> create(const config::Cluster& cluster);
  [[nodiscard]] Status fence(SessionId session) override;
  [[nodiscard]] bool needs_sessions() override;
  [[nodiscard]] Status tell(const LiveSessions& live) override;
  void wait(int wake_fd, std::chrono::milliseconds timeout) override;

 private:
  ClusterStorage(std::unique_ptr<rpc::Client> client, std::string meta,
                 std::vector<std::string> data)
      : client_(std::move(client)),
        meta_(std::move(meta)),
        data_(std::move(data)),
        told_(data_.size() + 1, 0) {}

  std::unique_ptr<rpc::Client> client_;
  const std::string meta_;
  const std::vector<std::string> data_;
  /// Connection on which the target was told who lives, by data target, then the meta target.
  std::vector<std::uint64_t> told_;
  struct Fenced {
    bool meta = false;
    std::set<std::uint32_t> data;
  };
  std::map<SessionId, Fenced> fenced_;  ///< Of sessions that are not yet refused everywhere.
};

}  // namespace distfuse::lockd
