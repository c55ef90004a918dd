// SPDX-License-Identifier: Apache-2.0
// A write load with an oracle: processes that write numbered records through the mounts, and memory that they share with the test
// and one another, in which stands what write, fsync and close answered for each record.
//
// Parties: one process a mount (of its own, so that no program that the test starts inherits, and closes, a file of a mount
// whose daemon is away), on this machine even where the mount is on another guest (tests/far/calls.h); the test, which watches and verifies.
//
// Each record is 4 KiB at a place of its own: in the file that all share (interleaved, so that the lock travels), or at the end of a
// file of the writer's own, which is cut to nothing when it is full. It names writer, file, place and number, and its body follows from them. Of each place is known:
//   issued    the last number whose write began
//   written   the last whose write returned, and was not answered by an error later
//   kept      the last that an fsync, or (not on mounts of mode `kernel`) a close, which returned 0 answers for
// A read must give one number between `kept` (or `written`, while nothing happened to the writer's mount that may lose) and
// `issued`, and never a torn record. An error of write, fsync or close on a file says that what was written there since the last
// fsync may be lost; an fsync that returns 0 later does not bring it back.
//
// Serialised by: atomics; each counter has one writer.
// Limits: kWriters, kSlots. Known weakness: a record lost and overwritten before anyone looks is not missed.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace distfuse::tests {

inline constexpr std::size_t kWriters = 8;
inline constexpr std::size_t kSlots = 2048;  ///< Of one writer in one file: 8 MiB.
inline constexpr std::size_t kNames = 64;
inline constexpr std::size_t kRecord = 4096;

enum class LoadFile : std::uint8_t { shared, own };
inline constexpr std::size_t kLoadFiles = 2;

enum class LoadOp : std::uint8_t { open, write, fsync, close, read, create, unlink, truncate };
inline constexpr std::size_t kLoadOps = 8;
[[nodiscard]] const char* to_string(LoadOp op);

/// What one writer has done. In shared memory.
struct WriterState {
  struct Slot {
    std::atomic<std::uint32_t> issued;
    std::atomic<std::uint32_t> written;
    std::atomic<std::uint32_t> kept;
    std::uint32_t epoch;  ///< Errors of the file when it was written.
  };
  struct File {
    Slot slots[kSlots];
    std::atomic<std::uint32_t> errors;
    std::atomic<std::uint32_t> used;        ///< Places written to at all.
    std::atomic<std::uint32_t> generation;  ///< Raised before and after it is cut to nothing.
  };
  enum Name : std::uint8_t { absent, present, unknown };

  File files[kLoadFiles];
  std::atomic<std::uint8_t> names[kNames];
  std::atomic<bool>
      may_lose;  ///< Something happened to its mount that may lose what was not fsynced.
  std::atomic<bool>
      unmounted;  ///< Its mount is dead or being made anew: what is there is another filesystem.
  std::atomic<bool> stop;
  std::atomic<std::uint64_t> operations;  ///< Ended.
  std::atomic<std::uint64_t> good;        ///< Of them, without an error.
  std::atomic<std::int64_t> began_ms;     ///< The operation under way; 0: none.
  std::atomic<std::int64_t> longest_ms;   ///< Since the test set it to 0.
  std::atomic<std::uint32_t> errors[kLoadOps];
  std::atomic<int> last_errno[kLoadOps];
  std::atomic<std::uint32_t> violations;
  char first_violation[512];
};

struct ReadResult {
  int error = 0;
  std::uint32_t number = 0;  ///< 0: nothing there.
  bool torn = false;
};

class Load {
 public:
  /// A process for each of `mounts`, in a folder of that name at the top, made through the first.
  Load(std::vector<std::string> mounts, std::string folder, std::uint64_t seed);
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  /// Ends the processes that are left.
  ~Load();

  [[nodiscard]] std::size_t writers() const { return pids_.size(); }
  [[nodiscard]] WriterState& state(std::size_t writer) const { return states_[writer]; }

  /// Each of these writers has ended `operations` more without an error. False: not within `timeout`.
  [[nodiscard]] bool progress(const std::vector<std::size_t>& writers, std::uint64_t operations,
                              std::chrono::milliseconds timeout) const;
  /// Longest operation since reset_waits, one that still goes on included.
  [[nodiscard]] std::chrono::milliseconds longest(std::size_t writer) const;
  void reset_waits();
  [[nodiscard]] std::uint32_t errors(std::size_t writer) const;
  [[nodiscard]] std::uint32_t errors(std::size_t writer, LoadOp op) const;
  /// "write 3 (EIO)".
  [[nodiscard]] std::string describe_errors(std::size_t writer) const;

  /// kill -9: its guest is gone, and the call that it waits for as well.
  void kill(std::size_t writer);
  /// Asks them to end, and waits. Answers with what went wrong: a process that hangs (killed then) or crashed.
  [[nodiscard]] std::string stop(std::chrono::milliseconds timeout);

  struct Verdict {
    std::uint64_t records = 0;
    std::uint64_t lost = 0;          ///< Written, and gone; allowed only where may_lose is set.
    std::vector<std::string> wrong;  ///< What must not be; the first 20.
  };
  /// Every record and name of every writer through a mount, in a process of its own. After stop().
  [[nodiscard]] Verdict verify(const std::string& mount) const;
  /// What the processes themselves saw that must not be.
  [[nodiscard]] std::vector<std::string> violations() const;

 private:
  std::string folder_;
  std::vector<std::string> mounts_;
  WriterState* states_ = nullptr;
  std::vector<pid_t> pids_;
};

}  // namespace distfuse::tests
