// SPDX-License-Identifier: Apache-2.0
// How much of a target's capacity is used. Pure. Starts from a checkpoint; a scan, one directory at a time and in the
// background, replaces it by what is there; a directory that changed while it was scanned is scanned again.
// Known weakness: until the first scan after a kill -9 is over the count may be as old as the checkpoint.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "storaged/data/chunk_layout.h"

namespace distfuse::storaged {

class Usage {
 public:
  Usage(std::uint64_t capacity, std::uint64_t checkpoint)
      : capacity_(capacity), used_(static_cast<std::int64_t>(checkpoint)) {}

  [[nodiscard]] bool limited() const { return capacity_ != 0; }
  [[nodiscard]] std::uint64_t capacity() const { return capacity_; }
  [[nodiscard]] std::uint64_t used() const {
    return static_cast<std::uint64_t>(std::max<std::int64_t>(used_, 0));
  }
  [[nodiscard]] std::uint64_t available() const {
    return capacity_ > used() ? capacity_ - used() : 0;
  }

  /// Room for a write that may take `bytes`; give back with release() when its real size is counted.
  [[nodiscard]] bool reserve(std::uint64_t bytes) {
    if (used() + reserved_ + bytes > capacity_) return false;
    reserved_ += bytes;
    return true;
  }
  void release(std::uint64_t bytes) { reserved_ -= bytes; }

  void add(std::uint32_t directory, std::int64_t bytes) {
    used_ += bytes;
    bytes_[directory] += bytes;
    ++changes_[directory];
  }

  [[nodiscard]] std::uint64_t changes(std::uint32_t directory) const { return changes_[directory]; }
  /// A scan that began at changes() == `began` found `bytes`. Answers false: scan it again.
  [[nodiscard]] bool scanned(std::uint32_t directory, std::uint64_t began, std::uint64_t bytes) {
    if (changes_[directory] != began) return false;
    bytes_[directory] = static_cast<std::int64_t>(bytes);
    return true;
  }
  /// All directories are scanned: the sum is the truth.
  void scan_complete() {
    used_ = 0;
    for (std::int64_t bytes : bytes_) used_ += bytes;
  }

 private:
  const std::uint64_t capacity_;
  std::int64_t used_;
  std::uint64_t reserved_ = 0;
  std::array<std::int64_t, kDirectories> bytes_{};
  std::array<std::uint64_t, kDirectories> changes_{};
};

}  // namespace distfuse::storaged
