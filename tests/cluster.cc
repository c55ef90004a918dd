// SPDX-License-Identifier: Apache-2.0
#include "tests/cluster.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <sstream>
#include <thread>

namespace distfuse::tests {
namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

std::string read_file(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

pid_t spawn(const std::vector<std::string>& arguments, int out, bool with_errors) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  if (with_errors) posix_spawn_file_actions_adddup2(&actions, out, STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = -1;
  const int error = posix_spawnp(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  return error == 0 ? pid : -1;
}

bool process_exists(pid_t pid) {
  const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
  const auto end = stat.rfind(')');
  return end != std::string::npos && stat[end + 2] != 'Z';
}

bool wait_until_gone(pid_t pid, milliseconds timeout) {
  for (const auto deadline = steady_clock::now() + timeout; steady_clock::now() < deadline;) {
    waitpid(pid, nullptr, WNOHANG);
    if (!process_exists(pid)) return true;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return false;
}

}  // namespace

std::string program(const std::string& name) {
  const fs::path own = fs::read_symlink("/proc/self/exe").parent_path() / name;
  return fs::exists(own) ? own.string() : name;
}

CommandResult run(const std::vector<std::string>& arguments, std::chrono::seconds timeout) {
  std::vector<std::string> command = arguments;
  command[0] = program(command[0]);
  int out[2];
  CommandResult result;
  if (pipe2(out, O_CLOEXEC) != 0) return result;
  const pid_t pid = spawn(command, out[1], true);
  close(out[1]);
  const auto deadline = steady_clock::now() + timeout;
  bool late = false;
  int status = 0;
  // A daemon may hold the pipe open for ever: what counts is that the program itself has ended.
  for (bool ended = pid < 0; !ended;) {
    pollfd p{out[0], POLLIN, 0};
    const int ready = poll(&p, 1, 20);
    char buffer[8192];
    const ssize_t n = ready > 0 ? read(out[0], buffer, sizeof(buffer)) : -1;
    if (n > 0) {
      result.output.append(buffer, static_cast<std::size_t>(n));
      continue;
    }
    ended = waitpid(pid, &status, WNOHANG) == pid;
    if (!ended && steady_clock::now() > deadline) {
      late = true;
      kill(-pid, SIGKILL);
    }
  }
  close(out[0]);
  if (pid < 0) return result;
  result.exit_code = late ? 124 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

TemporaryFolder::TemporaryFolder() {
  const char* base = std::getenv("TMPDIR");
  path_ = std::string(base != nullptr ? base : "/tmp") + "/distfuse-test-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) std::abort();
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  fs::remove_all(path_, error);
  if (error) ADD_FAILURE() << "left behind: " << path_ << ": " << error.message();
}

bool in_kernel() {
  const char* coherence = std::getenv("DISTFUSE_TEST_COHERENCE");
  return coherence != nullptr && std::string(coherence) == "kernel";
}

Cluster::Cluster(const ClusterOptions& options) : options_(options) {
  // What the machine that the tests run on brings about, such as an emulated one whose daemons are late.
  if (const char* expected = std::getenv("DISTFUSE_TEST_EXPECT_LOG"); expected != nullptr)
    expect_log(expected);
  for (unsigned i = 0; i < options.mounts; ++i) add_mount(i);
  up();
}

void Cluster::add_mount(std::size_t i) {
  const std::string name = "mount-" + std::to_string(i);
  const std::string path = folder_.path() + "/" + name;
  const auto& nodes = far::nodes();
  const std::size_t node = nodes.size() < 2 ? 0 : i % nodes.size();
  mounts_.push_back((node == 0 ? "" : nodes[node] + ":") + path);
  // `distfuse up` numbers its mounts itself.
  if (nodes.size() < 2 || i == 0) {
    fs::create_directory(path);
    own_mounts_.push_back(path);
  } else {
    far_mounts_.emplace_back(nodes[node], name, folder_.path());
  }
}

Cluster::~Cluster() {
  if (up_) down();
  check_logs();
  check_leftovers();
}

void Cluster::up() {
  std::vector<std::string> command{"distfuse", "up", "--root", root()};
  for (const std::string& mount : own_mounts_) command.insert(command.end(), {"--mount", mount});
  if (!fs::exists(root())) {
    command.insert(command.end(), {"--storage", std::to_string(options_.storageds)});
    // Such as "--fabric verbs --device rxe0 --data-device eth0 --address 10.77.0.1": the same tests on another fabric.
    const char* more = std::getenv("DISTFUSE_TEST_UP");
    std::istringstream words(more != nullptr ? more : "");
    for (std::string word; words >> word;) command.push_back(word);
  }
  // user or kernel: the same tests with the module's mounts.
  if (const char* coherence = std::getenv("DISTFUSE_TEST_COHERENCE"); coherence != nullptr)
    command.insert(command.end(), {"--coherence", coherence});
  if (options_.lease.count() != 0)
    command.insert(command.end(), {"--lease", std::to_string(options_.lease.count()) + "ms"});
  const CommandResult result = run(command);
  up_ = result.exit_code == 0;
  if (!up_) ADD_FAILURE() << "distfuse up: exit " << result.exit_code << "\n" << result.output;
  for (const far::Mount& mount : far_mounts_) {
    if (!up_) return;
    const std::string wrong = mount.up(read_file(root() + "/cluster.toml"));
    up_ = wrong.empty();
    if (!up_) ADD_FAILURE() << mount.name() << " on " << mount.node() << ": " << wrong;
  }
}

void Cluster::down() {
  for (const far::Mount& mount : far_mounts_)
    EXPECT_EQ(mount.down(), "") << mount.name() << " on " << mount.node();
  const CommandResult result = run({"distfuse", "down", "--root", root()});
  if (result.exit_code != 0) {
    ADD_FAILURE() << "distfuse down: exit " << result.exit_code << "\n"
                  << result.output << run({"fuser", "-vm", own_mounts_[0]}).output;
  }
  up_ = false;
}

json Cluster::status() const {
  const CommandResult result = run({"distfuse", "status", "--json", "--root", root()});
  json parsed = json::parse(result.output, nullptr, false);
  EXPECT_FALSE(parsed.is_discarded()) << result.output;
  return parsed;
}

pid_t Cluster::pid(const std::string& daemon) const {
  const json state = json::parse(read_file(root() + "/run/state.json"));
  for (const json& d : state) {
    if (d["name"] == daemon) return d["pid"];
  }
  ADD_FAILURE() << "no daemon is named " << daemon;
  return -1;
}

std::string Cluster::session_states(const std::string& name) const {
  std::string states;
  const json all = status();
  if (!all.contains("daemons")) return states;
  for (const json& daemon : all["daemons"]) {
    if (daemon["kind"] != "lockd" || !daemon["status"].is_object()) continue;
    for (const json& session : daemon["status"]["sessions"])
      if (session["name"] == name)
        states += (states.empty() ? "" : " ") + session["state"].get<std::string>();
  }
  return states;
}

const far::Mount* Cluster::far_mount(const std::string& daemon) const {
  for (const far::Mount& mount : far_mounts_)
    if (mount.name() == daemon) return &mount;
  return nullptr;
}

void Cluster::signal_daemon(const std::string& daemon, int signal) const {
  if (const auto* mount = far_mount(daemon); mount != nullptr) {
    ASSERT_EQ(mount->signal(sigabbrev_np(signal)), "") << daemon;
    return;
  }
  const pid_t process = pid(daemon);
  ASSERT_GT(process, 1);
  ASSERT_EQ(kill(process, signal), 0) << daemon;
}

void Cluster::kill_daemon(const std::string& daemon) {
  if (const auto* mount = far_mount(daemon); mount != nullptr) {
    ASSERT_EQ(mount->kill(), "") << daemon;
    return;
  }
  const pid_t victim = pid(daemon);
  ASSERT_GT(victim, 1);
  kill(victim, SIGKILL);
  EXPECT_TRUE(wait_until_gone(victim, milliseconds(10000)));
}

void Cluster::restart_daemon(const std::string& daemon) {
  if (const auto* mount = far_mount(daemon); mount != nullptr) {
    EXPECT_EQ(mount->restart(), "") << daemon;
    return;
  }
  if (const auto boot = boots_.find(daemon); boot != boots_.end())
    setenv("DISTFUSE_BOOT_ID", (daemon + " " + std::to_string(boot->second)).c_str(), 1);
  const CommandResult result = run({"distfuse", "restart", "--root", root(), daemon});
  unsetenv("DISTFUSE_BOOT_ID");
  EXPECT_EQ(result.exit_code, 0) << result.output;
}

void Cluster::restart_machine(const std::string& storaged) {
  kill_daemon(storaged);
  ++boots_[storaged];
  restart_daemon(storaged);
}

void Cluster::network(const std::string& mount, const std::string& what,
                      const std::string& value) const {
  const auto* victim = far_mount(mount);
  ASSERT_NE(victim, nullptr) << mount << " is not on another guest";
  const auto& nodes = far::nodes();
  const auto number = std::find(nodes.begin(), nodes.end(), victim->node()) - nodes.begin() + 1;
  const auto result = run({"vm-agent", "ask", "fault", what, std::to_string(number), value});
  ASSERT_EQ(result.exit_code, 0) << result.output;
}

void Cluster::kill_guest(const std::string& mount) {
  const auto* victim = far_mount(mount);
  ASSERT_NE(victim, nullptr) << mount << " is not on another guest";
  const auto result = run({"vm-agent", "ask", "fault", "kill", victim->node()});
  ASSERT_EQ(result.exit_code, 0) << result.output;
  const std::string node = victim->node();
  for (far::Mount& each : far_mounts_)
    if (each.node() == node) each.died();
}

std::string Cluster::log(const std::string& daemon) const {
  if (const auto* mount = far_mount(daemon); mount != nullptr) return mount->log();
  return read_file(root() + "/run/" + daemon + ".log") +
         read_file(root() + "/run/" + daemon + ".err");
}

void Cluster::check_log(const std::string& name, const std::string& text, bool all) const {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const bool suspicious = all || line.find(" warning: ") != std::string::npos ||
                            line.find(" error: ") != std::string::npos ||
                            line.find(" critical: ") != std::string::npos;
    if (!suspicious || line.empty()) continue;
    bool expected = false;
    for (const std::string& regex : expected_)
      expected = expected || std::regex_search(line, std::regex(regex));
    if (!expected) ADD_FAILURE() << "unexpected in " << name << ": " << line;
  }
}

void Cluster::check_logs() const {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(root() + "/run", ignored)) {
    const auto extension = entry.path().extension();
    if (extension == ".log" || extension == ".err")
      check_log(entry.path().filename(), read_file(entry.path()), extension == ".err");
  }
  for (const far::Mount& mount : far_mounts_)
    check_log(mount.name() + " on " + mount.node(), mount.log(), false);
}

void Cluster::check_leftovers() const {
  for (const far::Mount& mount : far_mounts_)
    EXPECT_EQ(mount.leftovers(), "") << mount.name() << " on " << mount.node();
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string command = read_file(entry.path() / "cmdline");
    const pid_t process = std::stoi(name);
    if (command.find("distfuse") == std::string::npos ||
        command.find(folder_.path()) == std::string::npos)
      continue;
    if (process == getpid() || !process_exists(process)) continue;
    ADD_FAILURE() << "process " << name << " is left: " << command;
    kill(process, SIGKILL);
  }
  for (const std::string& mount : own_mounts_) {
    if (read_file("/proc/self/mountinfo").find(" " + mount + " ") == std::string::npos) continue;
    ADD_FAILURE() << "mount " << mount << " is left";
    umount2(mount.c_str(), MNT_DETACH);
  }
}

std::uint64_t test_seed(const char* what) {
  const char* given = std::getenv("DISTFUSE_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  std::printf("%s: seed %llu (replay: DISTFUSE_SEED=%llu)\n", what,
              static_cast<unsigned long long>(seed), static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace distfuse::tests
