// SPDX-License-Identifier: Apache-2.0
#include "common/config.h"

#include <gtest/gtest.h>

namespace distfuse::config {
namespace {

constexpr const char* kGood = R"(
[cluster]
id = "0123456789abcdef0123456789abcdef"
name = "test"
[lockd]
listen = "127.0.0.1:7400"
slots = 1024
state_dir = "/tmp/lockd"
[[storaged]]
name = "a"
roles = ["meta", "data"]
meta_listen = "127.0.0.1:1"
data_listen = "127.0.0.1:2"
meta_dir = "/m"
data_dir = "/d"
capacity = "10 GiB"
[[storaged]]
name = "b"
roles = ["data"]
data_listen = "[::1]:3"
data_dir = "/e"
)";

std::string replaced(const std::string& what, const std::string& with) {
  std::string text = kGood;
  const auto at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return text.replace(at, what.size(), with);
}

std::string message(const std::string& text) {
  auto cluster = parse_cluster(text, "f.toml");
  return cluster ? "accepted" : cluster.error().message;
}

TEST(Config, ReadsEveryKey) {
  auto cluster = parse_cluster(kGood, "f.toml");
  ASSERT_TRUE(cluster) << cluster.error().message;
  EXPECT_EQ(cluster->lockd.slots, 1024U);
  ASSERT_EQ(cluster->storaged.size(), 2U);
  EXPECT_EQ(cluster->meta().name, "a");
  EXPECT_EQ(cluster->storaged[0].capacity, 10ULL << 30);
  EXPECT_EQ(cluster->data_addresses(), (std::vector<std::string>{"127.0.0.1:2", "[::1]:3"}));
  EXPECT_EQ(cluster->find_storaged("c"), nullptr);
}

TEST(Config, TheStorageHasADeviceOfItsOwn) {
  auto parsed = parse_cluster(kGood, "f.toml");
  ASSERT_TRUE(parsed);
  parsed->fabric = {"ucx", "lo", ""};
  EXPECT_EQ(parsed->fabric.storage_device(), "lo");
  parsed->fabric = {"verbs", "rxe0", ""};
  EXPECT_EQ(parsed->fabric.storage_device(), "") << "UCX does not know verbs' names";
  parsed->fabric = {"verbs", "rxe0", "eth0"};
  auto again = parse_cluster(to_toml(*parsed), "again");
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->fabric.storage_device(), "eth0");
}

TEST(Config, WritesWhatItReads) {
  auto cluster = parse_cluster(kGood, "f.toml");
  ASSERT_TRUE(cluster);
  auto again = parse_cluster(to_toml(*cluster), "again");
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(to_toml(*again), to_toml(*cluster));
}

TEST(Config, SaysWhatIsWrongAndWhere) {
  EXPECT_EQ(
      message(replaced("slots", "slotz")),
      "f.toml:7: unknown key 'slotz' in [lockd]: known are lease_ms, listen, slots, state_dir");
  EXPECT_EQ(message(replaced("1024", "\"many\"")),
            "f.toml:7: slots in [lockd] must be a whole number");
  EXPECT_EQ(message(replaced("1024", "1000")), "f.toml:7: slots in [lockd] must be a power of two");
  EXPECT_EQ(message(replaced("127.0.0.1:7400", "nowhere")),
            "f.toml:6: listen in [lockd] is 'nowhere': it must be host:port");
  EXPECT_EQ(message(replaced("\"meta\", ", "")),
            "f.toml: 0 [[storaged]] have the role meta: exactly one must");
  EXPECT_EQ(message(replaced("\"b\"", "\"a\"")), "f.toml: two [[storaged]] are named 'a'");
  EXPECT_NE(message(replaced("[lockd]", "[lockd")).find("f.toml:"), std::string::npos);
  EXPECT_NE(message(replaced("\"10 GiB\"", "\"10 GiX\"")).find("is not a size"), std::string::npos);
  EXPECT_NE(message("").find("the section [cluster] is missing"), std::string::npos);
}

TEST(Config, MissingFile) {
  auto cluster = load_cluster("/nonexistent/cluster.toml");
  ASSERT_FALSE(cluster);
  EXPECT_EQ(cluster.error().code, ENOENT);
  EXPECT_NE(cluster.error().message.find("/nonexistent/cluster.toml"), std::string::npos);
}

TEST(Config, Sizes) {
  EXPECT_EQ(*parse_size("4096"), 4096U);
  EXPECT_EQ(*parse_size("1.5 KiB"), 1536U);
  EXPECT_EQ(*parse_size("2TB"), 2000000000000U);
  for (const char* bad : {"", "x", "-1", "1 QB", "1e40"}) EXPECT_FALSE(parse_size(bad)) << bad;
}

TEST(Config, ClusterIdsDiffer) {
  EXPECT_EQ(new_cluster_id().size(), 32U);
  EXPECT_NE(new_cluster_id(), new_cluster_id());
}

}  // namespace
}  // namespace distfuse::config
