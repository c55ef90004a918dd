// SPDX-License-Identifier: Apache-2.0
#include "rpc/random_metadata.h"

#include <sys/stat.h>

#include "rpc/metadata_codec.h"

namespace distfuse::rpc::test {
namespace {

using Random = std::mt19937_64;

std::uint64_t below(Random& random, std::uint64_t limit) {
  return random() % limit;
}
Ino ino(Random& random) {
  return 1 + below(random, kMaxIno);
}
std::uint32_t u32(Random& random) {
  return static_cast<std::uint32_t>(random());
}
bool flip(Random& random) {
  return random() % 2 == 0;
}

/// Any bytes but those that a name must not have; short and longest ones often.
std::string name(Random& random) {
  static constexpr std::size_t kLengths[] = {1, 2, 7, 8, 254, 255};
  const std::size_t length =
      flip(random) ? kLengths[below(random, 6)] : 1 + below(random, kMaxName);
  std::string text(length, 'x');
  for (char& c : text) {
    do c = static_cast<char>(random());
    while (c == '/' || c == '\0' || c == '.');
  }
  return text;
}
std::string blob(Random& random, std::size_t limit) {
  std::string text(below(random, limit + 1), '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

Attributes attributes(Random& random) {
  Attributes a;
  a.ino = below(random, kMaxIno + 1);
  a.mode = u32(random) & (S_IFMT | 07777);
  a.nlink = u32(random);
  a.uid = u32(random);
  a.gid = u32(random);
  a.rdev = random();
  a.size = random() >> 1;
  a.atime.ns = static_cast<std::int64_t>(random());
  a.mtime.ns = static_cast<std::int64_t>(random());
  a.ctime.ns = static_cast<std::int64_t>(random());
  a.btime.ns = static_cast<std::int64_t>(random());
  a.chunk_size = 1U << below(random, 23);
  a.first_target = u32(random);
  a.no_xattrs = below(random, 2) == 1;
  return a;
}
std::vector<Ino> inodes(Random& random) {
  std::vector<Ino> list(below(random, 8) == 0 ? kMaxInodesPerRequest : below(random, 20));
  for (Ino& i : list) i = ino(random);
  return list;
}

template <std::size_t I = 0>
MetadataRequest make(Random& r, std::size_t kind);

Lookup one(Random& r, Lookup*) {
  return {ino(r), name(r)};
}
GetAttributes one(Random& r, GetAttributes*) {
  return {inodes(r)};
}
SetAttributes one(Random& r, SetAttributes*) {
  return {ino(r), u32(r) % 1024, attributes(r), flip(r)};
}
Create one(Random& r, Create*) {
  static constexpr std::uint32_t kTypes[] = {S_IFREG, S_IFDIR, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK};
  return {ino(r), name(r), kTypes[below(r, 6)] | (u32(r) & 07777), r(), flip(r)};
}
Symlink one(Random& r, Symlink*) {
  return {ino(r), name(r), std::string(1 + below(r, kMaxSymlink), 't')};
}
Readlink one(Random& r, Readlink*) {
  return {ino(r)};
}
Link one(Random& r, Link*) {
  return {ino(r), ino(r), name(r)};
}
Unlink one(Random& r, Unlink*) {
  return {ino(r), name(r), below(r, kMaxIno + 1), flip(r)};
}
Rmdir one(Random& r, Rmdir*) {
  return {ino(r), name(r), below(r, kMaxIno + 1)};
}
Rename one(Random& r, Rename*) {
  return {
      ino(r),  name(r), ino(r), name(r), u32(r) % 3, below(r, kMaxIno + 1), below(r, kMaxIno + 1),
      flip(r), flip(r)};
}
ReadDirectory one(Random& r, ReadDirectory*) {
  return {ino(r), r(), 1 + u32(r) % static_cast<std::uint32_t>(kMaxEntriesPerReply), flip(r)};
}
OpenFile one(Random& r, OpenFile*) {
  return {ino(r)};
}
CloseFiles one(Random& r, CloseFiles*) {
  return {inodes(r)};
}
GetXattr one(Random& r, GetXattr*) {
  return {ino(r), name(r)};
}
SetXattr one(Random& r, SetXattr*) {
  return {ino(r), name(r), blob(r, kMaxXattrValue), u32(r) % 3};
}
ListXattr one(Random& r, ListXattr*) {
  return {ino(r)};
}
RemoveXattr one(Random& r, RemoveXattr*) {
  return {ino(r), name(r)};
}
StatFilesystem one(Random&, StatFilesystem*) {
  return {};
}
SyncMetadata one(Random&, SyncMetadata*) {
  return {};
}
FenceSession one(Random& r, FenceSession*) {
  return {1 + r() / 2};
}

template <std::size_t I>
MetadataRequest make(Random& r, std::size_t kind) {
  if constexpr (I < std::variant_size_v<MetadataRequest>) {
    if (kind == I)
      return one(r, static_cast<std::variant_alternative_t<I, MetadataRequest>*>(nullptr));
    return make<I + 1>(r, kind);
  } else {
    return StatFilesystem{};
  }
}

}  // namespace

RequestContext random_context(Random& random) {
  RequestContext c;
  c.session = random();
  c.request_id = random();
  c.lowest_unanswered = c.request_id == 0 ? 0 : random() % c.request_id;
  c.uid = u32(random);
  c.gid = u32(random);
  return c;
}

MetadataRequest random_request(Random& random, std::size_t kind) {
  return make<0>(random, kind % std::variant_size_v<MetadataRequest>);
}

MetadataReply random_reply(Random& random) {
  MetadataReply reply;
  reply.error = static_cast<std::int32_t>(below(random, 4096));
  const bool full = below(random, 10) == 0;
  for (std::uint64_t i = full ? kMaxEntriesPerReply : below(random, 5); i > 0; --i)
    reply.attributes.push_back(attributes(random));
  for (std::uint64_t i = full ? kMaxEntriesPerReply : below(random, 5); i > 0; --i)
    reply.entries.push_back({random(), ino(random), S_IFLNK, name(random)});
  for (std::uint64_t i = below(random, 5); i > 0; --i) reply.strings.push_back(blob(random, 4096));
  reply.end_of_directory = flip(random);
  reply.inodes_used = random();
  return reply;
}

}  // namespace distfuse::rpc::test
