// SPDX-License-Identifier: Apache-2.0
// A cluster on one machine, as a folder: what `distfuse up` writes and `down` and `status` read.
//
//   ROOT/cluster.toml   the cluster file, found again by the next `up`
//   ROOT/lockd          lockd's incarnation number
//   ROOT/meta           the metadata store
//   ROOT/data/N         the data targets
//   ROOT/run            while it runs: state.json, NAME.log, NAME.err, NAME.sock
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "client/cli/process.h"
#include "common/config.h"
#include "common/result.h"

namespace distfuse::client {

struct RunningDaemon {
  std::string name;        ///< lockd, storaged-N, mount-N.
  std::string kind;        ///< lockd, storaged, mount.
  std::string mountpoint;  ///< Kind mount.
  std::string coherence;   ///< Kind mount: user or kernel.
  ProcessId process;
};

struct LocalCluster {
  std::string root;  ///< Absolute.

  [[nodiscard]] std::string config_path() const { return root + "/cluster.toml"; }
  [[nodiscard]] std::string run_dir() const { return root + "/run"; }
  [[nodiscard]] std::string run_file(const std::string& name, const char* suffix) const {
    return run_dir() + "/" + name + suffix;
  }

  /// The daemons that `up` started; empty when none was. Error: a state file that cannot be read.
  [[nodiscard]] Result<std::vector<RunningDaemon>> load_state() const;
  [[nodiscard]] Status save_state(const std::vector<RunningDaemon>& daemons) const;
  void remove_state() const;
};

/// Finds the folder; `must_exist`: it must hold a cluster file. Error: ENOENT with what to do.
[[nodiscard]] Result<LocalCluster> open_local_cluster(const std::string& root, bool must_exist);

struct UpOptions {
  std::string root;
  std::vector<std::string> mounts;
  unsigned storageds = 0;                 ///< Of a new cluster; 0: two.
  std::optional<std::uint64_t> lease_ms;  ///< Kept in the cluster file; none: what it has.
  // Of a new cluster; empty: ucx on lo, 127.0.0.1.
  std::string fabric;  ///< ucx or verbs.
  std::string device;  ///< As in the cluster file, as the next.
  std::string data_device;
  std::string address;             ///< IPv4 address of this machine that every daemon listens on.
  std::string coherence = "user";  ///< Of the mounts: user or kernel.
  std::string log_level = "info";
};

/// Reads ROOT/cluster.toml, or writes a new one. Ports that are taken are chosen anew; the lease is written into it. Error: another
/// number of storageds than the cluster has, a lease that is out of range, another fabric or address, a folder that cannot be
/// written.
[[nodiscard]] Result<config::Cluster> prepare_local_cluster(const LocalCluster& local,
                                                            const UpOptions& options);

/// Starts one of its daemons with its log and admin socket under ROOT/run, and waits until it is ready. The daemon's arguments
/// are those after the common ones.
[[nodiscard]] Result<ProcessId> launch(const LocalCluster& local, const std::string& name,
                                       const std::string& log_level,
                                       std::vector<std::string> command, const Progress& progress);

/// What each daemon says of itself: {"cluster", "root", "daemons": [{name, kind, pid, alive, status}]}.
[[nodiscard]] Result<nlohmann::json> collect_status(const LocalCluster& local);

[[nodiscard]] Status up(const UpOptions& options);

/// Starts a storaged or lockd again; one that runs is stopped first. A mount of mode `kernel` gets a new client, whether it has one or not; another mount
/// whose client is dead is mounted again. Error: an unknown name; EBUSY: a mount of mode `user` that runs.
[[nodiscard]] Status restart(const std::string& root, const std::string& daemon);

struct DownOptions {
  std::string root;
  bool lazy = false;  ///< Detach mounts that are in use.
};
[[nodiscard]] Status down(const DownOptions& options);

/// Unmounts, waits for the client of the mount to have ended. Error: EBUSY with who to ask; EINVAL: not a mount point.
[[nodiscard]] Status unmount(const std::string& mountpoint, bool lazy);
/// Whether something is mounted at exactly this path.
[[nodiscard]] bool is_mountpoint(const std::string& path);
/// Whether mounts of this coherence can be made here. Error: ENODEV and others, with what to do.
[[nodiscard]] Status check_mount_device(const std::string& coherence);
/// A folder that a mount can go to. Error: absent, not a folder, in use.
[[nodiscard]] Status check_mountpoint(const std::string& path);

}  // namespace distfuse::client
