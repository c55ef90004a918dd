// SPDX-License-Identifier: Apache-2.0
#include "storaged/fenced_sessions.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>

#include "common/replace_file.h"

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
  DISTFUSE_TRY(sessions->load_below());
  return sessions;
}

FencedSessions::~FencedSessions() {
  if (file_ >= 0) ::close(file_);
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

Status FencedSessions::load_below() {
  std::ifstream file(below_path(), std::ios::binary);
  if (!file.is_open()) return errno == ENOENT ? Status() : file_error(below_path(), "open", errno);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) return file_error(below_path(), "read", EIO);
  const auto below = FencedBelow::from_text(text);
  if (!below)
    return Error{EINVAL,
                 fmt::format("{}: not what a storaged has written: restore the file, or remove "
                             "it when no client of an earlier session runs any more",
                             below_path())};
  below_ = *below;
  return {};
}

std::uint64_t FencedSessions::incarnation() const {
  std::uint64_t latest = below_.high();
  for (const auto session : sessions_) latest = std::max(latest, session);
  return latest >> 32;
}

std::optional<FencedBelow> FencedSessions::cover(std::uint64_t high,
                                                 std::span<const std::uint64_t> living) {
  const auto fenced = [this](std::uint64_t session) { return sessions_.contains(session); };
  if (!below_.raise(high, living, fenced)) return {};
  std::erase_if(sessions_, [this](std::uint64_t session) { return below_.contains(session); });
  return below_;
}

Status FencedSessions::compact(const FencedBelow& below) {
  DISTFUSE_TRY(replace_file(below_path(), below.to_text(), 0600));
  auto left = persisted_;
  std::erase_if(left, [&](std::uint64_t session) { return below.contains(session); });
  std::string text;
  for (const auto session : left) text += fmt::format("{:016x}\n", session);
  DISTFUSE_TRY(replace_file(path_, text, 0600));
  // Appended to the old file, fences would be forgotten: so none is written before the new one is open.
  const int file = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) {
    const int code = errno;
    persisted_.clear();
    ::close(std::exchange(file_, -1));
    return file_error(path_, "open", code);
  }
  ::close(std::exchange(file_, file));
  persisted_.swap(left);
  length_ = text.size();
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
