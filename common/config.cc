// SPDX-License-Identifier: Apache-2.0
#include "common/config.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <fstream>
#include <random>
#include <set>
#include <sstream>

namespace distfuse::config {
namespace {

constexpr std::uint64_t kMinSlots = 64;
constexpr std::uint64_t kMaxSlots = 1ULL << 30;
constexpr std::uint64_t kMinLease = 200;  // a renewal every 50 ms
constexpr std::uint64_t kMaxLease = 600000;

Error at(const std::string& origin, const toml::node& node, const std::string& what) {
  return {EINVAL, fmt::format("{}:{}: {}", origin, node.source().begin.line, what)};
}

/// One table of the file: reads typed keys, then rejects those that nobody asked for.
class Section {
 public:
  Section(const toml::table& table, std::string name, std::string origin)
      : table_(table), name_(std::move(name)), origin_(std::move(origin)) {}

  Status text(const char* key, std::string& out, bool required = false) {
    const toml::node* node = take(key);
    if (node == nullptr) return missing(key, required);
    const auto value = node->value_exact<std::string>();
    if (!value) return wrong_type(*node, key, "a string in quotes");
    out = *value;
    return {};
  }

  Status number(const char* key, std::uint64_t& out, std::uint64_t low, std::uint64_t high) {
    const toml::node* node = take(key);
    if (node == nullptr) return {};
    const auto value = node->value_exact<std::int64_t>();
    if (!value) return wrong_type(*node, key, "a whole number");
    if (*value < 0 || static_cast<std::uint64_t>(*value) < low ||
        static_cast<std::uint64_t>(*value) > high) {
      return at(
          origin_, *node,
          fmt::format("{} in [{}] is {}: it must be from {} to {}", key, name_, *value, low, high));
    }
    out = static_cast<std::uint64_t>(*value);
    return {};
  }

  Status size(const char* key, std::uint64_t& out) {
    const toml::node* node = take(key);
    if (node == nullptr) return {};
    if (const auto value = node->value_exact<std::int64_t>(); value && *value >= 0) {
      out = static_cast<std::uint64_t>(*value);
      return {};
    }
    const auto value = node->value_exact<std::string>();
    if (!value) return wrong_type(*node, key, "a number of bytes or a size such as \"10 GiB\"");
    auto parsed = parse_size(*value);
    if (!parsed)
      return at(origin_, *node, fmt::format("{} in [{}]: {}", key, name_, parsed.error().message));
    out = *parsed;
    return {};
  }

  Status words(const char* key, std::vector<std::string>& out) {
    const toml::node* node = take(key);
    if (node == nullptr) return missing(key, true);
    const toml::array* array = node->as_array();
    if (array == nullptr) return wrong_type(*node, key, "a list of strings");
    for (const toml::node& item : *array) {
      const auto value = item.value_exact<std::string>();
      if (!value) return wrong_type(item, key, "a list of strings");
      out.push_back(*value);
    }
    return {};
  }

  /// Call when all keys were read.
  Status no_more() {
    for (const auto& [key, node] : table_) {
      if (known_.contains(std::string(key.str()))) continue;
      return at(origin_, node,
                fmt::format("unknown key '{}' in [{}]: known are {}", key.str(), name_,
                            fmt::join(known_, ", ")));
    }
    return {};
  }

  [[nodiscard]] Error wrong(const char* key, const std::string& what) const {
    const toml::node* node = table_.get(key);
    return at(origin_, node == nullptr ? table_ : *node,
              fmt::format("{} in [{}] {}", key, name_, what));
  }

 private:
  const toml::node* take(const char* key) {
    known_.insert(key);
    return table_.get(key);
  }
  Status missing(const char* key, bool required) const {
    if (!required) return {};
    return at(origin_, table_, fmt::format("[{}] lacks the key '{}'", name_, key));
  }
  Error wrong_type(const toml::node& node, const char* key, const char* expected) const {
    return at(origin_, node, fmt::format("{} in [{}] must be {}", key, name_, expected));
  }

  const toml::table& table_;
  std::string name_;
  std::string origin_;
  std::set<std::string> known_;
};

/// "host:port" with a port of 0 to 65535 and a host that is not empty; "[v6]:port" as well.
bool is_address(std::string_view text) {
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == text.size()) return false;
  std::uint32_t port = 0;
  const auto digits = text.substr(colon + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  return error == std::errc() && end == digits.data() + digits.size() && port <= 65535;
}

Status check_address(const Section& section, const char* key, const std::string& value) {
  if (is_address(value)) return {};
  return section.wrong(key, fmt::format("is '{}': it must be host:port", value));
}

Status read_cluster(Section section, Cluster& out) {
  DISTFUSE_TRY(section.text("id", out.id, true));
  DISTFUSE_TRY(section.text("name", out.name));
  DISTFUSE_TRY(section.no_more());
  const bool hex =
      out.id.size() == 32 && out.id.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!hex) return section.wrong("id", "must be 32 hexadecimal digits (0-9, a-f)");
  return {};
}

Status read_fabric(Section section, Fabric& out) {
  DISTFUSE_TRY(section.text("kind", out.kind));
  DISTFUSE_TRY(section.text("device", out.device));
  DISTFUSE_TRY(section.text("data_device", out.data_device));
  DISTFUSE_TRY(section.no_more());
  if (out.kind != "ucx" && out.kind != "verbs") {
    return section.wrong("kind", fmt::format("is '{}': it must be ucx or verbs", out.kind));
  }
  return {};
}

Status read_lockd(Section section, Lockd& out) {
  DISTFUSE_TRY(section.text("listen", out.listen, true));
  DISTFUSE_TRY(section.number("slots", out.slots, kMinSlots, kMaxSlots));
  DISTFUSE_TRY(section.text("state_dir", out.state_dir, true));
  DISTFUSE_TRY(section.number("lease_ms", out.lease_ms, 0, kMaxLease));
  DISTFUSE_TRY(section.no_more());
  DISTFUSE_TRY(check_address(section, "listen", out.listen));
  if (out.lease_ms != 0 && out.lease_ms < kMinLease)
    return section.wrong("lease_ms",
                         fmt::format("must be at least {}, or 0 for no lease", kMinLease));
  if (!std::has_single_bit(out.slots)) return section.wrong("slots", "must be a power of two");
  return {};
}

Status read_storaged(Section section, Storaged& out) {
  std::vector<std::string> roles;
  DISTFUSE_TRY(section.text("name", out.name, true));
  DISTFUSE_TRY(section.words("roles", roles));
  DISTFUSE_TRY(section.text("meta_listen", out.meta_listen));
  DISTFUSE_TRY(section.text("data_listen", out.data_listen));
  DISTFUSE_TRY(section.text("meta_dir", out.meta_dir));
  DISTFUSE_TRY(section.text("data_dir", out.data_dir));
  DISTFUSE_TRY(section.size("capacity", out.capacity));
  DISTFUSE_TRY(section.no_more());
  for (const std::string& role : roles) {
    if (role != "meta" && role != "data")
      return section.wrong("roles", fmt::format("has '{}': roles are meta and data", role));
    (role == "meta" ? out.meta : out.data) = true;
  }
  if (!out.meta && !out.data)
    return section.wrong("roles", "is empty: a storaged needs meta, data or both");
  if (out.meta) {
    DISTFUSE_TRY(check_address(section, "meta_listen", out.meta_listen));
    if (out.meta_dir.empty()) return section.wrong("meta_dir", "is needed for the role meta");
  }
  if (out.data) {
    DISTFUSE_TRY(check_address(section, "data_listen", out.data_listen));
    if (out.data_dir.empty()) return section.wrong("data_dir", "is needed for the role data");
  }
  return {};
}

Status read_client(Section section, Client& out) {
  DISTFUSE_TRY(section.number("give_up_s", out.give_up_s, 1, 86400));
  DISTFUSE_TRY(section.number("max_locks", out.max_locks, 16, 100000000));
  return section.no_more();
}

Status check_whole(const Cluster& cluster, const std::string& origin) {
  std::set<std::string> names;
  for (const Storaged& s : cluster.storaged) {
    if (!names.insert(s.name).second)
      return Error{EINVAL, fmt::format("{}: two [[storaged]] are named '{}'", origin, s.name)};
  }
  const auto metas = std::count_if(cluster.storaged.begin(), cluster.storaged.end(),
                                   [](const Storaged& s) { return s.meta; });
  if (metas != 1) {
    return Error{EINVAL, fmt::format("{}: {} [[storaged]] have the role meta: exactly one must",
                                     origin, metas)};
  }
  if (cluster.data_addresses().empty())
    return Error{EINVAL, fmt::format("{}: no [[storaged]] has the role data", origin)};
  return {};
}

Status read_storageds(const toml::node& node, const std::string& origin, Cluster& out) {
  const toml::array* array = node.as_array();
  if (array == nullptr || !array->is_homogeneous<toml::table>()) {
    return at(origin, node, "storaged must be written [[storaged]], once for each");
  }
  for (const toml::node& item : *array) {
    DISTFUSE_TRY(
        read_storaged(Section(*item.as_table(), "storaged", origin), out.storaged.emplace_back()));
  }
  return {};
}

}  // namespace

const Storaged* Cluster::find_storaged(std::string_view wanted) const {
  const auto found = std::find_if(storaged.begin(), storaged.end(),
                                  [&](const Storaged& s) { return s.name == wanted; });
  return found == storaged.end() ? nullptr : &*found;
}

const Storaged& Cluster::meta() const {
  return *std::find_if(storaged.begin(), storaged.end(), [](const Storaged& s) { return s.meta; });
}

std::vector<std::string> Cluster::data_addresses() const {
  std::vector<std::string> addresses;
  for (const Storaged& s : storaged) {
    if (s.data) addresses.push_back(s.data_listen);
  }
  return addresses;
}

Result<Cluster> parse_cluster(std::string_view text, const std::string& origin) {
  toml::table file;
  try {
    file = toml::parse(text, origin);
  } catch (const toml::parse_error& e) {
    return Error{EINVAL, fmt::format("{}:{}: {}", origin, e.source().begin.line, e.description())};
  }
  Cluster cluster;
  for (const char* name : {"cluster", "lockd", "storaged"}) {
    if (file.get(name) == nullptr)
      return Error{EINVAL, fmt::format("{}: the section [{}] is missing", origin, name)};
  }
  for (const auto& [key, node] : file) {
    if (key == "storaged") {
      DISTFUSE_TRY(read_storageds(node, origin, cluster));
      continue;
    }
    const toml::table* table = node.as_table();
    Status status;
    if (table == nullptr) {
      status = at(origin, node, fmt::format("'{}' is not a section", key.str()));
    } else if (key == "cluster") {
      status = read_cluster(Section(*table, "cluster", origin), cluster);
    } else if (key == "fabric") {
      status = read_fabric(Section(*table, "fabric", origin), cluster.fabric);
    } else if (key == "lockd") {
      status = read_lockd(Section(*table, "lockd", origin), cluster.lockd);
    } else if (key == "client") {
      status = read_client(Section(*table, "client", origin), cluster.client);
    } else {
      status =
          at(origin, node,
             fmt::format("unknown section [{}]: known are cluster, fabric, lockd, storaged, client",
                         key.str()));
    }
    if (!status.ok()) return status.error();
  }
  DISTFUSE_TRY(check_whole(cluster, origin));
  return cluster;
}

Result<Cluster> load_cluster(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  if (file) text << file.rdbuf();
  if (!file || (text.fail() && file.peek() != EOF)) {
    return Error{errno != 0 ? errno : ENOENT,
                 fmt::format("cluster file {} cannot be read: {}", path,
                             std::generic_category().message(errno))};
  }
  return parse_cluster(text.str(), path);
}

std::string to_toml(const Cluster& cluster) {
  toml::array storageds;
  for (const Storaged& s : cluster.storaged) {
    toml::array roles;
    if (s.meta) roles.push_back("meta");
    if (s.data) roles.push_back("data");
    toml::table t{{"name", s.name}, {"roles", roles}};
    if (s.meta) {
      t.insert("meta_listen", s.meta_listen);
      t.insert("meta_dir", s.meta_dir);
    }
    if (s.data) {
      t.insert("data_listen", s.data_listen);
      t.insert("data_dir", s.data_dir);
      if (s.capacity != 0) t.insert("capacity", static_cast<std::int64_t>(s.capacity));
    }
    storageds.push_back(std::move(t));
  }
  toml::table fabric{{"kind", cluster.fabric.kind}, {"device", cluster.fabric.device}};
  if (!cluster.fabric.data_device.empty()) fabric.insert("data_device", cluster.fabric.data_device);
  const toml::table file{
      {"cluster", toml::table{{"id", cluster.id}, {"name", cluster.name}}},
      {"fabric", fabric},
      {"lockd", toml::table{{"listen", cluster.lockd.listen},
                            {"slots", static_cast<std::int64_t>(cluster.lockd.slots)},
                            {"state_dir", cluster.lockd.state_dir},
                            {"lease_ms", static_cast<std::int64_t>(cluster.lockd.lease_ms)}}},
      {"storaged", storageds},
      {"client", toml::table{{"give_up_s", static_cast<std::int64_t>(cluster.client.give_up_s)},
                             {"max_locks", static_cast<std::int64_t>(cluster.client.max_locks)}}},
  };
  std::stringstream out;
  out << file << '\n';
  return out.str();
}

Result<std::uint64_t> parse_size(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit(end, text.data() + text.size());
  unit.erase(std::remove(unit.begin(), unit.end(), ' '), unit.end());
  static constexpr std::pair<const char*, double> kUnits[] = {{"", 1},
                                                              {"B", 1},
                                                              {"kB", 1e3},
                                                              {"MB", 1e6},
                                                              {"GB", 1e9},
                                                              {"TB", 1e12},
                                                              {"KiB", 1024},
                                                              {"MiB", 1048576},
                                                              {"GiB", 1073741824.0},
                                                              {"TiB", 1099511627776.0}};
  for (const auto& [name, factor] : kUnits) {
    if (error == std::errc() && unit == name && value >= 0 && value * factor < 9e18) {
      return static_cast<std::uint64_t>(std::llround(value * factor));
    }
  }
  return Error{
      EINVAL,
      fmt::format(
          "'{}' is not a size: write bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB",
          text)};
}

std::string new_cluster_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

}  // namespace distfuse::config
