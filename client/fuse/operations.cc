// SPDX-License-Identifier: Apache-2.0
// The table that libfuse calls, as thin as C allows.
#include "client/fuse/filesystem.h"

namespace distfuse::client {
namespace {

Filesystem& of(fuse_req_t req) {
  return *static_cast<Filesystem*>(fuse_req_userdata(req));
}

/// In the present session; when that ends before the operation has, again in the next one.
template <class Operation>
void serve(fuse_req_t req, const Operation& operation) {
  of(req).serve(req, true, [&] { operation(of(req)); });
}

/// The same for what must not run twice: once a storaged was asked, its answer is the operation's, or EIO.
template <class Operation>
void serve_once(fuse_req_t req, const Operation& operation) {
  of(req).serve(req, false, [&] { operation(of(req)); });
}

rpc::Create create_request(fuse_ino_t parent, const char* name, mode_t mode, dev_t device) {
  return {parent, name, mode, device, false};
}

void fill_names(fuse_lowlevel_ops& ops) {
  ops.lookup = [](fuse_req_t r, fuse_ino_t p, const char* n) {
    serve(r, [&](Filesystem& fs) { fs.lookup(r, p, n); });
  };
  ops.forget = [](fuse_req_t r, fuse_ino_t i, std::uint64_t n) {
    of(r).forget(i, n);
    fuse_reply_none(r);
  };
  ops.forget_multi = [](fuse_req_t r, std::size_t count, fuse_forget_data* forgets) {
    for (std::size_t i = 0; i < count; ++i) of(r).forget(forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(r);
  };
  ops.mknod = [](fuse_req_t r, fuse_ino_t p, const char* n, mode_t m, dev_t d) {
    serve_once(r, [&](Filesystem& fs) { fs.make(r, create_request(p, n, m, d)); });
  };
  ops.mkdir = [](fuse_req_t r, fuse_ino_t p, const char* n, mode_t m) {
    serve_once(r,
               [&](Filesystem& fs) { fs.make(r, create_request(p, n, (m & 07777) | S_IFDIR, 0)); });
  };
  ops.symlink = [](fuse_req_t r, const char* t, fuse_ino_t p, const char* n) {
    serve_once(r, [&](Filesystem& fs) { fs.symlink(r, t, p, n); });
  };
  ops.link = [](fuse_req_t r, fuse_ino_t i, fuse_ino_t p, const char* n) {
    serve_once(r, [&](Filesystem& fs) { fs.link(r, i, p, n); });
  };
  ops.unlink = [](fuse_req_t r, fuse_ino_t p, const char* n) {
    serve_once(r, [&](Filesystem& fs) { fs.unlink(r, p, n); });
  };
  ops.rmdir = [](fuse_req_t r, fuse_ino_t p, const char* n) {
    serve_once(r, [&](Filesystem& fs) { fs.rmdir(r, p, n); });
  };
  ops.rename = [](fuse_req_t r, fuse_ino_t p, const char* n, fuse_ino_t q, const char* m,
                  unsigned f) {
    serve_once(r, [&](Filesystem& fs) { fs.rename(r, p, n, q, m, f); });
  };
  ops.readlink = [](fuse_req_t r, fuse_ino_t i) {
    serve(r, [&](Filesystem& fs) { fs.readlink(r, i); });
  };
}

void fill_attributes(fuse_lowlevel_ops& ops) {
  ops.getattr = [](fuse_req_t r, fuse_ino_t i, fuse_file_info*) {
    serve(r, [&](Filesystem& fs) { fs.getattr(r, i); });
  };
  ops.setattr = [](fuse_req_t r, fuse_ino_t i, struct stat* s, int to_set, fuse_file_info*) {
    serve(r, [&](Filesystem& fs) { fs.setattr(r, i, *s, to_set); });
  };
  ops.getxattr = [](fuse_req_t r, fuse_ino_t i, const char* n, std::size_t s) {
    serve(r, [&](Filesystem& fs) { fs.getxattr(r, i, n, s); });
  };
  ops.setxattr = [](fuse_req_t r, fuse_ino_t i, const char* n, const char* v, std::size_t s,
                    int f) {
    serve_once(r, [&](Filesystem& fs) { fs.setxattr(r, i, n, std::string(v, s), f); });
  };
  ops.listxattr = [](fuse_req_t r, fuse_ino_t i, std::size_t s) {
    serve(r, [&](Filesystem& fs) { fs.listxattr(r, i, s); });
  };
  ops.removexattr = [](fuse_req_t r, fuse_ino_t i, const char* n) {
    serve_once(r, [&](Filesystem& fs) { fs.removexattr(r, i, n); });
  };
}

void fill_files(fuse_lowlevel_ops& ops) {
  ops.open = [](fuse_req_t r, fuse_ino_t i, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.open(r, i, f); });
  };
  ops.create = [](fuse_req_t r, fuse_ino_t p, const char* n, mode_t m, fuse_file_info* f) {
    serve_once(r, [&](Filesystem& fs) { fs.create(r, p, n, (m & 07777) | S_IFREG, f); });
  };
  ops.read = [](fuse_req_t r, fuse_ino_t i, std::size_t s, off_t o, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.read(r, i, s, static_cast<std::uint64_t>(o), f); });
  };
  ops.write = [](fuse_req_t r, fuse_ino_t i, const char* b, std::size_t s, off_t o,
                 fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) {
      fs.write(r, i, std::as_bytes(std::span(b, s)), static_cast<std::uint64_t>(o), f);
    });
  };
  ops.flush = [](fuse_req_t r, fuse_ino_t i, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.flush(r, i, f); });
  };
  ops.release = [](fuse_req_t r, fuse_ino_t i, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.release(r, i, f); });
  };
  ops.fsync = [](fuse_req_t r, fuse_ino_t i, int, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.fsync(r, i, f); });
  };
  ops.opendir = [](fuse_req_t r, fuse_ino_t i, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.opendir(r, i, f); });
  };
  ops.readdir = [](fuse_req_t r, fuse_ino_t, std::size_t s, off_t o, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.readdir(r, s, static_cast<std::uint64_t>(o), f, false); });
  };
  ops.readdirplus = [](fuse_req_t r, fuse_ino_t, std::size_t s, off_t o, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.readdir(r, s, static_cast<std::uint64_t>(o), f, true); });
  };
  ops.releasedir = [](fuse_req_t r, fuse_ino_t, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.releasedir(r, f); });
  };
  ops.fsyncdir = [](fuse_req_t r, fuse_ino_t, int, fuse_file_info* f) {
    serve(r, [&](Filesystem& fs) { fs.fsyncdir(r, f); });
  };
  ops.statfs = [](fuse_req_t r, fuse_ino_t) { serve(r, [&](Filesystem& fs) { fs.statfs(r); }); };
}

void fill_ranges(fuse_lowlevel_ops& ops) {
  ops.getlk = [](fuse_req_t r, fuse_ino_t i, fuse_file_info* f, struct flock* l) {
    serve(r, [&](Filesystem& fs) { fs.getlk(r, i, f, l); });
  };
  ops.setlk = [](fuse_req_t r, fuse_ino_t i, fuse_file_info* f, struct flock* l, int wait) {
    serve(r, [&](Filesystem& fs) { fs.setlk(r, i, f, l, wait != 0); });
  };
  ops.flock = [](fuse_req_t r, fuse_ino_t i, fuse_file_info* f, int op) {
    serve(r, [&](Filesystem& fs) { fs.flock(r, i, f, op); });
  };
  ops.fallocate = [](fuse_req_t r, fuse_ino_t i, int m, off_t o, off_t l, fuse_file_info*) {
    serve(r, [&](Filesystem& fs) {
      fs.fallocate(r, i, m, static_cast<std::uint64_t>(o), static_cast<std::uint64_t>(l));
    });
  };
  ops.copy_file_range = [](fuse_req_t r, fuse_ino_t i, off_t o, fuse_file_info*, fuse_ino_t j,
                           off_t p, fuse_file_info*, std::size_t l, int) {
    serve(r, [&](Filesystem& fs) {
      fs.copy_file_range(r, i, static_cast<std::uint64_t>(o), j, static_cast<std::uint64_t>(p), l);
    });
  };
  ops.lseek = [](fuse_req_t r, fuse_ino_t i, off_t o, int w, fuse_file_info*) {
    serve(r, [&](Filesystem& fs) { fs.lseek(r, i, static_cast<std::uint64_t>(o), w); });
  };
}

}  // namespace

const fuse_lowlevel_ops& Filesystem::operations() {
  static const fuse_lowlevel_ops table = [] {
    fuse_lowlevel_ops ops{};
    ops.init = [](void* self, fuse_conn_info* connection) {
      static_cast<Filesystem*>(self)->init(connection);
    };
    fill_names(ops);
    fill_attributes(ops);
    fill_files(ops);
    fill_ranges(ops);
    return ops;
  }();
  return table;
}

}  // namespace distfuse::client
