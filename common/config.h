// SPDX-License-Identifier: Apache-2.0
// The cluster file (TOML): one file for all machines of a cluster, read by every daemon and client.
// docs/cluster.md describes each key.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace distfuse::config {

struct Fabric {
  std::string kind = "ucx";  ///< ucx or verbs: how locks are reached.
  std::string device;        ///< Network or RDMA device; empty: any.
  std::string data_device;  ///< UCX's device for the storage RPC; empty: `device` if that is UCX's.

  /// As UCX_NET_DEVICES; empty: any.
  [[nodiscard]] std::string storage_device() const {
    return data_device.empty() && kind == "ucx" ? device : data_device;
  }
};

struct Lockd {
  std::string listen;           ///< host:port, also what clients connect to.
  std::uint64_t slots = 65536;  ///< Primary slots (a power of two); a quarter more is added as
                                ///< overflow. 128 bytes each.
  std::string state_dir;        ///< Where the incarnation number and the list of sessions are kept.
  std::uint64_t lease_ms = 10000;  ///< How long a session lives that is not renewed; 0: while it is
                                   ///< connected, and none outlives lockd.
};

struct Storaged {
  std::string name;
  bool meta = false;
  bool data = false;
  std::string meta_listen;  ///< host:port; role meta.
  std::string data_listen;  ///< host:port; role data.
  std::string meta_dir;
  std::string data_dir;
  std::uint64_t capacity = 0;  ///< Bytes that the data target may use; 0: what its filesystem has.
};

struct Client {
  std::uint64_t give_up_s =
      30;  ///< Seconds that a request waits for a daemon that is away; then EIO.
  std::uint64_t max_locks = 100000;  ///< Locks kept without being in use.
};

struct Cluster {
  std::string id;  ///< 32 hex digits.
  std::string name;
  Fabric fabric;
  Lockd lockd;
  std::vector<Storaged>
      storaged;  ///< Exactly one has role meta. Data targets are numbered in the order of the file.
  Client client;

  [[nodiscard]] const Storaged* find_storaged(std::string_view name) const;
  [[nodiscard]] const Storaged& meta() const;
  [[nodiscard]] std::vector<std::string> data_addresses() const;
};

/// Reads and checks `text`; `origin` stands in messages. Error: EINVAL with file, line, key and
/// what is expected.
[[nodiscard]] Result<Cluster> parse_cluster(std::string_view text, const std::string& origin);
[[nodiscard]] Result<Cluster> load_cluster(const std::string& path);
/// The file that parse_cluster reads back to the same cluster.
[[nodiscard]] std::string to_toml(const Cluster& cluster);

/// "4096", "10 GiB", "1.5TB". Error: EINVAL.
[[nodiscard]] Result<std::uint64_t> parse_size(std::string_view text);
/// A fresh cluster id.
[[nodiscard]] std::string new_cluster_id();

}  // namespace distfuse::config
