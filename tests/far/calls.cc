// SPDX-License-Identifier: Apache-2.0
#include "tests/far/calls.h"

#include <dirent.h>
#include <sys/mman.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "tests/far/hand.h"

namespace distfuse::tests::far {
namespace {

std::int64_t finish(const Answer& answer) {
  if (answer.result < 0) errno = answer.error;
  return answer.result;
}

Answer on_path(const Place& place, Kind kind, std::int64_t a = 0, std::int64_t b = 0) {
  return call_on(place.node, {kind, {a, b}, place.path, {}, {}});
}

Answer of_descriptor(int fd, Kind kind, std::int64_t a = 0, std::int64_t b = 0,
                     std::int64_t c = 0) {
  return call_of(fd, {kind, {0, a, b, c}, {}, {}, {}});
}

/// Bytes that a call answered, as far as they fit.
ssize_t finish_read(const Answer& answer, void* to, std::size_t room) {
  std::memcpy(to, answer.data.data(), std::min(room, answer.data.size()));
  return finish(answer);
}

int finish_stat(const Answer& answer, struct ::stat* out) {
  if (answer.result == 0 && answer.data.size() == sizeof(*out))
    std::memcpy(out, answer.data.data(), sizeof(*out));
  return static_cast<int>(finish(answer));
}

/// A call on two paths: where both are, if both are far; -1 and EXDEV if they are apart.
template <typename Local>
int on_two(const char* from, const char* to, Kind kind, unsigned flags, Local&& local) {
  const auto first = far_place(from);
  const auto second = far_place(to);
  if (!first && !second) return local();
  if (!first || !second || first->node != second->node) {
    errno = EXDEV;
    return -1;
  }
  return static_cast<int>(
      finish(call_on(first->node, {kind, {flags}, first->path, second->path, {}})));
}

std::string bytes(const void* from, std::size_t length) {
  return {static_cast<const char*>(from), length};
}

}  // namespace

int open(const char* path, int flags, mode_t mode) {
  const auto place = far_place(path);
  if (!place) return ::open(path, flags, mode);
  return static_cast<int>(finish(on_path(*place, Kind::open, flags, mode)));
}

int close(int fd) {
  return is_far(fd) ? static_cast<int>(finish(of_descriptor(fd, Kind::close))) : ::close(fd);
}

ssize_t read(int fd, void* to, std::size_t length) {
  if (!is_far(fd)) return ::read(fd, to, length);
  return finish_read(of_descriptor(fd, Kind::read, static_cast<std::int64_t>(length)), to, length);
}

ssize_t write(int fd, const void* from, std::size_t length) {
  if (!is_far(fd)) return ::write(fd, from, length);
  return finish(call_of(fd, {Kind::write, {}, {}, {}, bytes(from, length)}));
}

ssize_t pread(int fd, void* to, std::size_t length, off_t offset) {
  if (!is_far(fd)) return ::pread(fd, to, length, offset);
  return finish_read(of_descriptor(fd, Kind::pread, static_cast<std::int64_t>(length), offset), to,
                     length);
}

ssize_t pwrite(int fd, const void* from, std::size_t length, off_t offset) {
  if (!is_far(fd)) return ::pwrite(fd, from, length, offset);
  return finish(call_of(fd, {Kind::pwrite, {0, offset}, {}, {}, bytes(from, length)}));
}

off_t lseek(int fd, off_t offset, int whence) {
  if (!is_far(fd)) return ::lseek(fd, offset, whence);
  return finish(of_descriptor(fd, Kind::lseek, offset, whence));
}

int ftruncate(int fd, off_t size) {
  if (!is_far(fd)) return ::ftruncate(fd, size);
  return static_cast<int>(finish(of_descriptor(fd, Kind::ftruncate, size)));
}

int truncate(const char* path, off_t size) {
  const auto place = far_place(path);
  if (!place) return ::truncate(path, size);
  return static_cast<int>(finish(on_path(*place, Kind::truncate, size)));
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
  if (!is_far(fd)) return ::fallocate(fd, mode, offset, length);
  return static_cast<int>(finish(of_descriptor(fd, Kind::fallocate, mode, offset, length)));
}

ssize_t copy_file_range(int from, off_t* from_offset, int to, off_t* to_offset, std::size_t length,
                        unsigned flags) {
  if (!is_far(from) && !is_far(to))
    return ::copy_file_range(from, from_offset, to, to_offset, length, flags);
  const int target = remote_number(to, from);
  if (target < 0 || flags != 0) {
    errno = target < 0 ? EXDEV : EINVAL;
    return -1;
  }
  const off_t offsets[] = {*from_offset, *to_offset};
  const auto n = finish(call_of(from, {Kind::copy,
                                       {0, target, static_cast<std::int64_t>(length)},
                                       {},
                                       {},
                                       bytes(offsets, sizeof(offsets))}));
  if (n > 0) {
    *from_offset += n;
    *to_offset += n;
  }
  return n;
}

int fsync(int fd) {
  return is_far(fd) ? static_cast<int>(finish(of_descriptor(fd, Kind::fsync))) : ::fsync(fd);
}

int stat_descriptor(int fd, struct ::stat* out) {
  return is_far(fd) ? finish_stat(of_descriptor(fd, Kind::stat_descriptor), out) : ::fstat(fd, out);
}

int stat_file(const char* path, struct ::stat* out) {
  const auto place = far_place(path);
  return place ? finish_stat(on_path(*place, Kind::stat_file), out) : ::stat(path, out);
}

int stat_link(const char* path, struct ::stat* out) {
  const auto place = far_place(path);
  return place ? finish_stat(on_path(*place, Kind::stat_link), out) : ::lstat(path, out);
}

int mkdir(const char* path, mode_t mode) {
  const auto place = far_place(path);
  return place ? static_cast<int>(finish(on_path(*place, Kind::mkdir, mode))) : ::mkdir(path, mode);
}

int rmdir(const char* path) {
  const auto place = far_place(path);
  return place ? static_cast<int>(finish(on_path(*place, Kind::rmdir))) : ::rmdir(path);
}

int unlink(const char* path) {
  const auto place = far_place(path);
  return place ? static_cast<int>(finish(on_path(*place, Kind::unlink))) : ::unlink(path);
}

int symlink(const char* target, const char* path) {
  const auto place = far_place(path);
  if (!place) return ::symlink(target, path);
  return static_cast<int>(
      finish(call_on(place->node, {Kind::symlink, {}, target, place->path, {}})));
}

int link(const char* from, const char* to) {
  return on_two(from, to, Kind::link, 0, [&] { return ::link(from, to); });
}

int rename(const char* from, const char* to) {
  return on_two(from, to, Kind::rename, 0, [&] { return ::rename(from, to); });
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) {
  return on_two(from, to, Kind::rename, flags,
                [&] { return ::renameat2(from_folder, from, to_folder, to, flags); });
}

int chmod(const char* path, mode_t mode) {
  const auto place = far_place(path);
  return place ? static_cast<int>(finish(on_path(*place, Kind::chmod, mode))) : ::chmod(path, mode);
}

ssize_t getxattr(const char* path, const char* name, void* to, std::size_t room) {
  const auto place = far_place(path);
  if (!place) return ::getxattr(path, name, to, room);
  return finish_read(
      call_on(place->node,
              {Kind::getxattr, {static_cast<std::int64_t>(room)}, place->path, name, {}}),
      to, room);
}

int setxattr(const char* path, const char* name, const void* value, std::size_t length, int flags) {
  const auto place = far_place(path);
  if (!place) return ::setxattr(path, name, value, length, flags);
  return static_cast<int>(finish(
      call_on(place->node, {Kind::setxattr, {flags}, place->path, name, bytes(value, length)})));
}

int removexattr(const char* path, const char* name) {
  const auto place = far_place(path);
  if (!place) return ::removexattr(path, name);
  return static_cast<int>(
      finish(call_on(place->node, {Kind::removexattr, {}, place->path, name, {}})));
}

int fcntl(int fd, int command, struct ::flock* range) {
  if (!is_far(fd)) return ::fcntl(fd, command, range);
  const auto answer =
      call_of(fd, {Kind::fcntl, {0, command}, {}, {}, bytes(range, sizeof(*range))});
  if (answer.data.size() == sizeof(*range)) std::memcpy(range, answer.data.data(), sizeof(*range));
  return static_cast<int>(finish(answer));
}

int flock(int fd, int operation) {
  if (!is_far(fd)) return ::flock(fd, operation);
  return static_cast<int>(finish(of_descriptor(fd, Kind::flock, operation)));
}

namespace {

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> all;
  for (std::size_t at = 0; at < names.size(); at += all.back().size() + 1)
    all.emplace_back(names.c_str() + at);
  return all;
}

}  // namespace

std::optional<std::vector<std::string>> list(const std::string& path) {
  if (const auto place = far_place(path.c_str())) {
    const auto answer = on_path(*place, Kind::list);
    if (finish(answer) < 0) return {};
    return split(answer.data);
  }
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr) return {};
  std::vector<std::string> names;
  while (const dirent* entry = readdir(directory)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  closedir(directory);
  return names;
}

std::optional<std::string> read_file(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  std::string text;
  std::string piece(1 << 20, '\0');
  ssize_t n = 0;
  while ((n = read(fd, piece.data(), piece.size())) > 0)
    text.append(piece, 0, static_cast<std::size_t>(n));
  const int error = errno;
  close(fd);
  errno = error;
  if (n < 0) return {};
  return text;
}

bool write_file(const std::string& path, const std::string& text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return false;
  const bool written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  return close(fd) == 0 && written;
}

Mapping::Mapping(Mapping&& other) noexcept {
  *this = std::move(other);
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this == &other) return *this;
  unmap();
  memory_ = std::exchange(other.memory_, nullptr);
  length_ = std::exchange(other.length_, 0);
  number_ = std::exchange(other.number_, -1);
  return *this;
}

Mapping::~Mapping() {
  unmap();
}

bool Mapping::map(int fd, std::size_t length) {
  unmap();
  if (is_far(fd)) {
    number_ =
        static_cast<int>(finish(of_descriptor(fd, Kind::map, static_cast<std::int64_t>(length))));
    return number_ >= 0;
  }
  void* memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return false;
  memory_ = memory;
  length_ = length;
  return true;
}

bool Mapping::load(std::size_t offset, void* to, std::size_t length) const {
  if (number_ < 0) {
    std::memcpy(to, static_cast<const char*>(memory_) + offset, length);
    return true;
  }
  const auto answer = of_descriptor(number_, Kind::load, static_cast<std::int64_t>(offset),
                                    static_cast<std::int64_t>(length));
  return finish_read(answer, to, length) == static_cast<ssize_t>(length);
}

bool Mapping::store(std::size_t offset, const void* from, std::size_t length) {
  if (number_ < 0) {
    std::memcpy(static_cast<char*>(memory_) + offset, from, length);
    return true;
  }
  return finish(call_of(
             number_,
             {Kind::store, {0, static_cast<std::int64_t>(offset)}, {}, {}, bytes(from, length)})) >=
         0;
}

std::optional<std::int64_t> Mapping::load_word(std::size_t offset) const {
  if (number_ < 0)
    return reinterpret_cast<std::atomic<std::int64_t>*>(static_cast<char*>(memory_) + offset)
        ->load();
  const auto answer = of_descriptor(number_, Kind::load_word, static_cast<std::int64_t>(offset));
  if (answer.error != 0) {
    errno = answer.error;
    return {};
  }
  return answer.result;
}

bool Mapping::store_word(std::size_t offset, std::int64_t value) {
  if (number_ >= 0)
    return finish(of_descriptor(number_, Kind::store_word, static_cast<std::int64_t>(offset),
                                value)) >= 0;
  reinterpret_cast<std::atomic<std::int64_t>*>(static_cast<char*>(memory_) + offset)->store(value);
  return true;
}

int Mapping::unmap() {
  int result = 0;
  if (number_ >= 0) result = static_cast<int>(finish(of_descriptor(number_, Kind::unmap)));
  if (memory_ != nullptr) result = munmap(memory_, length_);
  memory_ = nullptr;
  number_ = -1;
  return result;
}

}  // namespace distfuse::tests::far
