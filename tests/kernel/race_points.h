// SPDX-License-Identifier: Apache-2.0
// The module's race points and fault points (kmod/race.h), and a cluster of three mounts that all tests of a program share.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>

#include "tests/cluster.h"

namespace distfuse::tests {

constexpr std::chrono::milliseconds kMoment{
    300};  ///< What does not wait is over by then, on a free processor.
constexpr std::chrono::seconds kLong{20};  ///< Nothing takes that long, on a busy one.

/// MAJOR:MINOR of a mount; nothing is asked of the mount.
[[nodiscard]] std::string device_of(const std::string& mount);
/// A field of the mount's `session` in debugfs.
[[nodiscard]] std::string session_field(const std::string& mount, const std::string& field);
[[nodiscard]] std::uint64_t counter_of(const std::string& mount, const std::string& name);
bool soon(const std::function<bool()>& condition, std::chrono::milliseconds most = kLong);

/// A point that is armed for one mount, and disarmed and released at the end.
class Point {
 public:
  Point(std::string name, const std::string& mount, unsigned ms = 0);
  ~Point();
  Point(const Point&) = delete;
  Point& operator=(const Point&) = delete;

  /// Waits for somebody to come by. False, and a failure of the test: nobody did, or is gone again.
  bool held();
  [[nodiscard]] bool struck() const;
  void release();

 private:
  [[nodiscard]] std::string line(std::size_t field) const;

  std::string name_;
  unsigned times_ = 0;
};

/// A call on a thread of its own; its result, or -errno.
class Call {
 public:
  explicit Call(const std::function<long()>& call);
  [[nodiscard]] bool waits() { return result_.wait_for(kMoment) != std::future_status::ready; }
  /// -ETIME, and a failure of the test: it goes on for too long.
  long end();

 private:
  std::future<long> result_;
};

/// A call in a process of its own, for what holds mmap_lock: no thread of this one could begin meanwhile. Its result, 0 to 255.
class Child {
 public:
  explicit Child(const std::function<int()>& call);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  /// -1, and a failure of the test: it goes on for too long.
  int end();

 private:
  pid_t pid_;
};

class RaceTest : public testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();
  void SetUp() override;

  static Cluster& cluster() { return *cluster_; }
  /// The test's own file, through one of the mounts; made by `make`.
  [[nodiscard]] std::string path(std::size_t mount) const;
  [[nodiscard]] int open_file(std::size_t mount, int flags) const;
  /// With these bytes, by this mount, which then holds X.
  void make(std::size_t mount, const std::string& bytes) const;
  static std::string read_all(int fd, std::size_t most = 1 << 20);

 private:
  static std::unique_ptr<Cluster> cluster_;
};

}  // namespace distfuse::tests
