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

#include "common/descriptor.h"
#include "common/replace_file.h"

namespace distfuse::lockd {

namespace {

Error failed(const std::string& what, const std::string& path) {
  const int code = errno;
  return {code, fmt::format("cannot {} {}: {}", what, path, std::strerror(code))};
}

/// 0 when there is no file yet.
Result<std::uint32_t> read_number(const std::string& path, const std::string& cluster_id) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) {
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

}  // namespace

Result<StateDir> StateDir::open(const std::string& path, const std::string& cluster_id) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    return Error{error.value(),
                 fmt::format("cannot create state_dir {}: {}", path, error.message())};
  const auto lock_path = path + "/lock";
  Descriptor lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return failed("open", lock_path);
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
  DISTFUSE_TRY(
      replace_file(path + "/incarnation", fmt::format("{} {}\n", cluster_id, number), 0600));
  return StateDir(lock.release(), number);
}

StateDir::StateDir(StateDir&& other) noexcept
    : lock_(std::exchange(other.lock_, -1)), incarnation_(other.incarnation_) {}

StateDir::~StateDir() {
  if (lock_ >= 0) ::close(lock_);
}

}  // namespace distfuse::lockd
