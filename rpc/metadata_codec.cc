// SPDX-License-Identifier: Apache-2.0
// Both directions use one set of field checks: what encode accepts decode accepts, and the reverse.
#include "rpc/metadata_codec.h"

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/exception.h>
#include <kj/io.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "rpc/metadata.capnp.h"

namespace distfuse::rpc {
namespace {

/// The first check that failed; thrown nowhere, asked at the end of a coding.
class Checks {
 public:
  bool require(bool condition, const char* field, int code = EINVAL) {
    if (!condition && field_ == nullptr) {
      field_ = field;
      code_ = code;
    }
    return condition;
  }
  void ino(Ino value, const char* field) { require(value >= 1 && value <= kMaxIno, field); }
  void ino_or_none(Ino value, const char* field) { require(value <= kMaxIno, field); }
  void name(std::string_view value, const char* field) {
    require(value.size() <= kMaxName, field, ENAMETOOLONG);
    require(valid_name(value), field);
  }
  void xattr_name(std::string_view value) {
    require(value.size() <= kMaxName, "xattr name", ERANGE);
    require(valid_xattr_name(value), "xattr name");
  }
  [[nodiscard]] const char* failed() const { return field_; }
  [[nodiscard]] int code() const { return code_; }

 private:
  const char* field_ = nullptr;
  int code_ = 0;
};

bool file_type(std::uint32_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
    case S_IFLNK:
      return true;
    default:
      return false;
  }
}

// ---- the checks, one overload a type

void check(Checks& c, const Attributes& a) {
  c.ino_or_none(a.ino, "attributes.ino");
  c.require((a.mode & ~std::uint32_t{S_IFMT | 07777}) == 0, "attributes.mode");
  c.require(a.size <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}, "size", EFBIG);
  c.require(a.chunk_size != 0 && (a.chunk_size & (a.chunk_size - 1)) == 0 &&
                a.chunk_size <= kDefaultChunkSize,
            "attributes.chunk_size");
}
void check(Checks& c, const Lookup& r) {
  c.ino(r.parent, "parent");
  c.name(r.name, "name");
}
void check_inodes(Checks& c, const std::vector<Ino>& inodes) {
  c.require(inodes.size() <= kMaxInodesPerRequest, "inodes", E2BIG);
  for (Ino ino : inodes) c.ino(ino, "inodes");
}
void check(Checks& c, const GetAttributes& r) {
  check_inodes(c, r.inodes);
}
void check(Checks& c, const CloseFiles& r) {
  check_inodes(c, r.inodes);
}
void check(Checks& c, const SetAttributes& r) {
  c.ino(r.ino, "ino");
  c.require(r.fields < 2 * SetAttributes::kGrowOnly, "fields");
  check(c, r.values);
}
void check(Checks& c, const Create& r) {
  c.ino(r.parent, "parent");
  c.name(r.name, "name");
  c.require((r.mode & ~std::uint32_t{S_IFMT | 07777}) == 0 && file_type(r.mode) && !S_ISLNK(r.mode),
            "mode");
}
void check(Checks& c, const Symlink& r) {
  c.ino(r.parent, "parent");
  c.name(r.name, "name");
  c.require(r.target.size() <= kMaxSymlink, "target", ENAMETOOLONG);
  c.require(!r.target.empty() && r.target.find('\0') == std::string::npos, "target");
}
void check(Checks& c, const Readlink& r) {
  c.ino(r.ino, "ino");
}
void check(Checks& c, const Link& r) {
  c.ino(r.ino, "ino");
  c.ino(r.parent, "parent");
  c.name(r.name, "name");
}
void check(Checks& c, const Unlink& r) {
  c.ino(r.parent, "parent");
  c.name(r.name, "name");
  c.ino_or_none(r.expect_ino, "expect_ino");
}
void check(Checks& c, const Rmdir& r) {
  c.ino(r.parent, "parent");
  c.name(r.name, "name");
  c.ino_or_none(r.expect_ino, "expect_ino");
}
void check(Checks& c, const Rename& r) {
  c.ino(r.old_parent, "old_parent");
  c.name(r.old_name, "old_name");
  c.ino(r.new_parent, "new_parent");
  c.name(r.new_name, "new_name");
  c.require(r.flags < 3, "flags");  // not both
  c.ino_or_none(r.expect_source, "expect_source");
  c.ino_or_none(r.expect_replaced, "expect_replaced");
}
void check(Checks& c, const ReadDirectory& r) {
  c.ino(r.ino, "ino");
  c.require(r.max_entries >= 1 && r.max_entries <= kMaxEntriesPerReply, "max_entries");
}
void check(Checks& c, const OpenFile& r) {
  c.ino(r.ino, "ino");
}
void check(Checks& c, const GetXattr& r) {
  c.ino(r.ino, "ino");
  c.xattr_name(r.name);
}
void check(Checks& c, const SetXattr& r) {
  c.ino(r.ino, "ino");
  c.xattr_name(r.name);
  c.require(r.value.size() <= kMaxXattrValue, "xattr value", E2BIG);
  c.require(r.flags < 3, "flags");  // not both
}
void check(Checks& c, const ListXattr& r) {
  c.ino(r.ino, "ino");
}
void check(Checks& c, const RemoveXattr& r) {
  c.ino(r.ino, "ino");
  c.xattr_name(r.name);
}
void check(Checks&, const StatFilesystem&) {}
void check(Checks&, const SyncMetadata&) {}
void check(Checks& c, const FenceSession& r) {
  c.require(r.session != 0, "session");
}

void check(Checks& c, const RequestContext& r) {
  c.require(r.lowest_unanswered <= r.request_id, "lowest_unanswered");
}
void check(Checks& c, const MetadataReply& r) {
  c.require(r.error >= 0 && r.error < 4096, "error");
  c.require(r.attributes.size() <= std::max(kMaxInodesPerRequest, kMaxEntriesPerReply),
            "attributes", E2BIG);
  for (const Attributes& a : r.attributes) check(c, a);
  c.require(r.entries.size() <= kMaxEntriesPerReply, "entries", E2BIG);
  for (const DirectoryEntry& e : r.entries) {
    c.ino(e.ino, "entry.ino");
    c.require((e.type & ~std::uint32_t{S_IFMT}) == 0 && file_type(e.type), "entry.type");
    c.name(e.name, "entry.name");
  }
  c.require(r.strings.size() <= kMaxStringsPerReply, "strings", E2BIG);
  for (const std::string& s : r.strings) c.require(s.size() <= kMaxXattrValue, "string", E2BIG);
}

// ---- to the wire

capnp::Data::Reader data(const std::string& text) {
  return {reinterpret_cast<const kj::byte*>(text.data()), text.size()};
}

void put(schema::Attributes::Builder b, const Attributes& a) {
  b.setIno(a.ino);
  b.setMode(a.mode);
  b.setNlink(a.nlink);
  b.setUid(a.uid);
  b.setGid(a.gid);
  b.setRdev(a.rdev);
  b.setSize(a.size);
  b.setAtime(a.atime.ns);
  b.setMtime(a.mtime.ns);
  b.setCtime(a.ctime.ns);
  b.setBtime(a.btime.ns);
  b.setChunkSize(a.chunk_size);
  b.setFirstTarget(a.first_target);
  b.setNoXattrs(a.no_xattrs);
}

using Out = schema::Request::Builder;

void put(Out out, const Lookup& r) {
  auto b = out.initLookup();
  b.setParent(r.parent);
  b.setName(data(r.name));
}
void put_inodes(capnp::List<std::uint64_t>::Builder b, const std::vector<Ino>& inodes) {
  for (unsigned i = 0; i < inodes.size(); ++i) b.set(i, inodes[i]);
}
void put(Out out, const GetAttributes& r) {
  put_inodes(out.initGetAttributes().initInodes(static_cast<unsigned>(r.inodes.size())), r.inodes);
}
void put(Out out, const CloseFiles& r) {
  put_inodes(out.initCloseFiles().initInodes(static_cast<unsigned>(r.inodes.size())), r.inodes);
}
void put(Out out, const SetAttributes& r) {
  auto b = out.initSetAttributes();
  b.setIno(r.ino);
  b.setFields(r.fields);
  put(b.initValues(), r.values);
  b.setKillSetid(r.kill_setid);
}
void put(Out out, const Create& r) {
  auto b = out.initCreate();
  b.setParent(r.parent);
  b.setName(data(r.name));
  b.setMode(r.mode);
  b.setRdev(r.rdev);
  b.setOpen(r.open);
}
void put(Out out, const Symlink& r) {
  auto b = out.initSymlink();
  b.setParent(r.parent);
  b.setName(data(r.name));
  b.setTarget(data(r.target));
}
void put(Out out, const Readlink& r) {
  out.setReadlink(r.ino);
}
void put(Out out, const Link& r) {
  auto b = out.initLink();
  b.setIno(r.ino);
  b.setParent(r.parent);
  b.setName(data(r.name));
}
void put(Out out, const Unlink& r) {
  auto b = out.initUnlink();
  b.setParent(r.parent);
  b.setName(data(r.name));
  b.setExpectIno(r.expect_ino);
  b.setUnregisterOpen(r.unregister_open);
}
void put(Out out, const Rmdir& r) {
  auto b = out.initRmdir();
  b.setParent(r.parent);
  b.setName(data(r.name));
  b.setExpectIno(r.expect_ino);
}
void put(Out out, const Rename& r) {
  auto b = out.initRename();
  b.setOldParent(r.old_parent);
  b.setOldName(data(r.old_name));
  b.setNewParent(r.new_parent);
  b.setNewName(data(r.new_name));
  b.setFlags(r.flags);
  b.setExpectSource(r.expect_source);
  b.setExpectReplaced(r.expect_replaced);
  b.setCheckReplaced(r.check_replaced);
  b.setUnregisterReplaced(r.unregister_replaced);
}
void put(Out out, const ReadDirectory& r) {
  auto b = out.initReadDirectory();
  b.setIno(r.ino);
  b.setAfterCookie(r.after_cookie);
  b.setMaxEntries(r.max_entries);
  b.setAttributes(r.attributes);
}
void put(Out out, const OpenFile& r) {
  out.setOpenFile(r.ino);
}
void put(Out out, const GetXattr& r) {
  auto b = out.initGetXattr();
  b.setIno(r.ino);
  b.setName(data(r.name));
}
void put(Out out, const SetXattr& r) {
  auto b = out.initSetXattr();
  b.setIno(r.ino);
  b.setName(data(r.name));
  b.setValue(data(r.value));
  b.setFlags(r.flags);
}
void put(Out out, const ListXattr& r) {
  out.setListXattr(r.ino);
}
void put(Out out, const RemoveXattr& r) {
  auto b = out.initRemoveXattr();
  b.setIno(r.ino);
  b.setName(data(r.name));
}
void put(Out out, const StatFilesystem&) {
  out.setStatFilesystem();
}
void put(Out out, const SyncMetadata&) {
  out.setSyncMetadata();
}
void put(Out out, const FenceSession& r) {
  out.setFenceSession(r.session);
}

Result<Bytes> to_bytes(capnp::MessageBuilder& message, std::size_t limit) {
  const std::size_t size = capnp::computeSerializedSizeInWords(message) * sizeof(capnp::word);
  if (size > limit) return Error{E2BIG, "metadata message of " + std::to_string(size) + " bytes"};
  Bytes bytes(size);
  kj::ArrayOutputStream out({reinterpret_cast<kj::byte*>(bytes.data()), bytes.size()});
  capnp::writeMessage(out, message);
  return bytes;
}

Error bad_field(const Checks& checks) {
  return Error{checks.code(), std::string("field ") + checks.failed() + " is out of range"};
}

// ---- from the wire

std::string text(capnp::Data::Reader reader) {
  return {reinterpret_cast<const char*>(reader.begin()), reader.size()};
}

Attributes get(schema::Attributes::Reader b) {
  Attributes a;
  a.ino = b.getIno();
  a.mode = b.getMode();
  a.nlink = b.getNlink();
  a.uid = b.getUid();
  a.gid = b.getGid();
  a.rdev = b.getRdev();
  a.size = b.getSize();
  a.atime.ns = b.getAtime();
  a.mtime.ns = b.getMtime();
  a.ctime.ns = b.getCtime();
  a.btime.ns = b.getBtime();
  a.chunk_size = b.getChunkSize();
  a.first_target = b.getFirstTarget();
  a.no_xattrs = b.getNoXattrs();
  return a;
}

/// Counts are checked before memory is taken for them.
std::vector<Ino> get_inodes(Checks& c, capnp::List<std::uint64_t>::Reader list) {
  std::vector<Ino> inodes;
  if (!c.require(list.size() <= kMaxInodesPerRequest, "inodes")) return inodes;
  inodes.reserve(list.size());
  for (Ino ino : list) inodes.push_back(ino);
  return inodes;
}

MetadataRequest get_rename(schema::Rename::Reader b) {
  return Rename{.old_parent = b.getOldParent(),
                .old_name = text(b.getOldName()),
                .new_parent = b.getNewParent(),
                .new_name = text(b.getNewName()),
                .flags = b.getFlags(),
                .expect_source = b.getExpectSource(),
                .expect_replaced = b.getExpectReplaced(),
                .check_replaced = b.getCheckReplaced(),
                .unregister_replaced = b.getUnregisterReplaced()};
}

MetadataRequest get_request(Checks& c, schema::Request::Reader in) {
  using R = schema::Request;
  switch (in.which()) {
    case R::LOOKUP:
      return Lookup{in.getLookup().getParent(), text(in.getLookup().getName())};
    case R::GET_ATTRIBUTES:
      return GetAttributes{get_inodes(c, in.getGetAttributes().getInodes())};
    case R::SET_ATTRIBUTES: {
      auto b = in.getSetAttributes();
      return SetAttributes{b.getIno(), b.getFields(), get(b.getValues()), b.getKillSetid()};
    }
    case R::CREATE: {
      auto b = in.getCreate();
      return Create{b.getParent(), text(b.getName()), b.getMode(), b.getRdev(), b.getOpen()};
    }
    case R::SYMLINK: {
      auto b = in.getSymlink();
      return Symlink{b.getParent(), text(b.getName()), text(b.getTarget())};
    }
    case R::READLINK:
      return Readlink{in.getReadlink()};
    case R::LINK: {
      auto b = in.getLink();
      return Link{b.getIno(), b.getParent(), text(b.getName())};
    }
    case R::UNLINK: {
      auto b = in.getUnlink();
      return Unlink{b.getParent(), text(b.getName()), b.getExpectIno(), b.getUnregisterOpen()};
    }
    case R::RMDIR: {
      auto b = in.getRmdir();
      return Rmdir{b.getParent(), text(b.getName()), b.getExpectIno()};
    }
    case R::RENAME:
      return get_rename(in.getRename());
    case R::READ_DIRECTORY: {
      auto b = in.getReadDirectory();
      return ReadDirectory{b.getIno(), b.getAfterCookie(), b.getMaxEntries(), b.getAttributes()};
    }
    case R::OPEN_FILE:
      return OpenFile{in.getOpenFile()};
    case R::CLOSE_FILES:
      return CloseFiles{get_inodes(c, in.getCloseFiles().getInodes())};
    case R::GET_XATTR:
      return GetXattr{in.getGetXattr().getIno(), text(in.getGetXattr().getName())};
    case R::SET_XATTR: {
      auto b = in.getSetXattr();
      return SetXattr{b.getIno(), text(b.getName()), text(b.getValue()), b.getFlags()};
    }
    case R::LIST_XATTR:
      return ListXattr{in.getListXattr()};
    case R::REMOVE_XATTR:
      return RemoveXattr{in.getRemoveXattr().getIno(), text(in.getRemoveXattr().getName())};
    case R::STAT_FILESYSTEM:
      return StatFilesystem{};
    case R::SYNC_METADATA:
      return SyncMetadata{};
    case R::FENCE_SESSION:
      return FenceSession{in.getFenceSession()};
    case R::NONE:
      break;
  }
  c.require(false, "operation");  // none, or of a later version
  return StatFilesystem{};
}

MetadataReply get_reply(Checks& c, schema::Reply::Reader in) {
  MetadataReply reply;
  reply.error = in.getError();
  reply.end_of_directory = in.getEndOfDirectory();
  reply.inodes_used = in.getInodesUsed();
  auto attributes = in.getAttributes();
  auto entries = in.getEntries();
  auto strings = in.getStrings();
  if (!c.require(attributes.size() <= std::max(kMaxInodesPerRequest, kMaxEntriesPerReply),
                 "attributes") ||
      !c.require(entries.size() <= kMaxEntriesPerReply, "entries") ||
      !c.require(strings.size() <= kMaxStringsPerReply, "strings"))
    return reply;
  reply.attributes.reserve(attributes.size());
  for (auto a : attributes) reply.attributes.push_back(get(a));
  reply.entries.reserve(entries.size());
  for (auto e : entries)
    reply.entries.push_back({e.getCookie(), e.getIno(), e.getType(), text(e.getName())});
  reply.strings.reserve(strings.size());
  for (auto s : strings) reply.strings.push_back(text(s));
  return reply;
}

/// Runs `read(reader)` on the message; Cap'n Proto's complaints become EPROTO.
template <typename Schema, typename T, typename Read>
Result<T> from_bytes(std::span<const std::byte> bytes, std::size_t limit, Read read) {
  if (bytes.size() > limit || bytes.size() % sizeof(capnp::word) != 0 || bytes.empty())
    return Error{EPROTO, "metadata message of " + std::to_string(bytes.size()) + " bytes"};
  kj::Array<capnp::word> aligned;
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(capnp::word) != 0) {
    aligned = kj::heapArray<capnp::word>(bytes.size() / sizeof(capnp::word));
    std::memcpy(aligned.begin(), bytes.data(), bytes.size());
  }
  const auto* words =
      aligned.size() != 0 ? aligned.begin() : reinterpret_cast<const capnp::word*>(bytes.data());
  // An honest message is read once; twice its size leaves room for pointers and far jumps. Depth: list, struct, data.
  capnp::ReaderOptions options;
  options.traversalLimitInWords = 2 * bytes.size() / sizeof(capnp::word) + 64;
  options.nestingLimit = 8;
  try {
    capnp::FlatArrayMessageReader message({words, bytes.size() / sizeof(capnp::word)}, options);
    Checks checks;
    T value = read(checks, message.getRoot<Schema>());
    if (checks.failed() != nullptr) return Error{EPROTO, bad_field(checks).message};
    return value;
  } catch (const kj::Exception& e) {
    return Error{EPROTO, std::string("not a metadata message: ") + e.getDescription().cStr()};
  }
}

}  // namespace

bool valid_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxName && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool valid_xattr_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxName && name.find('\0') == std::string_view::npos;
}

Result<Bytes> encode_request(const RequestContext& context, const MetadataRequest& request) {
  Checks checks;
  check(checks, context);
  std::visit([&](const auto& r) { check(checks, r); }, request);
  if (checks.failed() != nullptr) return bad_field(checks);
  capnp::word scratch[128] = {};  // most requests fit: no allocation but the result
  capnp::MallocMessageBuilder message(kj::arrayPtr(scratch, 128));
  auto out = message.initRoot<schema::Request>();
  out.setSession(context.session);
  out.setRequestId(context.request_id);
  out.setLowestUnanswered(context.lowest_unanswered);
  out.setUid(context.uid);
  out.setGid(context.gid);
  std::visit([&](const auto& r) { put(out, r); }, request);
  return to_bytes(message, kMaxMetadataRequest);
}

Result<Bytes> encode_reply(const MetadataReply& reply) {
  Checks checks;
  check(checks, reply);
  if (checks.failed() != nullptr) return bad_field(checks);
  capnp::word scratch[128] = {};
  capnp::MallocMessageBuilder message(kj::arrayPtr(scratch, 128));
  auto out = message.initRoot<schema::Reply>();
  out.setError(reply.error);
  out.setEndOfDirectory(reply.end_of_directory);
  out.setInodesUsed(reply.inodes_used);
  if (!reply.attributes.empty()) {
    auto list = out.initAttributes(static_cast<unsigned>(reply.attributes.size()));
    for (unsigned i = 0; i < list.size(); ++i) put(list[i], reply.attributes[i]);
  }
  if (!reply.entries.empty()) {
    auto list = out.initEntries(static_cast<unsigned>(reply.entries.size()));
    for (unsigned i = 0; i < list.size(); ++i) {
      const DirectoryEntry& e = reply.entries[i];
      list[i].setCookie(e.cookie);
      list[i].setIno(e.ino);
      list[i].setType(e.type);
      list[i].setName(data(e.name));
    }
  }
  if (!reply.strings.empty()) {
    auto list = out.initStrings(static_cast<unsigned>(reply.strings.size()));
    for (unsigned i = 0; i < list.size(); ++i) list.set(i, data(reply.strings[i]));
  }
  return to_bytes(message, kMaxMetadataReply);
}

Result<std::pair<RequestContext, MetadataRequest>> decode_request(
    std::span<const std::byte> bytes) {
  using Pair = std::pair<RequestContext, MetadataRequest>;
  return from_bytes<schema::Request, Pair>(
      bytes, kMaxMetadataRequest, [](Checks& c, schema::Request::Reader in) {
        Pair result{{.session = in.getSession(),
                     .request_id = in.getRequestId(),
                     .lowest_unanswered = in.getLowestUnanswered(),
                     .uid = in.getUid(),
                     .gid = in.getGid()},
                    get_request(c, in)};
        check(c, result.first);
        if (c.failed() == nullptr) std::visit([&](const auto& r) { check(c, r); }, result.second);
        return result;
      });
}

Result<MetadataReply> decode_reply(std::span<const std::byte> bytes) {
  return from_bytes<schema::Reply, MetadataReply>(bytes, kMaxMetadataReply,
                                                  [](Checks& c, schema::Reply::Reader in) {
                                                    MetadataReply reply = get_reply(c, in);
                                                    if (c.failed() == nullptr) check(c, reply);
                                                    return reply;
                                                  });
}

}  // namespace distfuse::rpc
