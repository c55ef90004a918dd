// SPDX-License-Identifier: Apache-2.0
#include "client/kernel/device.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fuse.h>
#include <netdb.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#include "client/kernel/mountinfo.h"
#include "client/kernel/origin.h"
#include "kmod/uapi.h"
#include "rdma/lock/wire.h"

namespace distfuse::client::kernel {
namespace {

std::string text_of(int code) {
  return std::generic_category().message(code);
}

const char* refusal_text(std::int32_t refusal) {
  switch (refusal) {
    case DF_REFUSED_VERSION:
      return "it speaks another version of the lock protocol: install the same release everywhere";
    case DF_REFUSED_CLUSTER:
      return "it serves another cluster: check [cluster] id in the cluster file";
    case DF_REFUSED_NO_NODE_ID:
      return "it has no node id left";
    case DF_REFUSED_GRACE:
      return "it has restarted and takes no new mounts yet: try again in a lease's time";
    default:
      return "it refuses this mount";
  }
}

Status resolve(const std::string& listen, dfs_ioc_new& request) {
  const auto colon = listen.rfind(':');
  if (colon == std::string::npos) return Error{EINVAL, fmt::format("{} has no port", listen)};
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(listen.substr(0, colon).c_str(), listen.substr(colon + 1).c_str(),
                               &hints, &found);
  if (code != 0)
    return Error{EHOSTUNREACH, fmt::format("lockd's address {}: {}", listen, gai_strerror(code))};
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);
  if (found->ai_family == AF_INET) {
    const auto& v4 = *reinterpret_cast<const sockaddr_in*>(found->ai_addr);
    request.lockd_port = ntohs(v4.sin_port);
    std::memcpy(request.lockd_address, &v4.sin_addr, sizeof(v4.sin_addr));
  } else {
    const auto& v6 = *reinterpret_cast<const sockaddr_in6*>(found->ai_addr);
    request.lockd_port = ntohs(v6.sin6_port);
    std::memcpy(request.lockd_address, &v6.sin6_addr, sizeof(v6.sin6_addr));
  }
  request.lockd_family = static_cast<std::uint16_t>(found->ai_family);
  return {};
}

Status begin_failed(int code, const std::string& lockd, std::int32_t refusal) {
  switch (code) {
    case EPROTO:
      return Error{EPROTO, fmt::format("lockd at {}: {}", lockd, refusal_text(refusal))};
    case EPROTONOSUPPORT:
      return Error{code,
                   "the distfuse module in the kernel is another release's: unload it (rmmod "
                   "distfuse) and load this one's"};
    case ENODEV:
    case EADDRNOTAVAIL:
      return Error{
          code, fmt::format("no RDMA device of this machine reaches lockd at {}: see `rdma link`",
                            lockd)};
    default:
      return Error{code, fmt::format("cannot connect to lockd at {}: {}", lockd, text_of(code))};
  }
}

void copy_id(const config::Cluster& cluster, std::uint8_t (&id)[16]) {
  for (std::size_t i = 0; i < sizeof(id); ++i)
    id[i] = static_cast<std::uint8_t>(std::stoul(cluster.id.substr(2 * i, 2), nullptr, 16));
}

Result<std::uint32_t> minor_of(const std::string& mountpoint) {
  const auto mount = find_mount(mountpoint);
  if (!mount)
    return Error{ENOENT, fmt::format("{} is not mounted: `distfuse mount` without --attach does",
                                     mountpoint)};
  if (mount->type != DFS_FILESYSTEM_NAME)
    return Error{ENOENT,
                 fmt::format("{} is a mount of type {}: a client takes over mounts of coherence "
                             "mode kernel alone",
                             mountpoint, mount->type)};
  return mount->device_minor;
}

Status attach_failed(int code, const std::string& mountpoint) {
  switch (code) {
    case EXDEV:
      return Error{code, fmt::format("{} is another cluster's: give its cluster file (--config)",
                                     mountpoint)};
    case EBUSY:
      return Error{code, fmt::format("the client of {} does not end, or another takes over already",
                                     mountpoint)};
    case ENOTCONN:
      return Error{code, fmt::format("{} is given up, its requests fail: unmount it (`distfuse "
                                     "umount --lazy {}`), and mount again",
                                     mountpoint, mountpoint)};
    case EPROTONOSUPPORT:
      return Error{code,
                   fmt::format("{} is a mount of another release's module: unmount it, unload that "
                               "module (rmmod distfuse), and mount again",
                               mountpoint)};
    default:
      return Error{code, fmt::format("cannot take over {}: {}", mountpoint, text_of(code))};
  }
}

}  // namespace

Result<Device> Device::open() {
  Descriptor device(::open("/dev/" DFS_DEVICE_NAME, O_RDWR | O_CLOEXEC));
  if (device.get() >= 0) return Device(std::move(device));
  if (errno == ENOENT)
    return Error{ENOENT,
                 "/dev/distfuse is not there: load the module (modprobe distfuse), or mount with "
                 "--coherence user"};
  return Error{errno, fmt::format("/dev/distfuse: {}", text_of(errno))};
}

Status Device::begin(const config::Cluster& cluster, const std::string& mount_name) {
  dfs_ioc_new request{};
  request.abi = DFS_ABI;
  DISTFUSE_TRY(resolve(cluster.lockd.listen, request));
  copy_id(cluster, request.cluster);
  std::memcpy(request.name, mount_name.data(),
              std::min(mount_name.size(), sizeof(request.name) - 1));
  request.give_up_ms = static_cast<std::uint32_t>(cluster.client.give_up_s * 1000);
  request.max_locks = static_cast<std::uint32_t>(cluster.client.max_locks);
  if (ioctl(device_.get(), DFS_IOC_NEW, &request) != 0)
    return begin_failed(errno, cluster.lockd.listen, request.refusal);
  session_ = {request.session, request.incarnation};
  connection_ = request.connection;
  return {};
}

Status Device::attach(const config::Cluster& cluster, const std::string& mountpoint,
                      std::chrono::milliseconds drain) {
  auto minor = minor_of(mountpoint);
  if (!minor) return minor.error();
  dfs_ioc_attach request{};
  request.abi = DFS_ABI;
  request.device_minor = *minor;
  copy_id(cluster, request.cluster);
  request.drain_ms = static_cast<std::uint32_t>(drain.count());
  if (ioctl(device_.get(), DFS_IOC_ATTACH, &request) != 0) return attach_failed(errno, mountpoint);
  session_ = {request.session, request.incarnation};
  connection_ = request.connection;
  number_ = request.daemon;
  return {};
}

Result<MountState> Device::look(const std::string& mountpoint) {
  auto minor = minor_of(mountpoint);
  if (!minor) return minor.error();
  auto device = open();
  if (!device) return device.error();
  dfs_ioc_attach request{};
  request.abi = DFS_ABI;
  request.device_minor = *minor;
  request.look = 1;
  if (ioctl(device->descriptor(), DFS_IOC_ATTACH, &request) != 0)
    return attach_failed(errno, mountpoint).error();
  return MountState{request.daemon, request.aborted != 0};
}

ssize_t Device::read(void* buffer, std::size_t size) {
  dfs_request_head head{};
  const iovec parts[] = {{&head, sizeof(head)}, {buffer, size}};
  const ssize_t got = readv(device_.get(), parts, 2);
  if (got < 0) {
    if (errno != ESHUTDOWN) return got;
    replaced_->store(true);
    errno = ENODEV;  // libfuse's word for an end
    return got;
  }
  fuse_in_header fuse{};
  if (static_cast<std::size_t>(got) < sizeof(head) + sizeof(fuse)) {
    errno = EIO;
    return -1;
  }
  std::memcpy(&fuse, buffer, sizeof(fuse));
  origin() = {fuse.unique, head.session, head.lowest, (head.flags & DFS_RESENT) != 0, 0};
  return got - static_cast<ssize_t>(sizeof(head));
}

Result<Session> Device::await_session(std::uint64_t known) {
  dfs_ioc_session request{};
  request.known = known;
  if (ioctl(device_.get(), DFS_IOC_SESSION, &request) != 0)
    return Error{errno, "the wait for a session ended"};
  return Session{request.session, request.incarnation};
}

void Device::fenced(std::uint64_t session) {
  if (ioctl(device_.get(), DFS_IOC_FENCED, &session) != 0 && errno != ENOTCONN)
    spdlog::error("the module cannot be told that session {:#x} is refused: {}", session,
                  std::strerror(errno));
}

}  // namespace distfuse::client::kernel
