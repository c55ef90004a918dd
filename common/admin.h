// SPDX-License-Identifier: Apache-2.0
// The admin socket: a unix stream socket per daemon that answers one-line commands ("status") with
// one JSON text and closes.
//
// Parties: AdminServer (a thread of its own in the daemon), admin_query (the command line). One
// command a connection, ≤ 256 bytes, ended by a newline; a client that says nothing for 2 s is
// dropped. The socket's mode is 0600.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "common/result.h"

namespace distfuse {

class AdminServer {
 public:
  /// Called on the admin thread; answers with JSON text.
  using Answer = std::function<std::string(const std::string& command)>;

  /// Binds `path` (a stale socket that nobody listens on is replaced) and starts to answer. Error:
  /// EADDRINUSE and others.
  static Result<std::unique_ptr<AdminServer>> create(const std::string& path, Answer answer);
  ~AdminServer();
  AdminServer(const AdminServer&) = delete;
  AdminServer& operator=(const AdminServer&) = delete;

 private:
  AdminServer(std::string path, int socket, int stop, Answer answer);
  void serve();
  void serve_one(int connection);

  std::string path_;
  int socket_;
  int stop_;  ///< eventfd: the destructor's word to the thread.
  Answer answer_;
  std::thread thread_;
};

/// Error: ENOENT/ECONNREFUSED: nobody listens there; ETIMEDOUT.
[[nodiscard]] Result<std::string> admin_query(
    const std::string& path, const std::string& command,
    std::chrono::milliseconds timeout = std::chrono::seconds(5));

}  // namespace distfuse
