// SPDX-License-Identifier: Apache-2.0
// The daemon of coherence mode `kernel`: it moves what the module asks for between the module and the storageds, and keeps nothing but
// layouts. It takes no lock: the module holds the ones that cover each request, for as long as the request is unanswered.
//
// Parties: FUSE threads, each from its request to its answer; a thread that follows the session (follow_session), for requests to the
// storageds name it.
//
// FUSE's node id is the inode number. Nothing is counted: no FORGET comes. FUSE_OPEN and FUSE_RELEASE register and unregister an inode as open on
// this mount. SETATTR with the handle DFS_FH_SIZE_ONLY records a size.
//
// Recovery: a session that ended is followed by the next one; what was asked under the old one fails with EIO, which the module expects.
// This process may be killed, and another follows (kmod/uapi.h): what changes something goes to the storageds under names and a session that the module
// gave it (Origin), so it takes effect once.
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "client/kernel/device.h"
#include "client/kernel/layouts.h"
#include "client/kernel/unsynced_inodes.h"
#include "client/storage/file_data.h"
#include "common/config.h"
#include "rpc/client.h"

namespace distfuse::client::kernel {

using rpc::Ino;

class Storage {
 public:
  Storage(const config::Cluster& cluster, Device& device);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  /// Reaches every storaged. Error: which of them is not reachable; `lenient`: that is only logged, requests go on trying.
  Status connect(bool lenient);
  /// Makes ready, without reaching anyone, what the first connection needs: for one that is to be quick.
  void warm_up() const;
  [[nodiscard]] Device& device() { return device_; }
  /// From here on each session that follows is taken up; ends with the mount.
  void follow() {
    follower_ = std::thread([this] { follow_session(); });
  }
  /// For fuse_session_new; userdata is the Storage.
  static const fuse_lowlevel_ops& operations();

  // names.cc
  void lookup(fuse_req_t req, Ino parent, const char* name);
  void make(fuse_req_t req, const rpc::MetadataRequest& request);
  void link(fuse_req_t req, Ino ino, Ino parent, const char* name);
  void change(fuse_req_t req, const rpc::MetadataRequest& request);
  void readlink(fuse_req_t req, Ino ino);
  void readdirplus(fuse_req_t req, Ino ino, std::size_t size, std::uint64_t after);
  // attributes.cc
  void getattr(fuse_req_t req, Ino ino);
  void setattr(fuse_req_t req, Ino ino, const struct stat& values, int fields, bool size_only);
  void statfs(fuse_req_t req);
  void open(fuse_req_t req, Ino ino, fuse_file_info* file);
  void release(fuse_req_t req, Ino ino);
  void getxattr(fuse_req_t req, Ino ino, const char* name, std::size_t size);
  void listxattr(fuse_req_t req, Ino ino, std::size_t size);
  void setxattr(fuse_req_t req, Ino ino, const char* name, std::string value, int flags);
  void removexattr(fuse_req_t req, Ino ino, const char* name);
  // data.cc
  void read(fuse_req_t req, Ino ino, std::size_t size, std::uint64_t offset);
  void write(fuse_req_t req, Ino ino, std::span<const std::byte> bytes, std::uint64_t offset);
  void fsync(fuse_req_t req, Ino ino);
  void fsyncdir(fuse_req_t req, Ino ino);
  void fallocate(fuse_req_t req, Ino ino, int mode, std::uint64_t offset, std::uint64_t length);
  void lseek(fuse_req_t req, Ino ino, std::uint64_t offset, int whence);

 private:
  /// What belongs to one session.
  struct Generation {
    std::uint64_t session = 0;
    std::unique_ptr<rpc::Client> rpc;
    std::unique_ptr<FileData> data;
  };
  using GenerationRef = std::shared_ptr<Generation>;

  Result<GenerationRef> make_generation(std::uint64_t session) const;
  /// The present one; waits for the first. Null: there was none for give_up.
  [[nodiscard]] GenerationRef generation(std::uint64_t least = 0) const;
  /// What changes nothing may be asked again in the next session, if the present one is refused: it is over.
  template <typename Ask>
  auto in_some_session(Ask ask) const -> decltype(ask(std::declval<Generation&>())) {
    const GenerationRef present = generation();
    if (!present) return Error{EIO, {}};
    auto answer = ask(*present);
    if (answer.ok() || answer.error().code != rpc::kFenced) return answer;
    device_.fenced(present->session);
    const GenerationRef next = generation(present->session + 1);
    return next ? ask(*next) : std::move(answer);
  }
  /// For what changes something: the one that the request was made in. EIO: that is over.
  [[nodiscard]] Result<GenerationRef> generation_to_change() const;
  void begin(GenerationRef made);
  void follow_session();

  /// What changes nothing, in any session.
  Result<rpc::MetadataReply> ask(const rpc::MetadataRequest& request, fuse_req_t req);
  /// What changes something: in the session that it was made in, and once.
  Result<rpc::MetadataReply> call(const rpc::MetadataRequest& request, fuse_req_t req);
  Result<rpc::Attributes> take_attributes(const Result<rpc::MetadataReply>& reply);
  /// The first attributes of the answer; their layout is noted.
  Result<rpc::Attributes> ask_for_attributes(const rpc::MetadataRequest& request, fuse_req_t req);
  Result<rpc::Attributes> call_for_attributes(const rpc::MetadataRequest& request, fuse_req_t req);
  Result<FileRef> file_ref(Ino ino, fuse_req_t req);
  /// As long as a file's data is changed: an answer is not durable.
  struct FileToChange {
    FileRef ref;
    UnsyncedInodes::Ref unsynced;
  };
  Result<FileToChange> file_to_change(Ino ino, fuse_req_t req);
  void note_change(const rpc::MetadataRequest& request, const rpc::MetadataReply& reply);
  static void reply_error(fuse_req_t req, const Error& error);
  static void reply_status(fuse_req_t req, const Status& status);
  static void reply_attributes(fuse_req_t req, const rpc::Attributes& attributes);
  static void reply_entry(fuse_req_t req, const rpc::Attributes& attributes);

  const config::Cluster cluster_;
  Device& device_;
  Layouts layouts_;
  UnsyncedInodes unsynced_;
  SyncHistory metadata_syncs_;
  mutable std::mutex mutex_;
  mutable std::condition_variable begun_;
  GenerationRef generation_;  ///< Protected by mutex_.
  std::thread follower_;
};

struct stat to_stat(const rpc::Attributes& attributes);

/// size 0: the length alone.
void reply_bytes(fuse_req_t req, const std::string& bytes, std::size_t size);

}  // namespace distfuse::client::kernel
