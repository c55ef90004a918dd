// SPDX-License-Identifier: Apache-2.0
// Opening a chunk store, and the count of its capacity.
#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <cstring>

#include "common/descriptor.h"

#include "storaged/data/file_chunk_store_impl.h"

namespace distfuse::storaged {
namespace {

constexpr std::uint32_t kFormatVersion = 1;
constexpr const char* kUsageFile = "USAGE";
constexpr const char* kNewUsageFile = "USAGE.new";
constexpr unsigned kScanAttempts = 8;  // a directory that is always busy is taken as found

Error store_error(const std::string& directory, const char* what) {
  const int code = errno;
  return {code, fmt::format("data store {}: {}: {}", directory, what, std::strerror(code))};
}

std::uint64_t read_checkpoint(int root) {
  Descriptor file(::openat(root, kUsageFile, O_RDONLY | O_CLOEXEC));
  char text[32];
  const ssize_t length = file.get() < 0 ? -1 : ::read(file.get(), text, sizeof text);
  std::uint64_t value = 0;
  if (length > 0) std::from_chars(text, text + length, value);
  return value;
}

void write_checkpoint(int root, std::uint64_t used) {
  Descriptor file(::openat(root, kNewUsageFile, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (file.get() < 0) return;  // a full disk: the last checkpoint stands
  const std::string text = fmt::format("{}\n", used);
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::renameat(root, kNewUsageFile, root, kUsageFile) != 0) {
    ::unlinkat(root, kNewUsageFile, 0);
  }
}

/// Descriptors of the cache, of operations beyond it, and the rest of the process.
Status raise_descriptor_limit(const FileChunkStoreOptions& options) {
  const rlim_t needed = options.open_files + options.max_operations + 1024;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return {};
  if (limit.rlim_cur >= needed) return {};
  limit.rlim_cur = std::min<rlim_t>(std::max<rlim_t>(needed, limit.rlim_cur), limit.rlim_max);
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur >= needed) return {};
  return Error{EMFILE, fmt::format("data store {}: {} file descriptors are needed, the hard limit "
                                   "is {}: raise it (ulimit -Hn)",
                                   options.directory, needed, limit.rlim_max)};
}

}  // namespace

bool FileChunkStore::reserve(PendingOperation& op) {
  if (usage_.reserve(op.request.length)) {
    op.reserved = op.request.length;
    return true;
  }
  // No room for new blocks; overwriting what is allocated needs none.
  if (op.request.op != rpc::DataOp::write) return false;
  const off_t hole = ::lseek(op.file->fd, static_cast<off_t>(op.request.offset), SEEK_HOLE);
  return hole >= static_cast<off_t>(op.request.offset) + static_cast<off_t>(op.request.length);
}

void FileChunkStore::recount(File& file) {
  const std::uint64_t now = bytes_of(file.fd);
  usage_.add(directory_of(file.key.ino),
             static_cast<std::int64_t>(now) - static_cast<std::int64_t>(file.bytes));
  file.bytes = now;
  const std::uint64_t used = usage_.used();
  const std::uint64_t moved = used > checkpointed_ ? used - checkpointed_ : checkpointed_ - used;
  if (moved <= usage_.capacity() / kUsageCheckpoints || checkpointing_) return;
  checkpointing_ = true;
  checkpointed_ = used;
  helpers_->run([root = root_, used] { write_checkpoint(root, used); },
                [this] { checkpointing_ = false; });
}

void FileChunkStore::checkpoint_usage() {
  write_checkpoint(root_, usage_.used());
}

void FileChunkStore::scan(std::uint32_t directory, unsigned attempt) {
  if (directory == kDirectories) return usage_.scan_complete();
  auto bytes = std::make_shared<std::uint64_t>(0);
  const std::uint64_t began = usage_.changes(directory);
  helpers_->run([this, bytes, directory] { *bytes = bytes_in_directory(data_, directory); },
                [this, bytes, directory, began, attempt] {
                  const bool last = attempt + 1 == kScanAttempts;
                  const bool taken =
                      usage_.scanned(directory, last ? usage_.changes(directory) : began, *bytes);
                  scan(taken ? directory + 1 : directory, taken ? 0 : attempt + 1);
                });
}

void FileChunkStore::start() {
  start_sync_all();
  if (usage_.limited()) scan(0, 0);
}

Result<std::unique_ptr<ChunkStore>> open_file_chunk_store(const FileChunkStoreOptions& options) {
  DISTFUSE_TRY(raise_descriptor_limit(options));
  Descriptor event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (event.get() < 0) return store_error(options.directory, "eventfd");
  // Before the directory is touched: nothing is left over where io_uring is not permitted.
  auto ring = Ring::open(options.ring_entries, event.get());
  if (!ring)
    return Error{ring.error().code,
                 fmt::format("data store {}: {}", options.directory, ring.error().message)};
  auto claim = StoreClaim::take(options.directory, {options.cluster_id, "data", kFormatVersion});
  if (!claim) return claim.error();
  Descriptor root(::open(options.directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (root.get() < 0) return store_error(options.directory, "cannot be opened");
  if (::mkdirat(root.get(), "data", 0700) != 0) {
    if (errno != EEXIST) return store_error(options.directory, "the folder data cannot be made");
  } else if (::fsync(root.get()) != 0) {
    return store_error(options.directory, "cannot be synced");
  }
  Descriptor data(::openat(root.get(), "data", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (data.get() < 0) return store_error(options.directory, "the folder data cannot be opened");
  const std::uint64_t checkpoint = options.capacity != 0 ? read_checkpoint(root.get()) : 0;
  auto store =
      std::make_unique<FileChunkStore>(options, std::move(*claim), root.release(), data.release(),
                                       event.release(), std::move(*ring), checkpoint);
  store->start();
  return std::unique_ptr<ChunkStore>(std::move(store));
}

}  // namespace distfuse::storaged
