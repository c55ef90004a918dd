// SPDX-License-Identifier: Apache-2.0
// Hostile requests: the fuzzer's bytes become contexts and requests of every kind, with any name, inode, flag and size, over a
// store on tmpfs. After each input the tree must still be a tree, and the store must open again now and then.
#include <fuzzer/FuzzedDataProvider.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "storaged/meta/rocksdb_metadata_store.h"

namespace distfuse::storaged {
namespace {

class Target {
 public:
  Target() {
    spdlog::set_level(spdlog::level::off);
    std::string name = "/dev/shm/distfuse_fuzz_XXXXXX";
    if (mkdtemp(name.data()) == nullptr) std::abort();
    root_ = name;
    renew();
  }
  ~Target() {
    store_.reset();
    std::filesystem::remove_all(root_);
  }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  void run(FuzzedDataProvider& data) {
    for (int i = 0; i < 64 && data.remaining_bytes() > 0; ++i) {
      const rpc::RequestContext context{
          .session = data.ConsumeIntegralInRange<std::uint64_t>(0, 3),
          .request_id = data.ConsumeBool() ? ++id_ : data.ConsumeIntegral<std::uint64_t>() % 512,
          .lowest_unanswered = data.ConsumeIntegralInRange<std::uint64_t>(0, 64),
          .uid = 1,
          .gid = 1};
      const auto request = next(data);
      if (data.ConsumeIntegralInRange<int>(0, 15) == 0 &&
          !store_->reap_orphans(data.ConsumeBool()).ok())
        fail("an input made the store unreadable");
      const auto reply = store_->execute(context, request);
      if (reply.error == EIO) fail("an input made the store unreadable");
    }
    check_tree();
    ++inputs_;
    if (inputs_ % 4096 == 0)
      renew();
    else if (inputs_ % 512 == 0)
      reopen();
  }

 private:
  [[noreturn]] static void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  }

  void reopen() {
    store_.reset();
    RocksdbMetadataOptions options;
    options.directory = root_ + "/store";
    options.cluster_id = std::string(32, '0');
    options.cache_bytes = options.write_buffer_bytes = 1 << 20;
    options.orphan_grace = std::chrono::microseconds(50);
    options.max_links = 8;
    options.ino_block = 256;
    options.max_replies_per_session = 256;
    auto opened = open_rocksdb_metadata_store(options);
    if (!opened.ok()) fail(opened.error().message.c_str());
    store_ = std::move(*opened);
  }

  void renew() {
    store_.reset();
    std::filesystem::remove_all(root_ + "/store");
    id_ = 0;
    reopen();
  }

  static rpc::Ino ino(FuzzedDataProvider& data) {
    return data.ConsumeBool() ? data.ConsumeIntegralInRange<rpc::Ino>(0, 32)
                              : data.ConsumeIntegral<rpc::Ino>();
  }
  static std::string text(FuzzedDataProvider& data) {
    if (data.ConsumeBool())
      return std::string(1, static_cast<char>('a' + data.ConsumeIntegralInRange(0, 5)));
    return data.ConsumeRandomLengthString(300);
  }
  static std::uint32_t word(FuzzedDataProvider& data) {
    return data.ConsumeIntegral<std::uint32_t>();
  }
  static std::string xattr(FuzzedDataProvider& data) {
    return (data.ConsumeBool() ? "user." : "") + text(data);
  }

  static rpc::MetadataRequest next(FuzzedDataProvider& data) {
    switch (data.ConsumeIntegralInRange(0, 19)) {
      case 0:
        return rpc::Lookup{ino(data), text(data)};
      case 1:
        return rpc::GetAttributes{
            std::vector<rpc::Ino>(data.ConsumeIntegralInRange<std::size_t>(0, 1100), ino(data))};
      case 2:
        return set_attributes(data);
      case 3:
        return rpc::Symlink{ino(data), text(data), data.ConsumeRandomLengthString(5000)};
      case 4:
        return rpc::Readlink{ino(data)};
      case 5:
        return rpc::Link{ino(data), ino(data), text(data)};
      case 6:
        return rpc::Unlink{ino(data), text(data), data.ConsumeBool() ? ino(data) : 0,
                           data.ConsumeBool()};
      case 7:
        return rpc::Rmdir{ino(data), text(data), data.ConsumeBool() ? ino(data) : 0};
      case 8:
      case 9:
        return rename(data);
      case 10:
        return rpc::ReadDirectory{ino(data), data.ConsumeIntegral<std::uint64_t>(), word(data),
                                  data.ConsumeBool()};
      case 11:
        return rpc::OpenFile{ino(data)};
      case 12:
        return rpc::CloseFiles{{ino(data), ino(data)}};
      case 13:
        return rpc::GetXattr{ino(data), xattr(data)};
      case 14:
        return rpc::SetXattr{ino(data), xattr(data), data.ConsumeRandomLengthString(100),
                             word(data) % 5};
      case 15:
        return rpc::ListXattr{ino(data)};
      case 16:
        return rpc::RemoveXattr{ino(data), xattr(data)};
      case 17:
        return rpc::FenceSession{data.ConsumeIntegralInRange<std::uint64_t>(0, 64) == 0 ? 3U : 77U};
      default:
        return rpc::Create{ino(data), text(data), data.ConsumeBool() ? S_IFDIR | 0755U : word(data),
                           word(data), data.ConsumeBool()};
    }
  }
  static rpc::MetadataRequest set_attributes(FuzzedDataProvider& data) {
    rpc::SetAttributes set{
        ino(data), word(data) % (data.ConsumeBool() ? 1024 : 4096), {}, data.ConsumeBool()};
    set.values.mode = word(data);
    set.values.size = data.ConsumeIntegral<std::uint64_t>();
    set.values.mtime = {data.ConsumeIntegral<std::int64_t>()};
    return set;
  }
  static rpc::MetadataRequest rename(FuzzedDataProvider& data) {
    rpc::Rename rename{ino(data), text(data), ino(data), text(data), word(data) % 5,
                       0,         0,          false,     false};
    if (data.ConsumeBool()) rename.expect_source = ino(data);
    rename.check_replaced = data.ConsumeBool();
    if (rename.check_replaced) rename.expect_replaced = ino(data);
    rename.unregister_replaced = data.ConsumeBool();
    return rename;
  }

  rpc::MetadataReply ask(const rpc::MetadataRequest& request) {
    return store_->execute({}, request);
  }

  /// Every directory is reached once, has the link count of its subdirectories, and knows its parent.
  void check_tree() {
    std::set<rpc::Ino> seen;
    std::vector<rpc::Ino> pending{rpc::kRootIno};
    while (!pending.empty()) {
      const rpc::Ino directory = pending.back();
      pending.pop_back();
      if (!seen.insert(directory).second) fail("a directory has two names");
      std::uint32_t links = 2;
      std::uint64_t cookie = 0;
      for (bool end = false; !end;) {
        const auto reply = ask(rpc::ReadDirectory{directory, cookie, 1024, true});
        if (reply.error != 0) fail("a directory cannot be read");
        for (std::size_t i = 0; i < reply.entries.size(); ++i) {
          const auto& entry = reply.entries[i];
          const auto& attributes = reply.attributes.at(i);
          if (attributes.ino != entry.ino || attributes.nlink == 0) fail("a name leads nowhere");
          if ((attributes.mode & S_IFMT) != entry.type) fail("an entry has the wrong type");
          if (!S_ISDIR(attributes.mode)) continue;
          ++links;
          pending.push_back(entry.ino);
          if (ask(rpc::Lookup{entry.ino, ".."}).attributes.at(0).ino != directory)
            fail("a parent pointer is wrong");
        }
        end = reply.end_of_directory;
        if (!end) cookie = reply.entries.back().cookie;
      }
      if (ask(rpc::GetAttributes{{directory}}).attributes.at(0).nlink != links)
        fail("a link count is wrong");
    }
  }

  std::string root_;
  std::unique_ptr<MetadataStore> store_;
  std::uint64_t id_ = 0;
  std::uint64_t inputs_ = 0;
};

}  // namespace
}  // namespace distfuse::storaged

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static distfuse::storaged::Target target;
  FuzzedDataProvider data(bytes, size);
  target.run(data);
  return 0;
}
