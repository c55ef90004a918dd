// SPDX-License-Identifier: Apache-2.0
// `ucx` between processes: what a stopped, a killed and a hostile one do to the others.
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <random>

#include "rdma/fabric/contract_fixture.h"
#include "rdma/fabric/ucx_stream.h"
#include "rdma/fabric/ucx_wire.h"

namespace distfuse::fabric::test {
namespace {

/// A fabric_test_peer that is killed at the end of the test.
class Process {
 public:
  explicit Process(std::vector<std::string> arguments) {
    int ends[2];
    if (pipe(ends) != 0) std::abort();
    arguments.insert(arguments.begin(), FABRIC_TEST_PEER);
    std::vector<char*> argv;
    for (auto& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid = fork();
    if (pid == 0) {
      dup2(ends[1], STDOUT_FILENO);
      close(ends[0]);
      close(ends[1]);
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(ends[1]);
    out_ = ends[0];
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    (void)end(SIGKILL);
    close(out_);
  }
  std::string line() {
    std::string text;
    char c = 0;
    while (read(out_, &c, 1) == 1 && c != '\n') text += c;
    return text;
  }
  int end(int signal) {
    if (pid < 0) return -1;
    int status = 0;
    if (signal != 0) kill(pid, signal);
    waitpid(pid, &status, 0);
    pid = -1;
    return status;
  }
  pid_t pid = -1;

 private:
  int out_ = -1;
};

class UcxProcesses : public testing::TestWithParam<const char*> {
 protected:
  UcxProcesses() {
    if (GetParam() == std::string("tcp")) {
      setenv("UCX_TLS", "tcp", 1);
    } else {
      unsetenv("UCX_TLS");
    }
    fabric = must(open({}));
    node = std::make_unique<Node>(*fabric);
    local = must(node->worker->allocate(4096));
  }
  std::unique_ptr<Connection> connect(const std::string& address) {
    const int before = node->connects;
    auto connection = must(node->worker->connect(address, {}, 5s));
    EXPECT_TRUE(node->drive([&] { return node->connects > before; }));
    return connection;
  }
  std::uint64_t read(Connection& connection, std::uint64_t offset) {
    const Operation op{Op::read, offset, local.data(), 8, 0, 0};
    const auto before = node->completions.size();
    EXPECT_TRUE(connection.post({&op, 1}, 0).ok());
    EXPECT_TRUE(node->drive([&] { return node->completions.size() > before; }));
    EXPECT_EQ(node->completions.back().code, 0);
    std::uint64_t value = 0;
    std::memcpy(&value, local.data(), 8);
    return value;
  }

  std::unique_ptr<Fabric> fabric;
  std::unique_ptr<Node> node;
  std::span<std::byte> local;
};
INSTANTIATE_TEST_SUITE_P(All, UcxProcesses, testing::Values("shared", "tcp"),
                         [](const auto& param) { return std::string(param.param); });

TEST_P(UcxProcesses, AtomicsAddUp) {
  const int rounds = GetParam() == std::string("tcp") ? 5'000 : 100'000;
  Process server({"serve"});
  const auto address = server.line();
  Process one({"add", address, std::to_string(rounds)});
  // The other one reaches the words by the other way, where there is one.
  setenv("UCX_TLS", "tcp", 1);
  Process two({"add", address, "5000"});
  EXPECT_EQ(one.line(), "done");
  EXPECT_EQ(two.line(), "done");
  auto connection = connect(address);
  EXPECT_EQ(read(*connection, 0), static_cast<std::uint64_t>(rounds + 5000));
  EXPECT_EQ(read(*connection, 8), static_cast<std::uint64_t>(rounds + 5000));
}

TEST_P(UcxProcesses, StoppedTargetServesItsMemoryIfItIsShared) {
  if (GetParam() == std::string("tcp")) GTEST_SKIP() << "over TCP the target's CPU has its part";
  Process server({"serve"});
  auto connection = connect(server.line());
  kill(server.pid, SIGSTOP);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const Operation add{Op::fetch_add, 0, local.data() + 64, 0, 1, 0};
    const auto before = node->completions.size();
    ASSERT_TRUE(connection->post({&add, 1}, 0).ok());
    ASSERT_TRUE(node->drive([&] { return node->completions.size() > before; }));
    ASSERT_EQ(read(*connection, 0), i + 1);
  }
}

TEST_P(UcxProcesses, KilledPeerIsNoticedAtOnce) {
  node->region = must(fabric->create_region(4096));
  const auto address = must(node->worker->listen("127.0.0.1:0"));
  for (int round = 0; round < 5; ++round) {
    const int before = node->disconnects;
    Process client({"hold", address});
    ASSERT_TRUE(
        node->drive([&] { return node->accepted.size() == static_cast<std::size_t>(round) + 1; }));
    EXPECT_EQ(client.line(), "connected");
    const auto start = Clock::now();
    (void)client.end(SIGKILL);
    ASSERT_TRUE(node->drive([&] { return node->disconnects > before; }, 2s));
    std::printf(
        "noticed after %lld us (with the reaping)\n",
        static_cast<long long>(
            std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count()));
  }
  Process server({"serve"});
  auto connection = connect(server.line());
  const int before = node->disconnects;
  (void)server.end(SIGKILL);
  ASSERT_TRUE(node->drive([&] { return node->disconnects > before; }, 2s));
  const Operation op{Op::read, 0, local.data(), 8, 0, 0};
  const auto status = connection->post({&op, 1}, 0);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ENOTCONN);
}

/// Noise, headers that promise what never comes, frames cut short and out of place; and all the time the others go on.
TEST_P(UcxProcesses, HostileBytesHarmNobody) {
  const char* set = std::getenv("DISTFUSE_SEED");
  const auto seed = set != nullptr ? static_cast<std::uint32_t>(std::strtoul(set, nullptr, 0))
                                   : std::random_device{}();
  std::printf("DISTFUSE_SEED=%u\n", seed);
  std::mt19937 random(seed);
  Process server({"serve"});
  const auto address = server.line();
  auto connection = connect(address);
  const auto port = static_cast<std::uint16_t>(std::stoi(address.substr(address.rfind(':') + 1)));
  for (int round = 0; round < 400; ++round) {
    Bytes bytes;
    if (random() % 2 == 0) ucx::encode(ucx::Hello{}, bytes);
    if (random() % 2 == 0) {
      std::vector<Operation> chain(1 + random() % kMaxChain);
      for (auto& op : chain)
        op = {Op::fetch_add, random() % 4 == 0 ? ~0ULL - 7 : random(), nullptr, 8, 1, 0};
      ucx::encode_request(chain, bytes);
    }
    const std::size_t noise = random() % 300;
    for (std::size_t i = 0; i < noise; ++i) bytes.push_back(static_cast<std::byte>(random()));
    if (random() % 2 == 0 && bytes.size() > 8) bytes[random() % bytes.size()] ^= std::byte{0x41};
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 1));
    Descriptor fd(socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0)
        << "round " << round;
    (void)::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (round % 20 == 0) (void)read(*connection, 0);
  }
  const auto sent = node->message_count.load();
  ASSERT_TRUE(connection->send(bytes_of("still there?")).ok());
  ASSERT_TRUE(node->drive([&] { return node->message_count > sent; }));
  auto another = connect(address);
  EXPECT_EQ(node->disconnects, 0);
}

TEST_P(UcxProcesses, SilentStrangersDoNotLockOthersOut) {
  Process server({"serve"});
  const auto address = server.line();
  std::vector<Descriptor> strangers;
  for (int i = 0; i < 300; ++i) strangers.push_back(must(ucx::connect_socket(address)));
  const auto start = Clock::now();
  auto connection = must(node->worker->connect(address, {}, 9s));
  ASSERT_TRUE(node->drive([&] { return node->connects > 0; }));
  EXPECT_LT(Clock::now() - start, 8s);
}

}  // namespace
}  // namespace distfuse::fabric::test
