// SPDX-License-Identifier: Apache-2.0
// A mount of a test's cluster that `distfuse up` has not made: on another guest, or on this one beside its own. Everything is done there by
// shell words (far::command_on).
#pragma once

#include <string>
#include <vector>

namespace distfuse::tests::far {

/// The guests that the tests' mounts are spread over (DISTFUSE_TEST_NODES); this one is the first. Fewer than two: all mounts are here.
[[nodiscard]] const std::vector<std::string>& nodes();

class Mount {
 public:
  /// The mount `name` on `node`, in `folder`, which is made there.
  Mount(std::string node, std::string name, std::string folder)
      : node_(std::move(node)), name_(std::move(name)), folder_(std::move(folder)) {}

  [[nodiscard]] const std::string& node() const { return node_; }
  [[nodiscard]] const std::string& name() const { return name_; }

  // Each answers with what went wrong, empty if nothing did.

  /// Mounts the cluster of this file's text; returns when the mount is usable.
  [[nodiscard]] std::string up(const std::string& cluster_file) const;
  /// Unmounts, and waits until its client has left.
  [[nodiscard]] std::string down() const;
  [[nodiscard]] std::string signal(const std::string& name) const;
  /// kill -9, and waits until it is gone.
  [[nodiscard]] std::string kill() const;
  /// Mounts again, or attaches, where the client is dead.
  [[nodiscard]] std::string restart() const;
  /// Processes and mounts of `folder` on that guest. They are ended, and the folder goes.
  [[nodiscard]] std::string leftovers() const;

  [[nodiscard]] std::string log() const;
  /// Its guest was told to die: there is nothing left to bring down or to look at.
  void died() { dead_ = true; }
  [[nodiscard]] bool dead() const { return dead_; }

 private:
  [[nodiscard]] std::string words(const std::string& script) const;
  [[nodiscard]] std::string mount_command() const;

  std::string node_;
  std::string name_;
  std::string folder_;
  bool dead_ = false;
};

}  // namespace distfuse::tests::far
