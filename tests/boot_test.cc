// SPDX-License-Identifier: Apache-2.0
// A storaged's machine restarts between a write and its fsync: played by a storaged that is killed and started with another boot number. The
// data is still there, which a mount cannot know.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "tests/cluster.h"

namespace distfuse::tests {
namespace {

/// An open file or directory; answers are errno, 0: success.
class Opened {
 public:
  Opened(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    EXPECT_GE(fd_, 0) << path << ": " << errno;
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int write(std::size_t length, off_t offset = 0) const {
    const std::string bytes(length, 'w');
    return pwrite(fd_, bytes.data(), length, offset) == static_cast<ssize_t>(length) ? 0 : errno;
  }
  [[nodiscard]] int sync() const { return fsync(fd_) == 0 ? 0 : errno; }
  [[nodiscard]] int close() { return ::close(std::exchange(fd_, -1)) == 0 ? 0 : errno; }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

/// Two storageds: 0 has metadata and data, 1 has data. Files are made and synced before each test.
class Boot : public testing::Test {
 protected:
  void SetUp() override {
    cluster = std::make_unique<Cluster>(
        ClusterOptions{.mounts = 1, .storageds = 2, .lease = std::chrono::milliseconds(3000)});
    ASSERT_TRUE(cluster->ok());
    cluster->expect_log("storaged|retr|connection|rpc: (meta|data) target|restarted before");
  }
  void TearDown() override { unsetenv("DISTFUSE_BOOT_ID"); }
  [[nodiscard]] std::string path(const std::string& name) const {
    return cluster->mount(0) + "/" + name;
  }
  void restart(const std::string& storaged, const char* boot) {
    cluster->kill_daemon(storaged);
    if (boot != nullptr) {
      setenv("DISTFUSE_BOOT_ID", boot, 1);
    } else {
      unsetenv("DISTFUSE_BOOT_ID");
    }
    cluster->restart_daemon(storaged);
  }
  static constexpr std::size_t kBothTargets = 9 << 20;  ///< Three chunks.
  std::unique_ptr<Cluster> cluster;
};

TEST_F(Boot, OfADataTargetIsAnErrorOnceForFilesThatWereNotSynced) {
  const Opened dirty(path("dirty"), O_CREAT | O_RDWR);
  const Opened again(path("dirty"), O_RDWR);
  const Opened synced(path("synced"), O_CREAT | O_RDWR);
  const Opened read_only(path("read"), O_CREAT | O_RDWR);
  for (const Opened* file : {&dirty, &synced, &read_only}) {
    ASSERT_EQ(file->write(kBothTargets), 0);
    ASSERT_EQ(file->sync(), 0);
  }
  ASSERT_EQ(dirty.write(kBothTargets), 0);
  ASSERT_EQ(synced.write(kBothTargets), 0);
  ASSERT_EQ(synced.sync(), 0);
  restart("storaged-1", "another");
  EXPECT_EQ(dirty.sync(), EIO);
  EXPECT_EQ(dirty.sync(), 0);
  EXPECT_EQ(again.sync(), EIO) << "each open file is told";
  EXPECT_EQ(again.sync(), 0);
  EXPECT_EQ(synced.sync(), 0);
  EXPECT_EQ(read_only.sync(), 0);
  // It goes on.
  EXPECT_EQ(dirty.write(kBothTargets), 0);
  EXPECT_EQ(dirty.sync(), 0);
}

TEST_F(Boot, ThatIsTheSameIsNoError) {
  const Opened file(path("file"), O_CREAT | O_RDWR);
  const Opened folder(cluster->mount(0), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(file.write(kBothTargets), 0);
  restart("storaged-1", nullptr);
  restart("storaged-0", nullptr);
  EXPECT_EQ(file.sync(), 0);
  EXPECT_EQ(folder.sync(), 0);
}

TEST_F(Boot, ThatAWriteMeetsIsToldByFsyncAndByClose) {
  Opened synced(path("fsync"), O_CREAT | O_RDWR);
  Opened closed(path("close"), O_CREAT | O_RDWR);
  ASSERT_EQ(synced.write(kBothTargets), 0);
  ASSERT_EQ(closed.write(kBothTargets), 0);
  restart("storaged-1", "another");
  EXPECT_EQ(synced.write(kBothTargets), 0);
  EXPECT_EQ(closed.write(kBothTargets), 0);
  EXPECT_EQ(closed.close(), EIO);
  EXPECT_EQ(synced.sync(), EIO);
  EXPECT_EQ(synced.sync(), 0);
  EXPECT_EQ(synced.close(), 0);
}

TEST_F(Boot, IsToldByMsync) {
  const Opened file(path("mapped"), O_CREAT | O_RDWR);
  ASSERT_EQ(file.write(kBothTargets), 0);
  ASSERT_EQ(file.sync(), 0);
  void* memory = mmap(nullptr, kBothTargets, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(file.write(kBothTargets), 0);
  restart("storaged-1", "another");
  EXPECT_EQ(msync(memory, kBothTargets, MS_SYNC), -1);
  EXPECT_EQ(errno, EIO);
  EXPECT_EQ(msync(memory, kBothTargets, MS_SYNC), 0);
  munmap(memory, kBothTargets);
}

TEST_F(Boot, OfTheMetaTargetIsAnErrorForNamesAndAttributesThatWereNotSynced) {
  ASSERT_EQ(mkdir(path("changed").c_str(), 0755), 0);
  ASSERT_EQ(mkdir(path("quiet").c_str(), 0755), 0);
  const Opened changed(path("changed"), O_RDONLY | O_DIRECTORY);
  const Opened quiet(path("quiet"), O_RDONLY | O_DIRECTORY);
  const Opened file(path("file"), O_CREAT | O_RDWR);
  const Opened still(path("still"), O_CREAT | O_RDWR);
  ASSERT_EQ(file.sync(), 0);  // all metadata, whoever asks
  ASSERT_EQ(mkdir(path("changed/below").c_str(), 0755), 0);
  ASSERT_EQ(fchmod(file.get(), 0600), 0);
  restart("storaged-0", "another");
  EXPECT_EQ(still.sync(), 0);
  EXPECT_EQ(file.sync(), EIO);
  EXPECT_EQ(file.sync(), 0);
  EXPECT_EQ(changed.sync(), EIO);
  EXPECT_EQ(changed.sync(), 0);
  EXPECT_EQ(quiet.sync(), 0);
}

}  // namespace
}  // namespace distfuse::tests
