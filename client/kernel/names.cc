// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>

#include <vector>

#include "client/kernel/storage.h"

namespace distfuse::client::kernel {

void Storage::lookup(fuse_req_t req, Ino parent, const char* name) {
  auto attributes = ask_for_attributes(rpc::Lookup{parent, name}, req);
  if (!attributes) return reply_error(req, attributes.error());
  reply_entry(req, *attributes);
}

void Storage::make(fuse_req_t req, const rpc::MetadataRequest& request) {
  auto attributes = call_for_attributes(request, req);
  if (!attributes) return reply_error(req, attributes.error());
  reply_entry(req, *attributes);
}

void Storage::link(fuse_req_t req, Ino ino, Ino parent, const char* name) {
  make(req, rpc::Link{ino, parent, name});
}

void Storage::change(fuse_req_t req, const rpc::MetadataRequest& request) {
  auto reply = call(request, req);
  if (!reply) return reply_error(req, reply.error());
  fuse_reply_err(req, 0);
}

void Storage::readlink(fuse_req_t req, Ino ino) {
  auto reply = ask(rpc::Readlink{ino}, req);
  if (!reply) return reply_error(req, reply.error());
  if (reply->strings.empty()) return (void)fuse_reply_err(req, EPROTO);
  fuse_reply_readlink(req, reply->strings.front().c_str());
}

/// Entries after the cookie `after`, with attributes; an empty answer is the end. '.' and '..' are the module's.
void Storage::readdirplus(fuse_req_t req, Ino ino, std::size_t size, std::uint64_t after) {
  // A direntplus takes 152 bytes and its name: no more than these fit.
  const auto most = static_cast<std::uint32_t>(size / 152 + 1);
  auto reply = ask(rpc::ReadDirectory{ino, after, most, true}, req);
  if (!reply) return reply_error(req, reply.error());
  if (reply->attributes.size() != reply->entries.size()) return (void)fuse_reply_err(req, EPROTO);
  std::vector<char> buffer(size);
  std::size_t used = 0;
  for (std::size_t i = 0; i < reply->entries.size(); ++i) {
    const rpc::DirectoryEntry& from = reply->entries[i];
    fuse_entry_param entry{};
    entry.attr = to_stat(reply->attributes[i]);
    entry.ino = reply->attributes[i].ino;
    if (entry.ino == 0) {  // It went while the listing was made: the name alone.
      entry.attr.st_ino = from.ino;
      entry.attr.st_mode = from.type;
    } else {
      layouts_.note(reply->attributes[i]);
    }
    const std::size_t need =
        fuse_add_direntry_plus(req, buffer.data() + used, size - used, from.name.c_str(), &entry,
                               static_cast<off_t>(from.cookie));
    if (need > size - used) break;
    used += need;
  }
  fuse_reply_buf(req, buffer.data(), used);
}

}  // namespace distfuse::client::kernel
