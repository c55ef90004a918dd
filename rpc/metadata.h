// SPDX-License-Identifier: Apache-2.0
// The metadata operations as plain structs: what a client asks the meta target and what it gets back. The wire form is
// Cap'n Proto (rpc/metadata.capnp, rpc/metadata_codec.h); the store (storaged/meta/metadata_store.h) and the client see
// only these.
//
// Every request travels with a RequestContext; a request that changes something is run at most once per (session,
// request id), however often it is sent. Errors are errno values. Names are 1 to 255 bytes without '/' and NUL.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace distfuse::rpc {

using Ino = std::uint64_t;  ///< 40 bits; 0: none, 1: the root.
using SessionId = std::uint64_t;

inline constexpr Ino kRootIno = 1;
inline constexpr std::uint32_t kDefaultChunkSize = 4U << 20;

struct RequestContext {
  SessionId session = 0;
  std::uint64_t request_id = 0;         ///< Counts up within the session; the same in a retry.
  std::uint64_t lowest_unanswered = 0;  ///< Reply records of this session below it may be dropped.
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
};

struct Timestamp {  ///< Nanoseconds since 1970, UTC.
  std::int64_t ns = 0;
  bool operator==(const Timestamp&) const = default;
};

struct Attributes {
  Ino ino = 0;
  std::uint32_t mode = 0;  ///< Type and permission bits, as st_mode.
  std::uint32_t nlink = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t rdev = 0;
  std::uint64_t size = 0;
  Timestamp atime, mtime, ctime, btime;
  std::uint32_t chunk_size = kDefaultChunkSize;
  std::uint32_t first_target = 0;  ///< Chunk c is on target (first_target + c) mod targets.
  bool no_xattrs =
      false;  ///< The inode has no extended attribute. False in an answer: it may have some. Not of requests.
  bool operator==(const Attributes&) const = default;
};

struct DirectoryEntry {
  std::uint64_t cookie = 0;  ///< Stable for the life of the entry; 0 is before the first.
  Ino ino = 0;
  std::uint32_t type = 0;  ///< S_IFMT bits.
  std::string name;
};

// ---- requests; `expect_*`: the inode the client believes the name to be (its lock is held); if the name is now another
// inode, or none, the answer is ESTALE and the client looks again. 0: not checked.

struct Lookup {
  Ino parent;
  std::string name;
};
struct GetAttributes {
  std::vector<Ino> inodes;
};  ///< ≤ 1024; one Attributes each, ino 0 where there is none.
struct SetAttributes {
  enum Field : std::uint32_t {
    kMode = 1,
    kUid = 2,
    kGid = 4,
    kSize = 8,
    kAtime = 16,
    kMtime = 32,
    kCtime = 64,
    kAtimeNow = 128,
    kMtimeNow = 256,
    kGrowOnly = 512
  };
  Ino ino;
  std::uint32_t fields;     ///< kGrowOnly: kSize only raises the size.
  Attributes values;        ///< ctime is the server's clock unless kCtime.
  bool kill_setid = false;  ///< Clear set-user-id, and set-group-id where group-executable.
};
struct Create {  ///< Regular files, directories, devices, fifos, sockets, by `mode`.
  Ino parent;
  std::string name;
  std::uint32_t mode;  ///< Umask applied already.
  std::uint64_t rdev = 0;
  bool open = false;  ///< Registers the new file as open by the session.
};
struct Symlink {
  Ino parent;
  std::string name;
  std::string target;
};
struct Readlink {
  Ino ino;
};
struct Link {
  Ino ino;
  Ino parent;
  std::string name;
};
struct Unlink {
  Ino parent;
  std::string name;
  Ino expect_ino;
  bool unregister_open = false;
};
struct Rmdir {
  Ino parent;
  std::string name;
  Ino expect_ino;
};
struct Rename {
  enum Flag : std::uint32_t { kNoReplace = 1, kExchange = 2 };
  Ino old_parent;
  std::string old_name;
  Ino new_parent;
  std::string new_name;
  std::uint32_t flags;
  Ino expect_source;
  Ino expect_replaced;  ///< 0 with check_replaced: must not exist.
  bool check_replaced = false;
  bool unregister_replaced = false;
};
struct ReadDirectory {
  Ino ino;
  std::uint64_t after_cookie;
  std::uint32_t max_entries;
  bool attributes;
};
struct OpenFile {
  Ino ino;
};  ///< Registers; answers with fresh attributes.
struct CloseFiles {
  std::vector<Ino> inodes;
};  ///< Unregisters; purges what nobody has open and no name leads to.
struct GetXattr {
  Ino ino;
  std::string name;
};
struct SetXattr {
  enum Flag : std::uint32_t { kCreate = 1, kReplace = 2 };
  Ino ino;
  std::string name;
  std::string value;
  std::uint32_t flags;
};
struct ListXattr {
  Ino ino;
};
struct RemoveXattr {
  Ino ino;
  std::string name;
};
struct StatFilesystem {};
struct SyncMetadata {};  ///< Everything answered before it is durable when it is answered.
// From lockd only:
struct FenceSession {
  SessionId session;
};  ///< From the answer on nothing of that session is accepted; its opens are gone.

using MetadataRequest =
    std::variant<Lookup, GetAttributes, SetAttributes, Create, Symlink, Readlink, Link, Unlink,
                 Rmdir, Rename, ReadDirectory, OpenFile, CloseFiles, GetXattr, SetXattr, ListXattr,
                 RemoveXattr, StatFilesystem, SyncMetadata, FenceSession>;

/// One shape for all answers; which members are set is said by the request.
struct MetadataReply {
  std::int32_t error = 0;  ///< errno, 0: success.
  std::vector<Attributes>
      attributes;  ///< Lookup, Create, Symlink, Link, SetAttributes, OpenFile: of the inode; Unlink, Rmdir,
  ///< Rename: of the inode removed or replaced, if any, after the operation (nlink 0 when
  ///< it has no name left); GetAttributes, ReadDirectory: one per inode or entry.
  std::vector<DirectoryEntry> entries;  ///< ReadDirectory ('.' and '..' are the client's business).
  bool end_of_directory = false;
  std::vector<std::string> strings;  ///< Readlink: target; GetXattr: value; ListXattr: names.
  std::uint64_t inodes_used = 0;     ///< StatFilesystem.
  std::uint64_t boot =
      0;  ///< Of the machine that answered; not in the message: filled in by Client.
};

}  // namespace distfuse::rpc
