// SPDX-License-Identifier: Apache-2.0
// Descriptors and threads of every daemon stay what they were: over many operations, over storaged's restarts, over mounts that come and go.
// Each test does a thing a few times, counts, does it many times more, and counts again.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/cluster.h"

namespace distfuse::tests {
namespace {

namespace fs = std::filesystem;
using std::chrono::steady_clock;

struct Used {
  long descriptors = 0;
  long threads = 0;
};

long entries(const std::string& folder) {
  std::error_code error;
  return std::distance(fs::directory_iterator(folder, error), fs::directory_iterator());
}

/// By the names of `distfuse status`.
std::map<std::string, Used> used(const Cluster& cluster, const std::vector<std::string>& daemons) {
  std::map<std::string, Used> result;
  for (const std::string& daemon : daemons) {
    const std::string process = "/proc/" + std::to_string(cluster.pid(daemon));
    result[daemon] = {entries(process + "/fd"), entries(process + "/task")};
  }
  return result;
}

/// A leak grows with the rounds. But when the scheduler makes more requests meet than before, a client's pools grow by a lane or a
/// channel, which are a few descriptors each, here and at the daemon that it leads to.
long slack(const std::string& daemon) {
  return daemon.starts_with("mount-") ? 40 : 10;
}

/// What goes lazily (purged chunks, closed connections) has some time to go.
void expect_unchanged(const Cluster& cluster, const std::map<std::string, Used>& before) {
  std::vector<std::string> names;
  for (const auto& [name, was] : before) names.push_back(name);
  std::map<std::string, Used> now;
  const auto grew = [&] {
    now = used(cluster, names);
    return std::ranges::any_of(before, [&](const auto& was) {
      return now[was.first].descriptors > was.second.descriptors + slack(was.first) ||
             now[was.first].threads > was.second.threads + slack(was.first);
    });
  };
  const auto deadline = steady_clock::now() + std::chrono::seconds(20);
  while (grew() && steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  for (const auto& [name, was] : before) {
    std::printf("%s: descriptors %ld, then %ld; threads %ld, then %ld\n", name.c_str(),
                was.descriptors, now[name].descriptors, was.threads, now[name].threads);
    EXPECT_LE(now[name].descriptors, was.descriptors + slack(name)) << name;
    EXPECT_LE(now[name].threads, was.threads + slack(name)) << name;
  }
}

/// What a step answered, and which it was when it failed.
bool step(bool good, const char* what) {
  if (!good) std::fprintf(stderr, "%s: %s\n", what, std::strerror(errno));
  return good;
}

bool file_operations(const std::string& mine, const std::string& theirs, int i) {
  const std::string name = "/file" + std::to_string(i);
  const int fd = open((mine + name).c_str(), O_RDWR | O_CREAT | O_EXCL, 0644);
  const std::string bytes(20000, static_cast<char>('a' + i % 26));
  struct flock range {};
  range.l_type = F_WRLCK;
  std::string seen(20000, 0);
  int other = -1;
  const bool good =
      step(fd >= 0, "create") && step(write(fd, bytes.data(), bytes.size()) == 20000, "write") &&
      step(flock(fd, LOCK_EX | LOCK_NB) == 0, "flock") &&
      step(fcntl(fd, F_SETLK, &range) == 0, "fcntl") &&
      step(setxattr((mine + name).c_str(), "user.it", "value", 5, 0) == 0, "setxattr") &&
      step((other = open((theirs + name).c_str(), O_RDONLY)) >= 0, "open") &&
      step(read(other, seen.data(), seen.size()) == 20000 && seen == bytes, "read") &&
      step(rename((mine + name).c_str(), (mine + name + ".new").c_str()) == 0, "rename") &&
      step(unlink((theirs + name + ".new").c_str()) == 0, "unlink") &&
      step(pread(fd, seen.data(), 1, 0) == 1, "read without a name");
  close(fd);
  close(other);
  return good;
}

bool folder_operations(const std::string& mine, const std::string& theirs, int i) {
  const std::string name = "/folder" + std::to_string(i);
  if (!step(mkdir((mine + name).c_str(), 0755) == 0, "mkdir") ||
      !step(symlink("nowhere", (theirs + name + "/link").c_str()) == 0, "symlink"))
    return false;
  DIR* folder = opendir((mine + name).c_str());
  int count = 0;
  while (folder != nullptr && readdir(folder) != nullptr) ++count;
  if (folder != nullptr) closedir(folder);
  return step(count == 3, "readdir") &&
         step(unlink((mine + name + "/link").c_str()) == 0, "unlink") &&
         step(rmdir((theirs + name).c_str()) == 0, "rmdir");
}

/// Two processes on each mount, each in a folder of its own that the other mount works in too.
void work(const Cluster& cluster, int rounds) {
  std::vector<pid_t> children;
  for (std::size_t p = 0; p < 4; ++p) {
    const pid_t child = fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    const std::string own = "/process" + std::to_string(p);
    mkdir((cluster.mount(p) + own).c_str(), 0755);
    for (int i = 0; i < rounds; ++i) {
      if (!file_operations(cluster.mount(p) + own, cluster.mount(p + 1) + own, i) ||
          !folder_operations(cluster.mount(p) + own, cluster.mount(p + 1) + own, i))
        _exit(1);
    }
    _exit(0);
  }
  for (const pid_t child : children) {
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
}

TEST(Resources, OverManyOperations) {
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  work(cluster, 40);
  const auto before = used(cluster, {"mount-0", "mount-1", "lockd", "storaged-0", "storaged-1"});
  work(cluster, 150);
  expect_unchanged(cluster, before);
}

/// Of every mount, as it says itself.
std::size_t inodes_known(const Cluster& cluster) {
  std::size_t sum = 0;
  const auto status = cluster.status();
  for (const auto& daemon : status["daemons"]) {
    if (daemon["status"].contains("inodes")) sum += daemon["status"]["inodes"].get<std::size_t>();
  }
  return sum;
}

/// A kernel refers to an inode until it looks for the name again and finds it gone.
void look_for_what_is_gone(const Cluster& cluster, int rounds) {
  struct stat gone {};
  for (int p = 0; p < 4; ++p) {
    for (int i = 0; i < rounds; ++i) {
      for (const char* name : {"/file", "/folder"}) {
        for (const char* suffix : {"", ".new", "/link"}) {
          for (const std::string& mount : cluster.mounts()) {
            const std::string path =
                mount + "/process" + std::to_string(p) + name + std::to_string(i) + suffix;
            EXPECT_NE(lstat(path.c_str(), &gone), 0);
          }
        }
      }
    }
  }
}

TEST(Resources, InodesThatNobodyRefersToAreForgotten) {
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  work(cluster, 2);
  look_for_what_is_gone(cluster, 2);
  std::this_thread::sleep_for(std::chrono::seconds(10));  // one round of the sweep
  const std::size_t before = inodes_known(cluster);
  work(cluster, 60);
  look_for_what_is_gone(cluster, 60);
  std::size_t after = inodes_known(cluster);
  const auto deadline = steady_clock::now() + std::chrono::seconds(30);
  while (after > before && steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    after = inodes_known(cluster);
  }
  std::printf("inodes: %zu, then %zu\n", before, after);
  EXPECT_LE(after, before);
  EXPECT_GT(after, 0U);
}

TEST(Resources, OverRestartsOfStoraged) {
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log("storaged|127\\.0\\.0\\.1|connection|retr|unreachable|purge");
  const auto restart = [&] {
    for (const char* daemon : {"storaged-0", "storaged-1"}) {
      cluster.kill_daemon(daemon);
      cluster.restart_daemon(daemon);
    }
    work(cluster, 5);
  };
  restart();
  const auto before = used(cluster, {"mount-0", "mount-1", "lockd"});
  for (int i = 0; i < 6; ++i) restart();
  expect_unchanged(cluster, before);
}

TEST(Resources, OverMountsThatComeAndGo) {
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  TemporaryFolder folder;
  const auto come_and_go = [&] {
    const auto mounted = run({"distfuse", "mount", "--config", cluster.root() + "/cluster.toml",
                              "--log-file", cluster.root() + "/run/visitor.log", folder.path()});
    ASSERT_EQ(mounted.exit_code, 0) << mounted.output;
    EXPECT_TRUE(file_operations(folder.path(), cluster.mount(0), 1)) << std::strerror(errno);
    const auto gone = run({"distfuse", "umount", folder.path()});
    ASSERT_EQ(gone.exit_code, 0) << gone.output;
    const auto left = run({"pgrep", "-f", "distfuse mount .*" + folder.path()});
    EXPECT_EQ(left.exit_code, 1) << "its client is still there: " << left.output;
  };
  for (int i = 0; i < 2; ++i) come_and_go();
  const auto before = used(cluster, {"mount-0", "mount-1", "lockd", "storaged-0", "storaged-1"});
  for (int i = 0; i < 12; ++i) come_and_go();
  expect_unchanged(cluster, before);
}

}  // namespace
}  // namespace distfuse::tests
