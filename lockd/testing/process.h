// SPDX-License-Identifier: Apache-2.0
// Processes for tests: a forked child that runs a function of the test and talks with it in lines, and programs. The test
// process itself must not have used the fabric before it forks.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace distfuse::lockd::testing {

/// One end of the two pipes between test and child.
class Talk {
 public:
  Talk(int in, int out) : in_(in), out_(out) {}
  ~Talk();
  Talk(Talk&& other) noexcept;
  Talk& operator=(Talk&& other) noexcept;
  void say(const std::string& line) const;
  /// A line without its end; "" at the end of file or after the timeout.
  [[nodiscard]] std::string hear(std::chrono::milliseconds timeout = std::chrono::seconds(30));

 private:
  int in_, out_;
  std::string buffer_;
};

class Process {
 public:
  /// Forks; the child runs `body` and leaves with its result.
  static Process fork_child(const std::function<int(Talk&)>& body);
  /// Starts a program with its standard output as the talk's other end.
  static Process start(const std::vector<std::string>& command);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();  ///< Kills it if it runs.

  Talk& talk() { return talk_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  void kill_hard();  ///< SIGKILL, and waits.
  void send_signal(int number) const;
  /// Waits for its end: exit status, or 128 + signal; -1: still running after the timeout.
  int wait(std::chrono::milliseconds timeout = std::chrono::seconds(30));

 private:
  Process(pid_t pid, Talk talk) : pid_(pid), talk_(std::move(talk)) {}
  pid_t pid_;
  Talk talk_;
};

}  // namespace distfuse::lockd::testing
