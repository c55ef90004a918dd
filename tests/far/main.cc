// SPDX-License-Identifier: Apache-2.0
// far_hand: makes the calls that its standard input names (tests/far/wire.h), one after the other, and answers on standard output, until
// the input ends. What is open then is closed, as at the end of the process whose hand it is.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <vector>

#include "tests/far/wire.h"

namespace distfuse::tests::far {
namespace {

struct Mapped {
  char* memory = nullptr;  ///< None: unmapped.
  std::size_t length = 0;
};

class Hand {
 public:
  [[nodiscard]] bool open();
  [[nodiscard]] Answer perform(const Call& call);

 private:
  [[nodiscard]] Answer of_path(const Call& call);
  [[nodiscard]] Answer of_attribute(const Call& call);
  [[nodiscard]] Answer of_descriptor(const Call& call);
  [[nodiscard]] Answer moving_data(const Call& call);
  [[nodiscard]] Answer of_mapping(const Call& call);
  [[nodiscard]] Answer read_into_answer(const Call& call);
  [[nodiscard]] static Answer list(const Call& call);
  [[nodiscard]] static Answer lock(const Call& call);
  [[nodiscard]] static Answer copy(const Call& call);
  [[nodiscard]] Answer map(const Call& call);

  char* data_ = nullptr;  ///< kMaxData bytes, aligned for O_DIRECT.
  std::size_t length_ = 0;
  std::vector<Mapped> mapped_;
};

Answer done(std::int64_t result) {
  return {result, result < 0 ? errno : 0, {}};
}
Answer refused(int error) {
  return {-1, error, {}};
}

Answer stat_answer(int result, const struct ::stat& what) {
  auto answer = done(result);
  if (result == 0) answer.data.assign(reinterpret_cast<const char*>(&what), sizeof(what));
  return answer;
}

int number(const Call& call, std::size_t i) {
  return static_cast<int>(call.numbers[i]);
}

bool Hand::open() {
  void* memory = mmap(nullptr, kMaxData, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  data_ = static_cast<char*>(memory);
  return true;
}

Answer Hand::perform(const Call& call) {
  if (length_ + call.data.size() > kMaxData) return refused(EINVAL);
  std::memcpy(data_ + length_, call.data.data(), call.data.size());
  length_ += call.data.size();
  if (call.kind == Kind::data) return {0, 0, {}};
  auto answer = call.kind >= Kind::load       ? of_mapping(call)
                : call.kind >= Kind::close    ? of_descriptor(call)
                : call.kind >= Kind::getxattr ? of_attribute(call)
                                              : of_path(call);
  length_ = 0;
  return answer;
}

Answer Hand::of_path(const Call& call) {
  const char* path = call.first.c_str();
  const char* second = call.second.c_str();
  const auto mode = static_cast<mode_t>(call.numbers[0]);
  struct ::stat what {};
  switch (call.kind) {
    case Kind::open:
      return done(::open(path, number(call, 0) | O_CLOEXEC, static_cast<mode_t>(call.numbers[1])));
    case Kind::truncate:
      return done(::truncate(path, call.numbers[0]));
    case Kind::stat_file: {
      const int result = ::stat(path, &what);
      return stat_answer(result, what);
    }
    case Kind::stat_link: {
      const int result = ::lstat(path, &what);
      return stat_answer(result, what);
    }
    case Kind::mkdir:
      return done(::mkdir(path, mode));
    case Kind::rmdir:
      return done(::rmdir(path));
    case Kind::unlink:
      return done(::unlink(path));
    case Kind::symlink:
      return done(::symlink(path, second));
    case Kind::link:
      return done(::link(path, second));
    case Kind::rename:
      return done(::renameat2(AT_FDCWD, path, AT_FDCWD, second, mode));
    case Kind::chmod:
      return done(::chmod(path, mode));
    default:
      return refused(ENOSYS);
  }
}

Answer Hand::of_attribute(const Call& call) {
  const char* path = call.first.c_str();
  const char* name = call.second.c_str();
  switch (call.kind) {
    case Kind::getxattr: {
      const auto room = static_cast<std::size_t>(call.numbers[0]);
      if (room > kMaxData) return refused(EINVAL);
      auto answer = done(::getxattr(path, name, data_, room));
      if (answer.result > 0 && room > 0)
        answer.data.assign(data_, static_cast<std::size_t>(answer.result));
      return answer;
    }
    case Kind::setxattr:
      return done(::setxattr(path, name, data_, length_, number(call, 0)));
    case Kind::removexattr:
      return done(::removexattr(path, name));
    case Kind::list:
      return list(call);
    default:
      return refused(ENOSYS);
  }
}

Answer Hand::list(const Call& call) {
  DIR* directory = opendir(call.first.c_str());
  if (directory == nullptr) return done(-1);
  Answer answer{0, 0, {}};
  while (const dirent* entry = readdir(directory)) {
    if (std::strcmp(entry->d_name, ".") == 0 || std::strcmp(entry->d_name, "..") == 0) continue;
    answer.data.append(entry->d_name, std::strlen(entry->d_name) + 1);
  }
  closedir(directory);
  return answer.data.size() > kMaxData ? refused(EOVERFLOW) : answer;
}

Answer Hand::of_descriptor(const Call& call) {
  const int fd = number(call, 0);
  struct ::stat what {};
  switch (call.kind) {
    case Kind::close:
      return done(::close(fd));
    case Kind::ftruncate:
      return done(::ftruncate(fd, call.numbers[1]));
    case Kind::fallocate:
      return done(::fallocate(fd, number(call, 1), call.numbers[2], call.numbers[3]));
    case Kind::lseek:
      return done(::lseek(fd, call.numbers[1], number(call, 2)));
    case Kind::fsync:
      return done(::fsync(fd));
    case Kind::stat_descriptor: {
      const int result = ::fstat(fd, &what);
      return stat_answer(result, what);
    }
    case Kind::fcntl:
      return lock(call);
    case Kind::flock:
      return done(::flock(fd, number(call, 1)));
    case Kind::map:
      return map(call);
    default:
      return moving_data(call);
  }
}

Answer Hand::moving_data(const Call& call) {
  const int fd = number(call, 0);
  switch (call.kind) {
    case Kind::read:
    case Kind::pread:
      return read_into_answer(call);
    case Kind::write:
      return done(::write(fd, data_, length_));
    case Kind::pwrite:
      return done(::pwrite(fd, data_, length_, call.numbers[1]));
    case Kind::copy:
      return copy(call);
    default:
      return refused(ENOSYS);
  }
}

Answer Hand::read_into_answer(const Call& call) {
  const auto room = static_cast<std::size_t>(call.numbers[1]);
  if (room > kMaxData) return refused(EINVAL);
  auto answer =
      done(call.kind == Kind::read ? ::read(number(call, 0), data_, room)
                                   : ::pread(number(call, 0), data_, room, call.numbers[2]));
  if (answer.result > 0) answer.data.assign(data_, static_cast<std::size_t>(answer.result));
  return answer;
}

Answer Hand::lock(const Call& call) {
  struct ::flock range {};
  if (call.data.size() != sizeof(range)) return refused(EINVAL);
  std::memcpy(&range, call.data.data(), sizeof(range));
  auto answer = done(::fcntl(number(call, 0), number(call, 1), &range));
  answer.data.assign(reinterpret_cast<const char*>(&range), sizeof(range));
  return answer;
}

Answer Hand::copy(const Call& call) {
  off_t offsets[2];
  if (call.data.size() != sizeof(offsets)) return refused(EINVAL);
  std::memcpy(offsets, call.data.data(), sizeof(offsets));
  return done(::copy_file_range(number(call, 0), &offsets[0], number(call, 1), &offsets[1],
                                static_cast<std::size_t>(call.numbers[2]), 0));
}

Answer Hand::map(const Call& call) {
  const auto length = static_cast<std::size_t>(call.numbers[1]);
  void* memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, number(call, 0), 0);
  if (memory == MAP_FAILED) return done(-1);
  auto free = std::find_if(mapped_.begin(), mapped_.end(),
                           [](const Mapped& mapped) { return mapped.memory == nullptr; });
  if (free == mapped_.end()) free = mapped_.emplace(free);
  *free = {static_cast<char*>(memory), length};
  return {free - mapped_.begin(), 0, {}};
}

Answer Hand::of_mapping(const Call& call) {
  const auto index = static_cast<std::size_t>(call.numbers[0]);
  if (index >= mapped_.size() || mapped_[index].memory == nullptr) return refused(EBADF);
  Mapped& mapped = mapped_[index];
  if (call.kind == Kind::unmap) {
    const int result = munmap(mapped.memory, mapped.length);
    mapped = {};
    return done(result);
  }
  const auto offset = static_cast<std::size_t>(call.numbers[1]);
  const std::size_t length = call.kind == Kind::load    ? static_cast<std::size_t>(call.numbers[2])
                             : call.kind == Kind::store ? length_
                                                        : sizeof(std::int64_t);
  if (length > kMaxData || offset > mapped.length || length > mapped.length - offset)
    return refused(EINVAL);
  char* at = mapped.memory + offset;
  auto* word = reinterpret_cast<std::atomic<std::int64_t>*>(at);
  switch (call.kind) {
    case Kind::load:
      return {static_cast<std::int64_t>(length), 0, std::string(at, length)};
    case Kind::store:
      std::memcpy(at, data_, length);
      return {0, 0, {}};
    case Kind::load_word:
      return {word->load(), 0, {}};
    default:
      word->store(call.numbers[2]);
      return {0, 0, {}};
  }
}

}  // namespace
}  // namespace distfuse::tests::far

int main() {
  using namespace distfuse::tests::far;
  Hand hand;
  if (!hand.open()) return 1;
  while (const auto call = receive_call(STDIN_FILENO))
    if (!send_answer(STDOUT_FILENO, hand.perform(*call))) return 1;
  return 0;
}
