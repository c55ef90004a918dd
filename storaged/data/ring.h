// SPDX-License-Identifier: Apache-2.0
// The io_uring of one owner thread. Commands are queued without limit of their own (the chunk store bounds its operations)
// and kept in the kernel up to the ring's size.
//
// Arithmetic: at most `entries` commands are in the kernel at a time, the submission queue has `entries` and the completion
// queue 2 × entries places, so neither can overflow.
#pragma once

#include <liburing.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/result.h"

namespace distfuse::storaged {

/// One system call to be made by the ring. Belongs to the caller and stays in place until `done`.
struct RingCommand {
  enum class Kind : std::uint8_t { read, write, fallocate, fdatasync, fsync, open, mkdir, close };
  Kind kind = Kind::read;
  int fd = -1;    ///< open, mkdir: of the directory that `path` is relative to.
  int flags = 0;  ///< open: flags; fallocate: mode.
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  std::byte* buffer = nullptr;
  const char* path = nullptr;
  void (*done)(RingCommand& command,
               int result) = nullptr;  ///< result ≥ 0, or a negative errno value.
  void* owner = nullptr;
  RingCommand* next = nullptr;  ///< The ring's, while queued.
};

class Ring {
 public:
  /// Error: EPERM, ENOSYS with what to do where the kernel does not let us.
  [[nodiscard]] static Result<std::unique_ptr<Ring>> open(unsigned entries, int event_fd);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  void push(RingCommand& command);
  /// Hands queued commands to the kernel and runs `done` of finished ones. Answers whether any was finished.
  bool progress();
  /// Waits for what is in the kernel; nothing queued is started, no `done` is called.
  void drain();
  [[nodiscard]] std::size_t pending() const { return in_kernel_ + queued_; }

 private:
  Ring() = default;
  void submit_queued();

  io_uring ring_{};
  bool open_ = false;
  unsigned entries_ = 0;
  std::size_t in_kernel_ = 0;
  std::size_t queued_ = 0;
  RingCommand* first_ = nullptr;  // queue, singly linked
  RingCommand* last_ = nullptr;
};

}  // namespace distfuse::storaged
