// SPDX-License-Identifier: Apache-2.0
#include "storaged/role_thread.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cstring>
#include <future>

namespace distfuse::storaged {

Result<std::unique_ptr<RoleThread>> RoleThread::create(std::string name,
                                                       std::unique_ptr<rpc::Server> server,
                                                       std::unique_ptr<Role> role, int event_fd) {
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0) return Error{errno, std::string("epoll: ") + std::strerror(errno)};
  std::unique_ptr<RoleThread> thread(
      new RoleThread(std::move(name), std::move(server), std::move(role), epoll));
  for (const int fd : {thread->server_->event_fd(), event_fd}) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (fd >= 0 && ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
      return Error{errno, std::string("epoll: ") + std::strerror(errno)};
  }
  return thread;
}

RoleThread::RoleThread(std::string name, std::unique_ptr<rpc::Server> server,
                       std::unique_ptr<Role> role, int epoll)
    : name_(std::move(name)), role_(std::move(role)), server_(std::move(server)), epoll_(epoll) {}

RoleThread::~RoleThread() {
  if (thread_.joinable()) {
    server_->post([this] { stop_ = true; });
    thread_.join();
  } else {
    role_->stop();
  }
  server_.reset();  // before the role, which handles its requests
  ::close(epoll_);
}

void RoleThread::start() {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), name_.c_str());
    serve();
  });
}

void RoleThread::serve() {
  while (!stop_) {
    if (progress()) continue;
    if (!server_->arm()) continue;
    // Nothing is lost between the last look and here: both descriptors are level-triggered, the server's from arm() on, the
    // role's from its progress() that answered false.
    epoll_event events[2];
    (void)::epoll_wait(epoll_, events, 2, -1);
  }
  const auto deadline = std::chrono::steady_clock::now() + kDrain;
  while (!role_->idle() && std::chrono::steady_clock::now() < deadline) {
    if (!progress()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  role_->stop();
}

std::string RoleThread::ask(std::function<std::string()> question, const std::string& fallback) {
  auto answer = std::make_shared<std::promise<std::string>>();
  auto future = answer->get_future();
  server_->post([question = std::move(question), answer] { answer->set_value(question()); });
  if (future.wait_for(std::chrono::seconds(2)) != std::future_status::ready) return fallback;
  return future.get();
}

}  // namespace distfuse::storaged
