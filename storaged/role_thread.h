// SPDX-License-Identifier: Apache-2.0
// The thread of a role: owns an RPC server and sleeps on it and on what the role adds.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "rpc/server.h"
#include "storaged/role.h"

namespace distfuse::storaged {

class RoleThread {
 public:
  /// `event_fd`: of the role's, or -1. Error: epoll.
  static Result<std::unique_ptr<RoleThread>> create(std::string name,
                                                    std::unique_ptr<rpc::Server> server,
                                                    std::unique_ptr<Role> role, int event_fd);
  ~RoleThread();  ///< Answers what is owed, for kDrain at most, and stops.
  RoleThread(const RoleThread&) = delete;
  RoleThread& operator=(const RoleThread&) = delete;

  void start();
  [[nodiscard]] rpc::Server& server() { return *server_; }
  /// Runs `question` on the thread and answers with what it says; `fallback` when that takes longer than two seconds.
  [[nodiscard]] std::string ask(std::function<std::string()> question, const std::string& fallback);

 private:
  static constexpr std::chrono::seconds kDrain{2};
  RoleThread(std::string name, std::unique_ptr<rpc::Server> server, std::unique_ptr<Role> role,
             int epoll);
  void serve();
  bool progress() {
    const bool server = server_->progress();
    return role_->progress() || server;
  }

  const std::string name_;
  std::unique_ptr<Role> role_;
  std::unique_ptr<rpc::Server> server_;
  const int epoll_;
  bool stop_ = false;  // the thread's
  std::thread thread_;
};

}  // namespace distfuse::storaged
