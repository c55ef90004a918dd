// SPDX-License-Identifier: Apache-2.0
// kill -9 at any moment, again and again, against an oracle: a child process writes, truncates, punches and syncs at random
// and says, in memory shared with the parent, what it is about to do and what was answered. After each kill the parent
// opens the store and checks every chunk. A kill leaves the kernel alive, so all that was answered must be there, synced or
// not; what was under way may be there in full, in part, or not at all.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "storaged/data/chunk_store_harness.h"

namespace distfuse::storaged::testing {
namespace {

using rpc::DataOp;

constexpr std::uint64_t kInodes = 3;
constexpr std::uint64_t kChunks = 3;
constexpr std::uint32_t kBlock = 4096;
constexpr std::uint32_t kBlocks = kChunk / kBlock;

/// One block: filled with `stamp` once answered; `next` while a change is under way.
struct Block {
  std::atomic<std::uint32_t> answered{0};
  std::atomic<std::uint32_t> next{0};
};

struct Oracle {
  Block blocks[kInodes][kChunks][kBlocks];
  std::atomic<std::uint64_t> operations{0};
  std::atomic<std::uint64_t> syncs{0};
};

Block& block(Oracle& oracle, std::uint64_t ino, std::uint64_t chunk, std::uint32_t index) {
  return oracle.blocks[ino - 1][chunk][index];
}

/// Marks the blocks, runs the operation, notes the answer. Stamp 0: zeros.
void change(ChunkStore& store, Oracle& oracle, const ChunkOperation& request, std::uint32_t first,
            std::uint32_t count, std::uint32_t stamp, bool chunks_above) {
  const auto each = [&](auto&& note) {
    for (std::uint32_t i = first; i < first + count; ++i)
      note(block(oracle, request.ino, request.chunk, i));
    for (std::uint64_t chunk = request.chunk + 1; chunks_above && chunk < kChunks; ++chunk) {
      for (std::uint32_t i = 0; i < kBlocks; ++i) note(block(oracle, request.ino, chunk, i));
    }
  };
  each([stamp](Block& b) { b.next = stamp; });
  if (call(store, request).error != 0) ::_exit(3);
  each([stamp](Block& b) { b.answered = stamp; });
  ++oracle.operations;
}

[[noreturn]] void work(const std::string& path, Oracle& oracle, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto store = open_store(path, 0, 16, 4);
  std::vector<std::uint32_t> data(kChunk / sizeof(std::uint32_t));
  for (;;) {
    const std::uint64_t ino = 1 + random() % kInodes;
    const std::uint64_t chunk = random() % kChunks;
    const auto first = static_cast<std::uint32_t>(random() % kBlocks);
    const auto count = 1 + static_cast<std::uint32_t>(random() % (kBlocks - first));
    ChunkOperation request = operation(DataOp::write, ino, chunk, first * kBlock, count * kBlock);
    switch (random() % 8) {
      case 0:
        request.op = DataOp::punch;
        change(*store, oracle, request, first, count, 0, false);
        break;
      case 1:
        request.op = DataOp::truncate;
        change(*store, oracle, request, first, kBlocks - first, 0, true);
        break;
      case 2:
        request.op = DataOp::sync;
        if (call(*store, request).error != 0) ::_exit(4);
        ++oracle.syncs;
        break;
      default: {
        const auto stamp = static_cast<std::uint32_t>(random() | 1);
        std::fill(data.begin(), data.end(), stamp);
        request.buffer = reinterpret_cast<std::byte*>(data.data());
        request.flags = random() % 16 == 0 ? rpc::kWriteSync : 0U;
        change(*store, oracle, request, first, count, stamp, false);
      }
    }
  }
}

/// Every byte is the last answered, or of the change that the kill met.
void verify(ChunkStore& store, Oracle& oracle) {
  for (std::uint64_t ino = 1; ino <= kInodes; ++ino) {
    for (std::uint64_t chunk = 0; chunk < kChunks; ++chunk) {
      const std::string bytes = read(store, ino, chunk, 0, kChunk);
      for (std::uint32_t i = 0; i < kBlocks; ++i) {
        Block& b = block(oracle, ino, chunk, i);
        std::uint32_t words[kBlock / 4];
        std::memcpy(words, bytes.data() + i * kBlock, kBlock);
        for (std::uint32_t word : words) {
          ASSERT_TRUE(word == b.answered || word == b.next)
              << "inode " << ino << " chunk " << chunk << " block " << i << ": " << word
              << ", answered " << b.answered << ", under way " << b.next;
        }
      }
    }
  }
}

/// The blocks that a kill left between two states get one.
void settle(ChunkStore& store, Oracle& oracle) {
  for (std::uint64_t ino = 1; ino <= kInodes; ++ino) {
    ASSERT_EQ(simple(store, DataOp::remove, ino), 0);
    for (auto& chunk : oracle.blocks[ino - 1]) {
      for (Block& b : chunk) b.answered = b.next = 0;
    }
  }
}

TEST(FileChunkStoreKill, NothingAnsweredIsLost) {
  TemporaryDirectory directory;
  std::mt19937_64 random(seed());
  void* memory =
      ::mmap(nullptr, sizeof(Oracle), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto& oracle = *new (memory) Oracle;
  for (int round = 0; round < 25; ++round) {
    const std::uint64_t child_seed = random();
    const pid_t child = ::fork();
    if (child == 0) work(directory.path(), oracle, child_seed);
    std::this_thread::sleep_for(std::chrono::microseconds(20000 + random() % 100000));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        << "the child ended by itself: " << status;
    auto store = open_store(directory.path(), 0, 16, 4);
    verify(*store, oracle);
    if (HasFatalFailure()) break;
    settle(*store, oracle);
  }
  EXPECT_GT(oracle.operations, 100U);
  EXPECT_GT(oracle.syncs, 5U);
  std::printf("%llu operations, %llu syncs\n", static_cast<unsigned long long>(oracle.operations),
              static_cast<unsigned long long>(oracle.syncs));
  ::munmap(memory, sizeof(Oracle));
}

}  // namespace
}  // namespace distfuse::storaged::testing
