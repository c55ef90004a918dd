// SPDX-License-Identifier: Apache-2.0
// Random operations, each through a mount drawn at random, one after the other, against a model: after each of them every
// mount must give the answer that one local filesystem would give. Data, sizes, truncation, holes, mapped memory, names, negative
// lookups, attributes, extended attributes, links, renames, files that are open and have no name.
//
// With several guests (DISTFUSE_TEST_NODES) the mounts are spread over them.
// DISTFUSE_SEED replays a run; DISTFUSE_OPERATIONS sets its length.
#include <gtest/gtest.h>
#include <linux/falloc.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "tests/cluster.h"
#include "tests/far/calls.h"
#include "tests/namespace_model.h"

namespace distfuse::tests {
namespace {

using far::chmod;
using far::close;
using far::fallocate;
using far::fstat;
using far::ftruncate;
using far::getxattr;
using far::link;
using far::lseek;
using far::lstat;
using far::mkdir;
using far::open;
using far::pread;
using far::pwrite;
using far::removexattr;
using far::renameat2;
using far::rmdir;
using far::setxattr;
using far::symlink;
using far::truncate;
using far::unlink;
using far::write;

constexpr std::size_t kMaxFile = 9U << 20;  // more than two chunks
constexpr std::size_t kMaxOpen = 8;
constexpr std::size_t kMaxIo = 300000;

struct OpenFile {
  int fd = -1;
  std::size_t mount = 0;
  bool writable = false;
  bool append = false;
  ModelFile inode;
  far::Mapping map;  ///< kMaxFile bytes.
};

class RandomRun {
 public:
  RandomRun(const Cluster& cluster, std::uint64_t seed) : cluster_(cluster), random_(seed) {}
  ~RandomRun() {
    while (!open_.empty()) close_one(0);
  }
  RandomRun(const RandomRun&) = delete;
  RandomRun& operator=(const RandomRun&) = delete;

  void step();
  void compare_everything();

 private:
  std::size_t below(std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_);
  }
  std::size_t any_mount() { return below(cluster_.mounts().size()); }
  std::string on(std::size_t mount, const std::string& path) const {
    return cluster_.mount(mount) + (path.empty() ? "" : "/" + path);
  }
  std::string any_path() {
    static const char* const kFolders[] = {"", "", "d0/", "d1/", "d0/d1/", "d2/"};
    static const char* const kNames[] = {"a", "b", "c", "d0", "d1", "d2", "e"};
    return std::string(kFolders[below(std::size(kFolders))]) + kNames[below(std::size(kNames))];
  }
  std::vector<char> any_bytes(std::size_t length) {
    std::vector<char> bytes(length);
    const auto start = static_cast<unsigned>(random_());
    for (std::size_t i = 0; i < length; ++i)
      bytes[i] = static_cast<char>(1 + (start + i * 7) % 255);
    return bytes;
  }
  void expect(const std::string& what, long result, int expected) {
    const int got = result >= 0 ? 0 : errno;
    ASSERT_EQ(got, expected) << what << ": " << std::strerror(got) << ", must be "
                             << std::strerror(expected);
  }
  OpenFile* any_open() { return open_.empty() ? nullptr : &open_[below(open_.size())]; }
  OpenFile* any_open_file(bool writable) {
    OpenFile* file = any_open();
    return file != nullptr && (!writable || file->writable) ? file : nullptr;
  }
  void close_one(std::size_t i) {
    EXPECT_EQ(open_[i].map.unmap(), 0) << std::strerror(errno);
    EXPECT_EQ(close(open_[i].fd), 0) << std::strerror(errno);
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  static void put(ModelInode& inode, std::size_t offset, const std::vector<char>& bytes) {
    if (bytes.empty()) return;
    if (inode.data.size() < offset + bytes.size()) inode.data.resize(offset + bytes.size());
    std::copy(bytes.begin(), bytes.end(), inode.data.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  std::size_t any_offset(const ModelInode& inode) {
    return below(3) != 0 ? below(inode.data.size() + 1) : below(kMaxFile - kMaxIo);
  }
  std::size_t any_length() { return below(4) != 0 ? below(9000) : below(kMaxIo); }

  void do_open();
  void do_write();
  void do_append();
  void do_read();
  void do_truncate();
  void do_space();
  void do_map();
  void do_seek();
  void do_name();
  void do_rename();
  void do_attributes();
  void do_xattr();
  void do_list();
  void check_stat(std::size_t mount, const std::string& path);

  const Cluster& cluster_;
  std::mt19937_64 random_;
  NamespaceModel model_;
  std::vector<OpenFile> open_;
};

void RandomRun::do_open() {
  if (open_.size() == kMaxOpen) close_one(below(open_.size()));
  OpenFile file;
  file.mount = any_mount();
  const std::string path = any_path();
  const ModelFile existing = model_.find(path);
  if (existing != nullptr && S_ISLNK(existing->mode)) return;
  const bool create = below(2) == 0;
  const bool exclusive = create && below(3) == 0;
  file.writable = create || below(2) == 0;
  file.append = file.writable && below(5) == 0;
  int expected = 0;
  if (create) {
    expected = model_.create(path, 0644, exclusive, file.inode);
  } else {
    expected = model_.walk(path);
    file.inode = model_.find(path);
    if (expected == 0 && file.inode == nullptr) expected = ENOENT;
    if (expected == 0 && file.inode->is_directory() && file.writable) expected = EISDIR;
  }
  const bool truncate = file.writable && below(8) == 0;
  file.fd =
      open(on(file.mount, path).c_str(),
           (file.writable ? O_RDWR : O_RDONLY) | (create ? O_CREAT : 0) | (exclusive ? O_EXCL : 0) |
               (file.append ? O_APPEND : 0) | (truncate ? O_TRUNC : 0),
           0644);
  expect("open " + path, file.fd, expected);
  if (expected == 0 && truncate) file.inode->data.clear();
  if (expected == 0 && file.inode->is_directory()) {
    close(file.fd);
  } else if (expected == 0) {
    open_.push_back(std::move(file));
  }
}

void RandomRun::do_write() {
  OpenFile* file = any_open_file(true);
  if (file == nullptr || file->append) return;
  const auto bytes = any_bytes(any_length());
  const std::size_t offset = any_offset(*file->inode);
  ASSERT_EQ(pwrite(file->fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)),
            static_cast<ssize_t>(bytes.size()))
      << std::strerror(errno);
  put(*file->inode, offset, bytes);
}

void RandomRun::do_append() {
  OpenFile* file = any_open_file(true);
  if (file == nullptr || !file->append) return;
  const auto bytes = any_bytes(below(20000));
  if (file->inode->data.size() + bytes.size() > kMaxFile) return;
  ASSERT_EQ(write(file->fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()))
      << std::strerror(errno);
  put(*file->inode, file->inode->data.size(), bytes);
}

void RandomRun::do_read() {
  OpenFile* file = any_open_file(false);
  if (file == nullptr) return;
  const std::size_t offset = any_offset(*file->inode);
  std::vector<char> got(any_length() + 1);
  const std::size_t size = file->inode->data.size();
  const std::size_t length = offset >= size ? 0 : std::min(got.size(), size - offset);
  const ssize_t n = pread(file->fd, got.data(), got.size(), static_cast<off_t>(offset));
  ASSERT_EQ(n, static_cast<ssize_t>(length))
      << std::strerror(errno) << " at " << offset << " of " << size;
  for (std::size_t i = 0; i < length; ++i) {
    ASSERT_EQ(got[i], file->inode->data[offset + i])
        << "byte " << offset + i << " of " << size << " on mount " << file->mount;
  }
}

void RandomRun::do_truncate() {
  const std::size_t size = below(2) == 0 ? below(kMaxFile) : below(10000);
  if (OpenFile* file = any_open_file(true); file != nullptr && below(2) == 0) {
    ASSERT_EQ(ftruncate(file->fd, static_cast<off_t>(size)), 0) << std::strerror(errno);
    file->inode->data.resize(size);
    return;
  }
  const std::string path = any_path();
  const ModelFile inode = model_.find(path);
  if (inode == nullptr || !inode->is_file()) return;
  ASSERT_EQ(truncate(on(any_mount(), path).c_str(), static_cast<off_t>(size)), 0)
      << std::strerror(errno);
  inode->data.resize(size);
}

void RandomRun::do_space() {
  OpenFile* file = any_open_file(true);
  if (file == nullptr) return;
  auto& data = file->inode->data;
  const std::size_t offset = any_offset(*file->inode);
  const std::size_t length = 1 + any_length();
  switch (below(3)) {
    case 0:
      ASSERT_EQ(fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          static_cast<off_t>(offset), static_cast<off_t>(length)),
                0)
          << std::strerror(errno);
      for (std::size_t i = offset; i < std::min(offset + length, data.size()); ++i) data[i] = 0;
      break;
    case 1:
      ASSERT_EQ(fallocate(file->fd, 0, static_cast<off_t>(offset), static_cast<off_t>(length)), 0)
          << std::strerror(errno);
      data.resize(std::max(data.size(), offset + length));
      break;
    default:
      ASSERT_EQ(fallocate(file->fd, FALLOC_FL_ZERO_RANGE, static_cast<off_t>(offset),
                          static_cast<off_t>(length)),
                0)
          << std::strerror(errno);
      data.resize(std::max(data.size(), offset + length));
      std::fill_n(data.begin() + static_cast<std::ptrdiff_t>(offset), length, 0);
  }
}

/// Loads and stores through a shared mapping that stays mapped while others change the file.
void RandomRun::do_map() {
  OpenFile* file = any_open_file(true);
  if (file == nullptr || file->append)
    return;  // appending descriptors cannot be mapped shared in mode user
  auto& data = file->inode->data;
  struct stat now {};
  ASSERT_EQ(fstat(file->fd, &now), 0);
  ASSERT_EQ(static_cast<std::size_t>(now.st_size), data.size());
  if (data.empty()) return;
  if (!file->map.mapped()) {
    ASSERT_TRUE(file->map.map(file->fd, kMaxFile)) << std::strerror(errno);
  }
  for (int i = 0; i < 4; ++i) {
    const std::size_t at = below(data.size());
    const std::size_t length = std::min<std::size_t>(1 + below(6000), data.size() - at);
    if (below(2) == 0) {
      std::vector<char> got(length);
      ASSERT_TRUE(file->map.load(at, got.data(), length)) << std::strerror(errno);
      ASSERT_EQ(std::memcmp(got.data(), data.data() + at, length), 0)
          << "mapped bytes from " << at << " on mount " << file->mount;
    } else {
      const auto bytes = any_bytes(length);
      ASSERT_TRUE(file->map.store(at, bytes.data(), length)) << std::strerror(errno);
      put(*file->inode, at, bytes);
    }
  }
}

void RandomRun::do_seek() {
  OpenFile* file = any_open_file(false);
  if (file == nullptr) return;
  ASSERT_EQ(lseek(file->fd, 0, SEEK_END), static_cast<off_t>(file->inode->data.size()));
  const std::size_t size = file->inode->data.size();
  if (size == 0) return;
  const off_t from = static_cast<off_t>(below(size));
  const off_t data = lseek(file->fd, from, SEEK_DATA);
  // A filesystem may call a hole data, never data a hole: all between `from` and the first data must be zeros.
  const std::size_t until = data < 0 ? size : static_cast<std::size_t>(data);
  if (data < 0) {
    ASSERT_EQ(errno, ENXIO);
  }
  for (std::size_t i = static_cast<std::size_t>(from); i < until; ++i)
    ASSERT_EQ(file->inode->data[i], 0) << "data at " << i << " in a hole";
  const off_t hole = lseek(file->fd, from, SEEK_HOLE);
  ASSERT_GE(hole, from) << std::strerror(errno);
  ASSERT_LE(hole, static_cast<off_t>(size));
}

void RandomRun::do_name() {
  const std::size_t mount = any_mount();
  const std::string path = any_path();
  const std::string full = on(mount, path);
  switch (below(5)) {
    case 0:
      expect("mkdir " + path, mkdir(full.c_str(), 0755), model_.mkdir(path, 0755));
      break;
    case 1:
      expect("rmdir " + path, rmdir(full.c_str()), model_.rmdir(path));
      break;
    case 2:
      expect("unlink " + path, unlink(full.c_str()), model_.unlink(path));
      break;
    case 3:
      expect("symlink " + path, symlink("somewhere/else", full.c_str()),
             model_.symlink("somewhere/else", path));
      break;
    default: {
      const std::string to = any_path();
      expect("link " + path + " " + to, link(full.c_str(), on(mount, to).c_str()),
             model_.link(path, to));
    }
  }
}

bool is_folder(const std::string& path) {
  struct stat what {};
  return lstat(path.c_str(), &what) == 0 && S_ISDIR(what.st_mode);
}

void RandomRun::do_rename() {
  const std::size_t mount = any_mount();
  const std::string from = any_path();
  const std::string to = any_path();
  const bool noreplace = below(4) == 0;
  const std::string old_path = on(mount, from);
  const std::string new_path = on(mount, to);
  const auto rename_it = [&] {
    return renameat2(AT_FDCWD, old_path.c_str(), AT_FDCWD, new_path.c_str(),
                     noreplace ? RENAME_NOREPLACE : 0);
  };
  int result = rename_it();
  // Linux cannot give a directory its new place in the tree from within a rename (docs/decisions.md); any other lookup can.
  if (result != 0 && errno == ESTALE && (is_folder(old_path) || is_folder(new_path)))
    result = rename_it();
  expect("rename " + from + " " + to, result, model_.rename(from, to, noreplace));
}

void RandomRun::do_attributes() {
  const std::string path = any_path();
  const ModelFile inode = model_.find(path);
  if (inode != nullptr && !S_ISLNK(inode->mode) && below(2) == 0) {
    const mode_t mode = 0600 | static_cast<mode_t>(below(0200));
    ASSERT_EQ(chmod(on(any_mount(), path).c_str(), mode), 0) << std::strerror(errno);
    inode->mode = (inode->mode & S_IFMT) | mode;
  }
  check_stat(any_mount(), path);
}

void RandomRun::check_stat(std::size_t mount, const std::string& path) {
  const ModelFile inode = model_.find(path);
  struct stat here {
  }, there{};
  const int error = model_.walk(path) != 0 ? model_.walk(path) : inode == nullptr ? ENOENT : 0;
  expect("lstat " + path, lstat(on(mount, path).c_str(), &here), error);
  if (error != 0) return;
  ASSERT_EQ(here.st_mode, inode->mode) << path;
  ASSERT_EQ(here.st_nlink, inode->nlink) << path;
  if (inode->is_file()) {
    ASSERT_EQ(static_cast<std::size_t>(here.st_size), inode->data.size())
        << path << " on mount " << mount;
  }
  const std::size_t other = (mount + 1) % cluster_.mounts().size();
  ASSERT_EQ(lstat(on(other, path).c_str(), &there), 0) << path;
  ASSERT_EQ(here.st_ino, there.st_ino) << path;
  ASSERT_EQ(here.st_size, there.st_size) << path;
  ASSERT_EQ(here.st_mtim.tv_sec, there.st_mtim.tv_sec) << path;
  ASSERT_EQ(here.st_mtim.tv_nsec, there.st_mtim.tv_nsec) << path;
  ASSERT_EQ(here.st_ctim.tv_sec, there.st_ctim.tv_sec) << path;
  ASSERT_EQ(here.st_ctim.tv_nsec, there.st_ctim.tv_nsec) << path;
}

void RandomRun::do_xattr() {
  const std::string path = any_path();
  const ModelFile inode = model_.find(path);
  if (inode == nullptr || S_ISLNK(inode->mode)) return;
  const std::string name = "user.x" + std::to_string(below(3));
  const std::string value = "v" + std::to_string(random_());
  const std::string full = on(any_mount(), path);
  if (below(3) == 0) {
    expect("removexattr " + path, removexattr(full.c_str(), name.c_str()),
           inode->xattrs.erase(name) == 1 ? 0 : ENODATA);
  } else {
    ASSERT_EQ(setxattr(full.c_str(), name.c_str(), value.data(), value.size(), 0), 0)
        << std::strerror(errno);
    inode->xattrs[name] = value;
  }
  char buffer[64];
  const ssize_t n = getxattr(on(any_mount(), path).c_str(), name.c_str(), buffer, sizeof(buffer));
  const auto expected = inode->xattrs.find(name);
  if (expected == inode->xattrs.end()) {
    ASSERT_EQ(n, -1);
    ASSERT_EQ(errno, ENODATA);
  } else {
    ASSERT_EQ(std::string(buffer, n < 0 ? 0 : static_cast<std::size_t>(n)), expected->second);
  }
}

void RandomRun::do_list() {
  static const char* const kFolders[] = {"", "d0", "d1", "d2", "d0/d1"};
  const std::string path = kFolders[below(std::size(kFolders))];
  const ModelFile inode = model_.find(path);
  const std::size_t mount = any_mount();
  const auto names = far::list(on(mount, path));
  if (inode == nullptr || !inode->is_directory()) {
    ASSERT_FALSE(names) << path << " on mount " << mount;
    return;
  }
  ASSERT_TRUE(names) << path << " on mount " << mount << ": " << std::strerror(errno);
  std::set<std::string> got, expected;
  for (const std::string& name : *names) EXPECT_TRUE(got.insert(name).second) << name << " twice";
  for (const auto& [name, child] : inode->entries) expected.insert(name);
  ASSERT_EQ(got, expected) << "/" << path << " on mount " << mount;
}

void RandomRun::step() {
  using Do = void (RandomRun::*)();
  static constexpr Do kOperations[] = {
      &RandomRun::do_open,       &RandomRun::do_open,     &RandomRun::do_write,
      &RandomRun::do_write,      &RandomRun::do_write,    &RandomRun::do_append,
      &RandomRun::do_append,     &RandomRun::do_read,     &RandomRun::do_read,
      &RandomRun::do_read,       &RandomRun::do_map,      &RandomRun::do_map,
      &RandomRun::do_seek,       &RandomRun::do_truncate, &RandomRun::do_space,
      &RandomRun::do_name,       &RandomRun::do_rename,   &RandomRun::do_attributes,
      &RandomRun::do_attributes, &RandomRun::do_xattr,    &RandomRun::do_list};
  (this->*kOperations[below(std::size(kOperations))])();
}

void RandomRun::compare_everything() {
  for (std::size_t mount = 0; mount < cluster_.mounts().size(); ++mount) {
    for (OpenFile& file : open_) {
      struct stat now {};
      ASSERT_EQ(fstat(file.fd, &now), 0) << std::strerror(errno);
      ASSERT_EQ(static_cast<std::size_t>(now.st_size), file.inode->data.size());
      ASSERT_EQ(now.st_nlink, file.inode->nlink);
    }
    for (const char* folder : {"", "d0/", "d1/", "d2/", "d0/d1/"}) {
      for (const char* name : {"a", "b", "c", "d0", "d1", "d2", "e"}) {
        check_stat(mount, std::string(folder) + name);
      }
    }
  }
}

TEST(CoherenceRandom, EveryMountGivesTheModelsAnswer) {
  const std::uint64_t seed = test_seed("coherence");
  const char* wanted = std::getenv("DISTFUSE_OPERATIONS");
  const std::size_t operations = wanted != nullptr ? std::strtoull(wanted, nullptr, 0) : 6000;
  Cluster cluster({.mounts = 2 + static_cast<unsigned>(seed % 2),
                   .storageds = 1 + static_cast<unsigned>(seed / 2 % 3)});
  ASSERT_TRUE(cluster.ok());
  umask(0);
  RandomRun run(cluster, seed);
  for (std::size_t i = 0; i < operations; ++i) {
    SCOPED_TRACE("operation " + std::to_string(i));
    run.step();
    if (i % 1000 == 999) run.compare_everything();
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace distfuse::tests
