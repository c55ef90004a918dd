// SPDX-License-Identifier: Apache-2.0
#include "storaged/data/ring.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cstring>

namespace distfuse::storaged {
namespace {

constexpr int kNeeded[] = {IORING_OP_READ,  IORING_OP_WRITE,  IORING_OP_FALLOCATE,
                           IORING_OP_FSYNC, IORING_OP_OPENAT, IORING_OP_MKDIRAT,
                           IORING_OP_CLOSE};

Error not_permitted(int code) {
  return {code, fmt::format("the kernel refuses io_uring ({}): set the sysctl "
                            "kernel.io_uring_disabled to 0, allow io_uring_setup, "
                            "io_uring_enter and io_uring_register in the container's seccomp "
                            "profile, or use Linux 5.15 or newer",
                            std::strerror(code))};
}

void prepare(io_uring_sqe* sqe, RingCommand& command) {
  using Kind = RingCommand::Kind;
  switch (command.kind) {
    case Kind::read:
      io_uring_prep_read(sqe, command.fd, command.buffer, command.length, command.offset);
      break;
    case Kind::write:
      io_uring_prep_write(sqe, command.fd, command.buffer, command.length, command.offset);
      break;
    case Kind::fallocate:
      io_uring_prep_fallocate(sqe, command.fd, command.flags, static_cast<off_t>(command.offset),
                              static_cast<off_t>(command.length));
      break;
    case Kind::fdatasync:
      io_uring_prep_fsync(sqe, command.fd, IORING_FSYNC_DATASYNC);
      break;
    case Kind::fsync:
      io_uring_prep_fsync(sqe, command.fd, 0);
      break;
    case Kind::open:
      io_uring_prep_openat(sqe, command.fd, command.path, command.flags, 0600);
      break;
    case Kind::mkdir:
      io_uring_prep_mkdirat(sqe, command.fd, command.path, 0700);
      break;
    case Kind::close:
      io_uring_prep_close(sqe, command.fd);
      break;
  }
  io_uring_sqe_set_data(sqe, &command);
}

}  // namespace

Result<std::unique_ptr<Ring>> Ring::open(unsigned entries, int event_fd) {
  auto ring = std::unique_ptr<Ring>(new Ring);
  ring->entries_ = entries;
  io_uring_params params{};
  params.flags = IORING_SETUP_CLAMP;
  if (int code = -io_uring_queue_init_params(entries, &ring->ring_, &params); code != 0)
    return not_permitted(code);
  ring->open_ = true;
  if (params.sq_entries < entries) ring->entries_ = params.sq_entries;
  io_uring_probe* probe = io_uring_get_probe_ring(&ring->ring_);
  bool complete = probe != nullptr;
  for (int op : kNeeded) complete = complete && io_uring_opcode_supported(probe, op) != 0;
  if (probe != nullptr) io_uring_free_probe(probe);
  if (!complete) return not_permitted(ENOSYS);
  if (int code = -io_uring_register_eventfd(&ring->ring_, event_fd); code != 0)
    return not_permitted(code);
  return ring;
}

Ring::~Ring() {
  if (open_) io_uring_queue_exit(&ring_);
}

void Ring::push(RingCommand& command) {
  command.next = nullptr;
  if (last_ != nullptr) {
    last_->next = &command;
  } else {
    first_ = &command;
  }
  last_ = &command;
  ++queued_;
}

void Ring::submit_queued() {
  while (first_ != nullptr && in_kernel_ < entries_) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) break;  // the kernel has not taken the last ones yet
    prepare(sqe, *first_);
    first_ = first_->next;
    if (first_ == nullptr) last_ = nullptr;
    --queued_;
    ++in_kernel_;
  }
  // EINTR, EAGAIN, EBUSY: what was prepared stays in the queue and goes with the next call.
  if (io_uring_sq_ready(&ring_) != 0) (void)io_uring_submit(&ring_);
}

bool Ring::progress() {
  bool any = false;
  for (;;) {
    submit_queued();
    io_uring_cqe* cqes[64];
    const unsigned count = io_uring_peek_batch_cqe(&ring_, cqes, 64);
    if (count == 0) return any;
    any = true;
    struct Finished {
      RingCommand* command;
      int result;
    } finished[64];
    for (unsigned i = 0; i < count; ++i) {
      finished[i] = {static_cast<RingCommand*>(io_uring_cqe_get_data(cqes[i])), cqes[i]->res};
    }
    io_uring_cq_advance(&ring_, count);
    in_kernel_ -= count;
    for (unsigned i = 0; i < count; ++i)
      finished[i].command->done(*finished[i].command, finished[i].result);
  }
}

void Ring::drain() {
  first_ = last_ = nullptr;
  queued_ = 0;
  while (in_kernel_ > 0) {
    (void)io_uring_submit(&ring_);
    io_uring_cqe* cqe = nullptr;
    if (int code = io_uring_wait_cqe(&ring_, &cqe); code != 0) continue;  // EINTR
    io_uring_cqe_seen(&ring_, cqe);
    --in_kernel_;
  }
}

}  // namespace distfuse::storaged
