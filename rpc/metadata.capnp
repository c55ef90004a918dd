# SPDX-License-Identifier: Apache-2.0
# The wire form of rpc/metadata.h. A change that an older peer cannot read raises kProtocolVersion (rpc/wire.h).
@0xd1b6a7c0f3e24a55;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("distfuse::rpc::schema");

struct Attributes {
  ino @0 :UInt64;
  mode @1 :UInt32;
  nlink @2 :UInt32;
  uid @3 :UInt32;
  gid @4 :UInt32;
  rdev @5 :UInt64;
  size @6 :UInt64;
  atime @7 :Int64;
  mtime @8 :Int64;
  ctime @9 :Int64;
  btime @10 :Int64;
  chunkSize @11 :UInt32;
  firstTarget @12 :UInt32;
  noXattrs @13 :Bool;
}

struct Lookup { parent @0 :UInt64; name @1 :Data; }
struct GetAttributes { inodes @0 :List(UInt64); }
struct SetAttributes { ino @0 :UInt64; fields @1 :UInt32; values @2 :Attributes; killSetid @3 :Bool; }
struct Create { parent @0 :UInt64; name @1 :Data; mode @2 :UInt32; rdev @3 :UInt64; open @4 :Bool; }
struct Symlink { parent @0 :UInt64; name @1 :Data; target @2 :Data; }
struct Link { ino @0 :UInt64; parent @1 :UInt64; name @2 :Data; }
struct Unlink { parent @0 :UInt64; name @1 :Data; expectIno @2 :UInt64; unregisterOpen @3 :Bool; }
struct Rename {
  oldParent @0 :UInt64;
  oldName @1 :Data;
  newParent @2 :UInt64;
  newName @3 :Data;
  flags @4 :UInt32;
  expectSource @5 :UInt64;
  expectReplaced @6 :UInt64;
  checkReplaced @7 :Bool;
  unregisterReplaced @8 :Bool;
}
struct ReadDirectory { ino @0 :UInt64; afterCookie @1 :UInt64; maxEntries @2 :UInt32; attributes @3 :Bool; }
struct Xattr { ino @0 :UInt64; name @1 :Data; value @2 :Data; flags @3 :UInt32; }

struct Request {
  session @0 :UInt64;
  requestId @1 :UInt64;
  lowestUnanswered @2 :UInt64;
  uid @3 :UInt32;
  gid @4 :UInt32;
  union {
    none @5 :Void;
    lookup @6 :Lookup;
    getAttributes @7 :GetAttributes;
    setAttributes @8 :SetAttributes;
    create @9 :Create;
    symlink @10 :Symlink;
    readlink @11 :UInt64;
    link @12 :Link;
    unlink @13 :Unlink;
    rmdir @14 :Unlink;
    rename @15 :Rename;
    readDirectory @16 :ReadDirectory;
    openFile @17 :UInt64;
    closeFiles @18 :GetAttributes;
    getXattr @19 :Xattr;
    setXattr @20 :Xattr;
    listXattr @21 :UInt64;
    removeXattr @22 :Xattr;
    statFilesystem @23 :Void;
    syncMetadata @24 :Void;
    fenceSession @25 :UInt64;
  }
}

struct Entry { cookie @0 :UInt64; ino @1 :UInt64; type @2 :UInt32; name @3 :Data; }

struct Reply {
  error @0 :Int32;
  attributes @1 :List(Attributes);
  entries @2 :List(Entry);
  endOfDirectory @3 :Bool;
  strings @4 :List(Data);
  inodesUsed @5 :UInt64;
}
