// SPDX-License-Identifier: Apache-2.0
#include "storaged/data/chunk_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

namespace distfuse::storaged {
namespace {

constexpr std::uint64_t kStatBlock = 512;  // unit of st_blocks, whatever the filesystem

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

Directory open_directory(int data, std::uint32_t directory) {
  const int fd =
      ::openat(data, directory_path(directory).data(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return nullptr;
  Directory result(::fdopendir(fd));
  if (!result) ::close(fd);
  return result;
}

std::uint64_t bytes_of_status(const struct stat& status) {
  return static_cast<std::uint64_t>(status.st_blocks) * kStatBlock;
}

void unlink_chunk(int directory, const char* name, ChunkFilesOutcome& outcome) {
  struct stat status {};
  const bool known = ::fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
  if (::unlinkat(directory, name, 0) == 0) {
    outcome.unlinked = true;
    if (known) outcome.freed += bytes_of_status(status);
  } else if (errno != ENOENT && outcome.error == 0) {
    outcome.error = errno;
  }
}

/// Unlinks the inode's chunks from number `first` on.
void unlink_from(int data, std::uint64_t ino, std::uint64_t first, ChunkFilesOutcome& outcome) {
  Directory directory = open_directory(data, directory_of(ino));
  if (!directory) {
    if (errno != ENOENT) outcome.error = errno;
    return;
  }
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr) break;
    auto key = parse_chunk_name(entry->d_name);
    if (key && key->ino == ino && key->chunk >= first)
      unlink_chunk(::dirfd(directory.get()), entry->d_name, outcome);
  }
  if (errno != 0 && outcome.error == 0) outcome.error = errno;
}

void cut(int data, const ChunkKey& key, std::uint32_t offset, ChunkFilesOutcome& outcome) {
  const int fd = ::openat(data, chunk_path(key).data(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) {
    if (errno != ENOENT) outcome.error = errno;
    return;
  }
  struct stat before {};
  if (::fstat(fd, &before) != 0) {
    outcome.error = errno;
  } else if (before.st_size > static_cast<off_t>(offset)) {
    if (::ftruncate(fd, static_cast<off_t>(offset)) != 0) outcome.error = errno;
    const std::uint64_t after = bytes_of(fd);
    if (after < bytes_of_status(before)) outcome.freed += bytes_of_status(before) - after;
  }
  ::close(fd);
}

int sync_path(int data, const char* path) {
  const int fd = ::openat(data, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT ? 0 : errno;
  const int error = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  return error;
}

}  // namespace

std::uint64_t bytes_of(int file) {
  struct stat status {};
  return ::fstat(file, &status) == 0 ? bytes_of_status(status) : 0;
}

ChunkFilesOutcome truncate_chunks(int data, const ChunkKey& key, std::uint32_t offset) {
  ChunkFilesOutcome outcome;
  if (offset > 0) cut(data, key, offset, outcome);
  unlink_from(data, key.ino, offset == 0 ? key.chunk : key.chunk + 1, outcome);
  return outcome;
}

ChunkFilesOutcome remove_chunks(int data, std::uint64_t ino) {
  ChunkFilesOutcome outcome;
  unlink_from(data, ino, 0, outcome);
  return outcome;
}

ChunkFilesOutcome seek_chunk(int file, std::uint32_t offset, std::uint32_t chunk_size, bool hole) {
  ChunkFilesOutcome outcome;
  off_t found = ::lseek(file, static_cast<off_t>(offset), hole ? SEEK_HOLE : SEEK_DATA);
  if (found < 0) {
    outcome.error = errno;
    if (!hole || errno != ENXIO) return outcome;
    outcome.error = 0;  // beyond the file's end all is hole
    found = static_cast<off_t>(offset);
  }
  if (found >= static_cast<off_t>(chunk_size)) {
    outcome.error = ENXIO;
    return outcome;
  }
  outcome.offset = static_cast<std::uint32_t>(found);
  return outcome;
}

int sync_directory(int data, std::uint32_t directory, bool and_data) {
  const int error = sync_path(data, directory_path(directory).data());
  if (error != 0 || !and_data) return error;
  return sync_path(data, ".");
}

std::uint64_t bytes_in_directory(int data, std::uint32_t number) {
  Directory directory = open_directory(data, number);
  if (!directory) return 0;
  std::uint64_t bytes = 0;
  while (const dirent* entry = ::readdir(directory.get())) {
    struct stat status {};
    if (parse_chunk_name(entry->d_name) &&
        ::fstatat(::dirfd(directory.get()), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0) {
      bytes += bytes_of_status(status);
    }
  }
  return bytes;
}

int stat_filesystem(int data, rpc::DataStatfs& answer) {
  struct statvfs status {};
  if (::fstatvfs(data, &status) != 0) return errno;
  answer = {status.f_frsize, status.f_blocks, status.f_bfree,
            status.f_bavail, status.f_files,  status.f_ffree};
  return 0;
}

}  // namespace distfuse::storaged
