// SPDX-License-Identifier: Apache-2.0
#include "lockd/session_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>

#include "common/replace_file.h"

namespace distfuse::lockd {

namespace {

constexpr std::array<std::string_view, 3> kKinds{"begin", "lost", "end"};
constexpr std::string_view kMagic = "distfuse-sessions 2 ";
constexpr std::string_view kWithoutTokens = "distfuse-sessions 1 ";
static_assert(kMagic.size() == kWithoutTokens.size());

Error failed(const std::string& what, const std::string& path) {
  const int code = errno;
  return {code, fmt::format("cannot {} {}: {}", what, path, std::strerror(code))};
}

std::uint32_t checksum(std::string_view text) {  // FNV-1a: against torn writes, not against malice
  std::uint32_t hash = 2166136261U;
  for (const char c : text) hash = (hash ^ static_cast<std::uint8_t>(c)) * 16777619U;
  return hash;
}

template <typename Bytes>
std::string hex(const Bytes& bytes) {
  std::string out;
  for (const auto byte : bytes) out += fmt::format("{:02x}", static_cast<std::uint8_t>(byte));
  return out.empty() ? "-" : out;
}

std::string to_line(const SessionChange& change) {
  const auto& session = change.session;
  auto line = fmt::format("{} {:016x} {} {} {} {}",
                          kKinds.at(static_cast<std::size_t>(change.kind)), session.id,
                          session.node, session.lease_ms, hex(session.name), hex(session.token));
  return line + fmt::format(" {:08x}\n", checksum(line));
}

template <typename Number>
bool read_number(std::string_view text, int base, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
  return error == std::errc{} && end == text.data() + text.size() && !text.empty();
}

std::string_view take_word(std::string_view& line) {
  const auto end = std::min(line.find(' '), line.size());
  const auto word = line.substr(0, end);
  line.remove_prefix(std::min(end + 1, line.size()));
  return word;
}

bool read_name(std::string_view text, std::string& name) {
  if (text == "-") return true;
  if (text.size() % 2 != 0 || text.size() > 2 * sizeof(df_hello::name)) return false;
  for (std::size_t i = 0; i < text.size(); i += 2) {
    std::uint8_t byte = 0;
    if (!read_number(text.substr(i, 2), 16, byte)) return false;
    name += static_cast<char>(byte);
  }
  return true;
}

bool read_token(std::string_view text, SessionToken& token) {
  if (text.size() != 2 * token.size()) return false;
  for (std::size_t i = 0; i < token.size(); ++i)
    if (!read_number(text.substr(2 * i, 2), 16, token[i])) return false;
  return true;
}

/// Nothing: the line is damaged.
std::optional<SessionChange> read_line(std::string_view line, bool with_token) {
  const auto space = line.rfind(' ');
  std::uint32_t sum = 0;
  if (space == std::string_view::npos || !read_number(line.substr(space + 1), 16, sum) ||
      checksum(line.substr(0, space)) != sum)
    return {};
  line = line.substr(0, space);
  SessionChange change;
  const auto kind = take_word(line);
  auto& session = change.session;
  const bool good = read_number(take_word(line), 16, session.id) &&
                    read_number(take_word(line), 10, session.node) &&
                    read_number(take_word(line), 10, session.lease_ms) &&
                    read_name(take_word(line), session.name) &&
                    (!with_token || read_token(take_word(line), session.token)) && line.empty() &&
                    session.id != 0 && session.node >= 1 && session.node <= kMaxNodeId;
  if (!good) return {};
  for (std::size_t i = 0; i < kKinds.size(); ++i) {
    if (kKinds[i] != kind) continue;
    change.kind = static_cast<SessionChange::Kind>(i);
    return change;
  }
  return {};
}

Result<std::string> read_file(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) {
    if (errno == ENOENT) return std::string();
    return failed("open", path);
  }
  std::string text;
  char buffer[65536];
  for (;;) {
    const auto got = ::read(file.get(), buffer, sizeof buffer);
    if (got < 0) return failed("read", path);
    if (got == 0) return text;
    text.append(buffer, static_cast<std::size_t>(got));
  }
}

}  // namespace

Result<std::unique_ptr<SessionLog>> SessionLog::open(const std::string& state_dir,
                                                     const std::string& cluster_id,
                                                     std::uint32_t lease_ms) {
  std::unique_ptr<SessionLog> log(new SessionLog(state_dir + "/sessions", cluster_id));
  DISTFUSE_TRY(log->load());
  for (auto& [id, session] : log->sessions_) {
    session.lease_ms = std::max(session.lease_ms, lease_ms);
    log->listed_.push_back(session);
  }
  DISTFUSE_TRY(log->rewrite());
  return log;
}

void SessionLog::apply(std::map<SessionId, ListedSession>& sessions, const SessionChange& change) {
  const auto& session = change.session;
  switch (change.kind) {
    case SessionChange::Kind::begin:
      sessions[session.id] = session;
      return;
    case SessionChange::Kind::lost:
      if (const auto it = sessions.find(session.id); it != sessions.end()) it->second.lost = true;
      return;
    case SessionChange::Kind::end:
      sessions.erase(session.id);
      return;
  }
}

Status SessionLog::load() {
  const auto text = read_file(path_);
  if (!text.ok()) return text.error();
  std::string_view rest = *text;
  if (rest.empty()) return {};
  const auto first = rest.substr(0, rest.find('\n'));
  const bool with_tokens = first.starts_with(kMagic);
  if ((!with_tokens && !first.starts_with(kWithoutTokens)) || first.size() == rest.size())
    return Error{EINVAL, fmt::format("{} is not a list of sessions; when no client of this cluster "
                                     "runs any more, remove it",
                                     path_)};
  if (first.substr(kMagic.size()) != cluster_id_)
    return Error{EXDEV,
                 fmt::format("{} belongs to cluster {}, not to {}; give lockd another state_dir",
                             path_, first.substr(kMagic.size()), cluster_id_)};
  rest.remove_prefix(first.size() + 1);
  bool damaged = false;
  while (!rest.empty()) {
    const auto end = rest.find('\n');
    const auto change = read_line(rest.substr(0, end), with_tokens);
    if (change && end != std::string_view::npos && damaged)
      return Error{EINVAL, fmt::format("{} is damaged before byte {}; when no client of this "
                                       "cluster runs any more, remove it",
                                       path_, text->size() - rest.size())};
    if (!change || end == std::string_view::npos)
      damaged = true;
    else
      apply(sessions_, *change);
    rest.remove_prefix(std::min(end, rest.size() - 1) + 1);
  }
  if (damaged) spdlog::warn("{}: its unfinished tail is cut off", path_);
  if (!with_tokens) lose_all();
  return {};
}

void SessionLog::lose_all() {
  if (sessions_.empty()) return;
  for (auto& [id, session] : sessions_) session.lost = true;
  spdlog::warn(
      "{} is of an earlier version: its {} sessions are fenced, their mounts go on with new ones",
      path_, sessions_.size());
}

/// A new file with what is known now. On an error the old one goes on.
Status SessionLog::rewrite() {
  auto text = fmt::format("{}{}\n", kMagic, cluster_id_);
  std::size_t lines = 0;
  for (const auto& [id, session] : sessions_) {
    text += to_line({SessionChange::Kind::begin, session});
    if (session.lost) text += to_line({SessionChange::Kind::lost, session});
    lines += session.lost ? 2 : 1;
  }
  DISTFUSE_TRY(replace_file(path_, text, 0600));
  Descriptor file(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return failed("open", path_);
  file_ = std::move(file);
  length_ = text.size();
  lines_ = lines;
  return {};
}

Status SessionLog::append(std::span<const SessionChange> changes) {
  auto sessions = sessions_;
  std::string text;
  for (const auto& change : changes) {
    text += to_line(change);
    apply(sessions, change);
  }
  std::size_t done = 0;
  while (done < text.size()) {
    const auto wrote = ::pwrite(file_.get(), text.data() + done, text.size() - done,
                                static_cast<off_t>(length_ + done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      const auto error = failed("write", path_);
      // What is there already must not stand before the next append's lines.
      (void)!::ftruncate(file_.get(), static_cast<off_t>(length_));
      return error;
    }
    done += static_cast<std::size_t>(wrote);
  }
  if (::fdatasync(file_.get()) != 0) return failed("sync", path_);
  length_ += text.size();
  lines_ += changes.size();
  sessions_.swap(sessions);
  // The lines are there; a list that cannot be made shorter now is tried again with the next.
  if (lines_ > 2 * sessions_.size() + kSlack)
    if (const auto status = rewrite(); !status.ok())
      spdlog::warn("the list of sessions grows: {}", status.error().message);
  return {};
}

}  // namespace distfuse::lockd
