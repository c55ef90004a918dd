// SPDX-License-Identifier: Apache-2.0
// A mount's life: reach the cluster, mount, serve, end. The signal thread unmounts on SIGTERM, SIGINT and SIGHUP; it is the only one that
// touches the mount point, and the FUSE threads serve what that asks.
#include "client/mount.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/mount.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>

#include "client/fuse/filesystem.h"
#include "common/admin.h"

namespace distfuse::client {
namespace {

/// Each request may be one that waits for a lock, and is then a thread: libfuse adds one whenever none is free.
constexpr unsigned kMaxThreads = 16384;
constexpr unsigned kIdleThreads = 128;

sigset_t ending_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
  return set;
}

/// The mount's device, "0:39", found without touching the mount; empty: not found.
std::string device_of(const std::string& mountpoint) {
  std::ifstream mounts("/proc/self/mountinfo");
  std::string found;
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string id, parent, device, root, point;
    words >> id >> parent >> device >> root >> point;
    if (point == mountpoint && device.find(':') != std::string::npos) found = device;
  }
  return found;
}

/// The connection's folder in fusectl; empty: not found.
std::string connection_of(const std::string& mountpoint) {
  const std::string device = device_of(mountpoint);
  return device.empty() ? device
                        : "/sys/fs/fuse/connections/" + device.substr(device.find(':') + 1);
}

/// Reads go out in requests of up to a megabyte. FUSE_INIT can only lower what the kernel reads at a time, and it starts at 128 KiB;
/// only root may raise it, afterwards.
void raise_readahead(const std::string& mountpoint) {
  const std::string file = "/sys/class/bdi/" + device_of(mountpoint) + "/read_ahead_kb";
  if (std::ofstream(file) << "1024" << std::flush) return;
  spdlog::info("{}: cannot write {}: reads are split at the kernel's standard readahead",
               mountpoint, file);
}

/// The first signal unmounts, or, when somebody uses the mount, detaches it: then it ends with its last user. The second ends it.
class SignalThread {
 public:
  SignalThread(Filesystem& filesystem, fuse_session* session, std::string mountpoint)
      : filesystem_(filesystem),
        session_(session),
        mountpoint_(std::move(mountpoint)),
        connection_(connection_of(mountpoint_)),
        main_(pthread_self()),
        thread_([this] { run(); }) {}
  ~SignalThread() {
    stop_ = true;
    pthread_kill(thread_.native_handle(), SIGUSR1);  // Out of its sleep, if it sleeps already.
    thread_.join();
  }
  SignalThread(const SignalThread&) = delete;
  SignalThread& operator=(const SignalThread&) = delete;

 private:
  void run() {
    const sigset_t set = ending_signals();
    const timespec pause{0, 200'000'000};
    while (!stop_)
      if (const int signal = sigtimedwait(&set, nullptr, &pause); signal > 0) end(signal);
  }
  void end(int signal) {
    if (!detached_ && (umount2(mountpoint_.c_str(), UMOUNT_NOFOLLOW) == 0 || errno == EINVAL)) {
      detached_ = true;
      return;
    }
    if (!detached_) {
      detached_ = true;
      spdlog::warn(
          "signal {}: {} is in use; it is detached, and ends with its last user or with the "
          "next signal",
          signal, mountpoint_);
      umount2(mountpoint_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
      return;
    }
    filesystem_.stop_waiting();
    // An invalidation that waits for a page of a request that nobody serves any more would wait for ever, and hold the connection
    // open: abort it. Without fusectl, hope that there is none.
    if (!connection_.empty() && std::ofstream(connection_ + "/abort") << "1" << std::flush) return;
    fuse_session_exit(session_);
    pthread_kill(main_, SIGUSR1);  // out of libfuse's sem_wait
  }

  Filesystem& filesystem_;
  fuse_session* session_;
  std::string mountpoint_;
  std::string connection_;  ///< Its folder in fusectl.
  pthread_t main_;
  bool detached_ = false;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

/// A libfuse session, mounted.
class Session {
 public:
  explicit Session(Filesystem& filesystem) : filesystem_(filesystem) {}
  ~Session() {
    if (session_ == nullptr) return;
    if (mounted_) {
      filesystem_.stop_serving();
      fuse_session_unmount(session_);
      filesystem_.await_notifications();
    }
    fuse_session_destroy(session_);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Status open(const MountOptions& options) {
    std::string flags = "default_permissions,fsname=distfuse,subtype=distfuse";
    if (options.allow_other) flags += ",allow_other";
    if (options.read_only) flags += ",ro";
    std::vector<std::string> words{"distfuse", "-o", flags};
    if (options.debug) words.emplace_back("-d");
    std::vector<char*> pointers;
    for (std::string& word : words) pointers.push_back(word.data());
    fuse_args args = FUSE_ARGS_INIT(static_cast<int>(pointers.size()), pointers.data());
    session_ =
        fuse_session_new(&args, &Filesystem::operations(), sizeof(fuse_lowlevel_ops), &filesystem_);
    fuse_opt_free_args(&args);
    if (session_ == nullptr) return Error{EINVAL, "libfuse refuses the mount options"};
    if (fuse_session_mount(session_, options.mountpoint.c_str()) != 0) {
      return Error{errno == 0 ? EIO : errno,
                   fmt::format("cannot mount on {}: {}", options.mountpoint,
                               std::generic_category().message(errno == 0 ? EIO : errno))};
    }
    mounted_ = true;
    return {};
  }

  /// Answers FUSE_INIT, always the first request, so that the mount is what it will be before anybody is told of it.
  void agree() {
    fuse_buf request{};
    int received = 0;
    do received = fuse_session_receive_buf(session_, &request);
    while (received == -EINTR);
    if (received > 0) fuse_session_process_buf(session_, &request);
    std::free(request.mem);
  }

  [[nodiscard]] fuse_session* get() const { return session_; }

  int serve() {
    const std::unique_ptr<fuse_loop_config, decltype(&fuse_loop_cfg_destroy)> config(
        fuse_loop_cfg_create(), &fuse_loop_cfg_destroy);
    fuse_loop_cfg_set_max_threads(config.get(), kMaxThreads);
    fuse_loop_cfg_set_idle_threads(config.get(), kIdleThreads);
    fuse_loop_cfg_set_clone_fd(config.get(), 0);
    return fuse_session_loop_mt(session_, config.get());
  }

 private:
  Filesystem& filesystem_;
  fuse_session* session_ = nullptr;
  bool mounted_ = false;
};

/// For the time of a mount: the ending signals go to the signal thread, SIGUSR1 only interrupts, a closed pipe is an error code.
class SignalMask {
 public:
  SignalMask() {
    const sigset_t set = ending_signals();
    pthread_sigmask(SIG_BLOCK, &set, &before_);
    struct sigaction interrupt {};
    interrupt.sa_handler = [](int) {};
    sigaction(SIGUSR1, &interrupt, nullptr);
    signal(SIGPIPE, SIG_IGN);
  }
  ~SignalMask() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalMask(const SignalMask&) = delete;
  SignalMask& operator=(const SignalMask&) = delete;

 private:
  sigset_t before_{};
};

Result<std::unique_ptr<AdminServer>> serve_admin(const MountOptions& options,
                                                 const Filesystem& filesystem) {
  if (options.admin_socket.empty()) return std::unique_ptr<AdminServer>{};
  return AdminServer::create(options.admin_socket, [&filesystem](const std::string& command) {
    return command == "status" ? filesystem.status_json()
                               : std::string(R"({"error": "unknown command"})");
  });
}

}  // namespace

Status run_mount(const MountOptions& options) {
  const SignalMask mask;
  // Nothing of this process may keep a file of its own mount, or of any other, busy.
  if (chdir("/") != 0) return Error{errno, "cannot change to /"};
  Filesystem filesystem(options);
  DISTFUSE_TRY(filesystem.connect());
  auto admin = serve_admin(options, filesystem);
  if (!admin) return admin.error();
  int served = 0;
  {
    Session session(filesystem);
    DISTFUSE_TRY(session.open(options));
    filesystem.start(session.get());
    session.agree();
    raise_readahead(options.mountpoint);
    const SignalThread signals(filesystem, session.get(), options.mountpoint);
    spdlog::info("{} is mounted", options.mountpoint);
    if (options.ready) options.ready();
    served = session.serve();
  }
  admin->reset();
  const bool lost = filesystem.lost();
  filesystem.stop();
  spdlog::info("{} is unmounted", options.mountpoint);
  if (lost) return Error{ENOTCONN, fmt::format("{}: the session was lost", options.mountpoint)};
  if (served < 0)
    return Error{-served, fmt::format("{}: cannot serve: {}", options.mountpoint,
                                      std::generic_category().message(-served))};
  return {};
}

}  // namespace distfuse::client
