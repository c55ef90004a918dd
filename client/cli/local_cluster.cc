// SPDX-License-Identifier: Apache-2.0
#include "client/cli/local_cluster.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "client/kernel/device.h"
#include "client/kernel/mountinfo.h"
#include "common/admin.h"
#include "common/replace_file.h"

namespace distfuse::client {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr unsigned kDefaultStorageds = 2;
constexpr unsigned kMaxStorageds = 64;
constexpr const char* kDefaultHost = "127.0.0.1";
constexpr unsigned kFirstPort = 15000;  // Linux takes 32768 to 60999 for outgoing connections
constexpr unsigned kLastPort = 31999;

std::uint16_t port_of(const std::string& address) {
  return static_cast<std::uint16_t>(std::stoul(address.substr(address.rfind(':') + 1)));
}

std::string host_of(const std::string& address) {
  return address.substr(0, address.rfind(':'));
}

/// Binds and listens on host:port for a moment.
bool port_is_free(const std::string& host, std::uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  const bool free = inet_pton(AF_INET, host.c_str(), &address.sin_addr) == 1 &&
                    bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
                    listen(fd, 1) == 0;
  close(fd);
  return free;
}

/// A free port outside of the range that the kernel takes for outgoing connections: else a client that connects to a daemon that is
/// away may get the daemon's port for its own end, and even connect to itself.
std::uint16_t free_port(const std::string& host) {
  static std::mt19937 random{std::random_device{}()};
  for (;;) {
    const auto port = static_cast<std::uint16_t>(
        std::uniform_int_distribution<unsigned>(kFirstPort, kLastPort)(random));
    if (port_is_free(host, port)) return port;
  }
}

/// Gives every listener a port that is free now, keeping those that are, and their hosts; new ones are on `host`.
bool choose_ports(config::Cluster& cluster, const std::string& new_host) {
  std::set<std::uint16_t> taken;
  bool changed = false;
  const auto choose = [&](std::string& address) {
    const std::uint16_t old = address.empty() ? 0 : port_of(address);
    const std::string host = address.empty() ? new_host : host_of(address);
    std::uint16_t port = old != 0 && port_is_free(host, old) ? old : free_port(host);
    while (!taken.insert(port).second) port = free_port(host);
    changed |= port != old;
    address = fmt::format("{}:{}", host, port);
  };
  choose(cluster.lockd.listen);
  for (config::Storaged& s : cluster.storaged) {
    if (s.meta) choose(s.meta_listen);
    if (s.data) choose(s.data_listen);
  }
  return changed;
}

config::Cluster new_cluster(const LocalCluster& local, const UpOptions& options) {
  const unsigned storageds = options.storageds == 0 ? kDefaultStorageds : options.storageds;
  config::Cluster cluster;
  cluster.id = config::new_cluster_id();
  cluster.name = fs::path(local.root).filename();
  if (!options.fabric.empty()) cluster.fabric.kind = options.fabric;
  cluster.fabric.data_device = options.data_device;
  const bool on_loopback =
      cluster.fabric.kind == "ucx" && options.device.empty() && options.address.empty();
  cluster.fabric.device = on_loopback ? "lo" : options.device;
  cluster.lockd.state_dir = local.root + "/lockd";
  for (unsigned i = 0; i < storageds; ++i) {
    config::Storaged s;
    s.name = fmt::format("storaged-{}", i);
    s.data = true;
    s.data_dir = fmt::format("{}/data/{}", local.root, i);
    s.meta = i == 0;
    if (s.meta) s.meta_dir = local.root + "/meta";
    cluster.storaged.push_back(std::move(s));
  }
  return cluster;
}

/// What cannot be changed once the cluster is there.
Status check_same_cluster(const LocalCluster& local, const config::Cluster& cluster,
                          const UpOptions& options) {
  const auto differs = [&](const std::string& flag, const std::string& has) {
    return Error{EINVAL, fmt::format("the cluster in {} has {}: leave {} out, or use another "
                                     "--root",
                                     local.root, has, flag)};
  };
  if (options.storageds != 0 && options.storageds != cluster.storaged.size())
    return differs("--storage",
                   fmt::format("{} storageds, not {}", cluster.storaged.size(), options.storageds));
  if (!options.fabric.empty() && options.fabric != cluster.fabric.kind)
    return differs("--fabric", "the fabric " + cluster.fabric.kind);
  if (!options.device.empty() && options.device != cluster.fabric.device)
    return differs("--device", "the device '" + cluster.fabric.device + "'");
  if (!options.data_device.empty() && options.data_device != cluster.fabric.data_device)
    return differs("--data-device", "the data device '" + cluster.fabric.data_device + "'");
  if (!options.address.empty() && options.address != host_of(cluster.lockd.listen))
    return differs("--address", "the address " + host_of(cluster.lockd.listen));
  return {};
}

/// Checked as any cluster file before it is written.
Result<config::Cluster> save_cluster(const LocalCluster& local, const config::Cluster& cluster) {
  const auto text = config::to_toml(cluster);
  if (auto checked = config::parse_cluster(text, local.config_path()); !checked)
    return checked.error();
  DISTFUSE_TRY(replace_file(local.config_path(), text));
  return cluster;
}

Status make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error || access(path.c_str(), W_OK | X_OK) != 0) {
    return Error{EACCES,
                 fmt::format("folder {} cannot be written: {}", path,
                             error ? error.message() : std::generic_category().message(errno))};
  }
  return {};
}

/// One that stands still keeps the others' answers waiting for no longer.
constexpr std::chrono::milliseconds kStatusTimeout{1000};

json status_of(const LocalCluster& local, const RunningDaemon& daemon) {
  json entry{{"name", daemon.name},
             {"kind", daemon.kind},
             {"pid", daemon.process.pid},
             {"alive", alive(daemon.process)}};
  if (!daemon.mountpoint.empty()) {
    entry["mountpoint"] = daemon.mountpoint;
    entry["coherence"] = daemon.coherence;
  }
  auto answer = admin_query(local.run_file(daemon.name, ".sock"), "status", kStatusTimeout);
  json status = answer ? json::parse(*answer, nullptr, false) : json();
  entry["status"] = status.is_discarded() ? json() : status;
  return entry;
}

}  // namespace

Result<std::vector<RunningDaemon>> LocalCluster::load_state() const {
  const std::string path = run_dir() + "/state.json";
  std::ifstream file(path);
  if (!file) return std::vector<RunningDaemon>{};
  try {
    std::vector<RunningDaemon> daemons;
    for (const json& d : json::parse(file)) {
      daemons.push_back(
          {d.at("name"), d.at("kind"), d.at("mountpoint"), d.value("coherence", ""),
           ProcessId{d.at("pid").get<pid_t>(), d.at("start_time").get<std::uint64_t>()}});
    }
    return daemons;
  } catch (const json::exception& e) {
    return Error{EINVAL, fmt::format("{} is damaged ({}): stop the daemons by hand and remove it",
                                     path, e.what())};
  }
}

Status LocalCluster::save_state(const std::vector<RunningDaemon>& daemons) const {
  json list = json::array();
  for (const RunningDaemon& d : daemons) {
    list.push_back({{"name", d.name},
                    {"kind", d.kind},
                    {"mountpoint", d.mountpoint},
                    {"coherence", d.coherence},
                    {"pid", d.process.pid},
                    {"start_time", d.process.start_time}});
  }
  return replace_file(run_dir() + "/state.json", list.dump(2) + "\n");
}

void LocalCluster::remove_state() const {
  std::error_code ignored;
  fs::remove(run_dir() + "/state.json", ignored);
}

Result<LocalCluster> open_local_cluster(const std::string& root, bool must_exist) {
  std::error_code error;
  LocalCluster local{fs::absolute(root, error).lexically_normal()};
  while (local.root.size() > 1 && local.root.back() == '/') local.root.pop_back();
  if (must_exist && !fs::exists(local.config_path(), error)) {
    return Error{
        ENOENT,
        fmt::format("{} holds no cluster (no cluster.toml): give the --root of `distfuse up`",
                    local.root)};
  }
  return local;
}

Result<config::Cluster> prepare_local_cluster(const LocalCluster& local, const UpOptions& options) {
  const std::string host = options.address.empty() ? kDefaultHost : options.address;
  if (options.storageds > kMaxStorageds) {
    return Error{EINVAL, fmt::format("--storage {} is too many for one machine: at most {}",
                                     options.storageds, kMaxStorageds)};
  }
  if (in_addr parsed{}; inet_pton(AF_INET, host.c_str(), &parsed) != 1)
    return Error{EINVAL, fmt::format("--address {} is no IPv4 address", host)};
  DISTFUSE_TRY(make_folder(local.root));
  DISTFUSE_TRY(make_folder(local.run_dir()));
  DISTFUSE_TRY(make_folder(local.root + "/data"));
  std::error_code error;
  if (!fs::exists(local.config_path(), error)) {
    config::Cluster cluster = new_cluster(local, options);
    choose_ports(cluster, host);
    if (options.lease_ms) cluster.lockd.lease_ms = *options.lease_ms;
    return save_cluster(local, cluster);
  }
  auto cluster = config::load_cluster(local.config_path());
  if (!cluster) return cluster.error();
  DISTFUSE_TRY(check_same_cluster(local, *cluster, options));
  bool changed = choose_ports(*cluster, host);
  if (options.lease_ms && *options.lease_ms != cluster->lockd.lease_ms) {
    cluster->lockd.lease_ms = *options.lease_ms;
    changed = true;
  }
  return changed ? save_cluster(local, *cluster) : cluster;
}

Result<json> collect_status(const LocalCluster& local) {
  auto cluster = config::load_cluster(local.config_path());
  if (!cluster) return cluster.error();
  auto daemons = local.load_state();
  if (!daemons) return daemons.error();
  std::vector<std::future<json>> answers;
  for (const RunningDaemon& daemon : *daemons)
    answers.push_back(std::async(std::launch::async, [&] { return status_of(local, daemon); }));
  json list = json::array();
  for (auto& answer : answers) list.push_back(answer.get());
  return json{{"cluster", cluster->id}, {"root", local.root}, {"daemons", list}};
}

bool is_mountpoint(const std::string& path) {
  return kernel::find_mount(path).has_value();
}

Status check_mount_device(const std::string& coherence) {
  if (coherence == "kernel") {
    auto device = kernel::Device::open();
    return device ? Status{} : Status{device.error()};
  }
  if (access("/dev/fuse", R_OK | W_OK) != 0) {
    return Error{
        ENODEV,
        fmt::format(
            "/dev/fuse cannot be opened ({}): load the module (modprobe fuse) and check its "
            "permissions",
            std::generic_category().message(errno))};
  }
  return {};
}

Status check_mountpoint(const std::string& path) {
  if (is_mountpoint(path)) {
    return Error{EBUSY,
                 fmt::format("mount point {} is in use: unmount it first (`distfuse umount {}`)",
                             path, path)};
  }
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    return Error{ENOTDIR, fmt::format("mount point {} is not a folder: make it first (mkdir -p {})",
                                      path, path)};
  }
  return {};
}

}  // namespace distfuse::client
