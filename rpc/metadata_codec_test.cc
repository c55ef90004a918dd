// SPDX-License-Identifier: Apache-2.0
#include "rpc/metadata_codec.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>

#include "rpc/random_metadata.h"

namespace distfuse::rpc::test {
namespace {

std::mt19937_64 seeded() {
  const char* text = getenv("DISTFUSE_SEED");
  const std::uint64_t seed =
      text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device()();
  std::printf("DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return std::mt19937_64(seed);
}

/// Field by field, with nothing of the codec in it.
struct Fields {
  std::string text;
  void add(std::uint64_t v) { text += std::to_string(v) + ";"; }
  void add(const std::string& s) { text += std::to_string(s.size()) + ":" + s + ";"; }
  void add(const Attributes& a) {
    for (std::uint64_t v :
         {a.ino, std::uint64_t{a.mode}, std::uint64_t{a.nlink}, std::uint64_t{a.uid},
          std::uint64_t{a.gid}, a.rdev, a.size, static_cast<std::uint64_t>(a.atime.ns),
          static_cast<std::uint64_t>(a.mtime.ns), static_cast<std::uint64_t>(a.ctime.ns),
          static_cast<std::uint64_t>(a.btime.ns), std::uint64_t{a.chunk_size},
          std::uint64_t{a.first_target}, std::uint64_t{a.no_xattrs}})
      add(v);
  }
  void operator()(const Lookup& r) {
    add(r.parent);
    add(r.name);
  }
  void operator()(const GetAttributes& r) {
    for (Ino i : r.inodes) add(i);
  }
  void operator()(const SetAttributes& r) {
    add(r.ino);
    add(r.fields);
    add(r.values);
    add(r.kill_setid);
  }
  void operator()(const Create& r) {
    add(r.parent);
    add(r.name);
    add(r.mode);
    add(r.rdev);
    add(r.open);
  }
  void operator()(const Symlink& r) {
    add(r.parent);
    add(r.name);
    add(r.target);
  }
  void operator()(const Readlink& r) { add(r.ino); }
  void operator()(const Link& r) {
    add(r.ino);
    add(r.parent);
    add(r.name);
  }
  void operator()(const Unlink& r) {
    add(r.parent);
    add(r.name);
    add(r.expect_ino);
    add(r.unregister_open);
  }
  void operator()(const Rmdir& r) {
    add(r.parent);
    add(r.name);
    add(r.expect_ino);
  }
  void operator()(const Rename& r) {
    add(r.old_parent);
    add(r.old_name);
    add(r.new_parent);
    add(r.new_name);
    add(r.flags);
    add(r.expect_source);
    add(r.expect_replaced);
    add(r.check_replaced);
    add(r.unregister_replaced);
  }
  void operator()(const ReadDirectory& r) {
    add(r.ino);
    add(r.after_cookie);
    add(r.max_entries);
    add(r.attributes);
  }
  void operator()(const OpenFile& r) { add(r.ino); }
  void operator()(const CloseFiles& r) {
    for (Ino i : r.inodes) add(i);
  }
  void operator()(const GetXattr& r) {
    add(r.ino);
    add(r.name);
  }
  void operator()(const SetXattr& r) {
    add(r.ino);
    add(r.name);
    add(r.value);
    add(r.flags);
  }
  void operator()(const ListXattr& r) { add(r.ino); }
  void operator()(const RemoveXattr& r) {
    add(r.ino);
    add(r.name);
  }
  void operator()(const StatFilesystem&) {}
  void operator()(const SyncMetadata&) {}
  void operator()(const FenceSession& r) { add(r.session); }
  void operator()(const RequestContext& c) {
    add(c.session);
    add(c.request_id);
    add(c.lowest_unanswered);
    add(c.uid);
    add(c.gid);
  }
  void operator()(const MetadataReply& r) {
    add(static_cast<std::uint64_t>(r.error));
    for (const auto& a : r.attributes) add(a);
    for (const auto& e : r.entries) {
      add(e.cookie);
      add(e.ino);
      add(e.type);
      add(e.name);
    }
    for (const auto& s : r.strings) add(s);
    add(r.end_of_directory);
    add(r.inodes_used);
  }
};
std::string fields(const RequestContext& context, const MetadataRequest& request) {
  Fields f;
  f(context);
  f.add(request.index());
  std::visit(f, request);
  return f.text;
}

TEST(MetadataCodec, RequestsComeBackAsTheyWere) {
  auto random = seeded();
  for (std::size_t i = 0; i < 4000; ++i) {
    const auto context = random_context(random);
    const auto request = random_request(random, i);
    auto bytes = encode_request(context, request);
    ASSERT_TRUE(bytes.ok()) << bytes.error().message;
    ASSERT_LE(bytes->size(), kMaxMetadataRequest);
    auto back = decode_request(*bytes);
    ASSERT_TRUE(back.ok()) << back.error().message;
    ASSERT_EQ(fields(back->first, back->second), fields(context, request));
  }
}

TEST(MetadataCodec, RepliesComeBackAsTheyWere) {
  auto random = seeded();
  for (int i = 0; i < 500; ++i) {
    const auto reply = random_reply(random);
    auto bytes = encode_reply(reply);
    ASSERT_TRUE(bytes.ok()) << bytes.error().message;
    auto back = decode_reply(*bytes);
    ASSERT_TRUE(back.ok()) << back.error().message;
    Fields before, after;
    before(reply);
    after(*back);
    ASSERT_EQ(before.text, after.text);
  }
}

TEST(MetadataCodec, TheLargestMessagesFit) {
  MetadataReply reply;
  for (std::uint64_t i = 1; i <= kMaxEntriesPerReply; ++i) {
    reply.attributes.emplace_back();
    reply.entries.push_back({i, i, S_IFREG, std::string(kMaxName, 'n')});
  }
  EXPECT_TRUE(encode_reply(reply).ok());
  EXPECT_TRUE(encode_request(
                  {}, SetXattr{1, std::string(kMaxName, 'n'), std::string(kMaxXattrValue, 'v'), 0})
                  .ok());
  EXPECT_TRUE(encode_request({}, GetAttributes{std::vector<Ino>(kMaxInodesPerRequest, 1)}).ok());
}

TEST(MetadataCodec, EveryFieldIsChecked) {
  const auto code = [](const MetadataRequest& request) {
    auto bytes = encode_request({}, request);
    return bytes ? 0 : bytes.error().code;
  };
  for (const char* name : {"", ".", "..", "a/b", "/"})
    EXPECT_EQ(code(Lookup{1, name}), EINVAL) << name;
  EXPECT_EQ(code(Lookup{1, std::string("a\0b", 3)}), EINVAL);
  EXPECT_EQ(code(Lookup{1, std::string(256, 'n')}), ENAMETOOLONG);
  EXPECT_EQ(code(Lookup{0, "n"}), EINVAL);
  EXPECT_EQ(code(Lookup{kMaxIno + 1, "n"}), EINVAL);
  EXPECT_EQ(code(Lookup{kMaxIno, "n"}), 0);
  EXPECT_EQ(code(GetAttributes{std::vector<Ino>(1025, 1)}), E2BIG);
  EXPECT_EQ(code(SetXattr{1, "n", std::string(65537, 'v'), 0}), E2BIG);
  EXPECT_EQ(code(SetXattr{1, "n", "v", 3}), EINVAL);
  EXPECT_EQ(code(Create{1, "n", 0644}), EINVAL);
  EXPECT_EQ(code(Create{1, "n", S_IFLNK | 0777}), EINVAL);
  EXPECT_EQ(code(Symlink{1, "n", ""}), EINVAL);
  EXPECT_EQ(code(Symlink{1, "n", std::string(4096, 't')}), ENAMETOOLONG);
  EXPECT_EQ(code(Rename{1, "a", 1, "b", 3, 0, 0}), EINVAL);
  EXPECT_EQ(code(ReadDirectory{1, 0, 0, false}), EINVAL);
  EXPECT_EQ(code(ReadDirectory{1, 0, 1025, false}), EINVAL);
}

/// Flipped, cut and random bytes: an error or a valid message, never more (run under the sanitizers too).
TEST(MetadataCodec, DamageIsNoticedOrHarmless) {
  auto random = seeded();
  std::size_t refused = 0;
  for (std::size_t i = 0; i < 20000; ++i) {
    auto bytes =
        *encode_request(random_context(random), random_request(random, i % 10 == 0 ? 1 : i));
    for (std::uint64_t flips = 1 + random() % 4; flips > 0; --flips)
      bytes[random() % std::min<std::size_t>(bytes.size(), 160)] ^=
          static_cast<std::byte>(1U << random() % 8);
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    auto back = decode_request(bytes);
    if (!back) {
      EXPECT_EQ(back.error().code, EPROTO);
      ++refused;
    } else {
      EXPECT_TRUE(encode_request(back->first, back->second).ok());
    }
    (void)decode_reply(bytes).ok();
  }
  EXPECT_GT(refused, 2000U);
}

TEST(MetadataCodec, UnalignedBytesAreRead) {
  auto bytes = *encode_request({}, Lookup{7, "name"});
  Bytes shifted(1);
  shifted.insert(shifted.end(), bytes.begin(), bytes.end());
  auto back = decode_request(std::span(shifted).subspan(1));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(std::get<Lookup>(back->second).name, "name");
}

}  // namespace
}  // namespace distfuse::rpc::test
