// SPDX-License-Identifier: Apache-2.0
// opendir, readdir, readdirplus, fsyncdir, releasedir. Offsets given to the kernel: 1 after ".", 2 after "..", then cookie + 2.
//
// Entries are fetched in batches under S of the directory and kept with the handle as long as the directory has not changed, so that
// small getdents calls cost no packet each. A walk from the first to the last entry without a change fills the entry cache
// completely: what is not in it then does not exist.
#include <sys/stat.h>

#include <algorithm>

#include "client/fuse/filesystem.h"

namespace distfuse::client {
namespace {

constexpr std::uint32_t kBatchEntries = 1024;
constexpr std::uint64_t kDots = 2;

/// Shared: the reply of a readdir may be followed by the releasedir before the readdir has left the handle.
using DirectoryRef = std::shared_ptr<DirectoryHandle>;

DirectoryRef* handle_of(const fuse_file_info* file) {
  return reinterpret_cast<DirectoryRef*>(file->fh);
}

/// The reply's buffer, filled until an entry does not fit.
class DirectoryReply {
 public:
  DirectoryReply(fuse_req_t req, std::size_t size) : req_(req), bytes_(size) {}
  bool add(const std::string& name, Ino ino, std::uint32_t type, std::uint64_t offset) {
    struct stat stat {};
    stat.st_ino = ino;
    stat.st_mode = type;
    return took(fuse_add_direntry(req_, bytes_.data() + used_, bytes_.size() - used_, name.c_str(),
                                  &stat, static_cast<off_t>(offset)));
  }
  bool add_plus(const std::string& name, const fuse_entry_param& entry, std::uint64_t offset) {
    return took(fuse_add_direntry_plus(req_, bytes_.data() + used_, bytes_.size() - used_,
                                       name.c_str(), &entry, static_cast<off_t>(offset)));
  }
  int send() { return fuse_reply_buf(req_, bytes_.data(), used_); }

 private:
  bool took(std::size_t length) {
    if (length > bytes_.size() - used_) return false;
    used_ += length;
    return true;
  }
  fuse_req_t req_;
  std::vector<char> bytes_;
  std::size_t used_ = 0;
};

/// An entry without attributes: the kernel will look it up when somebody asks.
fuse_entry_param bare_entry(Ino ino, std::uint32_t type) {
  fuse_entry_param entry{};
  entry.attr.st_ino = ino;
  entry.attr.st_mode = type;
  return entry;
}

}  // namespace

void Filesystem::opendir(fuse_req_t req, Ino ino, fuse_file_info* file) {
  auto handle = std::make_unique<DirectoryRef>(std::make_shared<DirectoryHandle>());
  (*handle)->inode = inodes_.get(ino);
  {
    const std::lock_guard lock((*handle)->inode->state);
    (*handle)->seen_errors = (*handle)->inode->errors.now();
  }
  file->fh = reinterpret_cast<std::uint64_t>(handle.get());
  if (fuse_reply_open(req, file) == 0) (void)handle.release();
}

void Filesystem::fsyncdir(fuse_req_t req, fuse_file_info* file) {
  const DirectoryRef handle = *handle_of(file);
  Inode& inode = *handle->inode;
  const Status done = sync_metadata(inode);
  if (!done.ok() && session_ended(done.error())) return reply_error(req, Error{ENOTCONN, {}});
  int earlier = 0;
  {
    const std::lock_guard lock(inode.state);
    earlier = inode.errors.check_and_advance(handle->seen_errors);
  }
  fuse_reply_err(req, done.ok() ? earlier : code_of(done.error()));
}

void Filesystem::releasedir(fuse_req_t req, fuse_file_info* file) {
  delete handle_of(file);
  fuse_reply_err(req, 0);
}

/// With S of the directory pinned.
Status Filesystem::fill_batch(DirectoryHandle& handle, std::uint64_t after) {
  const Ino ino = handle.inode->ino;
  const std::uint64_t began = entries_.sequence(ino);
  if (handle.batch_sequence == began && handle.batch_after <= after &&
      (handle.batch_after == after || handle.batch_is_last ||
       (!handle.batch.empty() && after < handle.batch.back().cookie)))
    return {};
  auto reply = call(rpc::ReadDirectory{ino, after, kBatchEntries, false});
  if (!reply) return reply.error();
  handle.batch = std::move(reply->entries);
  handle.batch_after = after;
  handle.batch_is_last = reply->end_of_directory;
  handle.batch_sequence = began;
  remember_batch(handle, began);
  return {};
}

void Filesystem::remember_batch(DirectoryHandle& handle, std::uint64_t began) {
  const Ino ino = handle.inode->ino;
  if (handle.batch_after == 0) handle.walk_sequence = began;
  for (const rpc::DirectoryEntry& entry : handle.batch)
    entries_.fetched(ino, entry.name, {entry.ino, entry.type}, began);
  if (handle.batch_is_last && handle.walk_sequence == began) entries_.complete(ino, began);
}

/// Attributes of as many as can be locked without waiting, in one chain and one request; nothing for the others.
std::vector<Filesystem::Described> Filesystem::describe_many(
    std::span<const rpc::DirectoryEntry> entries) {
  std::vector<Ino> inos;
  for (const rpc::DirectoryEntry& entry : entries) inos.push_back(entry.ino);
  std::vector<Pin> pins = locks_->try_pin_many(inos, Mode::s);
  std::vector<Described> result(entries.size());
  rpc::GetAttributes missing;
  std::vector<std::pair<std::size_t, std::uint64_t>> places;  // index, sequence
  for (std::size_t i = 0; i < entries.size(); ++i) {
    result[i].pin = std::move(pins[i]);
    if (!result[i].pin) continue;
    const InodeRef inode = inodes_.get(inos[i]);
    const std::lock_guard lock(inode->state);
    if (inode->attributes.valid()) {
      result[i].attributes = inode->attributes.get();
    } else {
      missing.inodes.push_back(inos[i]);
      places.emplace_back(i, inode->attributes.sequence());
    }
  }
  if (missing.inodes.empty()) return result;
  const auto reply = call(missing);
  if (!reply || reply->attributes.size() != places.size()) return result;
  for (std::size_t k = 0; k < places.size(); ++k) {
    const auto [i, began] = places[k];
    if (reply->attributes[k].ino == 0) continue;
    const InodeRef inode = inodes_.get(inos[i]);
    const std::lock_guard lock(inode->state);
    if (inode->attributes.store_fetched(reply->attributes[k], began))
      result[i].attributes = inode->attributes.get();
  }
  return result;
}

void Filesystem::readdir(fuse_req_t req, std::size_t size, std::uint64_t offset,
                         fuse_file_info* file, bool plus) {
  const DirectoryRef shared = *handle_of(file);
  DirectoryHandle& handle = *shared;
  const InodeRef& inode = handle.inode;
  const std::lock_guard one_reader(handle.mutex);
  auto pin = locks_->pin(inode->ino, Mode::s, interrupted(req));
  if (!pin) return reply_error(req, pin.error());
  DirectoryReply reply(req, size);
  const auto dot = [&](const char* name, Ino ino, std::uint64_t next) {
    return plus ? reply.add_plus(name, bare_entry(ino, S_IFDIR), next)
                : reply.add(name, ino, S_IFDIR, next);
  };
  if (offset == 0) {
    (void)dot(".", inode->ino, 1);
    offset = 1;
  }
  if (offset == 1) {
    Ino parent = 0;
    {
      const std::lock_guard lock(inode->state);
      parent = inode->parent != 0 ? inode->parent : inode->ino;
    }
    (void)dot("..", parent, kDots);
    offset = kDots;
  }
  const std::uint64_t after = offset - kDots;
  const Status filled = fill_batch(handle, after);
  if (!filled.ok()) return reply_error(req, filled.error());
  const auto first = std::upper_bound(
      handle.batch.begin(), handle.batch.end(), after,
      [](std::uint64_t cookie, const rpc::DirectoryEntry& entry) { return cookie < entry.cookie; });
  const std::span<const rpc::DirectoryEntry> rest(first, handle.batch.end());
  if (!plus) {
    for (const rpc::DirectoryEntry& entry : rest)
      if (!reply.add(entry.name, entry.ino, entry.type, entry.cookie + kDots)) break;
    reply.send();
    return;
  }
  // A direntplus takes 152 bytes and its name, so no more than these can fit.
  const auto fit = rest.first(std::min(rest.size(), size / 152 + 1));
  const std::vector<Described> described = describe_many(fit);
  std::vector<InodeRef> told;
  for (std::size_t i = 0; i < fit.size(); ++i) {
    const rpc::DirectoryEntry& entry = fit[i];
    const bool known = described[i].attributes.ino != 0;
    const fuse_entry_param param = known ? entry_param(described[i].attributes, validity())
                                         : bare_entry(entry.ino, entry.type);
    if (!reply.add_plus(entry.name, param, entry.cookie + kDots)) break;
    if (!known) continue;
    told.push_back(inodes_.get(entry.ino));
    inodes_.add_lookup(*told.back());
    if (S_ISDIR(entry.type)) {
      const std::lock_guard lock(told.back()->state);
      told.back()->parent = inode->ino;
    }
  }
  if (reply.send() == 0) return;
  for (const InodeRef& each : told) drop_references(each, 1);
}

}  // namespace distfuse::client
