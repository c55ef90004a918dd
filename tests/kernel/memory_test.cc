// SPDX-License-Identifier: Apache-2.0
// A working set of four times the guest's memory, on two mounts of one guest whose /cluster is a disk (scripts/vm run --disk): written and
// mapped by one mount, read and mapped by the other. Every page is checked. Nothing may hang (the run's timeout), be lost, or be killed for want of memory
// (the run looks at the kernel's messages).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kFileBytes = std::size_t{32} << 20U;
constexpr std::size_t kBlockBytes = std::size_t{1} << 20U;
constexpr std::size_t kWords = kBlockBytes / sizeof(std::uint64_t);

class File {
 public:
  File(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (fd_ < 0) ADD_FAILURE() << path << ": " << std::generic_category().message(errno);
  }
  ~File() {
    if (fd_ < 0) return;
    EXPECT_EQ(::close(fd_), 0);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  [[nodiscard]] int fd() const { return fd_; }

 private:
  int fd_;
};

class Mapping {
 public:
  Mapping(const File& file, int protection)
      : address_(::mmap(nullptr, kFileBytes, protection, MAP_SHARED, file.fd(), 0)) {}
  ~Mapping() {
    if (ok()) ::munmap(address_, kFileBytes);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  [[nodiscard]] bool ok() const { return address_ != MAP_FAILED; }
  [[nodiscard]] std::uint64_t* block(std::size_t number) const {
    return static_cast<std::uint64_t*>(address_) + number * kWords;
  }

 private:
  void* address_;
};

/// What a word of a file holds: no two are the same.
std::uint64_t word_of(std::size_t file, std::size_t block, std::size_t word) {
  return ((file * (kFileBytes / kBlockBytes) + block) * kWords + word) * 0x9e3779b97f4a7c15ULL + 1;
}

void fill(std::uint64_t* words, std::size_t file, std::size_t block) {
  for (std::size_t i = 0; i < kWords; ++i) words[i] = word_of(file, block, i);
}

/// The first word that is wrong; kWords: none.
std::size_t first_wrong(const std::uint64_t* words, std::size_t file, std::size_t block) {
  for (std::size_t i = 0; i < kWords; ++i)
    if (words[i] != word_of(file, block, i)) return i;
  return kWords;
}

void write_file(const std::string& path, std::size_t number, bool mapped) {
  const File file(path, O_RDWR | O_CREAT | O_TRUNC);
  if (mapped) {
    ASSERT_EQ(::ftruncate(file.fd(), kFileBytes), 0) << path;
    const Mapping mapping(file, PROT_READ | PROT_WRITE);
    ASSERT_TRUE(mapping.ok()) << path;
    for (std::size_t b = 0; b < kFileBytes / kBlockBytes; ++b) fill(mapping.block(b), number, b);
    return;
  }
  std::vector<std::uint64_t> block(kWords);
  for (std::size_t b = 0; b < kFileBytes / kBlockBytes; ++b) {
    fill(block.data(), number, b);
    ASSERT_EQ(::write(file.fd(), block.data(), kBlockBytes), static_cast<ssize_t>(kBlockBytes))
        << path << ": " << std::generic_category().message(errno);
  }
}

void check_file(const std::string& path, std::size_t number, bool mapped) {
  const File file(path, O_RDONLY);
  std::vector<std::uint64_t> block(mapped ? 0 : kWords);
  if (mapped) {
    const Mapping mapping(file, PROT_READ);
    ASSERT_TRUE(mapping.ok()) << path;
    for (std::size_t b = 0; b < kFileBytes / kBlockBytes; ++b)
      ASSERT_EQ(first_wrong(mapping.block(b), number, b), kWords) << path << ", MiB " << b;
    return;
  }
  for (std::size_t b = 0; b < kFileBytes / kBlockBytes; ++b) {
    ASSERT_EQ(::read(file.fd(), block.data(), kBlockBytes), static_cast<ssize_t>(kBlockBytes))
        << path << ": " << std::generic_category().message(errno);
    ASSERT_EQ(first_wrong(block.data(), number, b), kWords) << path << ", MiB " << b;
  }
}

std::size_t memory_bytes() {
  std::ifstream in("/proc/meminfo");
  std::string name;
  std::size_t kib = 0;
  in >> name >> kib;
  return kib << 10U;
}

std::vector<std::string> mounts() {
  std::vector<std::string> found;
  const char* given = std::getenv("DISTFUSE_MOUNTS");
  std::istringstream words(given != nullptr ? given : "");
  for (std::string word; words >> word;) found.push_back(word);
  return found;
}

TEST(Memory, FourTimesAsMuchIsWrittenMappedAndRead) {
  const auto mount = mounts();
  ASSERT_GE(mount.size(), 2U) << "DISTFUSE_MOUNTS";
  const std::size_t files = (4 * memory_bytes() + kFileBytes - 1) / kFileBytes;
  std::printf("%zu files of %zu MiB, memory %zu MiB\n", files, kFileBytes >> 20U,
              memory_bytes() >> 20U);
  auto path = [&](std::size_t m, std::size_t file) {
    return mount[m % 2] + "/memory-" + std::to_string(file);
  };
  for (std::size_t f = 0; f < files; ++f) {
    write_file(path(f / 2, f), f, f % 2 == 0);
    if (HasFatalFailure()) return;
    if (f % 8 != 7) continue;
    std::printf("written: %zu of %zu\n", f + 1, files);
    std::fflush(stdout);
  }
  // By the other mount; half of them the way that they were not written.
  for (std::size_t f = 0; f < files; ++f) {
    check_file(path(f / 2 + 1, f), f, f % 4 < 2);
    if (HasFatalFailure()) return;
    if (f % 8 != 7) continue;
    std::printf("read: %zu of %zu\n", f + 1, files);
    std::fflush(stdout);
  }
  for (std::size_t f = 0; f < files; ++f) EXPECT_EQ(::unlink(path(0, f).c_str()), 0);
}

}  // namespace
