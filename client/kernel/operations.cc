// SPDX-License-Identifier: Apache-2.0
// The table that libfuse calls, as thin as C allows.
#include <sys/stat.h>

#include "client/kernel/storage.h"
#include "kmod/uapi.h"

namespace distfuse::client::kernel {
namespace {

Storage& of(fuse_req_t req) {
  return *static_cast<Storage*>(fuse_req_userdata(req));
}

void fill_names(fuse_lowlevel_ops& ops) {
  ops.lookup = [](fuse_req_t r, fuse_ino_t p, const char* n) { of(r).lookup(r, p, n); };
  ops.mknod = [](fuse_req_t r, fuse_ino_t p, const char* n, mode_t m, dev_t d) {
    of(r).make(r, rpc::Create{p, n, m, d, false});
  };
  ops.mkdir = [](fuse_req_t r, fuse_ino_t p, const char* n, mode_t m) {
    of(r).make(r, rpc::Create{p, n, (m & 07777) | S_IFDIR, 0, false});
  };
  ops.symlink = [](fuse_req_t r, const char* t, fuse_ino_t p, const char* n) {
    of(r).make(r, rpc::Symlink{p, n, t});
  };
  ops.link = [](fuse_req_t r, fuse_ino_t i, fuse_ino_t p, const char* n) {
    of(r).link(r, i, p, n);
  };
  ops.unlink = [](fuse_req_t r, fuse_ino_t p, const char* n) {
    of(r).change(r, rpc::Unlink{p, n, 0, false});
  };
  ops.rmdir = [](fuse_req_t r, fuse_ino_t p, const char* n) {
    of(r).change(r, rpc::Rmdir{p, n, 0});
  };
  ops.rename = [](fuse_req_t r, fuse_ino_t p, const char* n, fuse_ino_t q, const char* m,
                  unsigned f) {
    of(r).change(r, rpc::Rename{p, n, q, m, f, 0, 0});
  };
  ops.readlink = [](fuse_req_t r, fuse_ino_t i) { of(r).readlink(r, i); };
  ops.readdirplus = [](fuse_req_t r, fuse_ino_t i, std::size_t s, off_t o, fuse_file_info*) {
    of(r).readdirplus(r, i, s, static_cast<std::uint64_t>(o));
  };
}

void fill_attributes(fuse_lowlevel_ops& ops) {
  ops.getattr = [](fuse_req_t r, fuse_ino_t i, fuse_file_info*) { of(r).getattr(r, i); };
  ops.setattr = [](fuse_req_t r, fuse_ino_t i, struct stat* s, int to_set, fuse_file_info* f) {
    of(r).setattr(r, i, *s, to_set, f != nullptr && f->fh == DFS_FH_SIZE_ONLY);
  };
  ops.statfs = [](fuse_req_t r, fuse_ino_t) { of(r).statfs(r); };
  ops.getxattr = [](fuse_req_t r, fuse_ino_t i, const char* n, std::size_t s) {
    of(r).getxattr(r, i, n, s);
  };
  ops.listxattr = [](fuse_req_t r, fuse_ino_t i, std::size_t s) { of(r).listxattr(r, i, s); };
  ops.setxattr = [](fuse_req_t r, fuse_ino_t i, const char* n, const char* v, std::size_t s,
                    int f) { of(r).setxattr(r, i, n, std::string(v, s), f); };
  ops.removexattr = [](fuse_req_t r, fuse_ino_t i, const char* n) { of(r).removexattr(r, i, n); };
}

void fill_files(fuse_lowlevel_ops& ops) {
  ops.open = [](fuse_req_t r, fuse_ino_t i, fuse_file_info* f) { of(r).open(r, i, f); };
  ops.release = [](fuse_req_t r, fuse_ino_t i, fuse_file_info*) { of(r).release(r, i); };
  ops.read = [](fuse_req_t r, fuse_ino_t i, std::size_t s, off_t o, fuse_file_info*) {
    of(r).read(r, i, s, static_cast<std::uint64_t>(o));
  };
  ops.write = [](fuse_req_t r, fuse_ino_t i, const char* b, std::size_t s, off_t o,
                 fuse_file_info*) {
    of(r).write(r, i, std::as_bytes(std::span(b, s)), static_cast<std::uint64_t>(o));
  };
  ops.fsync = [](fuse_req_t r, fuse_ino_t i, int, fuse_file_info*) { of(r).fsync(r, i); };
  ops.fsyncdir = [](fuse_req_t r, fuse_ino_t i, int, fuse_file_info*) { of(r).fsyncdir(r, i); };
  ops.fallocate = [](fuse_req_t r, fuse_ino_t i, int m, off_t o, off_t l, fuse_file_info*) {
    of(r).fallocate(r, i, m, static_cast<std::uint64_t>(o), static_cast<std::uint64_t>(l));
  };
  ops.lseek = [](fuse_req_t r, fuse_ino_t i, off_t o, int w, fuse_file_info*) {
    of(r).lseek(r, i, static_cast<std::uint64_t>(o), w);
  };
}

}  // namespace

const fuse_lowlevel_ops& Storage::operations() {
  static const fuse_lowlevel_ops table = [] {
    fuse_lowlevel_ops ops{};
    fill_names(ops);
    fill_attributes(ops);
    fill_files(ops);
    return ops;
  }();
  return table;
}

}  // namespace distfuse::client::kernel
