// SPDX-License-Identifier: Apache-2.0
#include "storaged/buffer_pool.h"

#include <sys/mman.h>

#include <cstdlib>

namespace distfuse::storaged {

BufferPool::BufferPool(const Classes& classes) : classes_(classes) {
  for (const SizeClass& size : classes_) length_ += size.bytes * size.count;
  void* memory = ::mmap(nullptr, length_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  memory_ = static_cast<std::byte*>(memory);
  std::byte* next = memory_;
  for (std::size_t i = 0; i < classes_.size(); ++i) {
    buffers_[i].resize(classes_[i].count);
    for (Buffer& buffer : buffers_[i]) {
      buffer = {this, next, i, false, nullptr};
      next += classes_[i].bytes;
    }
    for (std::size_t n = classes_[i].count; n > 0; --n) free_[i].push_back(&buffers_[i][n - 1]);
  }
}

BufferPool::~BufferPool() {
  ::munmap(memory_, length_);
}

Buffer* BufferPool::take(std::size_t bytes) {
  for (std::size_t i = 0; i < classes_.size(); ++i) {
    if (classes_[i].bytes < bytes || free_[i].empty()) continue;
    Buffer* buffer = free_[i].back();  // the one used last: warm
    free_[i].pop_back();
    buffer->taken = true;
    ++taken_;
    return buffer;
  }
  return nullptr;
}

void BufferPool::release(Buffer& buffer) {
  if (!buffer.taken) std::abort();
  buffer.taken = false;
  --taken_;
  free_[buffer.size_class].push_back(&buffer);
}

Buffer& BufferPool::find(const std::byte* data) {
  std::byte* begin = memory_;
  for (std::size_t i = 0; i < classes_.size(); ++i) {
    const std::size_t bytes = classes_[i].bytes * classes_[i].count;
    if (data >= begin && data < begin + bytes) {
      Buffer& buffer = buffers_[i][static_cast<std::size_t>(data - begin) / classes_[i].bytes];
      if (buffer.data != data || !buffer.taken) std::abort();
      return buffer;
    }
    begin += bytes;
  }
  std::abort();
}

}  // namespace distfuse::storaged
