// SPDX-License-Identifier: Apache-2.0
#include "vm/agent/server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>

#include "vm/agent/tcp.h"

namespace distfuse::vm {
namespace {

constexpr std::size_t kReadSize = 65536;

Error failure(const std::string& what) {
  return {errno, what + ": " + strerror(errno)};
}

Result<Descriptor> listen_on(const sockaddr* address, socklen_t length, const std::string& name) {
  Descriptor fd(socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (!fd || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(fd.get(), address, length) != 0 || listen(fd.get(), 64) != 0)
    return failure(name);
  return fd;
}

std::string uptime() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return std::to_string(static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9);
}

}  // namespace

Status Agent::open(const AgentOptions& options) {
  Descriptor host(::open(options.host_port.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!host) return failure(options.host_port);
  Link& link = links_.emplace_back();
  link.fd = std::move(host);
  encode_frame(link.unsent, 0, FrameType::hello, uptime());

  kernel_ = Descriptor(::open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (!kernel_) return failure("/dev/kmsg");

  sockaddr_un local{};
  local.sun_family = AF_UNIX;
  if (options.local_socket.size() >= sizeof(local.sun_path))
    return Error{EINVAL, "the socket's path is too long"};
  options.local_socket.copy(local.sun_path, sizeof(local.sun_path) - 1);
  auto programs =
      listen_on(reinterpret_cast<sockaddr*>(&local), sizeof(local), options.local_socket);
  if (!programs) return programs.error();
  programs_ = std::move(*programs);

  if (!options.tcp_address.empty()) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(options.tcp_port);
    if (inet_pton(AF_INET, options.tcp_address.c_str(), &address.sin_addr) != 1)
      return Error{EINVAL, options.tcp_address + " is no address"};
    auto guests =
        listen_on(reinterpret_cast<sockaddr*>(&address), sizeof(address), options.tcp_address);
    if (!guests) return guests.error();
    guests_ = std::move(*guests);
  }

  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  sigprocmask(SIG_BLOCK, &children, nullptr);
  signal(SIGPIPE, SIG_IGN);
  child_signals_ = Descriptor(signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!child_signals_) return failure("signalfd");
  return {};
}

void Agent::run() {
  for (;;) step();
}

void Agent::step() {
  std::vector<pollfd> fds;
  const auto watch = [&](const Descriptor& fd, short events) {
    if (fd) fds.push_back({fd.get(), events, 0});
  };
  watch(child_signals_, POLLIN);
  watch(guests_, POLLIN);
  watch(programs_, POLLIN);
  if (links_.front().unsent.size() < kMaxUnsent) watch(kernel_, POLLIN);
  for (const Link& link : links_) {
    watch(link.fd, static_cast<short>(POLLIN | (link.unsent.empty() ? 0 : POLLOUT)));
    const bool room = link.unsent.size() < kMaxUnsent;
    for (const auto& [channel, job] : link.jobs) {
      if (room) watch(job.output, POLLIN);
      if (room) watch(job.errors, POLLIN);
      if (!job.pending_input.empty()) watch(job.input, POLLOUT);
    }
  }
  poll(fds.data(), fds.size(), -1);
  const auto ready = [&](const Descriptor& fd) {
    return fd && std::any_of(fds.begin(), fds.end(), [&](const pollfd& entry) {
             return entry.fd == fd.get() && entry.revents != 0;
           });
  };
  if (ready(guests_)) accept_link(guests_.get(), Kind::guest);
  if (ready(programs_)) accept_link(programs_.get(), Kind::program);
  read_kernel();
  // Before the pipes: a process that is gone has written all that it ever will.
  if (ready(child_signals_)) collect_children();
  for (Link& link : links_) {
    if (ready(link.fd)) receive(link);
    for (auto& [channel, job] : link.jobs) {
      feed(job);
      read_job(link, channel, job);
    }
    finish_jobs(link);
    flush(link);
  }
  flush(links_.front());
  drop_broken_links();
}

void Agent::accept_link(int listener, Kind kind) {
  Descriptor fd(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) return;
  if (kind == Kind::guest) watch_peer(fd.get());
  Link& link = links_.emplace_back();
  link.kind = kind;
  link.fd = std::move(fd);
}

void Agent::receive(Link& link) {
  std::string buffer(kReadSize, '\0');
  const ssize_t n = read(link.fd.get(), buffer.data(), buffer.size());
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    link.broken = true;
    return;
  }
  link.received.append(buffer.data(), static_cast<std::size_t>(n));
  while (auto frame = decode_frame(link.received, link.broken)) handle(link, *frame);
}

void Agent::handle(Link& link, const Frame& frame) {
  if (frame.type == FrameType::ask) return ask_host(link, frame);
  if (frame.type == FrameType::answer && link.kind == Kind::host) return answer(frame);
  if (link.kind == Kind::program) {
    link.broken = true;
    return;
  }
  if (frame.type == FrameType::start) return start(link, frame);
  const auto found = link.jobs.find(frame.channel);
  if (found == link.jobs.end()) return;  // it has just ended
  Job& job = found->second;
  if (frame.type == FrameType::input) return give_input(link, job, frame.payload);
  if (frame.type == FrameType::signal && frame.payload.size() == 1) {
    kill(-job.pid, static_cast<unsigned char>(frame.payload[0]));
  } else if (frame.type == FrameType::size && frame.payload.size() == 4) {
    const std::uint32_t both = decode_u32(frame.payload);
    resize(job, static_cast<std::uint16_t>(both & 0xffff), static_cast<std::uint16_t>(both >> 16));
  } else {
    link.broken = true;
  }
}

void Agent::start(Link& link, const Frame& frame) {
  const auto request = decode_job(frame.payload);
  if (!request || link.jobs.contains(frame.channel)) {
    link.broken = true;
    return;
  }
  auto job = start_job(*request);
  if (job) {
    link.jobs.emplace(frame.channel, std::move(*job));
    return;
  }
  encode_frame(link.unsent, frame.channel, FrameType::errors,
               "vm-agent: " + job.error().message + "\n");
  encode_frame(link.unsent, frame.channel, FrameType::exit, encode_u32(127));
}

void Agent::give_input(Link& link, Job& job, const std::string& data) {
  if (data.empty()) {
    job.close_input = true;
  } else if (job.pending_input.size() + data.size() <= kMaxUnsent) {
    job.pending_input += data;
  } else if (link.kind == Kind::host) {
    job.pending_input.clear();
    job.input.reset();
  } else {
    link.broken = true;
  }
  feed(job);
}

void Agent::ask_host(Link& link, const Frame& frame) {
  if (link.kind != Kind::program) {
    link.broken = true;
    return;
  }
  questions_[next_question_] = &link;
  encode_frame(links_.front().unsent, next_question_++, FrameType::ask, frame.payload);
}

void Agent::answer(const Frame& frame) {
  const auto question = questions_.find(frame.channel);
  if (question == questions_.end()) return;  // who asked has gone
  encode_frame(question->second->unsent, 0, FrameType::answer, frame.payload);
  flush(*question->second);
  questions_.erase(question);
}

void Agent::flush(Link& link) {
  while (!link.unsent.empty() && !link.broken) {
    const ssize_t n = write(link.fd.get(), link.unsent.data(), link.unsent.size());
    if (n > 0) {
      link.unsent.erase(0, static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR) {
      link.broken = true;
    }
  }
}

bool Agent::read_pipe(Link& link, std::uint32_t channel, Descriptor& fd, FrameType type) {
  std::string buffer(kReadSize, '\0');
  const ssize_t n = read(fd.get(), buffer.data(), buffer.size());
  if (n > 0) {
    encode_frame(link.unsent, channel, type,
                 std::string_view(buffer).substr(0, static_cast<std::size_t>(n)));
    return true;
  }
  // EIO: nobody has the terminal open any more.
  if (n == 0 || (errno != EAGAIN && errno != EINTR)) fd.reset();
  return false;
}

void Agent::read_job(Link& link, std::uint32_t channel, Job& job) {
  for (auto [fd, type] :
       {std::pair{&job.output, FrameType::output}, std::pair{&job.errors, FrameType::errors}}) {
    while (*fd && link.unsent.size() < kMaxUnsent && read_pipe(link, channel, *fd, type)) {
    }
    // Read empty after the process ended: what a daemon still holding the pipe may say is not the job's.
    if (job.exited && link.unsent.size() < kMaxUnsent) fd->reset();
  }
}

void Agent::finish_jobs(Link& link) {
  for (auto it = link.jobs.begin(); it != link.jobs.end();) {
    Job& job = it->second;
    if (job.exited && !job.output && !job.errors) {
      encode_frame(link.unsent, it->first, FrameType::exit, encode_u32(job.status));
      it = link.jobs.erase(it);
    } else {
      ++it;
    }
  }
}

void Agent::read_kernel() {
  char record[8192];
  while (kernel_ && links_.front().unsent.size() < kMaxUnsent) {
    const ssize_t n = read(kernel_.get(), record, sizeof(record));
    if (n > 0) {
      encode_frame(links_.front().unsent, 0, FrameType::kernel,
                   std::string_view(record, static_cast<std::size_t>(n)));
    } else if (errno != EPIPE && errno != EINTR) {  // EPIPE: records were overwritten; go on
      return;
    }
  }
}

void Agent::collect_children() {
  signalfd_siginfo ignored{};
  while (read(child_signals_.get(), &ignored, sizeof(ignored)) > 0) {
  }
  int status = 0;
  for (pid_t pid = 0; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    for (Link& link : links_) {
      for (auto& [channel, job] : link.jobs) {
        if (job.pid != pid) continue;
        job.exited = true;
        job.status = static_cast<std::uint32_t>(WIFSIGNALED(status) ? 128 + WTERMSIG(status)
                                                                    : WEXITSTATUS(status));
      }
    }
  }
}

void Agent::drop_broken_links() {
  for (auto it = links_.begin(); it != links_.end();) {
    Link& link = *it;
    // The host's port stays: it reads as ended while the host is not there.
    if (!link.broken || link.kind == Kind::host) {
      link.broken = false;
      ++it;
      continue;
    }
    for (const auto& [channel, job] : link.jobs) {
      if (!job.exited) kill(-job.pid, SIGHUP);
    }
    std::erase_if(questions_, [&](const auto& question) { return question.second == &link; });
    it = links_.erase(it);
  }
}

}  // namespace distfuse::vm
