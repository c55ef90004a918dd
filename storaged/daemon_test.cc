// SPDX-License-Identifier: Apache-2.0
// The real distfuse-storaged processes, spoken to by rpc::Client: two storageds, one with both roles.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "common/admin.h"
#include "common/config.h"
#include "rpc/client.h"
#include "rpc/server.h"

namespace distfuse::storaged {
namespace {

namespace fs = std::filesystem;
using rpc::DataOp;
using namespace std::chrono_literals;

constexpr std::uint32_t kChunk = rpc::kDefaultChunkSize;

std::uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

std::string local(std::uint16_t port) {
  return "127.0.0.1:" + std::to_string(port);
}

/// A distfuse-storaged; killed with SIGKILL if it still runs at the end.
class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments) {
    int out[2];
    int err[2];
    if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(out[1], STDOUT_FILENO);
      ::dup2(err[1], STDERR_FILENO);
      std::vector<char*> argv{const_cast<char*>(DISTFUSE_STORAGED)};
      for (const std::string& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
      argv.push_back(nullptr);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(out[1]);
    ::close(err[1]);
    out_ = out[0];
    err_ = err[0];
  }
  ~Process() {
    if (pid_ > 0) kill_and_wait(SIGKILL);
    ::close(out_);
    ::close(err_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  /// The first line on standard output; empty: it ended, or 20 s passed.
  std::string first_line() {
    std::string line;
    for (;;) {
      pollfd fd{out_, POLLIN, 0};
      char c = 0;
      if (::poll(&fd, 1, 20000) <= 0 || ::read(out_, &c, 1) != 1 || c == '\n') return line;
      line += c;
    }
  }
  int kill_and_wait(int signal) {
    ::kill(pid_, signal);
    return wait();
  }
  /// Exit status, or 1000 + the signal.
  int wait() {
    int status = 0;
    if (::waitpid(std::exchange(pid_, -1), &status, 0) < 0) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  /// All of standard error; kills the process if it still runs.
  std::string errors() {
    if (pid_ > 0) kill_and_wait(SIGKILL);
    std::string text;
    char buffer[4096];
    for (ssize_t got = 0; (got = ::read(err_, buffer, sizeof buffer)) > 0;)
      text.append(buffer, static_cast<std::size_t>(got));
    return text;
  }

 private:
  pid_t pid_ = -1;
  int out_ = -1;
  int err_ = -1;
};

rpc::DataCall data_call(DataOp op, std::uint32_t target, rpc::Ino ino, std::uint64_t chunk,
                        std::uint32_t offset = 0, std::uint32_t length = 0,
                        std::byte* buffer = nullptr, std::uint32_t flags = 0) {
  rpc::DataCall call;
  call.target = target;
  call.request.op = static_cast<std::uint16_t>(op);
  call.request.ino = ino;
  call.request.chunk = chunk;
  call.request.offset = offset;
  call.request.length = length;
  call.request.chunk_size = kChunk;
  call.request.flags = flags;
  call.buffer = buffer;
  return call;
}

int run(rpc::Client& client, rpc::DataCall call) {
  const Status status = client.run(std::span(&call, 1));
  return status.ok() ? call.error : (call.error != 0 ? call.error : status.error().code);
}

class StoragedTest : public ::testing::Test {
 protected:
  void SetUp() override {
#ifdef __SANITIZE_THREAD__
    // UCX's patched madvise runs at the end of a thread, when ThreadSanitizer has no state for it any more.
    ::setenv("UCX_MEM_EVENTS", "n", 1);
#endif
    std::string pattern = (fs::temp_directory_path() / "distfuse-storaged.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    cluster_.id = config::new_cluster_id();
    cluster_.name = "test";
    cluster_.fabric.device = "lo";
    cluster_.lockd.listen = local(free_port());
    cluster_.lockd.state_dir = directory_ + "/lockd";
    config::Storaged both{"both",
                          true,
                          true,
                          local(free_port()),
                          local(free_port()),
                          directory_ + "/meta",
                          directory_ + "/data0",
                          0};
    config::Storaged data{"data", false, true, "", local(free_port()), "", directory_ + "/data1",
                          0};
    cluster_.storaged = {both, data};
    write_config();
  }
  void TearDown() override {
    both_.reset();
    data_.reset();
    fs::remove_all(directory_);
  }

  void write_config() {
    std::ofstream(config_path()) << config::to_toml(cluster_);
  }
  [[nodiscard]] std::string config_path() const {
    return directory_ + "/cluster.toml";
  }
  [[nodiscard]] std::string admin_path(const std::string& name) const {
    return directory_ + "/" + name + ".admin";
  }
  std::unique_ptr<Process> launch(const std::string& name) {
    return std::make_unique<Process>(std::vector<std::string>{
        "--config", config_path(), "--name", name, "--log-file", directory_ + "/" + name + ".log",
        "--admin-socket", admin_path(name)});
  }
  void start_all() {
    both_ = launch("both");
    data_ = launch("data");
    ASSERT_EQ(both_->first_line(), "ready meta=" + cluster_.storaged[0].meta_listen +
                                       " data=" + cluster_.storaged[0].data_listen)
        << both_->errors();
    ASSERT_EQ(data_->first_line(), "ready data=" + cluster_.storaged[1].data_listen)
        << data_->errors();
    teach({3, 0, {}});
  }
  /// As lockd does: without it nobody is served.
  void teach(const rpc::Sessions& sessions, int expected = 0) {
    auto lockd = client(rpc::Role::lockd, 0);
    auto ids = sessions.ids;
    for (std::uint32_t target = 0; target < 3; ++target) {
      auto call = data_call(DataOp::sessions, target, sessions.incarnation, sessions.high);
      call.request.chunk_size = 0;
      call.request.length = static_cast<std::uint32_t>(ids.size() * sizeof(rpc::SessionId));
      call.buffer = reinterpret_cast<std::byte*>(ids.data());
      EXPECT_EQ(run(*lockd, call), expected) << target;
    }
  }
  void kill_all() {
    EXPECT_EQ(both_->kill_and_wait(SIGKILL), 1000 + SIGKILL);
    EXPECT_EQ(data_->kill_and_wait(SIGKILL), 1000 + SIGKILL);
  }
  /// It must end by itself, with status 1, one line that has `words`, and nothing made.
  void expect_refused(const std::string& name, const std::vector<std::string>& words) {
    fs::remove(admin_path(name));  // of one that was killed
    auto process = launch(name);
    EXPECT_EQ(process->first_line(), "");
    EXPECT_EQ(process->wait(), 1);
    const std::string text = process->errors();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
    for (const std::string& word : words)
      EXPECT_NE(text.find(word), std::string::npos) << word << " is not in: " << text;
    EXPECT_FALSE(fs::exists(admin_path(name)));
  }

  [[nodiscard]] std::unique_ptr<rpc::Client> client(rpc::Role role, rpc::SessionId session) const {
    rpc::ClientOptions options;
    options.meta = cluster_.meta().meta_listen;
    options.data = cluster_.data_addresses();
    options.cluster_id = cluster_.id;
    options.role = role;
    options.session = session;
    options.device = "lo";
    options.channels = 4;
    options.give_up = 20s;
    auto result = rpc::Client::create(options);
    if (!result) {
      ADD_FAILURE() << result.error().message;
      std::abort();
    }
    return std::move(*result);
  }

  std::string directory_;
  config::Cluster cluster_;
  std::unique_ptr<Process> both_;
  std::unique_ptr<Process> data_;
};

std::vector<std::byte> pattern(std::size_t length, std::uint64_t seed) {
  std::vector<std::byte> bytes(length);
  std::mt19937_64 random(seed);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

rpc::Ino create(rpc::Client& client, const std::string& name) {
  auto reply = client.call(rpc::Create{rpc::kRootIno, name, S_IFREG | 0644, 0, false}, 0, 0);
  if (!reply || reply->attributes.empty()) {
    ADD_FAILURE() << (reply ? "no attributes" : reply.error().message);
    return 0;
  }
  return reply->attributes[0].ino;
}

std::size_t chunk_files(const std::string& directory) {
  std::size_t count = 0;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(directory, ignored))
    count += entry.is_regular_file() ? 1 : 0;
  return count;
}

TEST_F(StoragedTest, WhatWasAnsweredSurvivesKill) {
  start_all();
  auto mount = client(rpc::Role::client, 7);
  const rpc::Ino ino = create(*mount, "file");
  const std::size_t sizes[] = {100, 8000, 8001, 70000, 1U << 20, kChunk};
  std::vector<std::vector<std::byte>> chunks;
  for (std::size_t i = 0; i < std::size(sizes); ++i) {
    chunks.push_back(pattern(sizes[i], i));
    ASSERT_EQ(run(*mount, data_call(DataOp::write, i % 2, ino, i, 0,
                                    static_cast<std::uint32_t>(sizes[i]), chunks[i].data())),
              0);
  }
  const auto verify = [&] {
    for (std::size_t i = 0; i < std::size(sizes); ++i) {
      std::vector<std::byte> read(kChunk, std::byte{0x5a});
      ASSERT_EQ(run(*mount, data_call(DataOp::read, i % 2, ino, i, 0, kChunk, read.data())), 0);
      auto expected = chunks[i];
      expected.resize(kChunk);
      ASSERT_TRUE(read == expected) << i;
    }
    auto found = mount->call(rpc::Lookup{rpc::kRootIno, "file"}, 0, 0);
    ASSERT_TRUE(found) << found.error().message;
    ASSERT_EQ(found->attributes.at(0).ino, ino);
  };
  verify();
  for (std::uint32_t target : {0U, 1U})
    ASSERT_EQ(run(*mount, data_call(DataOp::sync, target, ino, 0)), 0);
  ASSERT_TRUE(mount->call(rpc::SyncMetadata{}, 0, 0));
  kill_all();
  start_all();
  verify();  // over connections made anew
  EXPECT_EQ(run(*mount, data_call(DataOp::seek, 1, ino, 1, 0, 0, nullptr, rpc::kSeekHole)), 0);
  rpc::DataStatfs status{};
  EXPECT_EQ(
      run(*mount, data_call(DataOp::statfs, 1, 0, 0, 0, 0, reinterpret_cast<std::byte*>(&status))),
      0);
  EXPECT_GT(status.blocks, 0U);

  // Unlinked: the purger removes the chunks at both targets, the one that is down when it is back.
  EXPECT_EQ(data_->kill_and_wait(SIGKILL), 1000 + SIGKILL);
  ASSERT_TRUE(mount->call(rpc::Unlink{rpc::kRootIno, "file", ino, false}, 0, 0));
  std::this_thread::sleep_for(500ms);
  data_ = launch("data");
  ASSERT_NE(data_->first_line(), "");
  teach({3, 0, {}});
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (chunk_files(directory_ + "/data0/data") + chunk_files(directory_ + "/data1/data") > 0) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "chunks are left";
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_EQ(data_->kill_and_wait(SIGTERM), 0);
  EXPECT_EQ(both_->kill_and_wait(SIGTERM), 0);
}

TEST_F(StoragedTest, AFencedSessionIsRefusedEverywhereAndForEver) {
  start_all();
  auto lost = client(rpc::Role::client, 0x11);
  auto other = client(rpc::Role::client, 0x12);
  auto lockd = client(rpc::Role::lockd, 0);
  const rpc::Ino ino = create(*lost, "file");
  auto bytes = pattern(4096, 1);
  const auto write = [&](rpc::Client& who, std::uint32_t target) {
    return run(who, data_call(DataOp::write, target, ino, target, 0, 4096, bytes.data()));
  };
  ASSERT_EQ(write(*lost, 0), 0);
  ASSERT_EQ(write(*lost, 1), 0);
  for (std::uint32_t target : {0U, 1U})
    ASSERT_EQ(run(*lockd, data_call(DataOp::fence, target, 0x11, 0)), 0);
  auto fenced = lockd->call(rpc::FenceSession{0x11}, 0, 0);
  ASSERT_TRUE(fenced) << fenced.error().message;
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(write(*lost, 0), rpc::kFenced);
    EXPECT_EQ(write(*lost, 1), rpc::kFenced);
    auto refused = lost->call(rpc::Unlink{rpc::kRootIno, "file", ino, false}, 0, 0);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, rpc::kFenced);
    EXPECT_EQ(write(*other, 0), 0);
    EXPECT_EQ(write(*other, 1), 0);
    EXPECT_TRUE(other->call(rpc::Lookup{rpc::kRootIno, "file"}, 0, 0));
    kill_all();
    start_all();
  }
}

TEST_F(StoragedTest, AFullTargetFailsTheWriterOnly) {
  cluster_.storaged[1].capacity = 8U << 20;
  write_config();
  start_all();
  auto mount = client(rpc::Role::client, 5);
  const rpc::Ino ino = create(*mount, "big");
  auto bytes = pattern(1U << 20, 3);
  int error = 0;
  std::uint64_t written = 0;
  for (; written < 32 && error == 0; ++written) {
    error = run(*mount, data_call(DataOp::write, 1, ino, written, 0, 1U << 20, bytes.data()));
  }
  EXPECT_EQ(error, ENOSPC);
  EXPECT_GE(written, 7U);
  EXPECT_LE(written, 9U);
  EXPECT_EQ(run(*mount, data_call(DataOp::write, 0, ino, 40, 0, 1U << 20, bytes.data())), 0);
  std::vector<std::byte> read(1U << 20);
  EXPECT_EQ(run(*mount, data_call(DataOp::read, 1, ino, 0, 0, 1U << 20, read.data())), 0);
  EXPECT_TRUE(read == bytes);
  auto status = admin_query(admin_path("data"), "status");
  ASSERT_TRUE(status) << status.error().message;
  const auto json = nlohmann::json::parse(*status);
  EXPECT_EQ(json["roles"], nlohmann::json::array({"data"}));
  EXPECT_EQ(json["data"]["capacity"]["total"], 8U << 20);
  EXPECT_LT(json["data"]["capacity"]["available"], 1U << 20);
  EXPECT_GE(json["data"]["requests"], 9);
  auto meta = admin_query(admin_path("both"), "status");
  ASSERT_TRUE(meta) << meta.error().message;
  EXPECT_EQ(nlohmann::json::parse(*meta)["meta"]["inodes"], 2) << *meta;
}

TEST_F(StoragedTest, ManyThreadsAtOnce) {
  start_all();
  auto mount = client(rpc::Role::client, 9);
  const rpc::Ino ino = create(*mount, "shared");
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t round = 0; round < 30; ++round) {
        std::vector<std::vector<std::byte>> buffers;
        std::vector<rpc::DataCall> writes;
        for (std::uint32_t i = 0; i < 8; ++i) {
          buffers.push_back(pattern(200000, t * 1000 + round * 8 + i));
          writes.push_back(
              data_call(DataOp::write, i % 2, ino, t * 8 + i, 0, 200000, buffers.back().data()));
        }
        if (!mount->run(writes).ok()) ++failures;
        std::vector<std::vector<std::byte>> back(8, std::vector<std::byte>(200000));
        std::vector<rpc::DataCall> reads;
        for (std::uint32_t i = 0; i < 8; ++i)
          reads.push_back(
              data_call(DataOp::read, i % 2, ino, t * 8 + i, 0, 200000, back[i].data()));
        if (!mount->run(reads).ok() || back != buffers) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

// ---- bad input

TEST_F(StoragedTest, APortInUseLeavesNothing) {
  start_all();
  const std::string taken = cluster_.storaged[0].data_listen;
  auto& third = cluster_.storaged.emplace_back(cluster_.storaged[1]);
  third.name = "third";
  third.data_listen = taken;
  third.data_dir = directory_ + "/data2";
  const std::string config = config_path();
  std::ofstream(config) << config::to_toml(cluster_);
  auto process = launch("third");
  EXPECT_EQ(process->first_line(), "");
  EXPECT_NE(process->wait(), 0);
  const std::string text = process->errors();
  EXPECT_NE(text.find(taken), std::string::npos) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_FALSE(fs::exists(directory_ + "/data2"));
  EXPECT_FALSE(fs::exists(admin_path("third")));
}

TEST_F(StoragedTest, AnotherClustersStoreIsRefused) {
  start_all();
  kill_all();
  cluster_.id = config::new_cluster_id();
  write_config();
  expect_refused("both", {directory_ + "/meta", "cluster"});
  expect_refused("data", {directory_ + "/data1", "cluster"});
}

TEST_F(StoragedTest, AnUnreadableConfigurationIsSaid) {
  fs::remove(config_path());
  expect_refused("both", {config_path(), "cannot be read"});
  std::ofstream(config_path()) << "[cluster]\nid = 5\n";
  expect_refused("both", {config_path()});
  write_config();
  expect_refused("nobody", {"nobody", "both, data"});
}

TEST_F(StoragedTest, AnUnusablePathIsSaid) {
  std::ofstream(directory_ + "/file") << "no directory";
  cluster_.storaged[1].data_dir = directory_ + "/file/data";
  write_config();
  expect_refused("data", {directory_ + "/file"});
  cluster_.storaged[1].data_dir = "/proc/distfuse-data";
  write_config();
  expect_refused("data", {"/proc/distfuse-data"});
}

TEST_F(StoragedTest, GarbageCostsItsSenderTheConnectionOnly) {
  start_all();
  auto mount = client(rpc::Role::client, 3);
  const rpc::Ino ino = create(*mount, "steady");
  const char* text = std::getenv("DISTFUSE_SEED");
  const std::uint64_t seed =
      text != nullptr ? std::strtoull(text, nullptr, 0) : std::random_device{}();
  std::printf("DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  auto bytes = pattern(300000, 4);
  for (int round = 0; round < 60; ++round) {
    const auto& self = cluster_.storaged[0];
    const std::string address = round % 3 == 0   ? self.meta_listen
                                : round % 3 == 1 ? self.data_listen
                                                 : cluster_.storaged[1].data_listen;
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port =
        htons(static_cast<std::uint16_t>(std::stoi(address.substr(address.find(':') + 1))));
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    const auto garbage = pattern(1 + random() % 9000, random());
    (void)::send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL);
    ASSERT_EQ(run(*mount, data_call(DataOp::write, static_cast<std::uint32_t>(round % 2), ino, 0, 0,
                                    300000, bytes.data())),
              0);
    ASSERT_TRUE(mount->call(rpc::GetAttributes{{ino}}, 0, 0));
    ::close(fd);
  }
  EXPECT_EQ(both_->kill_and_wait(SIGTERM), 0);
  EXPECT_EQ(data_->kill_and_wait(SIGTERM), 0);
}

TEST_F(StoragedTest, NobodyIsServedBeforeLockdHasToldWhoLives) {
  start_all();
  teach({3, 8, {7}});
  auto lives = client(rpc::Role::client, 7);
  const rpc::Ino ino = create(*lives, "file");
  auto bytes = pattern(kChunk, 5);
  ASSERT_EQ(run(*lives, data_call(DataOp::write, 0, ino, 0, 0, kChunk, bytes.data())), 0);
  kill_all();
  both_ = launch("both");
  data_ = launch("data");
  ASSERT_NE(both_->first_line(), "");
  ASSERT_NE(data_->first_line(), "");
  const auto learning = [&](const std::string& name, const char* role) {
    return nlohmann::json::parse(*admin_query(admin_path(name), "status"))[role]["learning"]
        .get<bool>();
  };
  EXPECT_TRUE(learning("both", "meta"));
  EXPECT_TRUE(learning("both", "data"));
  EXPECT_TRUE(learning("data", "data"));
  // Who asks meanwhile waits, and is answered when they have learned.
  std::thread late([&] {
    std::this_thread::sleep_for(500ms);
    teach({4, 9, {7}});
  });
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(run(*lives, data_call(DataOp::write, 0, ino, 0, 0, kChunk, bytes.data())), 0);
  EXPECT_GE(std::chrono::steady_clock::now() - before, 400ms);
  EXPECT_TRUE(lives->call(rpc::Lookup{rpc::kRootIno, "file"}, 0, 0).ok());
  late.join();
  EXPECT_FALSE(learning("both", "meta"));
  // 8 was not named: over. 10 began after the list.
  auto over = client(rpc::Role::client, 8);
  EXPECT_EQ(run(*over, data_call(DataOp::write, 1, ino, 1, 0, kChunk, bytes.data())), rpc::kFenced);
  EXPECT_EQ(over->call(rpc::Lookup{rpc::kRootIno, "file"}, 0, 0).error().code, rpc::kFenced);
  auto fresh = client(rpc::Role::client, 10);
  EXPECT_TRUE(fresh->call(rpc::Lookup{rpc::kRootIno, "file"}, 0, 0).ok());
  teach({3, 100, {8}}, ESTALE);
  EXPECT_EQ(over->call(rpc::Lookup{rpc::kRootIno, "file"}, 0, 0).error().code, rpc::kFenced);
}

TEST_F(StoragedTest, AnIncarnationOfLockdThatIsOverIsRefusedAfterARestartToo) {
  start_all();
  teach({7, rpc::SessionId{7} << 32, {}});
  auto lockd = client(rpc::Role::lockd, 0);
  // Data targets know it by whom they fenced.
  const auto fenced = (rpc::SessionId{7} << 32) + 4;
  for (std::uint32_t target = 0; target < 2; ++target)
    ASSERT_EQ(run(*lockd, data_call(DataOp::fence, target, fenced, 0)), 0);
  lockd.reset();
  kill_all();
  both_ = launch("both");
  data_ = launch("data");
  ASSERT_NE(both_->first_line(), "");
  ASSERT_NE(data_->first_line(), "");
  teach({1, rpc::SessionId{1} << 32, {}}, ESTALE);  // Its state was wiped.
  EXPECT_TRUE(nlohmann::json::parse(*admin_query(admin_path("both"), "status"))["meta"]["learning"]
                  .get<bool>());
  teach({rpc::SessionId{1} << 32, 0, {}}, ESTALE);  // No lockd counts so far.
  teach({8, rpc::SessionId{8} << 32, {}});
}

}  // namespace
}  // namespace distfuse::storaged
