// SPDX-License-Identifier: Apache-2.0
// Progress on standard error for what takes more than two seconds; silent before that.
#pragma once

#include <unistd.h>
#include <chrono>
#include <cstdio>
#include <string>

namespace distfuse::client {

class Progress2s {
 public:
  Progress2s(std::string what, std::size_t total) : what_(std::move(what)), total_(total) {}
  Progress2s(const Progress2s&) = delete;
  Progress2s& operator=(const Progress2s&) = delete;
  ~Progress2s() {
    if (shown_ && terminal_) std::fputc('\n', stderr);
  }

  void step() { ++done_; }

  /// Says what is waited for; on a terminal it rewrites one line, elsewhere a line a second.
  void show(const std::string& detail) {
    const auto now = std::chrono::steady_clock::now();
    if (now - start_ < std::chrono::seconds(2) || now - last_ < std::chrono::seconds(1)) return;
    last_ = now;
    shown_ = true;
    std::fprintf(stderr, "%s%s: %zu of %zu, waiting for %s (%lld s)%s", terminal_ ? "\r\033[K" : "",
                 what_.c_str(), done_, total_, detail.c_str(),
                 static_cast<long long>(
                     std::chrono::duration_cast<std::chrono::seconds>(now - start_).count()),
                 terminal_ ? "" : "\n");
    std::fflush(stderr);
  }

 private:
  std::string what_;
  std::size_t total_;
  std::size_t done_ = 0;
  bool shown_ = false;
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace distfuse::client
