// SPDX-License-Identifier: Apache-2.0
#include "storaged/data/file_chunk_store.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "storaged/data/chunk_store_harness.h"

namespace distfuse::storaged::testing {
namespace {

using rpc::DataOp;

TEST(FileChunkStore, MissingIsZeros) {
  TemporaryDirectory directory;
  auto store = open_store(directory.path());
  EXPECT_EQ(read(*store, 5, 0, 10, 100), std::string(100, '\0'));
  EXPECT_EQ(write(*store, 5, 0, 50, "hello"), 0);
  EXPECT_EQ(read(*store, 5, 0, 48, 10), std::string("\0\0hello\0\0\0", 10));
  EXPECT_EQ(read(*store, 5, 0, 0, kChunk).size(), kChunk);
  EXPECT_EQ(read(*store, 5, 1, 0, 3), std::string(3, '\0'));
  EXPECT_EQ(store->in_flight(), 0U);
}

TEST(FileChunkStore, SurvivesAReopenAndKnowsItsCluster) {
  TemporaryDirectory directory;
  EXPECT_EQ(write(*open_store(directory.path()), 5, 3, 0, "kept"), 0);
  auto store = open_store(directory.path());
  EXPECT_EQ(read(*store, 5, 3, 0, 4), "kept");
  FileChunkStoreOptions options;
  options.directory = directory.path() + "/store";
  options.cluster_id = kCluster;
  auto second = open_file_chunk_store(options);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, EBUSY) << second.error().message;
  store.reset();
  options.cluster_id = "ffffffffffffffffffffffffffffffff";
  auto foreign = open_file_chunk_store(options);
  ASSERT_FALSE(foreign);
  EXPECT_EQ(foreign.error().code, EINVAL) << foreign.error().message;
}

TEST(FileChunkStore, TruncateCutsAndRemovesAbove) {
  TemporaryDirectory directory;
  auto store = open_store(directory.path());
  for (std::uint64_t chunk = 0; chunk < 4; ++chunk)
    EXPECT_EQ(write(*store, 9, chunk, 0, std::string(100, 'a')), 0);
  EXPECT_EQ(write(*store, 10, 3, 0, "other"), 0);
  EXPECT_EQ(simple(*store, DataOp::truncate, 9, 1, 40), 0);
  EXPECT_EQ(read(*store, 9, 0, 0, 100), std::string(100, 'a'));
  EXPECT_EQ(read(*store, 9, 1, 0, 100), std::string(40, 'a') + std::string(60, '\0'));
  EXPECT_EQ(read(*store, 9, 2, 0, 100), std::string(100, '\0'));
  EXPECT_EQ(read(*store, 9, 3, 0, 100), std::string(100, '\0'));
  EXPECT_EQ(write(*store, 9, 3, 0, "new"), 0);  // into a new file, not the unlinked one
  store.reset();
  store = open_store(directory.path());
  EXPECT_EQ(read(*store, 9, 3, 0, 4), std::string("new\0", 4));
  EXPECT_EQ(simple(*store, DataOp::remove, 9), 0);
  EXPECT_EQ(read(*store, 9, 0, 0, 3), std::string(3, '\0'));
  EXPECT_EQ(read(*store, 10, 3, 0, 5), "other");
  EXPECT_EQ(simple(*store, DataOp::remove, 9), 0);  // once more
}

TEST(FileChunkStore, SeekFindsDataAndHoles) {
  TemporaryDirectory directory;
  auto store = open_store(directory.path());
  auto seek = [&](std::uint32_t offset, std::uint32_t whence) {
    return call(*store, operation(DataOp::seek, 4, 0, offset, 0, nullptr, whence));
  };
  EXPECT_EQ(seek(100, rpc::kSeekData).error, ENXIO);
  EXPECT_EQ(seek(100, rpc::kSeekHole).offset, 100U);
  EXPECT_EQ(write(*store, 4, 0, 16384, std::string(4096, 'd')), 0);
  EXPECT_EQ(seek(0, rpc::kSeekData).offset, 16384U);
  EXPECT_EQ(seek(0, rpc::kSeekHole).offset, 0U);
  EXPECT_EQ(seek(17000, rpc::kSeekHole).offset, 20480U);
  EXPECT_EQ(seek(20480, rpc::kSeekData).error, ENXIO);
  EXPECT_EQ(seek(30000, rpc::kSeekHole).offset, 30000U);
  EXPECT_EQ(write(*store, 4, 0, 0, std::string(kChunk, 'f')), 0);
  EXPECT_EQ(seek(0, rpc::kSeekHole).error, ENXIO);
  EXPECT_EQ(simple(*store, DataOp::punch, 4, 0, 8192, 8192), 0);
  EXPECT_EQ(seek(0, rpc::kSeekHole).offset, 8192U);
  EXPECT_EQ(seek(8192, rpc::kSeekData).offset, 16384U);
  EXPECT_EQ(read(*store, 4, 0, 8190, 4), std::string("ff\0\0", 4));
}

TEST(FileChunkStore, AllocateKeepsContents) {
  TemporaryDirectory directory;
  auto store = open_store(directory.path());
  EXPECT_EQ(write(*store, 4, 0, 0, "abc"), 0);
  EXPECT_EQ(simple(*store, DataOp::allocate, 4, 0, 0, kChunk), 0);
  EXPECT_EQ(read(*store, 4, 0, 0, 5), std::string("abc\0\0", 5));
  EXPECT_EQ(simple(*store, DataOp::allocate, 4, 1, 4096, 4096), 0);
  EXPECT_EQ(read(*store, 4, 1, 4096, 4), std::string(4, '\0'));
  std::uint64_t blocks = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory.path())) {
    struct stat status {};
    if (entry.is_regular_file() && ::stat(entry.path().c_str(), &status) == 0)
      blocks += static_cast<std::uint64_t>(status.st_blocks);
  }
  EXPECT_GE(blocks * 512, kChunk + 4096U);
}

TEST(FileChunkStore, RefusesNonsenseAndGoesOn) {
  TemporaryDirectory directory;
  auto store = open_store(directory.path());
  EXPECT_EQ(write(*store, 0, 0, 0, "x"), EINVAL);
  EXPECT_EQ(write(*store, 1, 0, kChunk - 1, "xy"), EINVAL);
  EXPECT_EQ(simple(*store, DataOp::fence, 1), EINVAL);
  EXPECT_EQ(write(*store, 1, 0, 0, "x"), 0);
  EXPECT_EQ(store->statistics().errors, 3U);
}

TEST(FileChunkStore, MoreThanTheLimitIsBusyMoreThanTheRingIsQueued) {
  TemporaryDirectory directory;
  auto store = open_store(directory.path(), 0, 8, 4);
  const std::size_t limit = store->max_operations();
  std::size_t good = 0;
  std::size_t busy = 0;
  std::string data(512, 'z');
  for (std::size_t i = 0; i < limit + 5; ++i) {
    store->submit(operation(DataOp::write, 1 + i % 200, i / 200, 0, 512,
                            reinterpret_cast<std::byte*>(data.data())),
                  [&](const ChunkOutcome& outcome) {
                    good += outcome.error == 0 ? 1 : 0;
                    busy += outcome.error == EBUSY ? 1 : 0;
                  });
  }
  run_until(*store, [&] { return store->in_flight() == 0; });
  EXPECT_EQ(good, limit);
  EXPECT_EQ(busy, 5U);
  EXPECT_LE(store->statistics().open_files, 4U);
  for (std::size_t i = 0; i < limit; ++i)
    ASSERT_EQ(read(*store, 1 + i % 200, i / 200, 0, 512), data) << i;
}

TEST(FileChunkStore, ConflictingOperationsTakeEffectInOrder) {
  TemporaryDirectory directory;
  auto store = open_store(directory.path());
  std::string a(kChunk, 'a'), b(kChunk, 'b'), first(kChunk, 'X'), second(kChunk, 'X');
  auto bytes = [](std::string& text) { return reinterpret_cast<std::byte*>(text.data()); };
  for (int round = 0; round < 100; ++round) {
    auto none = [](const ChunkOutcome& outcome) { EXPECT_EQ(outcome.error, 0); };
    store->submit(operation(DataOp::write, 3, 2, 0, kChunk, bytes(a)), none);
    store->submit(operation(DataOp::truncate, 3, 2, 0, 0), none);
    store->submit(operation(DataOp::read, 3, 2, 0, kChunk, bytes(first)), none);
    store->submit(operation(DataOp::write, 3, 2, 0, kChunk, bytes(b)), none);
    store->submit(operation(DataOp::truncate, 3, 2, 7, 0), none);
    store->submit(operation(DataOp::sync, 3, 0, 0, 0), none);
    store->submit(operation(DataOp::read, 3, 2, 0, kChunk, bytes(second)), none);
    store->submit(operation(DataOp::remove, 3, 0, 0, 0), none);
    run_until(*store, [&] { return store->in_flight() == 0; });
    ASSERT_EQ(first, std::string(kChunk, '\0')) << round;
    ASSERT_EQ(second, std::string(7, 'b') + std::string(kChunk - 7, '\0')) << round;
  }
}

TEST(FileChunkStore, SyncLeavesNothingDirty) {
  TemporaryDirectory directory;
  auto store = open_store(directory.path());
  for (std::uint64_t chunk = 0; chunk < 200; ++chunk)
    EXPECT_EQ(write(*store, 8, chunk, 0, "dirty"), 0);
  EXPECT_EQ(write(*store, 9, 0, 0, "dirty"), 0);
  run_until(*store, [&] { return store->statistics().dirty_chunks == 201; });
  EXPECT_EQ(simple(*store, DataOp::sync, 8), 0);
  EXPECT_EQ(store->statistics().dirty_chunks, 1U);
  EXPECT_EQ(write(*store, 11, 0, 0, "now", rpc::kWriteSync), 0);
  EXPECT_EQ(store->statistics().dirty_chunks, 1U);
  EXPECT_EQ(simple(*store, DataOp::sync, 0), 0);
  EXPECT_EQ(store->statistics().dirty_chunks, 0U);
}

TEST(FileChunkStore, RandomOperationsAgreeWithTheModel) {
  TemporaryDirectory directory;
  std::mt19937_64 random(seed());
  auto store = open_store(directory.path(), 0, 16, 5);
  Model model;
  auto below = [&](std::uint64_t limit) { return static_cast<std::uint32_t>(random() % limit); };
  for (int step = 0; step < 4000; ++step) {
    const ChunkKey key{1 + random() % 4, random() % 4};
    const std::uint32_t offset = below(kChunk);
    const std::uint32_t length = 1 + below(kChunk - offset);
    switch (below(12)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        const std::string text(length, static_cast<char>('a' + random() % 26));
        ASSERT_EQ(
            write(*store, key.ino, key.chunk, offset, text, below(50) == 0 ? rpc::kWriteSync : 0U),
            0)
            << step;
        model.write(key, offset, text);
        break;
      }
      case 4:
        ASSERT_EQ(simple(*store, DataOp::punch, key.ino, key.chunk, offset, length), 0) << step;
        model.punch(key, offset, length);
        break;
      case 5:
        ASSERT_EQ(simple(*store, DataOp::allocate, key.ino, key.chunk, offset, length), 0) << step;
        break;
      case 6: {
        const std::uint32_t cut = below(3) == 0 ? 0 : offset;
        ASSERT_EQ(simple(*store, DataOp::truncate, key.ino, key.chunk, cut), 0) << step;
        model.truncate(key, cut);
        break;
      }
      case 7: {
        const auto data = call(*store, operation(DataOp::seek, key.ino, key.chunk, offset, 0,
                                                 nullptr, rpc::kSeekData));
        const std::uint32_t end =
            data.error == 0 ? data.offset : kChunk;  // what is skipped must be zeros
        ASSERT_EQ(model.read(key, offset, end - offset), std::string(end - offset, '\0')) << step;
        break;
      }
      case 8:
        if (below(10) == 0) {
          ASSERT_EQ(simple(*store, DataOp::remove, key.ino), 0) << step;
          model.remove(key.ino);
        } else if (below(40) == 0) {
          store.reset();
          store = open_store(directory.path(), 0, 16, 5);
        } else {
          ASSERT_EQ(simple(*store, DataOp::sync, below(5)), 0) << step;
        }
        break;
      default:
        ASSERT_TRUE(read(*store, key.ino, key.chunk, offset, length) ==
                    model.read(key, offset, length))
            << "step " << step;
    }
  }
}

/// Many in flight at once: the model takes each in the order submitted, which is the store's promise.
TEST(FileChunkStore, RandomConcurrentOperationsAgreeWithTheModel) {
  TemporaryDirectory directory;
  std::mt19937_64 random(seed());
  auto store = open_store(directory.path(), 0, 16, 5);
  Model model;
  struct Running {
    std::string buffer, expected;
    bool read = false;
  };
  for (int step = 0; step < 6000; ++step) {
    const ChunkKey key{1 + random() % 3, random() % 3};
    const auto offset = static_cast<std::uint32_t>(random() % kChunk);
    const auto length = 1 + static_cast<std::uint32_t>(random() % (kChunk - offset));
    auto running = std::make_shared<Running>();
    ChunkOperation request = operation(DataOp::read, key.ino, key.chunk, offset, length);
    switch (random() % 9) {
      case 0:
      case 1:
      case 2:
        request.op = DataOp::write;
        running->buffer.assign(length, static_cast<char>('A' + random() % 26));
        model.write(key, offset, running->buffer);
        break;
      case 3:
        request.op = DataOp::punch;
        model.punch(key, offset, length);
        break;
      case 4:
        request.op = DataOp::truncate;
        request.offset = random() % 4 == 0 ? 0 : offset;
        model.truncate(key, request.offset);
        break;
      case 5:
        request.op = random() % 8 == 0 ? DataOp::remove : DataOp::sync;
        if (request.op == DataOp::remove) model.remove(key.ino);
        break;
      default:
        running->read = true;
        running->buffer.assign(length, 'X');
        running->expected = model.read(key, offset, length);
    }
    request.buffer = reinterpret_cast<std::byte*>(running->buffer.data());
    store->submit(request, [running, step](const ChunkOutcome& outcome) {
      EXPECT_EQ(outcome.error, 0) << step;
      EXPECT_TRUE(!running->read || running->buffer == running->expected) << "step " << step;
    });
    if (store->in_flight() > 40) run_until(*store, [&] { return store->in_flight() < 20; });
    if (::testing::Test::HasFailure()) break;
  }
  run_until(*store, [&] { return store->in_flight() == 0; });
}

/// From here on this process may not set up an io_uring.
bool forbid_io_uring() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<unsigned short>(std::size(filter)), filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(FileChunkStore, WithoutIoUringSaysWhatToDoAndLeavesNothing) {
  TemporaryDirectory directory;
  const pid_t child = ::fork();
  if (child == 0) {
    if (!forbid_io_uring()) ::_exit(2);
    FileChunkStoreOptions options;
    options.directory = directory.path() + "/store";
    options.cluster_id = kCluster;
    auto store = open_file_chunk_store(options);
    const bool said = !store && store.error().code == EPERM &&
                      store.error().message.find("kernel.io_uring_disabled") != std::string::npos;
    ::_exit(said && !std::filesystem::exists(options.directory) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 2)
    GTEST_SKIP() << "NOT TESTED: no io_uring. seccomp is not permitted here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// ---- capacity

TEST(FileChunkStore, CapacityIsEnforcedAndGivenBack) {
  TemporaryDirectory directory;
  constexpr std::uint64_t kCapacity = 16 * kChunk;
  auto store = open_store(directory.path(), kCapacity);
  const std::string full(kChunk, 'c');
  std::uint64_t written = 0;
  int error = 0;
  while (written < 32 && (error = write(*store, 1 + written, 0, 0, full)) == 0) ++written;
  EXPECT_EQ(error, ENOSPC);
  EXPECT_GE(written, 15U);
  EXPECT_LE(written, 16U);
  EXPECT_EQ(write(*store, 1, 0, 100, "overwritten"), 0) << "allocated blocks need no room";
  EXPECT_EQ(read(*store, 2, 0, 0, kChunk), full);
  EXPECT_EQ(simple(*store, DataOp::allocate, 77, 0, 0, kChunk), ENOSPC);
  rpc::DataStatfs status{};
  EXPECT_EQ(
      call(*store, operation(DataOp::statfs, 0, 0, 0, 0, reinterpret_cast<std::byte*>(&status)))
          .error,
      0);
  EXPECT_EQ(status.blocks * status.block_size, kCapacity);
  EXPECT_LT(status.blocks_available * status.block_size, kChunk);
  EXPECT_EQ(simple(*store, DataOp::remove, 1), 0);
  EXPECT_EQ(write(*store, 50, 0, 0, std::string(kChunk / 2, 'n')), 0);
  EXPECT_EQ(simple(*store, DataOp::sync, 0), 0);
  const std::uint64_t used = store->statistics().used;
  store.reset();
  store = open_store(directory.path(), kCapacity);
  EXPECT_EQ(store->statistics().used, used) << "from the checkpoint";
  store.reset();
  // Without a checkpoint, as after a kill -9: the scan finds what is there.
  std::filesystem::remove(directory.path() + "/store/USAGE");
  store = open_store(directory.path(), kCapacity);
  run_until(*store, [&] { return store->statistics().used == used; });
}

TEST(FileChunkStore, AFullFilesystemFailsTheWriterOnly) {
  TemporaryDirectory directory;
  if (::mount("distfuse-test", directory.path().c_str(), "tmpfs", 0, "size=2m") != 0) {
    GTEST_SKIP() << "NOT TESTED: a full disk. Mounting a tmpfs is not permitted here: "
                 << std::strerror(errno);
  }
  {
    auto store = open_store(directory.path());
    const std::string block(kChunk, 'w');
    EXPECT_EQ(write(*store, 1, 0, 0, block), 0);
    int error = 0;
    std::uint64_t chunks = 1;
    while (chunks < 64 && (error = write(*store, 1, chunks, 0, block)) == 0) ++chunks;
    EXPECT_EQ(error, ENOSPC);
    EXPECT_EQ(simple(*store, DataOp::allocate, 2, 0, 0, kChunk), ENOSPC);
    EXPECT_EQ(read(*store, 1, 0, 0, kChunk), block);
    EXPECT_EQ(write(*store, 1, 0, 5, "still"), 0);
    EXPECT_EQ(simple(*store, DataOp::sync, 1), 0);
    EXPECT_EQ(simple(*store, DataOp::truncate, 1, 3, 0), 0);
    EXPECT_EQ(write(*store, 2, 0, 0, block), 0);
    EXPECT_EQ(read(*store, 2, 0, 0, kChunk), block);
  }
  ::umount2(directory.path().c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace distfuse::storaged::testing
