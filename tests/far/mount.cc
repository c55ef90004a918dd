// SPDX-License-Identifier: Apache-2.0
#include "tests/far/mount.h"

#include <chrono>
#include <cstdlib>
#include <sstream>

#include "tests/cluster.h"
#include "tests/far/hand.h"

namespace distfuse::tests::far {
namespace {

/// Of every script: `client` prints the process of the mount's client, `gone` waits until there is none.
constexpr const char* kFunctions = R"sh(
client() { pgrep -f "^[^ ]*distfuse mount --foreground .* $folder/$name\$"; }
gone() {
  for i in $(seq 300); do client >/dev/null || return 0; sleep 0.1; done
  echo "the client does not leave" >&2; return 1
}
)sh";

/// A script's answer: nothing if it succeeded.
std::string wrong(const CommandResult& result) {
  if (result.exit_code == 0) return {};
  return "exit " + std::to_string(result.exit_code) + ": " + result.output;
}

CommandResult run_on(const std::string& node, const std::string& script) {
  return run(command_on(node, script), std::chrono::seconds(150));
}

}  // namespace

const std::vector<std::string>& nodes() {
  static const std::vector<std::string> all = [] {
    const char* text = std::getenv("DISTFUSE_TEST_NODES");
    std::istringstream words(text != nullptr ? text : "");
    std::vector<std::string> names;
    for (std::string word; words >> word;) names.push_back(word);
    return names;
  }();
  return all;
}

std::string Mount::words(const std::string& script) const {
  return "folder=" + folder_ + " name=" + name_ + kFunctions + script;
}

std::string Mount::mount_command() const {
  return program("distfuse") + " mount --config $folder/cluster-$name.toml --coherence " +
         (in_kernel() ? "kernel" : "user") +
         " --name $name --log-file $folder/$name.log --admin-socket $folder/$name.sock";
}

std::string Mount::up(const std::string& cluster_file) const {
  return wrong(
      run_on(node_, words("mkdir -p $folder/$name && cat >$folder/cluster-$name.toml <<'END' "
                          "&& " +
                          mount_command() + " $folder/$name\n" + cluster_file + "\nEND\n")));
}

std::string Mount::down() const {
  if (dead_) return {};
  // A program that was just killed there may not have closed its files yet.
  return wrong(run_on(node_, words("for i in 1 2 3 4 5; do " + program("distfuse") +
                                   " umount $folder/$name && exit 0; sleep 1; done; exit 1")));
}

std::string Mount::signal(const std::string& signal_name) const {
  return wrong(run_on(node_, words("kill -" + signal_name + " $(client)")));
}

std::string Mount::kill() const {
  return wrong(run_on(node_, words("kill -KILL $(client) && gone")));
}

std::string Mount::restart() const {
  if (in_kernel()) return wrong(run_on(node_, words(mount_command() + " --attach $folder/$name")));
  return wrong(
      run_on(node_, words("! mountpoint -q $folder/$name || " + program("distfuse") +
                          " umount --lazy $folder/$name; " + mount_command() + " $folder/$name")));
}

std::string Mount::leftovers() const {
  if (dead_) return {};
  const auto result = run_on(node_, words(R"sh(
left=$(pgrep -af "^[^ ]*distfuse.*$folder/$name") && echo "$left" && kill -9 ${left%% *}
mounts=$(grep " $folder/$name " /proc/self/mountinfo) && echo "$mounts" && umount -l $folder/$name
rm -rf --one-file-system $folder/$name $folder/$name.log $folder/$name.sock $folder/cluster-$name.toml
rmdir --ignore-fail-on-non-empty $folder
)sh"));
  return result.output;
}

std::string Mount::log() const {
  return dead_ ? "" : run_on(node_, words("cat $folder/$name.log")).output;
}

}  // namespace distfuse::tests::far
