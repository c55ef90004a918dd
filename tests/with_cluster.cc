// SPDX-License-Identifier: Apache-2.0
// with_cluster [--mounts N] [--storage N] -- COMMAND...
// Brings a cluster up, runs COMMAND with DISTFUSE_MOUNTS set to its mount points (space-separated), brings it down. Exits with
// COMMAND's status, or 1 when the cluster left a process, a mount or an unexpected warning behind.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tests/cluster.h"

namespace {

struct Options {
  distfuse::tests::ClusterOptions cluster;
  std::vector<char*> command;
};

Options g_options;

[[noreturn]] void usage() {
  std::fputs("usage: with_cluster [--mounts N] [--storage N] -- COMMAND...\n", stderr);
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options options;
  int i = 1;
  for (; i < argc && std::strcmp(argv[i], "--") != 0; i += 2) {
    if (i + 1 >= argc) usage();
    const int value = std::atoi(argv[i + 1]);
    if (value < 1) usage();
    if (std::strcmp(argv[i], "--mounts") == 0)
      options.cluster.mounts = static_cast<unsigned>(value);
    else if (std::strcmp(argv[i], "--storage") == 0)
      options.cluster.storageds = static_cast<unsigned>(value);
    else
      usage();
  }
  for (++i; i < argc; ++i) options.command.push_back(argv[i]);
  if (options.command.empty()) usage();
  options.command.push_back(nullptr);
  return options;
}

int run_command(const distfuse::tests::Cluster& cluster) {
  std::string mounts;
  for (const std::string& mount : cluster.mounts()) mounts += (mounts.empty() ? "" : " ") + mount;
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    setenv("DISTFUSE_MOUNTS", mounts.c_str(), 1);
    setenv("DISTFUSE_ROOT", cluster.root().c_str(), 1);
    execvp(g_options.command[0], g_options.command.data());
    std::perror(g_options.command[0]);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(WithCluster, CommandSucceedsAndNothingIsLeft) {
  distfuse::tests::Cluster cluster(g_options.cluster);
  ASSERT_TRUE(cluster.ok());
  EXPECT_EQ(run_command(cluster), 0) << g_options.command[0];
}

}  // namespace

int main(int argc, char** argv) {
  int none = 1;
  testing::InitGoogleTest(&none, argv);
  g_options = parse(argc, argv);
  return RUN_ALL_TESTS();
}
