// SPDX-License-Identifier: Apache-2.0
// IDENTITY is written to IDENTITY.new, synced and renamed, so that it is there whole or not at all.
// A directory that holds nothing else than a torn IDENTITY.new (and a new filesystem's lost+found)
// counts as empty.
#include "storaged/identity.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string_view>
#include <utility>

#include "common/descriptor.h"
#include "common/replace_file.h"

namespace distfuse::storaged {
namespace {

constexpr std::size_t kMaxIdentityBytes = 4096;

Error system_error(int code, const std::string& path, std::string_view what) {
  return Error{code, fmt::format("{}: cannot {}: {}", path, what, std::strerror(code))};
}

std::string to_text(const Identity& identity) {
  return fmt::format("distfuse store\ncluster {}\nrole {}\nversion {}\n", identity.cluster_id,
                     identity.role, identity.version);
}

Result<bool> is_empty(const std::string& directory) {
  DIR* stream = opendir(directory.c_str());
  if (stream == nullptr) return system_error(errno, directory, "read the store directory");
  bool empty = true;
  while (const dirent* entry = readdir(stream)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != ".." && name != "lost+found" && name != "IDENTITY.new")
      empty = false;
  }
  closedir(stream);
  return empty;
}

Result<Identity> parse_identity(const std::string& path, std::string_view text) {
  char cluster[33] = {};
  char role[17] = {};
  unsigned version = 0;
  int consumed = 0;
  const std::string terminated(text);
  if (std::sscanf(terminated.c_str(),
                  "distfuse store\ncluster %32[0-9a-f]\nrole %16[a-z]\nversion %9u%n", cluster,
                  role, &version, &consumed) != 3 ||
      terminated.substr(static_cast<std::size_t>(consumed)) != "\n") {
    return Error{EINVAL,
                 fmt::format("{}: not a DistFUSE identity; give another directory, or remove "
                             "this store if nothing in it is needed",
                             path)};
  }
  return Identity{cluster, role, version};
}

Status check(const std::string& directory, const Identity& found, const Identity& wanted) {
  if (found.cluster_id != wanted.cluster_id) {
    return Error{EINVAL,
                 fmt::format("{}: this store belongs to cluster {}, not to cluster {}; give "
                             "another directory, or the cluster file of that cluster",
                             directory, found.cluster_id, wanted.cluster_id)};
  }
  if (found.role != wanted.role) {
    return Error{EINVAL, fmt::format("{}: this store has role {}, not {}; give each role its own "
                                     "directory",
                                     directory, found.role, wanted.role)};
  }
  if (found.version != wanted.version) {
    return Error{EINVAL,
                 fmt::format("{}: this store has format version {}, this program reads {}; use "
                             "the release of DistFUSE that wrote it",
                             directory, found.version, wanted.version)};
  }
  return {};
}

Status ensure_identity(const std::string& directory, const Identity& identity) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return system_error(errno, directory, "create the store directory");
  }
  const std::string path = directory + "/IDENTITY";
  if (access(path.c_str(), F_OK) == 0) return {};
  if (errno != ENOENT) return system_error(errno, path, "read");
  const auto empty = is_empty(directory);
  if (!empty.ok()) return empty.error();
  if (!*empty) {
    return Error{EINVAL,
                 fmt::format("{}: not empty and not a DistFUSE store (no IDENTITY file); give "
                             "an empty or a new directory",
                             directory)};
  }
  return replace_file(path, to_text(identity));
}

}  // namespace

Result<StoreClaim> StoreClaim::take(const std::string& directory, const Identity& identity) {
  DISTFUSE_TRY(ensure_identity(directory, identity));
  const std::string path = directory + "/IDENTITY";
  Descriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error(errno, path, "read");
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return system_error(errno, path, "lock");
    return Error{EBUSY,
                 fmt::format("{}: another process has this store open; stop it first", directory)};
  }
  char text[kMaxIdentityBytes];
  const ssize_t length = read(fd.get(), text, sizeof text);
  if (length < 0) return system_error(errno, path, "read");
  const auto found = parse_identity(path, std::string_view(text, static_cast<std::size_t>(length)));
  if (!found.ok()) return found.error();
  DISTFUSE_TRY(check(directory, *found, identity));
  return StoreClaim(fd.release());
}

StoreClaim::StoreClaim(StoreClaim&& other) noexcept : lock_(std::exchange(other.lock_, -1)) {}

StoreClaim& StoreClaim::operator=(StoreClaim&& other) noexcept {
  std::swap(lock_, other.lock_);
  return *this;
}

StoreClaim::~StoreClaim() {
  if (lock_ >= 0) close(lock_);
}

}  // namespace distfuse::storaged
