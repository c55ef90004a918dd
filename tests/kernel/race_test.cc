// SPDX-License-Identifier: Apache-2.0
// Races of a coherent cache, each forced: a race point of the module holds one node in the middle while another one acts (kmod/race.h). Who must wait is
// seen to wait, and what both see afterwards is looked at. In a guest, on mounts of mode `kernel`.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tests/fence.h"
#include "tests/kernel/race_points.h"

namespace distfuse::tests {
namespace {

constexpr std::size_t kPage = 4096;

class Race : public RaceTest {};

/// A shared mapping of a file's first bytes.
class Mapping {
 public:
  Mapping(int fd, std::size_t bytes)
      : bytes_(bytes),
        at_(static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0))) {
    EXPECT_NE(static_cast<void*>(at_), MAP_FAILED);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { munmap(at_, bytes_); }
  [[nodiscard]] volatile char& operator[](std::size_t i) const { return at_[i]; }
  [[nodiscard]] const char* data() const { return at_; }

 private:
  std::size_t bytes_;
  char* at_;
};

TEST_F(Race, ARevokeThatOvertakesItsGrant) {
  make(1, "old");
  const int a = open_file(0, O_RDONLY), b = open_file(1, O_RDWR), c = open_file(2, O_RDONLY);
  ASSERT_EQ(pwrite(b, "old", 3, 0), 3);
  EXPECT_EQ(read_all(c),
            "old");  // S is held there: the first node's is one chain, that finds it free.
  const auto revokes = counter_of(cluster().mount(0), "revokes");
  Point late("chain_late", cluster().mount(0), 1000);
  Call reader([&] { return pread(a, std::string(3, 0).data(), 3, 0); });
  ASSERT_TRUE(soon([&] { return late.struck(); }));
  Call writer([&] { return pwrite(b, "new", 3, 0); });
  EXPECT_TRUE(soon([&] { return counter_of(cluster().mount(0), "revokes") > revokes; }));
  EXPECT_TRUE(reader.waits()) << "the grant was to come after the revoke";
  EXPECT_EQ(reader.end(), 3);
  EXPECT_EQ(writer.end(), 3);
  EXPECT_EQ(read_all(a), "new");
  for (const int fd : {a, b, c}) close(fd);
}

TEST_F(Race, AWriteThatHasNotDirtiedItsPageYet) {
  make(0, "old");
  const int a = open_file(0, O_RDWR), b = open_file(1, O_RDONLY);
  Point point("write_pinned", cluster().mount(0));
  Call writer([&] { return pwrite(a, "new", 3, 0); });
  ASSERT_TRUE(point.held());
  std::string seen(3, 0);
  Call reader([&] { return pread(b, seen.data(), 3, 0); });
  EXPECT_TRUE(reader.waits()) << "it swept under a write";
  point.release();
  EXPECT_EQ(writer.end(), 3);
  EXPECT_EQ(reader.end(), 3);
  EXPECT_EQ(seen, "new");
  close(a);
  close(b);
}

/// Nobody waits for what is read ahead: its answer comes with folios locked, and with no call under way.
TEST_F(Race, AnAnswerOfReadAheadThatIsFilledInAfterTheSweep) {
  make(1, std::string(8 * kPage, 'o'));
  const int a = open_file(0, O_RDONLY), b = open_file(1, O_RDWR);
  ASSERT_EQ(pwrite(b, "old", 3, 0), 3);  // The first node holds nothing.
  Point point("read_answered", cluster().mount(0));
  ASSERT_EQ(posix_fadvise(a, 0, 8 * kPage, POSIX_FADV_WILLNEED), 0);
  ASSERT_TRUE(point.held());
  Call writer([&] { return pwrite(b, "new", 3, 0) == 3 ? fsync(b) : -1; });
  EXPECT_TRUE(writer.waits()) << "what is read ahead is under no lock";
  point.release();
  EXPECT_EQ(writer.end(), 0);
  EXPECT_EQ(read_all(a).substr(0, 3), "new");
  close(a);
  close(b);
}

TEST_F(Race, ARevokeWhoseFlushWaitsForOneThatIsUnderWay) {
  make(0, "old");
  const int a = open_file(0, O_RDWR);
  ASSERT_EQ(pwrite(a, "longer", 6, 0), 6);
  Point point("flush_attrs", cluster().mount(0));
  Call syncer([&] { return fsync(a); });
  ASSERT_TRUE(point.held());
  std::string seen(6, 0);
  Call reader([&] {
    const int b = open_file(1, O_RDONLY);
    const auto got = pread(b, seen.data(), 6, 0);
    close(b);
    return got;
  });
  EXPECT_TRUE(reader.waits()) << "size and times were not at the server";
  point.release();
  EXPECT_EQ(syncer.end(), 0);
  EXPECT_EQ(reader.end(), 6);
  EXPECT_EQ(seen, "longer");
  close(a);
}

TEST_F(Race, AFaultThatHasItsLockAndNoFolioYet) {
  make(1, std::string(kPage, 'o'));
  const int a = open_file(0, O_RDWR), b = open_file(1, O_RDWR);
  const Mapping map(a, kPage);
  Point point("fault_pinned", cluster().mount(0));
  Child reader([&] { return int{map[0]}; });
  ASSERT_TRUE(point.held());
  Call writer([&] { return pwrite(b, "new", 3, 0); });
  EXPECT_TRUE(writer.waits());
  point.release();
  const int seen =
      reader.end();  // The load comes after the fault, when the page may be gone again.
  EXPECT_TRUE(seen == 'o' || seen == 'n') << seen;
  EXPECT_EQ(writer.end(), 3);
  EXPECT_EQ(map[0], 'n') << "the page stayed mapped";
  close(a);
  close(b);
}

/// page_mkwrite asks for X by itself; the store that it is for comes after its pin is gone.
TEST_F(Race, AStoreThatIsAllowedAndNotMadeYet) {
  make(1, std::string(kPage, 'o'));
  const int a = open_file(0, O_RDWR), b = open_file(1, O_RDWR);
  const Mapping map(a, kPage);
  EXPECT_EQ(map[0], 'o');
  Point point("mkwrite_done", cluster().mount(0));
  Child storer([&] {
    map[0] = 'm';
    return 0;
  });
  ASSERT_TRUE(point.held());
  Call reader([&] { return static_cast<long>(read_all(b, 1).size()); });
  EXPECT_TRUE(reader.waits()) << "the folio was swept while it was made writable";
  point.release();
  EXPECT_EQ(storer.end(), 0);
  EXPECT_EQ(reader.end(), 1);
  EXPECT_EQ(read_all(b, 1), "m");
  EXPECT_EQ(map[0], 'm') << "the store was lost";
  EXPECT_EQ(pwrite(b, "b", 1, 0), 1);
  EXPECT_EQ(map[0], 'b') << "the mapping outlived its lock";
  close(a);
  close(b);
}

TEST_F(Race, ATruncationAgainstWhatOthersHaveCached) {
  make(0, std::string(16 * kPage, 'o'));
  const int a = open_file(0, O_RDONLY), b = open_file(1, O_RDWR);
  EXPECT_EQ(read_all(a).size(), 16 * kPage);
  Point point("truncate_cut", cluster().mount(1));
  Call cutter([&] { return ftruncate(b, kPage); });
  ASSERT_TRUE(point.held());
  Call reader([&] { return static_cast<long>(read_all(a).size()); });
  EXPECT_TRUE(reader.waits());
  point.release();
  EXPECT_EQ(cutter.end(), 0);
  EXPECT_EQ(reader.end(), static_cast<long>(kPage));
  EXPECT_EQ(read_all(b).size(), kPage);
  // The same by O_TRUNC, and grown again: nothing of before comes back.
  const int cut = open_file(1, O_RDWR | O_TRUNC);
  EXPECT_EQ(read_all(a), "");
  EXPECT_EQ(ftruncate(cut, 3), 0);
  EXPECT_EQ(read_all(a), std::string(3, 0));
  for (const int fd : {a, b, cut}) close(fd);
}

TEST_F(Race, AttributesThatWereAnsweredBeforeAChange) {
  make(1, "old");
  struct stat s {};
  ASSERT_EQ(stat(path(0).c_str(), &s), 0);
  ASSERT_EQ(chmod(path(1).c_str(), 0600), 0);  // The first node knows its name alone.
  Point point("attrs_answered", cluster().mount(0));
  Call looker([&] {
    struct stat early {};
    return stat(path(0).c_str(), &early) == 0 ? static_cast<long>(early.st_mode & 07777) : -1;
  });
  ASSERT_TRUE(point.held());
  Call changer([&] { return chmod(path(1).c_str(), 0640); });
  EXPECT_TRUE(changer.waits());
  point.release();
  EXPECT_EQ(looker.end(), 0600);
  EXPECT_EQ(changer.end(), 0);
  ASSERT_EQ(stat(path(0).c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 07777, 0640U);
}

/// What comes with a name is under no lock of the inode: nobody waits, and it must not be believed.
TEST_F(Race, AttributesThatCameWithANameBeforeAChange) {
  make(1, "old");
  const int b = open_file(1, O_RDWR);
  ASSERT_EQ(fsync(b), 0);
  Point point("name_answered", cluster().mount(0));
  Call looker([&] {
    struct stat early {};
    return stat(path(0).c_str(), &early);
  });
  ASSERT_TRUE(point.held());
  Call changer([&] { return fchmod(b, 0600) == 0 ? pwrite(b, "longer", 6, 0) : -1; });
  EXPECT_EQ(changer.end(), 6);
  point.release();
  EXPECT_EQ(looker.end(), 0);
  struct stat s {};
  ASSERT_EQ(stat(path(0).c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 07777, 0600U);
  EXPECT_EQ(s.st_size, 6);
  close(b);
}

TEST_F(Race, AGlimpseThatIsOlderThanWhatFollowsIt) {
  make(1, "old");
  const int b = open_file(1, O_RDWR);
  struct stat s {};
  ASSERT_EQ(stat(path(0).c_str(), &s), 0);
  ASSERT_EQ(pwrite(b, "1234", 4, 0), 4);
  Point point("looked", cluster().mount(0));
  Call looker([&] {
    struct stat early {};
    return stat(path(0).c_str(), &early) == 0 ? static_cast<long>(early.st_size) : -1;
  });
  ASSERT_TRUE(point.held());
  ASSERT_EQ(pwrite(b, "123456", 6, 0), 6);
  ASSERT_EQ(fchmod(b, 0600), 0);
  ASSERT_EQ(close(b), 0);
  point.release();
  EXPECT_EQ(looker.end(), 4);
  ASSERT_EQ(stat(path(0).c_str(), &s), 0);
  EXPECT_EQ(s.st_size, 6);
  EXPECT_EQ(s.st_mode & 07777, 0600U);
}

/// The fault on the buffer would wait for the gate that the write's own pin keeps from closing.
TEST_F(Race, AWriteWhoseBufferIsAMappingOfTheSameFile) {
  constexpr std::size_t kBytes = 64 * kPage;
  make(1, std::string(2 * kBytes, 'o'));
  const int a = open_file(0, O_RDWR), b = open_file(1, O_RDWR);
  const Mapping map(a, 2 * kBytes);
  Point point("write_pinned", cluster().mount(0));
  Call writer([&] { return pwrite(a, map.data() + kBytes, kBytes, 0); });
  ASSERT_TRUE(point.held());
  Call other([&] { return pwrite(b, "new", 3, 0); });
  EXPECT_TRUE(other.waits());
  point.release();
  long done = writer.end();
  EXPECT_GT(done, 0);
  EXPECT_EQ(other.end(), 3);
  EXPECT_EQ(read_all(a), read_all(b));
  EXPECT_EQ(read_all(b).size(), 2 * kBytes);
  close(a);
  close(b);
}

TEST_F(Race, AnEndOfFileThatMovesBeforeTheAppend) {
  make(0, "0");
  const int a = open_file(0, O_RDWR | O_APPEND), b = open_file(1, O_RDWR | O_APPEND);
  Point point("write_entered", cluster().mount(0));
  Call first([&] { return write(a, "a", 1); });
  ASSERT_TRUE(point.held());
  EXPECT_EQ(write(b, "b", 1), 1);
  EXPECT_EQ(lseek(b, 0, SEEK_END), 2);
  point.release();
  EXPECT_EQ(first.end(), 1);
  EXPECT_EQ(lseek(b, 0, SEEK_END), 3);
  EXPECT_EQ(lseek(a, 0, SEEK_END), 3);
  EXPECT_EQ(read_all(b), "0ba");
  close(a);
  close(b);
}

/// The node is refused, and in its next session, while write-back of a page of the former one is still on its way.
TEST_F(Race, AWriteBackAfterItsLockWasLost) {
  make(0, "old");
  const int a = open_file(0, O_RDWR);
  ASSERT_EQ(fsync(a), 0);
  ASSERT_EQ(pwrite(a, "stale", 5, 0), 5);
  Point point("writeback", cluster().mount(0));
  Call syncer([&] { return fsync(a); });
  ASSERT_TRUE(point.held());
  const auto former = session_of(cluster(), "mount-0");
  ASSERT_NE(former, 0U);
  ASSERT_NO_FATAL_FAILURE(fence_everywhere(cluster(), former));
  (void)mkdir((cluster().mount(0) + "/refused").c_str(), 0755);
  ASSERT_TRUE(soon([&] {
    const auto session = session_field(cluster().mount(0), "session");
    return session != "0x0" && session != "0" && std::stoull(session, nullptr, 16) != former;
  }));
  const int b = open_file(1, O_RDWR);
  EXPECT_EQ(pwrite(b, "fresh", 5, 0), 5);
  EXPECT_EQ(fsync(b), 0);
  ASSERT_TRUE(point.held()) << "the others waited for the write-back";
  point.release();
  EXPECT_EQ(syncer.end(), -EIO);
  EXPECT_EQ(fsync(a), 0) << "told once";
  EXPECT_EQ(read_all(a), "fresh");
  EXPECT_EQ(fsync(a), 0);
  // What the servers have, not what a node remembers.
  const int c = open_file(2, O_RDONLY);
  EXPECT_EQ(pwrite(a, "F", 1, 0), 1);
  EXPECT_EQ(read_all(c), "Fresh");
  for (const int fd : {a, b, c}) close(fd);
}

}  // namespace
}  // namespace distfuse::tests
