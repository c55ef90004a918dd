// SPDX-License-Identifier: Apache-2.0
// How many metadata operations a second the store does by itself, without network, locks or FUSE: one thread, one directory
// of FILES files. JSON on standard output: operations per second of each phase.
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>

#include "storaged/meta/rocksdb_metadata_store.h"

namespace distfuse::storaged {
namespace {

class Bench {
 public:
  Bench(MetadataStore& store, std::uint64_t files) : store_(store), files_(files) {}

  void run() {
    directory_ = execute(rpc::Create{rpc::kRootIno, "bench", S_IFDIR | 0755}).attributes.at(0).ino;
    std::printf("{\"files\": %llu", static_cast<unsigned long long>(files_));
    phase("create", [&](std::uint64_t i) {
      const auto reply = execute(rpc::Create{directory_, name(i), S_IFREG | 0644, 0, true});
      if (i == 0) first_ = reply.attributes.at(0).ino;
    });
    phase("close", [&](std::uint64_t i) { execute(rpc::CloseFiles{{first_ + i}}); });
    phase("lookup", [&](std::uint64_t i) { execute(rpc::Lookup{directory_, name(i)}); });
    phase("stat", [&](std::uint64_t i) { execute(rpc::GetAttributes{{first_ + i}}); });
    phase("setattr", [&](std::uint64_t i) {
      rpc::SetAttributes set{first_ + i, rpc::SetAttributes::kSize, {}, false};
      set.values.size = 4096;
      execute(set);
    });
    readdir();
    phase("rename", [&](std::uint64_t i) {
      execute(rpc::Rename{directory_, name(i), directory_, "r" + name(i), 0, 0, 0, false, false});
    });
    phase("unlink", [&](std::uint64_t i) { execute(rpc::Unlink{directory_, "r" + name(i), 0}); });
    reap();
    const auto begin = std::chrono::steady_clock::now();
    if (!store_.sync().ok()) std::exit(1);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    std::printf(", \"sync_ms\": %.3f}\n", took.count());
  }

 private:
  /// The orphans that the unlinks left, as the purger has them removed.
  void reap() {
    const auto begin = std::chrono::steady_clock::now();
    for (bool more = true; more;) {
      const auto reaped = store_.reap_orphans(false);
      if (!reaped.ok()) std::exit(1);
      more = *reaped;
    }
    report("reap", files_, begin);
  }

  static std::string name(std::uint64_t i) { return "file." + std::to_string(i); }

  rpc::MetadataReply execute(const rpc::MetadataRequest& request) {
    ++id_;
    auto reply = store_.execute(
        {.session = 1, .request_id = id_, .lowest_unanswered = id_, .uid = 0, .gid = 0}, request);
    if (reply.error != 0) {
      std::fprintf(stderr, "request kind %zu: error %d\n", request.index(), reply.error);
      std::exit(1);
    }
    return reply;
  }

  void phase(const char* what, const std::function<void(std::uint64_t)>& each) {
    const auto begin = std::chrono::steady_clock::now();
    for (std::uint64_t i = 0; i < files_; ++i) each(i);
    report(what, files_, begin);
  }

  void readdir() {
    const auto begin = std::chrono::steady_clock::now();
    std::uint64_t entries = 0;
    for (std::uint64_t cookie = 0;;) {
      const auto reply = execute(rpc::ReadDirectory{directory_, cookie, 1024, true});
      entries += reply.entries.size();
      if (reply.end_of_directory) break;
      cookie = reply.entries.back().cookie;
    }
    report("readdirplus_entries", entries, begin);
  }

  static void report(const char* what, std::uint64_t count,
                     std::chrono::steady_clock::time_point begin) {
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    std::printf(", \"%s_per_s\": %.0f", what, static_cast<double>(count) / took.count());
  }

  MetadataStore& store_;
  std::uint64_t files_;
  rpc::Ino directory_ = 0;
  rpc::Ino first_ = 0;
  std::uint64_t id_ = 0;
};

int bench(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(
        stderr,
        "usage: bench_metadata_store DIRECTORY FILES\nDIRECTORY is made in an existing folder.\n");
    return 2;
  }
  RocksdbMetadataOptions options;
  options.directory = argv[1];
  options.cluster_id = std::string(32, '0');
  options.orphan_grace = std::chrono::nanoseconds(0);  // all are due when they are reaped
  auto store = open_rocksdb_metadata_store(options);
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.error().message.c_str());
    return 1;
  }
  Bench(**store, std::strtoull(argv[2], nullptr, 10)).run();
  return 0;
}

}  // namespace
}  // namespace distfuse::storaged

int main(int argc, char** argv) {
  return distfuse::storaged::bench(argc, argv);
}
