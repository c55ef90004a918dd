// SPDX-License-Identifier: Apache-2.0
// A real cluster for a test: `distfuse up` and `down` in a folder of its own, and what must hold after it: no process, no mount
// and no unexpected warning is left.
//
// All on this machine, or, with several guests in DISTFUSE_TEST_NODES, mount i on guest i % n: its path is then "NODE:/PATH", for the calls of
// tests/far/calls.h. lockd and the storageds stay here, on the first guest.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tests/far/mount.h"

namespace distfuse::tests {

struct CommandResult {
  int exit_code = -1;  ///< 128 + signal when it was killed; 124 when it ran out of time.
  std::string output;  ///< Standard output and standard error.
};

/// Runs a program and waits. The program is looked for beside the test's own, then in PATH.
[[nodiscard]] CommandResult run(const std::vector<std::string>& arguments,
                                std::chrono::seconds timeout = std::chrono::seconds(120));

/// The path of a program of this build.
[[nodiscard]] std::string program(const std::string& name);

/// A folder that is removed with what is in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct ClusterOptions {
  unsigned mounts = 2;
  unsigned storageds = 2;
  std::chrono::milliseconds lease{0};  ///< 0: the default of `distfuse up`.
};

/// Whether the tests run on mounts of mode `kernel` (DISTFUSE_TEST_COHERENCE).
[[nodiscard]] bool in_kernel();

class Cluster {
 public:
  /// Brings it up; a failure is a test failure (see ok()).
  explicit Cluster(const ClusterOptions& options = {});
  /// Brings it down if it is up, and checks what is left.
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  [[nodiscard]] bool ok() const { return up_; }
  [[nodiscard]] const std::string& mount(std::size_t i) const {
    return mounts_[i % mounts_.size()];
  }
  [[nodiscard]] const std::vector<std::string>& mounts() const { return mounts_; }
  [[nodiscard]] std::string root() const { return folder_.path() + "/root"; }
  [[nodiscard]] std::string log(const std::string& daemon) const;

  void up();
  void down();
  [[nodiscard]] nlohmann::json status() const;
  /// Of a daemon on this machine.
  [[nodiscard]] pid_t pid(const std::string& daemon) const;
  [[nodiscard]] std::chrono::milliseconds lease() const { return options_.lease; }
  /// The states of the sessions that lockd knows by this name ("live", "fencing", ..), with a space between; empty: it knows none.
  [[nodiscard]] std::string session_states(const std::string& name) const;
  void signal_daemon(const std::string& daemon, int signal) const;
  /// kill -9, and waits until it is gone.
  void kill_daemon(const std::string& daemon);
  /// Starts a storaged, lockd or a mount whose client is dead again with its old configuration; returns when it is ready.
  void restart_daemon(const std::string& daemon);
  /// Kills a storaged and starts it as if its machine had been restarted: with another boot number, here and in later restarts.
  void restart_machine(const std::string& storaged);
  /// A fault of the network of the guest that a mount is on: "cut" "on", "drop" "5" (docs/vm.md).
  void network(const std::string& mount, const std::string& what, const std::string& value) const;
  /// A power cut of that guest, which has neither lockd nor a storaged.
  void kill_guest(const std::string& mount);
  /// Warnings and errors in a log that match this regular expression are expected.
  void expect_log(const std::string& regex) { expected_.push_back(regex); }

 private:
  void add_mount(std::size_t i);
  [[nodiscard]] const far::Mount* far_mount(const std::string& daemon) const;
  /// `all`: every line of it is a complaint.
  void check_log(const std::string& name, const std::string& text, bool all) const;
  void check_logs() const;
  void check_leftovers() const;

  TemporaryFolder folder_;
  ClusterOptions options_;
  std::vector<std::string> mounts_;
  std::vector<std::string> own_mounts_;  ///< Those of `distfuse up`.
  std::vector<far::Mount> far_mounts_;
  std::vector<std::string> expected_;
  std::vector<pid_t> restarted_;
  std::map<std::string, unsigned> boots_;  ///< restart_machine()s so far.
  bool up_ = false;
};

/// The seed of a random test: DISTFUSE_SEED, else fresh. Printed.
[[nodiscard]] std::uint64_t test_seed(const char* what);

}  // namespace distfuse::tests
