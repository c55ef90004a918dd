// SPDX-License-Identifier: Apache-2.0
// A mount of coherence mode `user`: every FUSE operation over the lock table and the storage RPC.
//
// Parties: FUSE threads run the operations below, each from its request to its reply; the lock table's revoker threads call the
// CacheOwner part; a flusher thread writes dirty sizes and times each second. docs/decisions.md, "Locks and the kernel's caches in
// mode `user`", is the law here; cache/inode.h gives the order of the mutexes.
//
// The shape of an operation: learn the inodes' numbers; pin their locks (by ascending number, before any mutex); believe or fetch what the
// pins cover; act at the storageds; note what changed; reply; unpin. Kernel caches are invalidated by the revoker threads only; the
// exceptions, with their reasons, are in read_write.cc.
//
// Weak: the kernel asks for `security.capability` before each write, because this libfuse cannot say HANDLE_KILLPRIV_V2: one more
// request, answered from memory. A fault of a mapping beyond the size that the kernel knew last is SIGBUS until something asks for
// the size, as on every FUSE filesystem.
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_set>
#include <vector>

#include "client/cache/entry_cache.h"
#include "client/cache/inode_table.h"
#include "client/locks/lock_table.h"
#include "client/mount.h"
#include "client/storage/file_data.h"
#include "rpc/client.h"

namespace distfuse::client {

struct FileHandle {
  InodeRef inode;
  bool writable = false;
  bool direct = false;            ///< FOPEN_DIRECT_IO: opened with O_APPEND.
  std::uint64_t seen_errors = 0;  ///< Guarded by inode->state.
};

struct DirectoryHandle {
  InodeRef inode;
  std::uint64_t seen_errors = 0;  ///< Guarded by inode->state.
  std::mutex mutex;               ///< Guards all below: one thread reads a handle at a time.
  std::vector<rpc::DirectoryEntry> batch;
  std::uint64_t batch_after = 0;  ///< The cookie that the batch follows.
  bool batch_is_last = false;
  std::uint64_t batch_sequence =
      0;                            ///< Of the entry cache when the batch was fetched; 0: no batch.
  std::uint64_t walk_sequence = 0;  ///< When the walk began at the first entry; 0: it did not.
};

class Filesystem final {
 public:
  explicit Filesystem(const MountOptions& options);
  ~Filesystem();
  Filesystem(const Filesystem&) = delete;
  Filesystem& operator=(const Filesystem&) = delete;

  /// Reaches lockd and the storageds. Error: which of them is not reachable, and what to look at.
  Status connect();
  /// Must be called before the first request; `session` outlives serving.
  void start(fuse_session* session);
  /// No request may wait for a lock any longer.
  void stop_waiting() { stopping_ = true; }
  /// The kernel's caches went with the mount: nothing to invalidate any more.
  void stop_serving();
  /// Returns when no thread uses the session to invalidate; after stop_serving() and the end of the connection.
  void await_notifications() const;
  /// No request runs any more: everything dirty goes out, locks go, the session ends.
  void stop();
  /// The present session is lost and there is no new one yet.
  [[nodiscard]] bool lost() const { return lost_generation_ >= generation_; }
  /// JSON for the admin socket.
  [[nodiscard]] std::string status_json() const;

  /// The table for fuse_session_new; userdata is the Filesystem.
  static const fuse_lowlevel_ops& operations();

  // What SessionOwner, the CacheOwner of a session, brings here (coherence.cc).
  void invalidate_kernel(Ino ino, std::span<const Range> ranges);
  void invalidate_attributes(Ino ino);
  Mode keep_allowed(Ino ino, Mode asked);
  bool page_io_needs_x(Ino ino);
  void shed(Ino ino, Mode keep);
  void forfeit(Ino ino);
  std::optional<ValueBlock> publish(Ino ino);

  // generation.cc
  /// FUSE thread: runs the operation of a request within one session.
  void serve(fuse_req_t req, bool repeatable, const std::function<void()>& operation);
  void session_lost(std::uint64_t generation, const std::string& reason);

  // connection.cc
  void init(fuse_conn_info* connection);
  // lookup.cc
  void lookup(fuse_req_t req, Ino parent, const char* name);
  void forget(Ino ino, std::uint64_t count);
  // attributes.cc
  void getattr(fuse_req_t req, Ino ino);
  void setattr(fuse_req_t req, Ino ino, const struct stat& values, int fields);
  void readlink(fuse_req_t req, Ino ino);
  // names.cc, rename.cc
  void make(fuse_req_t req, rpc::Create request);
  void symlink(fuse_req_t req, const char* target, Ino parent, const char* name);
  void link(fuse_req_t req, Ino ino, Ino parent, const char* name);
  void unlink(fuse_req_t req, Ino parent, const char* name);
  void rmdir(fuse_req_t req, Ino parent, const char* name);
  void rename(fuse_req_t req, Ino old_parent, const char* old_name, Ino new_parent,
              const char* new_name, unsigned flags);
  // open.cc
  void open(fuse_req_t req, Ino ino, fuse_file_info* file);
  void create(fuse_req_t req, Ino parent, const char* name, mode_t mode, fuse_file_info* file);
  void flush(fuse_req_t req, Ino ino, fuse_file_info* file);
  void release(fuse_req_t req, Ino ino, fuse_file_info* file);
  // read_write.cc
  void read(fuse_req_t req, Ino ino, std::size_t size, std::uint64_t offset, fuse_file_info* file);
  void write(fuse_req_t req, Ino ino, std::span<const std::byte> bytes, std::uint64_t offset,
             fuse_file_info* file);
  // directory.cc
  void opendir(fuse_req_t req, Ino ino, fuse_file_info* file);
  void readdir(fuse_req_t req, std::size_t size, std::uint64_t offset, fuse_file_info* file,
               bool plus);
  void releasedir(fuse_req_t req, fuse_file_info* file);
  void fsyncdir(fuse_req_t req, fuse_file_info* file);
  // xattr.cc
  void getxattr(fuse_req_t req, Ino ino, const char* name, std::size_t size);
  void setxattr(fuse_req_t req, Ino ino, const char* name, std::string value, int flags);
  void listxattr(fuse_req_t req, Ino ino, std::size_t size);
  void removexattr(fuse_req_t req, Ino ino, const char* name);
  // locks.cc
  void getlk(fuse_req_t req, Ino ino, fuse_file_info* file, struct flock* lock);
  void setlk(fuse_req_t req, Ino ino, fuse_file_info* file, struct flock* lock, bool wait);
  void flock(fuse_req_t req, Ino ino, fuse_file_info* file, int operation);
  // space.cc
  void fsync(fuse_req_t req, Ino ino, fuse_file_info* file);
  void statfs(fuse_req_t req);
  void fallocate(fuse_req_t req, Ino ino, int mode, std::uint64_t offset, std::uint64_t length);
  void copy_file_range(fuse_req_t req, Ino from, std::uint64_t from_offset, Ino to,
                       std::uint64_t to_offset, std::size_t length);
  void lseek(fuse_req_t req, Ino ino, std::uint64_t offset, int whence);

 private:
  friend class SessionOwner;
  /// A session with lockd and the storageds.
  struct Generation {
    std::unique_ptr<CacheOwner> owner;  ///< Outlives `locks`.
    std::unique_ptr<rpc::Client> rpc;
    std::unique_ptr<FileData> data;
    std::unique_ptr<LockTable> locks;
  };
  Result<Generation> make_generation(std::uint64_t number);
  void publish_generation(Generation& fresh, std::uint64_t number);
  void void_inode(Inode& inode, rpc::Client& rpc, std::size_t& failed);
  void renewer_main();
  bool renew_session();
  int await_session(fuse_req_t req, std::chrono::steady_clock::time_point since);
  bool notify_unguarded(Ino ino, std::int64_t offset, std::int64_t length);
  /// An error because the session ended, of an operation that may run again, or had not done anything.
  [[nodiscard]] bool begin_again(const Error& error) const;
  /// What a call of the meta target or of lockd failed for: the session's end.
  [[nodiscard]] bool session_ended(const Error& error) const;
  /// For how long the kernel may believe attributes under a lock, seconds.
  [[nodiscard]] double validity() const;

  /// Attributes that may be told to the kernel, for how long, and the pin that makes them true.
  struct Described {
    rpc::Attributes attributes;
    double timeout = 0;
    Pin pin;
  };
  struct Named {
    EntryCache::Entry entry;
    Pin directory;
  };
  /// A fresh inode and the pins that cover it.
  struct Made {
    InodeRef inode;
    rpc::Attributes attributes;
    Pin directory;
    Pin child;
  };

  // request.cc
  [[nodiscard]] int code_of(const Error& error) const;
  void reply_error(fuse_req_t req, const Error& error) const {
    if (!begin_again(error)) fuse_reply_err(req, code_of(error));
  }
  void reply_status(fuse_req_t req, const Status& status) const {
    if (!status.ok()) return reply_error(req, status.error());
    fuse_reply_err(req, 0);
  }
  /// What ends a wait on a file's way: its process is being killed. Another signal does not: a program that handles one does not expect
  /// EINTR from stat, open, read or write of a file.
  [[nodiscard]] Interrupted interrupted(fuse_req_t req) const;
  /// What ends a wait for an fcntl or flock lock: any signal. The kernel starts the call again where the handler says so.
  [[nodiscard]] Interrupted signalled(fuse_req_t req) const {
    return [this, req] { return stopping_ || fuse_req_interrupted(req) != 0; };
  }
  Result<rpc::MetadataReply> call(const rpc::MetadataRequest& request,
                                  fuse_req_t req = nullptr) const;
  void note_change(const rpc::MetadataRequest& request, const rpc::MetadataReply& reply) const;
  /// The attributes in the reply; EPROTO if there are none.
  Result<rpc::Attributes> call_for_attributes(const rpc::MetadataRequest& request,
                                              fuse_req_t req = nullptr) const;
  void reply_entry(fuse_req_t req, const InodeRef& inode, const rpc::Attributes& attributes,
                   double timeout);
  fuse_entry_param entry_param(const rpc::Attributes& attributes, double timeout) const;

  // lookup.cc
  Result<Named> find_name(fuse_req_t req, Ino parent, const std::string& name);
  void drop_references(const InodeRef& inode, std::uint64_t count);

  // attributes.cc
  Result<Described> describe(Inode& inode, const Interrupted& interrupted);
  Result<Described> describe_unlocked(Inode& inode, const Interrupted& interrupted);
  /// With a pin of the inode held: what is cached, or fetched now.
  Result<rpc::Attributes> pinned_attributes(Inode& inode);
  Result<rpc::Attributes> fetch_attributes(Ino ino) const;
  Status change_attributes(fuse_req_t req, Inode& inode, rpc::SetAttributes request);
  Result<FileRef> file_ref(Inode& inode);

  // names.cc
  Result<Made> make_node(fuse_req_t req, const rpc::MetadataRequest& request, Ino parent,
                         const std::string& name, bool open);
  void directory_changed(Ino ino, rpc::Timestamp now, int links);
  void directory_changed(Ino ino);
  Status remove_name(fuse_req_t req, Ino parent, const std::string& name, bool directory);
  Status remove_pinned(fuse_req_t req, Ino parent, const std::string& name, Ino ino,
                       bool directory);
  /// After an operation left the inode without this name (server mutex held).
  void name_removed(Inode& inode, const rpc::Attributes& attributes, bool unregistered);

  // rename.cc
  struct RenameNames;
  Status rename_once(fuse_req_t req, RenameNames& names);
  Status rename_pinned(fuse_req_t req, const RenameNames& names);
  void renamed(const RenameNames& names);

  // open.cc
  Status register_open(Inode& inode, bool writable, bool pinned);
  void unregister_open(const InodeRef& inode, bool writable);
  Status close_at_server(Inode& inode);
  void shed_registration(Inode& inode);
  void unregister_idle(const InodeRef& inode);
  Result<Made> open_existing(fuse_req_t req, Ino parent, const std::string& name, int flags);

  // read_write.cc
  Result<std::size_t> write_pinned(fuse_req_t req, Inode& inode, std::span<const std::byte> bytes,
                                   std::uint64_t offset, const fuse_file_info& file);
  Result<std::uint64_t> append(fuse_req_t req, const FileHandle& handle,
                               std::span<const std::byte> bytes, std::uint64_t asked,
                               const fuse_file_info& file);
  bool pages_at_end(Inode& inode, std::uint64_t end);
  static bool pages_cached_from(Inode& inode, std::uint64_t offset);
  void invalidate_later(Inode& inode, std::uint64_t asked, std::uint64_t at, std::uint64_t length);
  Status make_durable(Inode& inode);

  // directory.cc
  Status fill_batch(DirectoryHandle& handle, std::uint64_t after);
  void remember_batch(DirectoryHandle& handle, std::uint64_t began);
  std::vector<Described> describe_many(std::span<const rpc::DirectoryEntry> entries);

  // xattr.cc
  Result<Pin> pin_for_xattr(fuse_req_t req, Inode& inode);
  Result<std::optional<std::string>> xattr_value(Inode& inode, const std::string& name);

  // space.cc
  Status sync_metadata(Inode& inode);
  bool note_loss(Inode& inode);
  Status change_space(const FileRef& file, int mode, std::uint64_t offset, std::uint64_t length);
  Result<std::size_t> copy_bytes(const FileRef& from, std::uint64_t from_offset, const FileRef& to,
                                 std::uint64_t to_offset, std::size_t length);

  // flusher.cc
  void mark_dirty(Inode& inode);
  Status flush_inode(Inode& inode);
  /// With inode.server held.
  Status flush_locked(Inode& inode);
  void flush_before_change(Inode& inode);
  void void_kernel();
  void flusher_main();
  void flush_dirty();
  int take_error(FileHandle& handle);

  void notify(Ino ino, std::int64_t offset, std::int64_t length);

  MountOptions options_;
  std::uint32_t targets_;
  fuse_session* fuse_ = nullptr;
  mutable InodeTable inodes_;
  mutable EntryCache entries_;
  SyncHistory metadata_syncs_;
  std::unique_ptr<rpc::Client> rpc_;
  std::unique_ptr<FileData> data_;
  std::unique_ptr<LockTable> locks_;
  std::atomic<bool> stopping_{false};

  // Sessions follow one another (generation.cc). Shared: whoever uses rpc_, data_, locks_. Exclusive: the change to the next.
  mutable std::shared_mutex generation_mutex_;
  std::atomic<std::uint64_t> generation_{1};
  std::atomic<std::uint64_t> lost_generation_{0};  ///< All up to this one are lost.
  std::atomic<std::uint64_t> lost_sessions_{0};
  std::unique_ptr<CacheOwner> session_owner_;
  std::mutex renewer_mutex_;
  std::condition_variable renewer_wake_;           ///< Lost, renewed, stopped.
  std::chrono::steady_clock::time_point lost_at_;  ///< Guarded by renewer_mutex_.
  bool renewer_stop_ = false;                      ///< Guarded by renewer_mutex_.
  std::string no_session_;  ///< Why there is none yet, as logged last. Of the renewer.
  std::thread renewer_;

  std::atomic<bool> serving_{false};
  std::atomic<unsigned> notifying_{0};

  mutable std::mutex flusher_mutex_;
  std::condition_variable flusher_wake_;
  std::unordered_set<Ino> dirty_;                   ///< Guarded by flusher_mutex_.
  std::vector<std::pair<Ino, Range>> stale_pages_;  ///< Guarded by flusher_mutex_.
  bool flusher_stop_ = false;                       ///< Guarded by flusher_mutex_.
  std::atomic<bool> void_caches_ = false;  ///< Set under flusher_mutex_; cleared when it is done.
  std::thread flusher_;
};

/// As long as the kernel can be told.
inline constexpr double kForever = 1e9;
/// Retries of an operation whose names moved between learning them and locking them.
inline constexpr int kMaxRetries = 1000;
/// Files end here: 2^24 - 1 chunks of 4 MiB, as the meta target has it.
inline constexpr std::uint64_t kMaxFileSize = ((std::uint64_t{1} << 24) - 1) << 22;

struct stat to_stat(const rpc::Attributes& attributes);
rpc::Timestamp now();

}  // namespace distfuse::client
