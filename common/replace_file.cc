// SPDX-License-Identifier: Apache-2.0
#include "common/replace_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>

#include "common/descriptor.h"

namespace distfuse {

namespace {

Error failed(const char* what, const std::string& path) {
  const int code = errno;
  return {code, fmt::format("cannot {} {}: {}", what, path, std::strerror(code))};
}

Status write_whole(const std::string& path, std::string_view text, mode_t mode) {
  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!file) return failed("create", path);
  while (!text.empty()) {
    const auto written = ::write(file.get(), text.data(), text.size());
    if (written < 0) return failed("write", path);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  if (::fsync(file.get()) != 0) return failed("sync", path);
  return {};
}

}  // namespace

Status replace_file(const std::string& path, std::string_view text, mode_t mode) {
  const auto fresh = path + ".new";
  auto status = write_whole(fresh, text, mode);
  if (status.ok() && ::rename(fresh.c_str(), path.c_str()) != 0) status = failed("replace", path);
  if (!status.ok()) {
    (void)::unlink(fresh.c_str());
    return status;
  }
  const auto parent = std::filesystem::path(path).parent_path();
  const auto directory = parent.empty() ? std::string(".") : parent.string();
  const Descriptor folder(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || ::fsync(folder.get()) != 0) return failed("sync", directory);
  return {};
}

}  // namespace distfuse
