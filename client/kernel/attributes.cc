// SPDX-License-Identifier: Apache-2.0
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include "client/kernel/storage.h"

namespace distfuse::client::kernel {

namespace {

using Set = rpc::SetAttributes;

constexpr std::size_t kMaxValue = 65536;

rpc::Timestamp to_timestamp(const timespec& time) {
  return {time.tv_sec * 1'000'000'000 + time.tv_nsec};
}

Set to_request(Ino ino, const struct stat& values, int fields) {
  Set request{ino, 0, {}};
  const auto take = [&](int flag, std::uint32_t field, auto& to, auto value) {
    if ((fields & flag) == 0) return;
    request.fields |= field;
    to = value;
  };
  auto& to = request.values;
  take(FUSE_SET_ATTR_MODE, Set::kMode, to.mode, values.st_mode);
  take(FUSE_SET_ATTR_UID, Set::kUid, to.uid, values.st_uid);
  take(FUSE_SET_ATTR_GID, Set::kGid, to.gid, values.st_gid);
  take(FUSE_SET_ATTR_SIZE, Set::kSize, to.size, static_cast<std::uint64_t>(values.st_size));
  take(FUSE_SET_ATTR_ATIME, Set::kAtime, to.atime, to_timestamp(values.st_atim));
  take(FUSE_SET_ATTR_MTIME, Set::kMtime, to.mtime, to_timestamp(values.st_mtim));
  take(FUSE_SET_ATTR_CTIME, Set::kCtime, to.ctime, to_timestamp(values.st_ctim));
  return request;
}

}  // namespace

void reply_bytes(fuse_req_t req, const std::string& bytes, std::size_t size) {
  if (size == 0) return (void)fuse_reply_xattr(req, bytes.size());
  if (bytes.size() > size) return (void)fuse_reply_err(req, ERANGE);
  fuse_reply_buf(req, bytes.data(), bytes.size());
}

void Storage::getattr(fuse_req_t req, Ino ino) {
  auto attributes = ask_for_attributes(rpc::GetAttributes{{ino}}, req);
  if (!attributes) return reply_error(req, attributes.error());
  reply_attributes(req, *attributes);
}

/// A size that is set cuts data first, then the size, so that old data never comes back, not even after a crash in between.
void Storage::setattr(fuse_req_t req, Ino ino, const struct stat& values, int fields,
                      bool size_only) {
  if ((fields & FUSE_SET_ATTR_SIZE) != 0 && !size_only) {
    auto file = file_to_change(ino, req);
    if (!file) return reply_error(req, file.error());
    const auto present = generation_to_change();
    if (!present) return reply_error(req, present.error());
    const Status cut =
        (*present)->data->truncate(file->ref, static_cast<std::uint64_t>(values.st_size));
    if (!cut.ok()) return reply_error(req, cut.error());
  }
  auto attributes = call_for_attributes(to_request(ino, values, fields), req);
  if (!attributes) return reply_error(req, attributes.error());
  reply_attributes(req, *attributes);
}

void Storage::statfs(fuse_req_t req) {
  const auto present = generation();
  if (!present) return (void)fuse_reply_err(req, EIO);
  auto space = present->data->statfs();
  if (!space) return reply_error(req, space.error());
  auto inodes = ask(rpc::StatFilesystem{}, req);
  if (!inodes) return reply_error(req, inodes.error());
  struct statvfs result {};
  result.f_bsize = space->block_size;
  result.f_frsize = space->block_size;
  result.f_blocks = space->blocks;
  result.f_bfree = space->blocks_free;
  result.f_bavail = space->blocks_available;
  result.f_files = inodes->inodes_used + space->files_free;
  result.f_ffree = result.f_favail = space->files_free;
  result.f_namemax = 255;
  fuse_reply_statfs(req, &result);
}

void Storage::open(fuse_req_t req, Ino ino, fuse_file_info* file) {
  auto attributes = call_for_attributes(rpc::OpenFile{ino}, req);
  if (!attributes) return reply_error(req, attributes.error());
  fuse_reply_open(req, file);
}

/// The registrations of a session that is over went with it; the next one's may be there again.
void Storage::release(fuse_req_t req, Ino ino) {
  if (const auto present = generation_to_change(); !present) return (void)fuse_reply_err(req, 0);
  auto reply = call(rpc::CloseFiles{{ino}}, req);
  if (!reply) return reply_error(req, reply.error());
  fuse_reply_err(req, 0);
}

void Storage::getxattr(fuse_req_t req, Ino ino, const char* name, std::size_t size) {
  auto reply = ask(rpc::GetXattr{ino, name}, req);
  if (!reply) return reply_error(req, reply.error());
  reply_bytes(req, reply->strings.empty() ? std::string{} : reply->strings.front(), size);
}

void Storage::listxattr(fuse_req_t req, Ino ino, std::size_t size) {
  auto reply = ask(rpc::ListXattr{ino}, req);
  if (!reply) return reply_error(req, reply.error());
  std::string names;
  for (const std::string& name : reply->strings) names.append(name).push_back('\0');
  reply_bytes(req, names, size);
}

void Storage::setxattr(fuse_req_t req, Ino ino, const char* name, std::string value, int flags) {
  if (value.size() > kMaxValue) return (void)fuse_reply_err(req, E2BIG);
  rpc::SetXattr request{ino, name, std::move(value), 0};
  if ((flags & XATTR_CREATE) != 0) request.flags |= rpc::SetXattr::kCreate;
  if ((flags & XATTR_REPLACE) != 0) request.flags |= rpc::SetXattr::kReplace;
  change(req, request);
}

void Storage::removexattr(fuse_req_t req, Ino ino, const char* name) {
  change(req, rpc::RemoveXattr{ino, name});
}

}  // namespace distfuse::client::kernel
