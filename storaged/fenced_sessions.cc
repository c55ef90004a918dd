// SPDX-License-Identifier: Apache-2.0
#include "storaged/fenced_sessions.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <cstring>

namespace distfuse::storaged {
namespace {

constexpr std::size_t kLine = 17;  // 16 digits and the newline

Error file_error(const std::string& path, const char* what, int code) {
  return {code, fmt::format("{}: cannot {}: {}", path, what, std::strerror(code))};
}

}  // namespace

Result<std::unique_ptr<FencedSessions>> FencedSessions::open(const std::string& directory) {
  const std::string path = directory + "/FENCED";
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return file_error(path, "open", errno);
  std::unique_ptr<FencedSessions> sessions(new FencedSessions(path, file));
  DISTFUSE_TRY(sessions->load());
  return sessions;
}

FencedSessions::~FencedSessions() {
  ::close(file_);
}

Status FencedSessions::load() {
  char line[kLine];
  for (;;) {
    const ssize_t got = ::pread(file_, line, kLine, static_cast<off_t>(length_));
    if (got < 0) return file_error(path_, "read", errno);
    if (got < static_cast<ssize_t>(kLine))
      break;  // the end, or an unfinished line, which is overwritten
    std::uint64_t session = 0;
    const auto [end, error] = std::from_chars(line, line + kLine - 1, session, 16);
    if (error != std::errc{} || end != line + kLine - 1 || line[kLine - 1] != '\n') {
      return Error{EINVAL, fmt::format("{}: not a list of fenced sessions at byte {}: restore the "
                                       "file, or remove it when no "
                                       "client of an earlier session runs any more",
                                       path_, length_)};
    }
    sessions_.insert(session);
    persisted_.insert(session);
    length_ += kLine;
  }
  return {};
}

Status FencedSessions::persist(std::uint64_t session) {
  if (persisted_.contains(session)) return {};
  if (persisted_.size() >= kMaxFenced) return file_error(path_, "add a session", ENOSPC);
  const std::string line = fmt::format("{:016x}\n", session);
  const ssize_t written = ::pwrite(file_, line.data(), kLine, static_cast<off_t>(length_));
  if (written < 0) return file_error(path_, "write", errno);
  if (written < static_cast<ssize_t>(kLine)) return file_error(path_, "write", ENOSPC);
  if (::fsync(file_) != 0) return file_error(path_, "sync", errno);
  length_ += kLine;
  persisted_.insert(session);
  return {};
}

}  // namespace distfuse::storaged
