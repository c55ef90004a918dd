// SPDX-License-Identifier: Apache-2.0
// The memory that bulk is received into and sent from: one mapping, page-aligned buffers of three sizes, taken and given
// back by the owner thread.
//
// Arithmetic: 256 × 64 KiB + 64 × 1 MiB + 16 × 4 MiB = 144 MiB of address space, of which only what was used is memory. A
// request takes the smallest buffer that fits, or a larger one. 336 operations with bulk are under way at most; more wait,
// writes at their sender (rpc/server.h), reads in the data service.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "rpc/data.h"

namespace distfuse::storaged {

class BufferPool;

struct Buffer {
  BufferPool* pool = nullptr;
  std::byte* data = nullptr;
  std::size_t size_class = 0;
  bool taken = false;
  void* owner = nullptr;  ///< The taker's.
};

class BufferPool {
 public:
  struct SizeClass {
    std::size_t bytes = 0;
    std::size_t count = 0;
  };
  using Classes = std::array<SizeClass, 3>;  ///< Ascending; the last holds kMaxBulk.
  static constexpr Classes kDefault{{{64U << 10, 256}, {1U << 20, 64}, {rpc::kMaxBulk, 16}}};

  explicit BufferPool(
      const Classes& classes = kDefault);  ///< Aborts when the address space is not to be had.
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  /// nullptr: none free.
  [[nodiscard]] Buffer* take(std::size_t bytes);
  void release(Buffer& buffer);
  /// The buffer that begins at `data`, which the pool gave out; aborts otherwise.
  [[nodiscard]] Buffer& find(const std::byte* data);
  [[nodiscard]] std::size_t taken() const { return taken_; }

 private:
  Classes classes_;
  std::byte* memory_ = nullptr;
  std::size_t length_ = 0;
  std::size_t taken_ = 0;
  std::array<std::vector<Buffer>, 3> buffers_;
  std::array<std::vector<Buffer*>, 3> free_;
};

}  // namespace distfuse::storaged
