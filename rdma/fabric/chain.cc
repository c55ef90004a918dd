// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/chain.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace distfuse::fabric {

namespace {

std::size_t to_alignment(const std::byte* shared, std::size_t length) {
  const auto address = reinterpret_cast<std::uintptr_t>(shared);
  return std::min<std::size_t>((8 - address % 8) % 8, length);
}

void load_bytes(std::byte* local, std::byte* shared, std::size_t length) {
  for (std::size_t i = 0; i < length; ++i) {
    std::atomic_ref byte(*reinterpret_cast<unsigned char*>(shared + i));
    local[i] = static_cast<std::byte>(byte.load(std::memory_order_acquire));
  }
}

void store_bytes(std::byte* shared, const std::byte* local, std::size_t length) {
  for (std::size_t i = 0; i < length; ++i) {
    std::atomic_ref byte(*reinterpret_cast<unsigned char*>(shared + i));
    byte.store(static_cast<unsigned char>(local[i]), std::memory_order_release);
  }
}

/// Whole words where the shared side is aligned: what an HCA promises too, and what a slot's words need.
void load(std::byte* local, std::byte* shared, std::size_t length) {
  std::size_t at = to_alignment(shared, length);
  load_bytes(local, shared, at);
  for (; at + 8 <= length; at += 8) {
    std::atomic_ref word(*reinterpret_cast<std::uint64_t*>(shared + at));
    const std::uint64_t value = word.load(std::memory_order_acquire);
    std::memcpy(local + at, &value, 8);
  }
  load_bytes(local + at, shared + at, length - at);
}

void store(std::byte* shared, const std::byte* local, std::size_t length) {
  std::size_t at = to_alignment(shared, length);
  store_bytes(shared, local, at);
  for (; at + 8 <= length; at += 8) {
    std::uint64_t value = 0;
    std::memcpy(&value, local + at, 8);
    std::atomic_ref word(*reinterpret_cast<std::uint64_t*>(shared + at));
    word.store(value, std::memory_order_release);
  }
  store_bytes(shared + at, local + at, length - at);
}

void run_operation(std::byte* base, const Operation& op) {
  std::byte* shared = base + op.offset;
  if (op.op == Op::read) return load(op.local, shared, op.length);
  if (op.op == Op::write) return store(shared, op.local, op.length);
  std::atomic_ref word(*reinterpret_cast<std::uint64_t*>(shared));
  std::uint64_t old = op.expected;
  if (op.op == Op::fetch_add) {
    old = word.fetch_add(op.operand);
  } else {
    (void)word.compare_exchange_strong(old, op.operand);
  }
  std::memcpy(op.local, &old, sizeof(old));
}

}  // namespace

Status check_chain(std::span<const Operation> chain, std::size_t region_length) {
  if (chain.empty() || chain.size() > kMaxChain) return Error{EINVAL, "chain length"};
  std::size_t read = 0;
  std::size_t written = 0;
  for (const auto& op : chain) {
    const bool atomic = op.op == Op::compare_swap || op.op == Op::fetch_add;
    const std::size_t length = atomic ? 8 : op.length;
    if (atomic && op.offset % 8 != 0) return Error{EINVAL, "unaligned atomic"};
    if (op.local == nullptr) return Error{EINVAL, "operation without local memory"};
    if (op.offset > region_length || length > region_length - op.offset) {
      return Error{EINVAL, "operation beyond the remote region"};
    }
    if (op.op == Op::read) read += length;
    if (op.op == Op::write) written += length;
  }
  if (read > kMaxTransfer || written > kMaxTransfer) return Error{EINVAL, "chain moves too much"};
  return {};
}

void run_chain(std::byte* base, std::span<const Operation> chain) {
  for (const auto& op : chain) {
    run_operation(base, op);
    // ORDER: a plain store may be seen after a later load; the next operation must come after this one for everyone.
    if (op.op == Op::write) std::atomic_thread_fence(std::memory_order_seq_cst);
  }
}

}  // namespace distfuse::fabric
