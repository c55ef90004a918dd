// SPDX-License-Identifier: Apache-2.0
#include "lockd/state_dir.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

namespace distfuse::lockd {

namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

Error failed(const std::string& what, const std::string& path) {
  const int code = errno;
  return {code, fmt::format("cannot {} {}: {}", what, path, std::strerror(code))};
}

/// 0 when there is no file yet.
Result<std::uint32_t> read_number(const std::string& path, const std::string& cluster_id) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) {
    if (errno == ENOENT) return std::uint32_t{0};
    return failed("read", path);
  }
  char buffer[128];
  const auto length = ::read(file.get(), buffer, sizeof buffer);
  if (length < 0) return failed("read", path);
  const std::string_view text(buffer, static_cast<std::size_t>(length));
  const auto space = text.find(' ');
  std::uint32_t number = 0;
  bool good = space != std::string_view::npos && text.ends_with('\n');
  if (good) {
    const auto* end = text.data() + text.size() - 1;
    const auto parsed = std::from_chars(text.data() + space + 1, end, number);
    good = parsed.ec == std::errc{} && parsed.ptr == end && number > 0;
  }
  if (!good)
    return Error{
        EINVAL,
        fmt::format(
            "{} is damaged; write \"{} NUMBER\" into it, with a number that no lockd of this "
            "cluster has used yet",
            path, cluster_id)};
  if (text.substr(0, space) != cluster_id)
    return Error{EXDEV,
                 fmt::format("{} belongs to cluster {}, not to {}; give lockd another state_dir",
                             path, text.substr(0, space), cluster_id)};
  return number;
}

Status write_number(const std::string& dir, const std::string& cluster_id, std::uint32_t number) {
  const auto path = dir + "/incarnation";
  const auto fresh = path + ".new";
  const auto text = fmt::format("{} {}\n", cluster_id, number);
  {
    const Descriptor file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (file.get() < 0) return failed("write", fresh);
    const auto written = ::write(file.get(), text.data(), text.size());
    if (written != static_cast<ssize_t>(text.size())) {
      if (written >= 0) errno = ENOSPC;
      return failed("write", fresh);
    }
    if (::fsync(file.get()) != 0) return failed("sync", fresh);
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0) return failed("rename", fresh);
  const Descriptor folder(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0 || ::fsync(folder.get()) != 0) return failed("sync", dir);
  return {};
}

}  // namespace

Result<StateDir> StateDir::open(const std::string& path, const std::string& cluster_id) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    return Error{error.value(),
                 fmt::format("cannot create state_dir {}: {}", path, error.message())};
  const auto lock_path = path + "/lock";
  Descriptor lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (lock.get() < 0) return failed("open", lock_path);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return Error{EBUSY, fmt::format("another lockd runs with state_dir {}", path)};
    return failed("lock", lock_path);
  }
  const auto last = read_number(path + "/incarnation", cluster_id);
  if (!last.ok()) return last.error();
  if (*last == std::numeric_limits<std::uint32_t>::max())
    return Error{EOVERFLOW, fmt::format("{}/incarnation cannot be raised any more", path)};
  const auto number = *last + 1;
  DISTFUSE_TRY(write_number(path, cluster_id, number));
  return StateDir(lock.release(), number);
}

StateDir::StateDir(StateDir&& other) noexcept
    : lock_(std::exchange(other.lock_, -1)), incarnation_(other.incarnation_) {}

StateDir::~StateDir() {
  if (lock_ >= 0) ::close(lock_);
}

}  // namespace distfuse::lockd
