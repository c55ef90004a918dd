// SPDX-License-Identifier: Apache-2.0
// Client and server together: calls, bulk, many threads, retries over kill -9, fences, refusals.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "rpc/stream.h"
#include "rpc/test_server.h"

namespace distfuse::rpc::test {
namespace {

using namespace std::chrono_literals;

ClientOptions client_options(const std::string& meta, std::vector<std::string> data = {}) {
  ClientOptions options;
  options.meta = meta;
  options.data = std::move(data);
  options.cluster_id = kCluster;
  options.session = 7;
  options.device = "lo";
  options.give_up = 20s;
  return options;
}

std::unique_ptr<Client> make_client(const ClientOptions& options) {
  auto client = Client::create(options);
  EXPECT_TRUE(client.ok()) << (client ? "" : client.error().message);
  return std::move(*client);
}

DataCall data_call(DataOp op, std::uint32_t target, std::uint64_t ino, std::uint64_t chunk,
                   std::uint32_t offset, std::span<std::byte> buffer) {
  DataCall call;
  call.target = target;
  call.request.op = static_cast<std::uint16_t>(op);
  call.request.ino = ino;
  call.request.chunk = chunk;
  call.request.offset = offset;
  call.request.length = static_cast<std::uint32_t>(buffer.size());
  call.request.chunk_size = kMaxBulk;
  call.buffer = buffer.data();
  return call;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* dir = opendir("/proc/self/fd");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

unsigned seed() {
  const char* text = getenv("DISTFUSE_SEED");
  const unsigned value =
      text != nullptr ? static_cast<unsigned>(atoi(text)) : std::random_device()();
  std::printf("DISTFUSE_SEED=%u\n", value);
  return value;
}

TEST(Rpc, MetadataAnswersAndErrors) {
  ServerThread server;
  auto client = make_client(client_options(server.address()));
  auto reply = client->call(Lookup{5, "name"}, 1, 2);
  ASSERT_TRUE(reply.ok()) << reply.error().message;
  EXPECT_EQ(reply->attributes.at(0).ino, 5U);
  EXPECT_EQ(reply->strings.at(0), "name");
  auto missing = client->call(Lookup{5, "missing"}, 1, 2);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ENOENT);
  auto bad = client->call(Lookup{5, "a/b"}, 1, 2);
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().code, EINVAL);
  EXPECT_EQ(server.counters().dropped, 0U);
}

TEST(Rpc, LargeMetadataBothWays) {
  ServerThread server;
  auto client = make_client(client_options(server.address()));
  auto listing = client->call(Lookup{5, "large"}, 0, 0);
  ASSERT_TRUE(listing.ok()) << listing.error().message;
  EXPECT_EQ(listing->entries.size(), 1024U);
  EXPECT_EQ(listing->entries[1023].cookie, 1024U);
  const std::string value(65536, 'v');
  auto echoed = client->call(SetXattr{5, "user.x", value, 0}, 0, 0);
  ASSERT_TRUE(echoed.ok()) << echoed.error().message;
  EXPECT_EQ(echoed->strings.at(0), value);
}

TEST(Rpc, BulkOfEverySizeBothWays) {
  ServerThread one, two;
  auto client = make_client(client_options("", {one.address(), two.address()}));
  std::mt19937 random(seed());
  std::vector<std::byte> buffer(kMaxBulk);
  std::vector<std::uint32_t> sizes{1,    8,    4095,  4096,     7999,    8000,
                                   8001, 8192, 65536, 1U << 20, kMaxBulk};
  for (int i = 0; i < 20; ++i) sizes.push_back(1 + static_cast<std::uint32_t>(random()) % kMaxBulk);
  for (std::uint32_t size : sizes) {
    const std::uint32_t offset = kMaxBulk - size;
    const std::span bytes(buffer.data(), size);
    fill(bytes, 9, size, offset);
    DataCall write = data_call(DataOp::write, size % 2, 9, size, offset, bytes);
    auto status = client->run({&write, 1});
    ASSERT_TRUE(status.ok()) << size << ": " << status.error().code << status.error().message;
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    DataCall read = data_call(DataOp::read, size % 2, 9, size, offset, bytes);
    ASSERT_TRUE(client->run({&read, 1}).ok()) << size;
    ASSERT_TRUE(matches(bytes, 9, size, offset)) << size;
  }
}

TEST(Rpc, EachCallOfABatchHasItsOwnResult) {
  ServerThread one, two;
  auto client = make_client(client_options("", {one.address(), two.address()}));
  std::vector<std::byte> bytes(64 * 65536);
  std::vector<DataCall> calls;
  for (std::uint32_t i = 0; i < 64; ++i) {
    const auto part = std::span(bytes).subspan(i * 65536, 65536);
    calls.push_back(data_call(DataOp::read, i % 2, 3, i, 0, part));
  }
  calls[10].request.op = static_cast<std::uint16_t>(DataOp::seek);
  calls[10].request.flags = kSeekData;
  auto status = client->run(calls);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ENXIO);
  for (std::uint32_t i = 0; i < 64; ++i) {
    EXPECT_EQ(calls[i].error, i == 10 ? ENXIO : 0);
    if (i == 10) continue;
    EXPECT_TRUE(matches(std::span(bytes).subspan(i * 65536, 65536), 3, i, 0)) << i;
  }
}

TEST(Rpc, ManyThreadsAndMoreCallsThanCreditsAndWriteMemory) {
  ServerThread server;
  auto options = client_options(server.address(), {server.address()});
  options.channels = 12;  // fewer than threads
  auto client = make_client(options);
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (std::uint64_t t = 0; t < 32; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::byte> bytes(24 * 16384);
      for (std::uint64_t round = 0; round < 10; ++round) {
        for (std::uint64_t i = 0; i < 5; ++i) {
          auto reply = client->call(Lookup{t + 1, "n" + std::to_string(i)}, 0, 0);
          if (!reply || reply->attributes.at(0).ino != t + 1) ++failures;
        }
        std::vector<DataCall> calls;
        for (std::uint32_t i = 0; i < 24; ++i) {
          const auto part = std::span(bytes).subspan(i * 16384, i % 3 == 0 ? 4096 : 16384);
          fill(part, t + 1, i, 0);
          calls.push_back(data_call(DataOp::write, 0, t + 1, i, 0, part));
        }
        if (!client->run(calls).ok()) ++failures;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  const auto counters = server.counters();
  EXPECT_EQ(counters.dropped, 0U);
  EXPECT_LE(counters.connections, 24U);
  EXPECT_EQ(counters.requests, 32U * 10 * (5 + 24));
  EXPECT_EQ(server.handler().writes_out, 0);
}

TEST(Rpc, LowestUnansweredIsExact) {
  EchoHandler handler;
  std::atomic<std::uint64_t> held{0};
  handler.last_seen = &held;
  auto server = std::make_unique<ServerThread>("127.0.0.1:0", &handler);
  auto options = client_options(server->address());
  options.give_up = 1s;
  auto client = make_client(options);
  std::thread holder([&] { EXPECT_FALSE(client->call(Lookup{1, "hold"}, 0, 0).ok()); });
  while (held == 0) std::this_thread::sleep_for(1ms);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(client->call(Lookup{1, "x"}, 0, 0).ok());
  EXPECT_EQ(handler.lowest_seen, held);
  holder.join();  // answers nothing for 4 × give_up: EIO
  auto last = client->call(Lookup{1, "x"}, 0, 0);
  ASSERT_TRUE(last.ok());
  EXPECT_EQ(handler.lowest_seen, last->inodes_used);
}

TEST(Rpc, FencedSessionIsRefused) {
  ServerThread server;
  auto client = make_client(client_options(server.address(), {server.address()}));
  ASSERT_TRUE(client->call(Lookup{1, "x"}, 0, 0).ok());
  server.handler().fenced_ = 7;
  auto refused = client->call(Lookup{1, "x"}, 0, 0);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, kFenced);
  server.run([](Server& s) { s.disconnect_session(7); });
  refused = client->call(Lookup{1, "x"}, 0, 0);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, kFenced);
  std::vector<std::byte> bytes(65536);
  DataCall write = data_call(DataOp::write, 0, 1, 1, 0, bytes);
  auto status = client->run({&write, 1});
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, kFenced);
}

TEST(Rpc, PrivilegedOperationsNeedTheirRole) {
  ServerThread server;
  auto client = make_client(client_options(server.address(), {server.address()}));
  auto fence = client->call(FenceSession{9}, 0, 0);
  ASSERT_FALSE(fence.ok());
  EXPECT_EQ(fence.error().code, EPERM);
  DataCall remove = data_call(DataOp::remove, 0, 1, 0, 0, {});
  EXPECT_EQ(client->run({&remove, 1}).error().code, EPERM);
  auto options = client_options(server.address(), {server.address()});
  options.role = Role::lockd;
  options.session = 0;
  auto lockd = make_client(options);
  EXPECT_TRUE(lockd->call(FenceSession{9}, 0, 0).ok());
  DataCall data_fence = data_call(DataOp::fence, 0, 9, 0, 0, {});
  EXPECT_TRUE(lockd->run({&data_fence, 1}).ok());
}

TEST(Rpc, AnotherClusterIsRefusedWithAReason) {
  ServerThread server("127.0.0.1:0", nullptr, "ffffffffffffffffffffffffffffffff");
  auto client = make_client(client_options(server.address()));
  const auto start = std::chrono::steady_clock::now();
  auto status = client->check_reachable(10s);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, EPROTO);
  EXPECT_NE(status.error().message.find("another cluster"), std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 5s);  // at once, not after the timeout
}

TEST(Rpc, NobodyThereGivesUpOnce) {
  std::string address;
  {
    ServerThread server;
    address = server.address();
  }
  auto options = client_options(address, {address});
  options.give_up = 300ms;
  auto client = make_client(options);
  auto reply = client->call(Lookup{1, "x"}, 0, 0);
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, EIO);
  EXPECT_NE(reply.error().message.find("refused"), std::string::npos) << reply.error().message;
  ServerThread back(address);  // and is there again for the next call
  EXPECT_TRUE(client->call(Lookup{1, "x"}, 0, 0).ok());
}

TEST(Rpc, PostRunsOnTheServersThread) {
  ServerThread server;
  std::thread::id id;
  server.run([&](Server&) { id = std::this_thread::get_id(); });
  EXPECT_NE(id, std::this_thread::get_id());
}

TEST(Rpc, LeavesNoDescriptor) {
  const auto once = [] {
    ServerThread server;
    auto client = make_client(client_options(server.address(), {server.address()}));
    std::vector<std::byte> bytes(kMaxBulk);
    DataCall read = data_call(DataOp::read, 0, 1, 1, 0, bytes);
    EXPECT_TRUE(client->run({&read, 1}).ok());
    EXPECT_TRUE(client->call(Lookup{1, "x"}, 0, 0).ok());
  };
  once();  // what libraries open once and for all
  const std::size_t before = open_descriptors();
  for (int i = 0; i < 5; ++i) once();
  EXPECT_EQ(open_descriptors(), before);
}

// ---- a server that is killed

class KilledServer {
 public:
  KilledServer() {
    char path[] = "/tmp/rpc_test_XXXXXX";
    Descriptor fd(mkstemp(path));
    path_ = path;
    EXPECT_EQ(ftruncate(fd.get(), 4096), 0);
    void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    words = static_cast<std::atomic<std::uint64_t>*>(memory);
    Descriptor listener = std::move(*listen_on("127.0.0.1:0"));
    address = local_address(listener.get());
  }
  ~KilledServer() {
    kill();
    munmap(words, 4096);
    unlink(path_.c_str());
  }
  void start() {
    words[0] = 0;
    char self[512] = {};
    EXPECT_GT(readlink("/proc/self/exe", self, sizeof self - 1), 0);
    const std::string program =
        std::string(self).substr(0, std::string(self).rfind('/')) + "/rpc_test_server";
    pid_ = fork();
    if (pid_ == 0) {
      execl(program.c_str(), program.c_str(), address.c_str(), path_.c_str(), nullptr);
      _exit(127);
    }
    for (int i = 0; i < 10000 && words[0] == 0; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(words[0], 1U);
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  std::string address;
  std::atomic<std::uint64_t>* words;

 private:
  std::string path_;
  pid_t pid_ = -1;
};

TEST(RpcKill, ARetryHasTheSameRequestId) {
  KilledServer server;
  server.start();
  auto options = client_options(server.address);
  options.give_up = 3s;
  auto client = make_client(options);
  std::thread caller([&] { EXPECT_FALSE(client->call(Lookup{1, "hold"}, 0, 0).ok()); });
  while (server.words[1] == 0) std::this_thread::sleep_for(1ms);
  const std::uint64_t id = server.words[1];
  server.kill();
  server.words[1] = 0;
  server.start();
  for (int i = 0; i < 5000 && server.words[1] == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(server.words[1], id);
  EXPECT_GE(client->counters().retries, 1U);
  server.kill();  // the call ends when the client gives up
  caller.join();
}

TEST(RpcKill, NoCallIsLostOverRestarts) {
  KilledServer server;
  server.start();
  auto client = make_client(client_options(server.address, {server.address}));
  std::atomic<bool> stop{false};
  std::atomic<int> failures{0};
  std::atomic<std::uint64_t> done{0};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::byte> bytes(4 * (1U << 20));
      for (std::uint64_t round = 0; !stop; ++round) {
        std::vector<DataCall> calls;
        const auto op = (t + round) % 2 == 0 ? DataOp::write : DataOp::read;
        for (std::uint32_t i = 0; i < 4; ++i) {
          const auto part = std::span(bytes).subspan(i << 20, t == 0 ? 4096 : 1U << 20);
          if (op == DataOp::write)
            fill(part, t + 1, i, 0);
          else
            std::fill(part.begin(), part.end(), std::byte{0});
          calls.push_back(data_call(op, 0, t + 1, i, 0, part));
        }
        if (!client->run(calls).ok()) ++failures;
        for (const DataCall& call : calls)
          if (!matches({call.buffer, call.request.length}, t + 1, call.request.chunk, 0))
            ++failures;
        auto reply = client->call(Lookup{t + 1, "x"}, 0, 0);
        if (!reply || reply->attributes.at(0).ino != t + 1) ++failures;
        ++done;
      }
    });
  }
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(200ms);
    server.kill();
    std::this_thread::sleep_for(50ms);
    server.start();
    const std::uint64_t before = done;
    for (int wait = 0; wait < 10000 && done < before + 16; ++wait) std::this_thread::sleep_for(1ms);
    EXPECT_GE(done, before + 16);
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_GE(client->counters().retries, 1U);
}

}  // namespace
}  // namespace distfuse::rpc::test
