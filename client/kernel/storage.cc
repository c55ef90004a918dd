// SPDX-License-Identifier: Apache-2.0
#include "client/kernel/storage.h"

#include <spdlog/spdlog.h>

#include <cerrno>

#include "client/kernel/origin.h"
#include "client/storage/changed_inodes.h"
#include "kmod/uapi.h"

namespace distfuse::client::kernel {

namespace {

constexpr std::chrono::milliseconds kReachable{10000};

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

}  // namespace

Storage::Storage(const config::Cluster& cluster, Device& device)
    : cluster_(cluster), device_(device) {}

/// The device says ENOTCONN to the follower when the mount is gone.
Storage::~Storage() {
  if (follower_.joinable()) follower_.join();
}

Result<Storage::GenerationRef> Storage::make_generation(std::uint64_t session) const {
  rpc::ClientOptions options;
  options.meta = cluster_.meta().meta_listen;
  options.data = cluster_.data_addresses();
  options.cluster_id = cluster_.id;
  options.session = session;
  options.daemon = device_.number();
  options.device = cluster_.fabric.storage_device();
  options.give_up = std::chrono::seconds(cluster_.client.give_up_s);
  auto rpc = rpc::Client::create(options);
  if (!rpc) return rpc.error();
  auto made = std::make_shared<Generation>();
  made->session = session;
  made->rpc = std::move(*rpc);
  made->data =
      std::make_unique<FileData>(*made->rpc, static_cast<std::uint32_t>(options.data.size()));
  return made;
}

/// UCX loads its parts and looks for devices with the first worker of a process.
void Storage::warm_up() const {
  constexpr std::uint64_t kAnySession = 1;
  if (const auto made = make_generation(kAnySession)) (void)(*made)->rpc->connection(0);
}

Status Storage::connect(bool lenient) {
  // Lost, and there is no next one yet: follow_session() takes it up.
  if (device_.session().id == 0) return {};
  auto made = make_generation(device_.session().id);
  if (!made) return made.error();
  const Status reached = (*made)->rpc->check_reachable(kReachable);
  if (!reached.ok() && !lenient) return reached.error();
  if (!reached.ok()) spdlog::warn("{}", reached.error().message);
  begin(std::move(*made));
  return {};
}

void Storage::begin(GenerationRef made) {
  {
    const std::lock_guard lock(mutex_);
    generation_.swap(made);
  }
  begun_.notify_all();
}

/// Session ids go up. The module tells the follower of a session at the time at which it makes requests in it.
Storage::GenerationRef Storage::generation(std::uint64_t least) const {
  const std::uint64_t session = std::max(least, origin().session);
  std::unique_lock lock(mutex_);
  begun_.wait_for(lock, std::chrono::seconds(cluster_.client.give_up_s),
                  [&] { return generation_ != nullptr && generation_->session >= session; });
  return generation_ != nullptr && generation_->session >= session ? generation_ : nullptr;
}

Result<Storage::GenerationRef> Storage::generation_to_change() const {
  const std::uint64_t session = origin().session;
  std::unique_lock lock(mutex_);
  begun_.wait_for(lock, std::chrono::seconds(cluster_.client.give_up_s),
                  [&] { return generation_ != nullptr && generation_->session >= session; });
  if (generation_ == nullptr || generation_->session != session) return Error{EIO, {}};
  return generation_;
}

void Storage::follow_session() {
  std::uint64_t known = device_.session().id;
  while (true) {
    const auto next = device_.await_session(known);
    if (!next && next.error().code == EINTR) continue;
    if (!next) return;
    known = next->id;
    if (known == 0) {
      spdlog::error("the session is lost");
      continue;
    }
    auto made = make_generation(known);
    if (!made) {
      spdlog::error("session {:#x}: {}", known, made.error().message);
      continue;
    }
    spdlog::info("session {:#x} began", known);
    begin(std::move(*made));
  }
}

Result<rpc::MetadataReply> Storage::ask(const rpc::MetadataRequest& request, fuse_req_t req) {
  const fuse_ctx* context = fuse_req_ctx(req);
  return in_some_session(
      [&](Generation& present) { return present.rpc->call(request, context->uid, context->gid); });
}

Result<rpc::MetadataReply> Storage::call(const rpc::MetadataRequest& request, fuse_req_t req) {
  const fuse_ctx* context = fuse_req_ctx(req);
  const auto present = generation_to_change();
  if (!present) return present.error();
  const rpc::RequestName name = origin().next_name();
  auto reply = (*present)->rpc->call_named(request, context->uid, context->gid, &name);
  if (reply) note_change(request, *reply);
  return reply;
}

void Storage::note_change(const rpc::MetadataRequest& request, const rpc::MetadataReply& reply) {
  for (const auto& [ino, made] : changed_inodes(request, reply))
    unsynced_.get(ino)->changed(Unsynced::kMetadataTarget, reply.boot, &metadata_syncs_);
}

Result<rpc::Attributes> Storage::take_attributes(const Result<rpc::MetadataReply>& reply) {
  if (!reply) return reply.error();
  if (reply->attributes.empty() || reply->attributes.front().ino == 0) return Error{ENOENT, {}};
  layouts_.note(reply->attributes.front());
  return reply->attributes.front();
}

Result<rpc::Attributes> Storage::ask_for_attributes(const rpc::MetadataRequest& request,
                                                    fuse_req_t req) {
  return take_attributes(ask(request, req));
}

Result<rpc::Attributes> Storage::call_for_attributes(const rpc::MetadataRequest& request,
                                                     fuse_req_t req) {
  return take_attributes(call(request, req));
}

Result<FileRef> Storage::file_ref(Ino ino, fuse_req_t req) {
  if (const auto known = layouts_.find(ino)) return *known;
  auto attributes = ask_for_attributes(rpc::GetAttributes{{ino}}, req);
  if (!attributes) return attributes.error();
  return FileRef{attributes->ino, attributes->chunk_size, attributes->first_target};
}

Result<Storage::FileToChange> Storage::file_to_change(Ino ino, fuse_req_t req) {
  auto file = file_ref(ino, req);
  if (!file) return file.error();
  FileToChange changing{*file, unsynced_.get(ino)};
  changing.ref.unsynced = changing.unsynced.get();
  return changing;
}

void Storage::reply_error(fuse_req_t req, const Error& error) {
  static_assert(rpc::kFenced == EKEYREVOKED);  // kmod/uapi.h
  const int code = error.code == 0 ? EIO : error.code;
  fuse_reply_err(req, code);
}

void Storage::reply_status(fuse_req_t req, const Status& status) {
  if (!status.ok()) return reply_error(req, status.error());
  fuse_reply_err(req, 0);
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
  result.st_blocks = static_cast<blkcnt_t>((attributes.size + 511) / 512);
  result.st_atim = to_timespec(attributes.atime);
  result.st_mtim = to_timespec(attributes.mtime);
  result.st_ctim = to_timespec(attributes.ctime);
  result.st_blksize = attributes.no_xattrs ? DFS_ATTR_NO_XATTRS : 0;  // kmod/uapi.h
  return result;
}

void Storage::reply_attributes(fuse_req_t req, const rpc::Attributes& attributes) {
  const struct stat result = to_stat(attributes);
  fuse_reply_attr(req, &result, 0);
}

void Storage::reply_entry(fuse_req_t req, const rpc::Attributes& attributes) {
  fuse_entry_param entry{};
  entry.ino = attributes.ino;
  entry.attr = to_stat(attributes);
  fuse_reply_entry(req, &entry);
}

}  // namespace distfuse::client::kernel
