// SPDX-License-Identifier: Apache-2.0
// A mount's life in mode `kernel`: become the daemon of a connection, serve, mount; end when the module says that the mount is gone, or that a next
// daemon is to take over. Or become the next daemon of a mount that is there, and serve.
#include "client/kernel/mount.h"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <system_error>
#include <thread>

#include "client/kernel/storage.h"
#include "kmod/uapi.h"

namespace distfuse::client::kernel {
namespace {

/// Each request may wait for a storaged and is then a thread: as many as the module has under way at once.
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kIdleThreads = 64;
/// For a client that is replaced: longer than a request takes whose storaged is there.
constexpr std::chrono::milliseconds kDrain{10000};

ssize_t write_device(int device, iovec* parts, int count, void*) {
  return writev(device, parts, count);
}

ssize_t read_device(int, void* buffer, std::size_t size, void* storage) {
  return static_cast<Storage*>(storage)->device().read(buffer, size);
}

class Server {
 public:
  explicit Server(Storage& storage) : storage_(storage) {}
  ~Server() {
    if (thread_.joinable()) thread_.join();
    if (session_ != nullptr) fuse_session_destroy(session_);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  Status start(int device, bool debug) {
    char name[] = "distfuse", flag[] = "-d";
    char* words[] = {name, flag, nullptr};
    fuse_args args = FUSE_ARGS_INIT(debug ? 2 : 1, words);
    session_ =
        fuse_session_new(&args, &Storage::operations(), sizeof(fuse_lowlevel_ops), &storage_);
    fuse_opt_free_args(&args);
    const fuse_custom_io io{write_device, read_device, nullptr, nullptr};
    // libfuse closes the descriptor that it is given.
    if (session_ == nullptr || fuse_session_custom_io(session_, &io, dup(device)) != 0)
      return Error{EINVAL, "libfuse does not take the device"};
    thread_ = std::thread([this] { serve(); });
    return {};
  }
  /// Until the module has ended the connection. 0 or -errno.
  int join() {
    thread_.join();
    return result_;
  }

 private:
  void serve() {
    const std::unique_ptr<fuse_loop_config, decltype(&fuse_loop_cfg_destroy)> config(
        fuse_loop_cfg_create(), &fuse_loop_cfg_destroy);
    fuse_loop_cfg_set_max_threads(config.get(), kMaxThreads);
    fuse_loop_cfg_set_idle_threads(config.get(), kIdleThreads);
    fuse_loop_cfg_set_clone_fd(config.get(), 0);
    result_ = fuse_session_loop_mt(session_, config.get());
  }

  Storage& storage_;
  fuse_session* session_ = nullptr;
  std::thread thread_;
  std::atomic<int> result_ = 0;
};

/// The first signal unmounts, or detaches a mount that is in use; the second ends it with errors.
class Unmounter {
 public:
  explicit Unmounter(std::string mountpoint)
      : mountpoint_(std::move(mountpoint)), thread_([this] { run(); }) {}
  ~Unmounter() {
    stop_ = true;
    thread_.join();
  }
  Unmounter(const Unmounter&) = delete;
  Unmounter& operator=(const Unmounter&) = delete;

  static sigset_t signals() {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
    return set;
  }

 private:
  void run() {
    const sigset_t set = signals();
    const timespec pause{0, 100'000'000};
    while (!stop_)
      if (sigtimedwait(&set, nullptr, &pause) > 0) end();
  }
  void end() {
    if (umount2(mountpoint_.c_str(), UMOUNT_NOFOLLOW) == 0 || errno == EINVAL) return;
    spdlog::warn("{} is in use; it is detached, and ends with its last user", mountpoint_);
    umount2(mountpoint_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
  }

  std::string mountpoint_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

Status mount_filesystem(const Device& device, const MountOptions& options) {
  const std::string data = fmt::format("connection={}", device.connection());
  const unsigned long flags = MS_NOATIME | (options.read_only ? MS_RDONLY : 0);
  if (::mount("distfuse", options.mountpoint.c_str(), DFS_FILESYSTEM_NAME, flags, data.c_str()) ==
      0)
    return {};
  return Error{errno, fmt::format("cannot mount on {}: {}", options.mountpoint,
                                  std::generic_category().message(errno))};
}

}  // namespace

namespace {

Status prepare_process() {
  const sigset_t set = Unmounter::signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  if (chdir("/") != 0) return Error{errno, "cannot change to /"};
  // Not throttled for our own dirty pages, and no allocation of ours waits for our own writeback.
  if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0)
    spdlog::warn("PR_SET_IO_FLUSHER: {}", std::generic_category().message(errno));
  return {};
}

/// Until this daemon's work is over.
Status serve(Server& server, Storage& storage, const MountOptions& options) {
  storage.follow();
  const Unmounter unmounter(options.mountpoint);
  spdlog::info("{} is served by client {}", options.mountpoint, storage.device().number());
  if (options.ready) options.ready();
  const int served = server.join();
  spdlog::info("{} is {}", options.mountpoint,
               storage.device().replaced() ? "served by the next client" : "unmounted or aborted");
  if (storage.device().replaced()) {
    // Everything is answered. An orderly end of the connections, which the storageds are ending too, would only keep the old program running.
    spdlog::shutdown();
    _exit(0);
  }
  if (served < 0)
    return Error{-served, fmt::format("{}: cannot serve: {}", options.mountpoint,
                                      std::generic_category().message(-served))};
  return {};
}

}  // namespace

Status run_mount(const MountOptions& options) {
  DISTFUSE_TRY(prepare_process());
  auto device = Device::open();
  if (!device) return device.error();
  DISTFUSE_TRY(device->begin(options.cluster, options.name));
  Storage storage(options.cluster, *device);
  DISTFUSE_TRY(storage.connect(false));
  Server server(storage);
  // The module asks nothing while it mounts. From here on only an unmount ends the threads that read the device.
  DISTFUSE_TRY(mount_filesystem(*device, options));
  if (Status started = server.start(device->descriptor(), options.debug); !started.ok()) {
    umount2(options.mountpoint.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
    return started;
  }
  return serve(server, storage, options);
}

Status attach_mount(const MountOptions& options) {
  DISTFUSE_TRY(prepare_process());
  auto device = Device::open();
  if (!device) return device.error();
  Storage storage(options.cluster, *device);
  storage.warm_up();
  // From here on the mount's requests wait for this process.
  DISTFUSE_TRY(device->attach(options.cluster, options.mountpoint, kDrain));
  DISTFUSE_TRY(storage.connect(true));
  Server server(storage);
  DISTFUSE_TRY(server.start(device->descriptor(), options.debug));
  return serve(server, storage, options);
}

}  // namespace distfuse::client::kernel
