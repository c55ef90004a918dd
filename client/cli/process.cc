// SPDX-License-Identifier: Apache-2.0
#include "client/cli/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace distfuse::client {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(50);

std::string tail_of(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  std::string all = text.str();
  while (!all.empty() && all.back() == '\n') all.pop_back();
  constexpr std::size_t kShown = 2000;
  return all.size() > kShown ? all.substr(all.size() - kShown) : all;
}

/// Spawns with standard output on `out`, standard error on a file, in a new session. Answers the pid or -errno.
pid_t spawn_detached(const DaemonCommand& command, int out) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, command.error_file.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0644);
  // What the caller has open may be a file of the mount that the daemon serves: it must not be the daemon that closes it.
  posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  std::vector<char*> argv;
  argv.reserve(command.arguments.size() + 1);
  for (const std::string& argument : command.arguments)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  return error == 0 ? pid : -error;
}

Error not_ready(const DaemonCommand& command, pid_t pid, const std::string& how) {
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  const std::string said = tail_of(command.error_file);
  return {EIO, fmt::format("{} {}{}{}", command.name, how, said.empty() ? "" : ":\n", said)};
}

}  // namespace

Result<ProcessId> identify(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text, '\0');         // reading that of a process which ends meanwhile fails
  const auto name_end = text.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return Error{ESRCH, fmt::format("no process {}", pid)};
  std::istringstream fields(text.substr(name_end + 2));
  std::string state;
  fields >> state;
  if (state == "Z") return Error{ESRCH, fmt::format("process {} has ended", pid)};
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  ProcessId id{pid, 0};
  fields >> id.start_time;
  return id;
}

bool alive(const ProcessId& process) {
  auto now = identify(process.pid);
  return now && now->start_time == process.start_time;
}

Result<StartedDaemon> start_daemon(const DaemonCommand& command, std::chrono::milliseconds timeout,
                                   const Progress& progress) {
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) return Error{errno, "no pipe could be made for " + command.name};
  const pid_t pid = spawn_detached(command, out[1]);
  close(out[1]);
  if (pid < 0) {
    close(out[0]);
    return Error{-pid, fmt::format("{} ({}) cannot be started: {}", command.name,
                                   command.arguments[0], std::generic_category().message(-pid))};
  }
  std::string said;
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    if (const auto at = said.find("ready");
        at != std::string::npos && said.find('\n', at) != std::string::npos) {
      close(out[0]);
      auto process = identify(pid);
      if (!process) return not_ready(command, pid, "ended right after it was ready");
      return StartedDaemon{*process, said.substr(at, said.find('\n', at) - at)};
    }
    const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - start);
    pollfd p{out[0], POLLIN, 0};
    const int ready = poll(&p, 1, static_cast<int>(kPoll.count()));
    char buffer[512];
    const ssize_t n = ready > 0 ? read(out[0], buffer, sizeof(buffer)) : -1;
    if (n > 0) said.append(buffer, static_cast<std::size_t>(n));
    const bool ended = ready > 0 && n == 0;
    if (ended || waited > timeout) {
      close(out[0]);
      return not_ready(
          command, pid,
          ended ? "did not start" : fmt::format("was not ready after {} s", waited.count() / 1000));
    }
    if (progress) progress(waited);
  }
}

bool wait_gone(const ProcessId& process, std::chrono::milliseconds timeout,
               const Progress& progress) {
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    waitpid(process.pid, nullptr, WNOHANG);  // ours only in tests; else it answers ECHILD
    if (!alive(process)) return true;
    const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - start);
    if (waited > timeout) return false;
    if (progress) progress(waited);
    std::this_thread::sleep_for(kPoll);
  }
}

namespace {

std::vector<std::string> arguments_of(const std::filesystem::path& process) {
  std::ifstream file(process / "cmdline");
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(file, argument, '\0');) arguments.push_back(argument);
  return arguments;
}

}  // namespace

std::vector<ProcessId> clients_of(const std::string& mountpoint) {
  namespace fs = std::filesystem;
  std::vector<ProcessId> clients;
  std::error_code error;
  const auto ours = fs::read_symlink("/proc/self/ns/mnt", error);
  for (const auto& entry : fs::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto arguments = arguments_of(entry.path());
    if (arguments.size() < 3 || fs::path(arguments[0]).filename() != "distfuse" ||
        arguments[1] != "mount" || arguments.back() != mountpoint)
      continue;
    const auto theirs = fs::read_symlink(entry.path() / "ns/mnt", error);
    if (error || theirs != ours) continue;
    if (auto client = identify(std::stoi(name))) clients.push_back(*client);
  }
  return clients;
}

std::string program_path(const std::string& program) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  for (const fs::path& folder : {self.parent_path(), self.parent_path().parent_path() / "sbin"}) {
    if (fs::exists(folder / program, error)) return folder / program;
  }
  return "/usr/sbin/" + program;
}

}  // namespace distfuse::client
