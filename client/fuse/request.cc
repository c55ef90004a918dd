// SPDX-License-Identifier: Apache-2.0
// What every operation needs: errors, calls of the meta target, replies that hand out an inode.
#include <signal.h>
#include <sys/stat.h>

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string>

#include "client/fuse/filesystem.h"
#include "client/storage/changed_inodes.h"

namespace distfuse::client {
namespace {

timespec to_timespec(rpc::Timestamp time) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  std::int64_t seconds = time.ns / kSecond;
  std::int64_t rest = time.ns % kSecond;
  if (rest < 0) {
    rest += kSecond;
    --seconds;
  }
  return {seconds, rest};
}

/// Whether this thread has SIGKILL pending: any signal that ends a process becomes one, except those that dump core. One that cannot be seen
/// (gone, or in a namespace that is not ours) counts as killed.
bool is_killed(pid_t thread) {
  std::ifstream status("/proc/" + std::to_string(thread) + "/status");
  bool seen = false;
  for (std::string line; std::getline(status, line);) {
    if (!line.starts_with("SigPnd:") && !line.starts_with("ShdPnd:")) continue;
    seen = true;
    const std::uint64_t pending = std::strtoull(line.c_str() + sizeof("SigPnd:") - 1, nullptr, 16);
    if ((pending >> (SIGKILL - 1) & 1) != 0) return true;
  }
  return !seen;
}

}  // namespace

Interrupted Filesystem::interrupted(fuse_req_t req) const {
  return [this, req] {
    return stopping_ || (fuse_req_interrupted(req) != 0 && is_killed(fuse_req_ctx(req)->pid));
  };
}

struct stat to_stat(const rpc::Attributes& attributes) {
  struct stat result {};
  result.st_ino = attributes.ino;
  result.st_mode = attributes.mode;
  result.st_nlink = attributes.nlink;
  result.st_uid = attributes.uid;
  result.st_gid = attributes.gid;
  result.st_rdev = attributes.rdev;
  result.st_size = static_cast<off_t>(attributes.size);
  result.st_blksize = 64 << 10;
  result.st_blocks = static_cast<blkcnt_t>((attributes.size + 511) / 512);
  result.st_atim = to_timespec(attributes.atime);
  result.st_mtim = to_timespec(attributes.mtime);
  result.st_ctim = to_timespec(attributes.ctime);
  return result;
}

rpc::Timestamp now() {
  timespec time{};
  clock_gettime(CLOCK_REALTIME, &time);
  return {time.tv_sec * 1'000'000'000 + time.tv_nsec};
}

int Filesystem::code_of(const Error& error) const {
  if (error.code == ENOTCONN || session_ended(error)) return EIO;
  return error.code == 0 ? EIO : error.code;
}

Result<rpc::MetadataReply> Filesystem::call(const rpc::MetadataRequest& request,
                                            fuse_req_t req) const {
  if (lost()) return Error{EIO, {}};
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  if (req != nullptr) {
    const fuse_ctx* context = fuse_req_ctx(req);
    uid = context->uid;
    gid = context->gid;
  }
  auto reply = rpc_->call(request, uid, gid);
  if (reply) note_change(request, *reply);
  return reply;
}

/// An answer is not durable: each inode that the request changed has it to sync (cache/unsynced.h).
void Filesystem::note_change(const rpc::MetadataRequest& request,
                             const rpc::MetadataReply& reply) const {
  for (const auto& [ino, made] : changed_inodes(request, reply)) {
    const InodeRef inode = made ? inodes_.get(ino) : inodes_.find(ino);
    if (inode != nullptr)
      inode->unsynced.changed(Unsynced::kMetadataTarget, reply.boot, &metadata_syncs_);
  }
}

Result<rpc::Attributes> Filesystem::call_for_attributes(const rpc::MetadataRequest& request,
                                                        fuse_req_t req) const {
  auto reply = call(request, req);
  if (!reply) return reply.error();
  if (reply->attributes.empty()) return Error{EPROTO, {}};
  return reply->attributes.front();
}

fuse_entry_param Filesystem::entry_param(const rpc::Attributes& attributes, double timeout) const {
  fuse_entry_param entry{};
  entry.ino = attributes.ino;
  entry.attr = to_stat(attributes);
  entry.attr_timeout = timeout;
  entry.entry_timeout = 0;  // see docs/decisions.md: names cannot be invalidated without a cycle
  return entry;
}

void Filesystem::reply_entry(fuse_req_t req, const InodeRef& inode,
                             const rpc::Attributes& attributes, double timeout) {
  const fuse_entry_param entry = entry_param(attributes, timeout);
  inodes_.add_lookup(*inode);  // before the reply: a FORGET may overtake our return from it
  if (fuse_reply_entry(req, &entry) != 0) drop_references(inode, 1);
}

}  // namespace distfuse::client
