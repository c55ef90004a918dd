// SPDX-License-Identifier: Apache-2.0
// The POSIX calls of the tests, on files of this guest or of another: `using far::open;` in place of <fcntl.h>'s. A path
// "node2:/tmp/a" is on the guest node2, and its descriptor is a number that stands for one there (tests/far/hand.h); anything else is the
// plain call, at no cost. errno is that of the call, wherever it was made; EHOSTDOWN: there is no connection to that guest (any more).
// Two paths of one call must be on one guest (EXDEV).
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace distfuse::tests::far {

int open(const char* path, int flags, mode_t mode = 0);
int close(int fd);
ssize_t read(int fd, void* to, std::size_t length);
ssize_t write(int fd, const void* from, std::size_t length);
ssize_t pread(int fd, void* to, std::size_t length, off_t offset);
ssize_t pwrite(int fd, const void* from, std::size_t length, off_t offset);
off_t lseek(int fd, off_t offset, int whence);
int ftruncate(int fd, off_t size);
int truncate(const char* path, off_t size);
int fallocate(int fd, int mode, off_t offset, off_t length);
/// Both offsets must be given.
ssize_t copy_file_range(int from, off_t* from_offset, int to, off_t* to_offset, std::size_t length,
                        unsigned flags);
int fsync(int fd);
int mkdir(const char* path, mode_t mode);
int rmdir(const char* path);
int unlink(const char* path);
int symlink(const char* target, const char* path);
int link(const char* from, const char* to);
int rename(const char* from, const char* to);
/// `from_folder` and `to_folder` must be AT_FDCWD.
int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags);
int chmod(const char* path, mode_t mode);
ssize_t getxattr(const char* path, const char* name, void* to, std::size_t room);
int setxattr(const char* path, const char* name, const void* value, std::size_t length, int flags);
int removexattr(const char* path, const char* name);
int fcntl(int fd, int command, struct ::flock* range);
int flock(int fd, int operation);

// Names of functions, and no functions: the plain ones would be found as well, by their argument's type.
int stat_file(const char* path, struct ::stat* out);
int stat_link(const char* path, struct ::stat* out);
int stat_descriptor(int fd, struct ::stat* out);
inline constexpr auto& stat = stat_file;
inline constexpr auto& lstat = stat_link;
inline constexpr auto& fstat = stat_descriptor;

/// The names in a directory, without "." and ".."; none: errno says why.
[[nodiscard]] std::optional<std::vector<std::string>> list(const std::string& path);
/// What is in a file; none: errno says why.
[[nodiscard]] std::optional<std::string> read_file(const std::string& path);
/// Makes it, or cuts it to nothing, and writes. False: errno says why.
[[nodiscard]] bool write_file(const std::string& path, const std::string& text);

/// A shared mapping of a file, from its beginning, for reading and writing.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  /// False: errno says why.
  [[nodiscard]] bool map(int fd, std::size_t length);
  [[nodiscard]] bool mapped() const { return memory_ != nullptr || number_ >= 0; }
  /// False: there is no connection.
  [[nodiscard]] bool load(std::size_t offset, void* to, std::size_t length) const;
  [[nodiscard]] bool store(std::size_t offset, const void* from, std::size_t length);
  /// One atomic access; `offset` is a multiple of 8. A load that fails is none.
  [[nodiscard]] std::optional<std::int64_t> load_word(std::size_t offset) const;
  [[nodiscard]] bool store_word(std::size_t offset, std::int64_t value);
  int unmap();

 private:
  void* memory_ = nullptr;
  std::size_t length_ = 0;
  int number_ = -1;  ///< On another guest.
};

}  // namespace distfuse::tests::far
