// SPDX-License-Identifier: Apache-2.0
#include "tests/kernel/race_points.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace distfuse::tests {

namespace {

const std::string kDebug = "/sys/kernel/debug/distfuse/";

void tell(const std::string& line) {
  const int fd = open((kDebug + "race").c_str(), O_WRONLY | O_CLOEXEC);
  EXPECT_EQ(write(fd, line.data(), line.size()), static_cast<ssize_t>(line.size()))
      << line << ": " << std::strerror(errno);
  close(fd);
}

}  // namespace

std::string device_of(const std::string& mount) {
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string id, parent, device, root, at;
    fields >> id >> parent >> device >> root >> at;
    if (at == mount) return device;
  }
  ADD_FAILURE() << mount << " is not mounted";
  return "";
}

namespace {

std::string field_of(const std::string& file, const std::string& field) {
  std::ifstream lines(file);
  std::string name;
  for (std::string value; lines >> name >> value;)
    if (name == field) return value;
  return "";
}

}  // namespace

std::string session_field(const std::string& mount, const std::string& field) {
  return field_of(kDebug + device_of(mount) + "/session", field);
}

std::uint64_t counter_of(const std::string& mount, const std::string& name) {
  const auto value = field_of(kDebug + device_of(mount) + "/counters", name);
  EXPECT_NE(value, "") << "no counter " << name;
  return value.empty() ? 0 : std::stoull(value);
}

bool soon(const std::function<bool()>& condition, std::chrono::milliseconds most) {
  for (const auto deadline = std::chrono::steady_clock::now() + most;
       std::chrono::steady_clock::now() < deadline;) {
    if (condition()) return true;
    usleep(2000);
  }
  return condition();
}

Point::Point(std::string name, const std::string& mount, unsigned ms) : name_(std::move(name)) {
  times_ = static_cast<unsigned>(std::stoul(line(3)));
  tell(name_ + " " + device_of(mount) + " " + std::to_string(ms));
}

Point::~Point() {
  release();
}

void Point::release() {
  tell(name_ + " off");
}

std::string Point::line(std::size_t field) const {
  std::ifstream points(kDebug + "race");
  for (std::string text; std::getline(points, text);) {
    std::istringstream words(text);
    std::string word, first;
    words >> first;
    if (first != name_) continue;
    for (std::size_t i = 0; i < field; ++i) words >> word;
    return word;
  }
  ADD_FAILURE() << "the module has no point " << name_;
  return "0";
}

bool Point::held() {
  const bool came = soon([&] { return line(2) == "holding"; }, std::chrono::seconds(10));
  EXPECT_TRUE(came) << "nobody came by " << name_;
  return came;
}

bool Point::struck() const {
  return std::stoul(line(3)) > times_;
}

Call::Call(const std::function<long()>& call)
    : result_(std::async(std::launch::async, [call] {
        const long result = call();
        return result < 0 ? -static_cast<long>(errno) : result;
      })) {}

long Call::end() {
  if (result_.wait_for(kLong) == std::future_status::ready) return result_.get();
  ADD_FAILURE() << "a call does not come back";
  return -ETIME;
}

Child::Child(const std::function<int()>& call) : pid_(fork()) {
  if (pid_ == 0) _exit(call());
}

Child::~Child() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

int Child::end() {
  int status = 0;
  if (!soon([&] { return waitpid(pid_, &status, WNOHANG) == pid_; })) {
    ADD_FAILURE() << "a process does not end";
    return -1;
  }
  pid_ = 0;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::unique_ptr<Cluster> RaceTest::cluster_;

void RaceTest::SetUpTestSuite() {
  cluster_ = std::make_unique<Cluster>(ClusterOptions{.mounts = 3, .storageds = 1});
  cluster_->expect_log("session|fence|lost|connection|refused|requests fail|mount-0|attach");
}

void RaceTest::TearDownTestSuite() {
  cluster_.reset();
}

void RaceTest::SetUp() {
  ASSERT_TRUE(cluster().ok());
}

std::string RaceTest::path(std::size_t mount) const {
  return cluster().mount(mount) + "/" +
         testing::UnitTest::GetInstance()->current_test_info()->name();
}

int RaceTest::open_file(std::size_t mount, int flags) const {
  const int fd = open(path(mount).c_str(), flags | O_CLOEXEC, 0644);
  EXPECT_GE(fd, 0) << path(mount) << ": " << std::strerror(errno);
  return fd;
}

void RaceTest::make(std::size_t mount, const std::string& bytes) const {
  const int fd = open_file(mount, O_RDWR | O_CREAT | O_TRUNC);
  EXPECT_EQ(write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(close(fd), 0);
}

std::string RaceTest::read_all(int fd, std::size_t most) {
  std::string bytes(most, 0);
  const ssize_t got = pread(fd, bytes.data(), most, 0);
  EXPECT_GE(got, 0) << std::strerror(errno);
  bytes.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  return bytes;
}

}  // namespace distfuse::tests
