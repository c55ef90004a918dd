// SPDX-License-Identifier: Apache-2.0
#include "vm/agent/job.h"

#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstring>
#include <utility>

namespace distfuse::vm {
namespace {

struct Pipe {
  Descriptor read;
  Descriptor write;
};

Result<Pipe> make_pipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return Error{errno, std::string("pipe: ") + strerror(errno)};
  return Pipe{Descriptor(ends[0]), Descriptor(ends[1])};
}

void set_nonblocking(int fd) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

/// In the child, after its descriptors 0 to 2 are what the program gets.
[[noreturn]] void run_program(const JobRequest& request) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  for (const std::string& entry : request.environment) {
    const std::size_t equals = entry.find('=');
    if (equals == std::string::npos) continue;
    setenv(entry.substr(0, equals).c_str(), entry.c_str() + equals + 1, 1);
  }
  if (!request.folder.empty() && chdir(request.folder.c_str()) != 0) {
    dprintf(2, "vm-agent: folder %s: %s\n", request.folder.c_str(), strerror(errno));
    _exit(127);
  }
  std::vector<char*> arguments;
  arguments.reserve(request.arguments.size() + 1);
  for (const std::string& argument : request.arguments)
    arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  dprintf(2, "vm-agent: %s: %s\n", arguments[0], strerror(errno));
  _exit(127);
}

Result<Job> start_on_terminal(const JobRequest& request) {
  int terminal = -1;
  const pid_t pid = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (pid < 0) return Error{errno, std::string("forkpty: ") + strerror(errno)};
  if (pid == 0) run_program(request);
  fcntl(terminal, F_SETFD, FD_CLOEXEC);
  set_nonblocking(terminal);
  Job job;
  job.pid = pid;
  job.output = Descriptor(terminal);
  job.input = Descriptor(fcntl(terminal, F_DUPFD_CLOEXEC, 3));
  return job;
}

}  // namespace

Result<Job> start_job(const JobRequest& request) {
  if (request.terminal) return start_on_terminal(request);
  auto input = make_pipe();
  if (!input) return input.error();
  auto output = make_pipe();
  if (!output) return output.error();
  auto errors = make_pipe();
  if (!errors) return errors.error();
  const pid_t pid = fork();
  if (pid < 0) return Error{errno, std::string("fork: ") + strerror(errno)};
  if (pid == 0) {
    setsid();
    dup2(input->read.get(), 0);
    dup2(output->write.get(), 1);
    dup2(errors->write.get(), 2);
    run_program(request);
  }
  Job job;
  job.pid = pid;
  job.input = std::move(input->write);
  job.output = std::move(output->read);
  job.errors = std::move(errors->read);
  for (const int fd : {job.input.get(), job.output.get(), job.errors.get()}) set_nonblocking(fd);
  if (!request.keep_input) job.input.reset();
  return job;
}

void feed(Job& job) {
  while (job.input && !job.pending_input.empty()) {
    const ssize_t n = write(job.input.get(), job.pending_input.data(), job.pending_input.size());
    if (n > 0) {
      job.pending_input.erase(0, static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR) {
      job.pending_input.clear();
      job.input.reset();
    }
  }
  if (job.close_input) job.input.reset();
}

void resize(const Job& job, std::uint16_t rows, std::uint16_t columns) {
  const winsize size{rows, columns, 0, 0};
  if (job.output) ioctl(job.output.get(), TIOCSWINSZ, &size);
}

}  // namespace distfuse::vm
