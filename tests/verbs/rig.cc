// SPDX-License-Identifier: Apache-2.0
#include "tests/verbs/rig.h"

#include <dirent.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "common/testing/temporary_directory.h"
#include "lockd/service.h"

namespace distfuse::verbs_tests {

namespace {

constexpr const char* kCluster = "00112233445566778899aabbccddeeff";
int failures = 0;

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

/// Without storageds there is nothing to refuse.
class NoStorage final : public lockd::Storage {
 public:
  Status fence(lockd::SessionId) override { return {}; }
};

std::string words(const fabric::verbs::Counters& counters) {
  std::string line;
  for (const auto value : counters.values) line += std::to_string(value) + " ";
  return line;
}

int serve(std::uint32_t lease_ms, lockd::testing::Talk& talk) {
  const TemporaryDirectory folder;
  lockd::ServiceOptions options;
  options.cluster_id = kCluster;
  options.fabric = {"verbs", place().device};
  options.listen = place().host + ":0";
  options.slots = 65536;
  options.lease_ms = lease_ms;
  std::unique_ptr<lockd::SessionLog> list;
  if (lease_ms != 0) {
    auto opened = lockd::SessionLog::open(folder.path(), kCluster, lease_ms);
    if (!opened) die(opened.error().message);
    list = std::move(*opened);
  }
  auto service = lockd::Service::create(options, std::make_unique<NoStorage>(), std::move(list));
  if (!service) die(service.error().message);
  std::thread thread([&] { (*service)->run(); });
  talk.say((*service)->address());
  while (true) {
    const auto asked = talk.hear(std::chrono::hours(1));
    if (asked == "counters") {
      talk.say(words(fabric::verbs::counters()));
    } else if (asked == "status") {
      const auto status = (*service)->status();
      talk.say(status ? nlohmann::json::parse(*status).dump() : "");
    } else {
      break;
    }
  }
  (*service)->stop();
  thread.join();
  return 0;
}

}  // namespace

const Place& place() {
  static const Place the_one = [] {
    const char* device = std::getenv("DISTFUSE_VERBS_DEVICE");
    const char* host = std::getenv("DISTFUSE_VERBS_HOST");
    if (host == nullptr) die("DISTFUSE_VERBS_HOST: the RDMA device's address is not told");
    return Place{device != nullptr ? device : "rxe0", host};
  }();
  return the_one;
}

void NoCache::session_lost(const std::string& reason) {
  die("session lost: " + reason);
}

Lockd::Lockd(std::uint32_t lease_ms)
    : process_(lockd::testing::Process::fork_child(
          [lease_ms](lockd::testing::Talk& talk) { return serve(lease_ms, talk); })) {
  address_ = process_.talk().hear();
  if (address_.empty()) die("lockd does not start");
}

Lockd::~Lockd() {
  process_.talk().say("end");
  check(process_.wait() == 0, "lockd ends");
}

nlohmann::json Lockd::status() {
  process_.talk().say("status");
  return nlohmann::json::parse(process_.talk().hear());
}

fabric::verbs::Counters Lockd::counters() {
  process_.talk().say("counters");
  const auto line = process_.talk().hear();
  fabric::verbs::Counters counters;
  std::istringstream stream(line);
  for (auto& value : counters.values) stream >> value;
  return counters;
}

std::uint64_t Lockd::cpu_ns() const {
  const std::string folder = "/proc/" + std::to_string(process_.pid()) + "/task";
  std::uint64_t sum = 0;
  DIR* tasks = opendir(folder.c_str());
  while (const dirent* task = tasks != nullptr ? readdir(tasks) : nullptr) {
    std::ifstream file(folder + "/" + task->d_name + "/schedstat");
    std::uint64_t ran = 0;
    if (file >> ran) sum += ran;
  }
  if (tasks != nullptr) closedir(tasks);
  return sum;
}

std::uint64_t Lockd::ticks() const {
  std::ifstream file("/proc/" + std::to_string(process_.pid()) + "/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream rest(line.substr(line.rfind(')') + 2));
  std::string word;
  for (int i = 0; i < 11; ++i) rest >> word;  // Fields 3 to 13.
  std::uint64_t user = 0, system = 0;
  rest >> user >> system;
  return user + system;
}

std::unique_ptr<client::LockTable> Lockd::table(const std::string& name,
                                                client::CacheOwner& owner) const {
  client::LockTableOptions options;
  options.fabric_kind = "verbs";
  options.device = place().device;
  options.lockd = address_;
  options.cluster_id = kCluster;
  options.mount_name = name;
  options.lanes = 2;
  options.revokers = 2;
  auto table = client::LockTable::create(options, owner);
  if (!table) die(table.error().message);
  return std::move(*table);
}

void take(client::LockTable& table, client::Ino ino, client::Mode mode) {
  if (auto pin = table.pin(ino, mode); !pin) die(pin.error().message);
}

bool check(bool good, const std::string& text) {
  std::printf("%s %s\n", good ? "ok    " : "FAILED", text.c_str());
  std::fflush(stdout);
  if (!good) ++failures;
  return good;
}

int exit_status() {
  return failures == 0 ? 0 : 1;
}

}  // namespace distfuse::verbs_tests
