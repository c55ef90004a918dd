// SPDX-License-Identifier: Apache-2.0
// The chunk store beside plain pread and pwrite on files of the same directory: one JSON object a case on standard output.
// Usage: bench_chunk_store [DIRECTORY [MIB]]
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "storaged/data/file_chunk_store.h"

namespace distfuse::storaged {
namespace {

using Clock = std::chrono::steady_clock;
using rpc::DataOp;

constexpr std::uint32_t kChunk = rpc::kMaxBulk;
constexpr std::uint64_t kIno = 1;

struct Case {
  const char* name;
  DataOp op;
  std::uint32_t bytes;
  std::size_t depth;
  bool random;
};

constexpr Case kCases[] = {
    {"write_1m_sequential_depth_1", DataOp::write, 1U << 20, 1, false},
    {"write_1m_sequential_depth_16", DataOp::write, 1U << 20, 16, false},
    {"read_1m_sequential_depth_1", DataOp::read, 1U << 20, 1, false},
    {"read_1m_sequential_depth_16", DataOp::read, 1U << 20, 16, false},
    {"write_4k_random_depth_1", DataOp::write, 4096, 1, true},
    {"write_4k_random_depth_64", DataOp::write, 4096, 64, true},
    {"read_4k_random_depth_1", DataOp::read, 4096, 1, true},
    {"read_4k_random_depth_64", DataOp::read, 4096, 64, true},
};

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "bench_chunk_store: %s\n", message.c_str());
  std::exit(1);
}

std::uint64_t position(const Case& c, std::uint64_t i, std::uint64_t total,
                       std::mt19937_64& random) {
  const std::uint64_t blocks = total / c.bytes;
  return (c.random ? random() % blocks : i % blocks) * c.bytes;
}

void wait(ChunkStore& store) {
  if (store.progress()) return;
  pollfd fd{store.event_fd(), POLLIN, 0};
  (void)::poll(&fd, 1, 1000);
}

/// Seconds for `count` operations.
double run_store(ChunkStore& store, const Case& c, std::uint64_t count, std::uint64_t total) {
  std::mt19937_64 random(1);
  std::vector<std::byte> memory(c.depth * c.bytes, std::byte{0x5a});
  std::vector<std::byte*> free;
  for (std::size_t i = 0; i < c.depth; ++i) free.push_back(memory.data() + i * c.bytes);
  const auto begin = Clock::now();
  for (std::uint64_t i = 0; i < count;) {
    while (!free.empty() && i < count) {
      const std::uint64_t at = position(c, i++, total, random);
      std::byte* buffer = free.back();
      free.pop_back();
      store.submit({c.op, kIno, at / kChunk, static_cast<std::uint32_t>(at % kChunk), c.bytes,
                    kChunk, 0, buffer},
                   [&free, buffer](const ChunkOutcome& outcome) {
                     if (outcome.error != 0) fail(std::strerror(outcome.error));
                     free.push_back(buffer);
                   });
    }
    wait(store);
  }
  while (store.in_flight() > 0) wait(store);
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double run_plain(const std::vector<int>& files, const Case& c, std::uint64_t count,
                 std::uint64_t total) {
  std::mt19937_64 random(1);
  std::vector<std::byte> memory(c.bytes, std::byte{0x5a});
  const auto begin = Clock::now();
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t at = position(c, i, total, random);
    const int file = files[at / kChunk];
    const auto offset = static_cast<off_t>(at % kChunk);
    const ssize_t done = c.op == DataOp::write ? ::pwrite(file, memory.data(), c.bytes, offset)
                                               : ::pread(file, memory.data(), c.bytes, offset);
    if (done != static_cast<ssize_t>(c.bytes)) fail("plain I/O failed");
  }
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

int run(const std::string& parent, std::uint64_t total) {
  std::string directory = parent + "/bench-chunk-store.XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr) fail(directory + ": " + std::strerror(errno));
  FileChunkStoreOptions options;
  options.directory = directory + "/store";
  options.cluster_id = "0123456789abcdef0123456789abcdef";
  auto store = open_file_chunk_store(options);
  if (!store) fail(store.error().message);
  std::vector<int> files;
  for (std::uint64_t i = 0; i < total / kChunk; ++i) {
    files.push_back(
        ::open((directory + "/" + std::to_string(i)).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (files.back() < 0) fail(std::strerror(errno));
  }
  for (const Case& c : kCases) {
    const std::uint64_t count = c.bytes >= (1U << 20) ? 2 * total / c.bytes : 50000;
    const double plain = run_plain(files, c, count, total);
    const double seconds = run_store(**store, c, count, total);
    const auto rate = [&](double s) { return static_cast<double>(count) / s; };
    std::printf(
        R"({"bench":"chunk_store","case":"%s","operations":%llu,"bytes":%u,"depth":%zu,"store_per_s":%.0f,)"
        R"("plain_per_s":%.0f,"store_mib_per_s":%.1f,"plain_mib_per_s":%.1f,"ratio":%.3f})"
        "\n",
        c.name, static_cast<unsigned long long>(count), c.bytes, c.depth, rate(seconds),
        rate(plain), rate(seconds) * c.bytes / 1048576, rate(plain) * c.bytes / 1048576,
        plain / seconds);
    std::fflush(stdout);
  }
  for (int file : files) ::close(file);
  store->reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return 0;
}

}  // namespace
}  // namespace distfuse::storaged

int main(int argc, char** argv) {
  const std::string parent = argc > 1 ? argv[1] : std::filesystem::temp_directory_path().string();
  const std::uint64_t mib = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 256;
  if (argc > 3 || mib < 4) {
    std::fprintf(stderr, "usage: bench_chunk_store [DIRECTORY [MIB]]   (MIB: at least 4)\n");
    return 2;
  }
  return distfuse::storaged::run(parent, mib / 4 * 4 << 20);
}
