// SPDX-License-Identifier: Apache-2.0
// Bad input: one clear message that says what to do, a non-zero exit, nothing left behind; and a cluster under hostile bytes goes on.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <regex>

#include "tests/cluster.h"

namespace distfuse::tests {
namespace {

namespace fs = std::filesystem;

/// The command fails with this exit code, says something that matches, and says it in a few lines.
void expect_refusal(const std::vector<std::string>& command, int exit_code,
                    const std::string& regex) {
  const CommandResult result = run(command, std::chrono::seconds(60));
  const std::string line = testing::PrintToString(command) + "\n" + result.output;
  EXPECT_EQ(result.exit_code, exit_code) << line;
  EXPECT_TRUE(std::regex_search(result.output, std::regex(regex)))
      << "no match of " << regex << " in:\n"
      << line;
  EXPECT_LE(std::count(result.output.begin(), result.output.end(), '\n'), 6) << line;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string replaced(const std::string& text, const std::string& regex, const std::string& with) {
  return std::regex_replace(text, std::regex(regex), with);
}

/// A root folder whose cluster file was written by a real `up`, that is down again.
class BadInput : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster_ = new Cluster({.mounts = 1, .storageds = 2});
    if (cluster_->ok()) cluster_->down();
  }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  void SetUp() override { good_ = read_text(cluster_->root() + "/cluster.toml"); }
  std::string write_config(const std::string& text) {
    std::string path = folder_.path() + "/cluster.toml";
    std::ofstream(path) << text;
    return path;
  }
  std::string fresh_folder(const std::string& name) {
    std::string path = folder_.path() + "/" + name;
    fs::create_directory(path);
    return path;
  }
  static Cluster* cluster_;
  TemporaryFolder folder_;
  std::string good_;
};
Cluster* BadInput::cluster_ = nullptr;

TEST_F(BadInput, UnknownOptionsAndCommands) {
  expect_refusal({"distfuse", "up", "--rooot", "/x"}, 2, "--rooot|--root is required");
  expect_refusal({"distfuse", "frobnicate"}, 2, "subcommand|frobnicate");
  expect_refusal({"distfuse"}, 2, "subcommand is required");
  expect_refusal({"distfuse-lockd", "--frob"}, 2, "--frob|--config is required");
  expect_refusal({"distfuse-storaged", "--frob"}, 2, "--frob|is required");
}

TEST_F(BadInput, HelpAndVersionSucceed) {
  for (const char* name : {"distfuse", "distfuse-lockd", "distfuse-storaged"}) {
    EXPECT_EQ(run({name, "--help"}).exit_code, 0) << name;
    const CommandResult version = run({name, "--version"});
    EXPECT_EQ(version.exit_code, 0) << name;
    EXPECT_TRUE(
        std::regex_search(version.output, std::regex(std::string(name) + " \\d+\\.\\d+\\.\\d+")))
        << version.output;
  }
}

TEST_F(BadInput, ClusterFile) {
  const std::string unknown = write_config(good_ + "\n[lokcd]\nx = 1\n");
  const std::vector<std::vector<std::string>> programs = {
      {"distfuse-lockd", "--config", unknown},
      {"distfuse-storaged", "--config", unknown, "--name", "storaged-0"},
      {"distfuse", "mount", "--foreground", "--config", unknown, fresh_folder("m")}};
  for (const auto& command : programs) expect_refusal(command, 1, "unknown section \\[lokcd\\]");
  expect_refusal({"distfuse-lockd", "--config",
                  write_config(replaced(good_, "slots = \\d+", "slots = 'many'"))},
                 1, "cluster.toml:\\d+: slots in \\[lockd\\] must be a whole number");
  expect_refusal({"distfuse-lockd", "--config", "/nonexistent.toml"}, 1,
                 "/nonexistent.toml cannot be read");
  expect_refusal({"distfuse-storaged", "--config", write_config(good_), "--name", "nobody"}, 1,
                 "nobody");
}

TEST_F(BadInput, MountPoints) {
  expect_refusal({"distfuse", "up", "--root", folder_.path() + "/r", "--mount", "/nonexistent/m"},
                 1, "is not a folder");
  expect_refusal({"distfuse", "up", "--root", folder_.path() + "/r", "--mount", "/proc"}, 1,
                 "/proc is in use");
  const std::string m = fresh_folder("m");
  expect_refusal({"distfuse", "up", "--root", folder_.path() + "/r", "--mount", m, "--mount", m}, 1,
                 "given twice");
  expect_refusal({"distfuse", "umount", m}, 1, "is not a mount point");
  EXPECT_FALSE(fs::exists(folder_.path() + "/r/cluster.toml"));
}

TEST_F(BadInput, UnwritableRoot) {
  expect_refusal(
      {"distfuse", "up", "--root", "/proc/root-of-nothing", "--mount", fresh_folder("m")}, 1,
      "cannot be written");
  expect_refusal({"distfuse", "status", "--root", folder_.path() + "/none"}, 1, "holds no cluster");
  expect_refusal({"distfuse", "down", "--root", folder_.path() + "/none"}, 1, "holds no cluster");
}

TEST_F(BadInput, NoFuseDevice) {
  // Made private by hand: in a chroot, whose root is no mount point, unshare cannot.
  const std::string without =
      "mount --make-rprivate /dev && mount -t tmpfs none /dev && "
      "mknod -m 666 /dev/null c 1 3 && exec \"$0\" \"$@\"";
  expect_refusal(
      {"unshare", "-m", "--propagation", "unchanged", "sh", "-c", without, program("distfuse"),
       "up", "--root", folder_.path() + "/r", "--mount", fresh_folder("m")},
      1, "/dev/fuse cannot be opened");
}

/// The one address of a cluster of `up`: 127.0.0.1, or that of the RDMA device.
std::string host_of(const std::string& config) {
  std::smatch found;
  return std::regex_search(config, found, std::regex("listen = '([0-9.]+):")) ? found[1].str() : "";
}

sockaddr_in address_of(const std::string& host, int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  EXPECT_EQ(inet_pton(AF_INET, host.c_str(), &address.sin_addr), 1) << host;
  return address;
}

TEST_F(BadInput, PortInUse) {
  const std::string host = host_of(good_);
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = address_of(host, 0);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length), 0);
  const std::string taken = host + ":" + std::to_string(ntohs(address.sin_port));
  expect_refusal(
      {"distfuse-storaged", "--name", "storaged-1", "--config",
       write_config(replaced(good_, "data_listen = '[^']*'", "data_listen = '" + taken + "'"))},
      1, taken + ".*in use|in use.*" + taken);
  close(listener);
}

TEST_F(BadInput, LockdsPortInUse) {
  // By another lockd: a port of RDMA is no port of TCP.
  Cluster other({.mounts = 1, .storageds = 1});
  ASSERT_TRUE(other.ok());
  std::smatch taken;
  const std::string config = read_text(other.root() + "/cluster.toml");
  ASSERT_TRUE(std::regex_search(config, taken, std::regex("\nlisten = '([^']*)'"))) << config;
  expect_refusal({"distfuse-lockd", "--config",
                  write_config(replaced(good_, "(\n)listen = '[^']*'",
                                        "$1listen = '" + taken[1].str() + "'"))},
                 1, taken[1].str() + ".*in use|in use.*" + taken[1].str());
}

TEST_F(BadInput, StoreOfAnotherCluster) {
  const std::string other =
      replaced(good_, "id = '[0-9a-f]+'", "id = '" + std::string(32, '0') + "'");
  for (const char* name : {"storaged-0", "storaged-1"}) {
    expect_refusal({"distfuse-storaged", "--name", name, "--config", write_config(other)}, 1,
                   "another cluster|belongs to cluster");
  }
}

TEST_F(BadInput, DaemonNotReachable) {
  expect_refusal({"distfuse", "mount", "--config", write_config(good_), fresh_folder("m")}, 1,
                 "no session with lockd at [0-9.]+:\\d+.*start distfuse-lockd");
}

TEST(BadInputUp, RefusesASecondUpAndAnotherStorageCount) {
  Cluster cluster({.mounts = 1, .storageds = 1});
  ASSERT_TRUE(cluster.ok());
  TemporaryFolder folder;
  expect_refusal({"distfuse", "up", "--root", cluster.root(), "--mount", folder.path()}, 1,
                 "is running");
  cluster.down();
  expect_refusal(
      {"distfuse", "up", "--root", cluster.root(), "--mount", folder.path(), "--storage", "3"}, 1,
      "has 1 storageds, not 3");
}

TEST(BadInputUp, DataIsFoundAgain) {
  Cluster cluster({.mounts = 1, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  std::string kept;
  kept.assign(10'000'000, 'k');
  { std::ofstream(cluster.mount(0) + "/kept") << kept; }
  cluster.down();
  cluster.up();
  ASSERT_TRUE(cluster.ok());
  EXPECT_EQ(read_text(cluster.mount(0) + "/kept"), kept);
}

TEST(BadInputSpace, AFullTargetStopsItsWriterOnly) {
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  cluster.down();
  const std::string config = cluster.root() + "/cluster.toml";
  const std::string limited =
      replaced(read_text(config), "data_listen", "capacity = '24 MiB'\ndata_listen");
  std::ofstream(config) << limited;
  cluster.expect_log("(ENOSPC|full|No space|capacity)");
  cluster.up();
  ASSERT_TRUE(cluster.ok());
  { std::ofstream(cluster.mount(1) + "/before") << "safe"; }
  const int fd = open((cluster.mount(0) + "/big").c_str(), O_WRONLY | O_CREAT, 0644);
  ASSERT_GE(fd, 0);
  const std::vector<char> block(1U << 20, 'f');
  ssize_t n = 0;
  for (int i = 0; i < 100 && n >= 0; ++i) n = write(fd, block.data(), block.size());
  EXPECT_EQ(n, -1);
  EXPECT_EQ(errno, ENOSPC);
  close(fd);
  EXPECT_EQ(read_text(cluster.mount(0) + "/before"), "safe");
  EXPECT_EQ(mkdir((cluster.mount(1) + "/folder").c_str(), 0755), 0);
  ASSERT_EQ(unlink((cluster.mount(1) + "/big").c_str()), 0);
  // The space comes back when the purge has run.
  bool written = false;
  for (int i = 0; i < 100 && !written; ++i) {
    usleep(100000);
    std::ofstream file(cluster.mount(1) + "/after");
    file << std::string(1000000, 'a');
    file.close();
    written = !file.fail();
  }
  EXPECT_TRUE(written);
  EXPECT_EQ(read_text(cluster.mount(0) + "/after").size(), 1000000U);
}

int connect_to(const std::string& host, const std::string& port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = address_of(host, std::stoi(port));
  const timeval patience{2, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
  close(fd);
  return -1;
}

TEST(BadInputBytes, RandomBytesToEveryPortHarmNobody) {
  Cluster cluster({.mounts = 2, .storageds = 2});
  ASSERT_TRUE(cluster.ok());
  cluster.expect_log(
      "[0-9]+(\\.[0-9]+){3}|dropped|refused|garbage|malformed|peer|handshake|connection");
  std::mt19937_64 random(test_seed("random bytes"));
  const std::string config = read_text(cluster.root() + "/cluster.toml");
  // Lockd's port, if it is one of RDMA, takes no bytes.
  const bool rdma = config.find("kind = 'verbs'") != std::string::npos;
  const std::regex port(rdma ? "_listen = '([0-9.]+):(\\d+)" : "listen = '([0-9.]+):(\\d+)");
  int ports = 0;
  for (auto match = std::sregex_iterator(config.begin(), config.end(), port);
       match != std::sregex_iterator(); ++match, ++ports) {
    for (const std::size_t length : {1UL, 7UL, 64UL, 4096UL, 1000000UL}) {
      const int fd = connect_to((*match)[1], (*match)[2]);
      ASSERT_GE(fd, 0) << match->str();
      std::string bytes(length, 0);
      for (char& c : bytes) c = static_cast<char>(random());
      (void)!send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      close(fd);
    }
    const int silent = connect_to((*match)[1], (*match)[2]);
    ASSERT_GE(silent, 0);
    std::ofstream(cluster.mount(0) + "/during") << match->str();
    EXPECT_EQ(read_text(cluster.mount(1) + "/during"), match->str());
    close(silent);
  }
  EXPECT_EQ(ports, rdma ? 3 : 4) << config;
  const CommandResult status = run({"distfuse", "status", "--root", cluster.root()});
  EXPECT_EQ(status.exit_code, 0) << status.output;
}

}  // namespace
}  // namespace distfuse::tests
