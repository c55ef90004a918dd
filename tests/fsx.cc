// SPDX-License-Identifier: Apache-2.0
// fsx: random operations on one file, each through a mount drawn at random, against a copy in memory.
//   fsx --mounts A,B,... [--seconds N | --operations N] [--seed S] [--size BYTES]
// A mount "NODE:/PATH" is on another guest (tests/far/calls.h). Operations: buffered, direct and mapped reads and writes, truncation up and down, holes punched and ranges zeroed, space reserved,
// copy_file_range, fsync, close and open again. After each: the size by every mount; every 500: every byte by every mount.
// On a difference: what, where, the last operations, exit status 1. The seed is printed; the same seed does the same operations.
#include <linux/falloc.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "tests/far/calls.h"

namespace {

namespace far = distfuse::tests::far;
using far::close;
using far::copy_file_range;
using far::fallocate;
using far::fstat;
using far::fsync;
using far::ftruncate;
using far::open;
using far::pread;
using far::pwrite;
using far::stat;
using far::unlink;

constexpr std::size_t kDirectAlign = 4096;
constexpr std::size_t kLastShown = 20;

struct Options {
  std::vector<std::string> mounts;
  std::uint64_t seed = std::random_device{}();
  double seconds = 10;
  std::uint64_t operations = UINT64_MAX;
  std::size_t size = 12U << 20;  // three chunks
};

struct Handle {
  int fd = -1;
  int direct = -1;
};

class Fsx {
 public:
  explicit Fsx(const Options& options)
      : options_(options), random_(options.seed), handles_(options.mounts.size()) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kDirectAlign, options.size + kDirectAlign) != 0) std::abort();
    buffer_ = static_cast<char*>(memory);
    for (std::size_t m = 0; m < handles_.size(); ++m) open_on(m, m == 0 ? O_CREAT | O_TRUNC : 0);
  }
  ~Fsx() {
    for (const Handle& handle : handles_) {
      close(handle.fd);
      close(handle.direct);
    }
    unlink(path(0).c_str());
    std::free(buffer_);
  }
  Fsx(const Fsx&) = delete;
  Fsx& operator=(const Fsx&) = delete;

  std::uint64_t run();

 private:
  std::string path(std::size_t m) const {
    return options_.mounts[m] + "/fsx." + std::to_string(options_.seed);
  }
  std::size_t below(std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_);
  }

  [[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "fsx: seed %llu, operation %llu: %s\n",
                 static_cast<unsigned long long>(options_.seed),
                 static_cast<unsigned long long>(done_), what.c_str());
    for (const std::string& line : last_) std::fprintf(stderr, "  %s\n", line.c_str());
    std::_Exit(1);
  }
  void check(bool good, const std::string& what) {
    if (!good) fail(what + ": " + std::strerror(errno));
  }
  void note(const char* what, std::size_t m, std::size_t offset, std::size_t length) {
    char line[160];
    std::snprintf(line, sizeof(line), "%llu: mount %zu %s [%zu, %zu) size %zu",
                  static_cast<unsigned long long>(done_), m, what, offset, offset + length,
                  model_.size());
    last_.emplace_back(line);
    if (last_.size() > kLastShown) last_.pop_front();
  }

  void open_on(std::size_t m, int flags) {
    handles_[m].fd = open(path(m).c_str(), O_RDWR | O_CLOEXEC | flags, 0644);
    check(handles_[m].fd >= 0, "open " + path(m));
    handles_[m].direct = open(path(m).c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
    check(handles_[m].direct >= 0, "open direct " + path(m));
  }

  void fill(std::size_t length) {
    const auto start = static_cast<unsigned>(random_());
    for (std::size_t i = 0; i < length; ++i) buffer_[i] = static_cast<char>(1 + (start + i) % 251);
  }
  void put(std::size_t offset, const char* bytes, std::size_t length) {
    if (model_.size() < offset + length) model_.resize(offset + length);
    std::copy_n(bytes, length, model_.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  void zero(std::size_t offset, std::size_t length) {
    for (std::size_t i = offset; i < std::min(offset + length, model_.size()); ++i) model_[i] = 0;
  }
  void compare(const char* got, std::size_t offset, std::size_t length, const char* how,
               std::size_t m) {
    if (length == 0 || std::memcmp(got, model_.data() + offset, length) == 0) return;
    std::size_t i = 0;
    while (got[i] == model_[offset + i]) ++i;
    fail(std::string(how) + " on mount " + std::to_string(m) + ": byte " +
         std::to_string(offset + i) + " is " + std::to_string(static_cast<unsigned char>(got[i])) +
         ", must be " + std::to_string(static_cast<unsigned char>(model_[offset + i])));
  }

  void do_write(std::size_t m, std::size_t offset, std::size_t length, bool direct);
  void do_read(std::size_t m, std::size_t offset, std::size_t length, bool direct);
  void do_map(std::size_t m, std::size_t offset, std::size_t length, bool store);
  void do_truncate(std::size_t m);
  void do_space(std::size_t m, std::size_t offset, std::size_t length);
  void do_copy(std::size_t m, std::size_t offset, std::size_t length);
  void step();
  void check_sizes();
  void check_all();

  const Options& options_;
  std::mt19937_64 random_;
  std::vector<Handle> handles_;
  std::vector<char> model_;
  std::deque<std::string> last_;
  char* buffer_ = nullptr;
  std::uint64_t done_ = 0;
};

void Fsx::do_write(std::size_t m, std::size_t offset, std::size_t length, bool direct) {
  note(direct ? "direct write" : "write", m, offset, length);
  fill(length);
  const ssize_t n = pwrite(direct ? handles_[m].direct : handles_[m].fd, buffer_, length,
                           static_cast<off_t>(offset));
  check(n == static_cast<ssize_t>(length), "write");
  put(offset, buffer_, length);
}

void Fsx::do_read(std::size_t m, std::size_t offset, std::size_t length, bool direct) {
  note(direct ? "direct read" : "read", m, offset, length);
  const std::size_t expected =
      offset >= model_.size() ? 0 : std::min(length, model_.size() - offset);
  const ssize_t n = pread(direct ? handles_[m].direct : handles_[m].fd, buffer_, length,
                          static_cast<off_t>(offset));
  if (n != static_cast<ssize_t>(expected))
    fail("read " + std::to_string(n) + " bytes, must be " + std::to_string(expected));
  compare(buffer_, offset, expected, direct ? "direct read" : "read", m);
}

void Fsx::do_map(std::size_t m, std::size_t offset, std::size_t length, bool store) {
  if (offset >= model_.size()) return;
  length = std::min(length, model_.size() - offset);
  note(store ? "mapped write" : "mapped read", m, offset, length);
  struct stat now {};  // brings the size: a mapping beyond what the kernel believes faults
  check(fstat(handles_[m].fd, &now) == 0, "fstat");
  far::Mapping map;
  check(map.map(handles_[m].fd, model_.size()), "mmap");
  if (store) {
    fill(length);
    check(map.store(offset, buffer_, length), "store");
    put(offset, buffer_, length);
  } else {
    check(map.load(offset, buffer_, length), "load");
    compare(buffer_, offset, length, "mapped read", m);
  }
  check(map.unmap() == 0, "munmap");
}

void Fsx::do_truncate(std::size_t m) {
  const std::size_t size = below(options_.size);
  note("truncate", m, size, 0);
  check(ftruncate(handles_[m].fd, static_cast<off_t>(size)) == 0, "ftruncate");
  model_.resize(size);
}

void Fsx::do_space(std::size_t m, std::size_t offset, std::size_t length) {
  static constexpr struct {
    const char* name;
    int mode;
    bool zeroes, grows;
  } kKinds[] = {{"punch", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, true, false},
                {"zero", FALLOC_FL_ZERO_RANGE, true, true},
                {"zero keep size", FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, true, false},
                {"allocate", 0, false, true},
                {"allocate keep size", FALLOC_FL_KEEP_SIZE, false, false}};
  const auto& kind = kKinds[below(std::size(kKinds))];
  note(kind.name, m, offset, length);
  check(fallocate(handles_[m].fd, kind.mode, static_cast<off_t>(offset),
                  static_cast<off_t>(length)) == 0,
        kind.name);
  if (kind.zeroes) zero(offset, length);
  if (kind.grows) model_.resize(std::max(model_.size(), offset + length));
}

void Fsx::do_copy(std::size_t m, std::size_t offset, std::size_t length) {
  if (offset >= model_.size()) return;
  length = std::min(length, model_.size() - offset);
  off_t from = static_cast<off_t>(offset);
  const std::size_t target = below(options_.size - length);
  if (target < offset + length && offset < target + length) return;  // overlapping is EINVAL
  off_t to = static_cast<off_t>(target);
  note("copy from", m, offset, length);
  note("copy to", m, target, length);
  const std::vector<char> bytes(model_.begin() + from,
                                model_.begin() + from + static_cast<std::ptrdiff_t>(length));
  for (std::size_t left = length; left > 0;) {
    const ssize_t n = copy_file_range(handles_[m].fd, &from, handles_[m].fd, &to, left, 0);
    check(n > 0, "copy_file_range");
    left -= static_cast<std::size_t>(n);
  }
  put(target, bytes.data(), length);
}

void Fsx::step() {
  const std::size_t m = below(handles_.size());
  const std::size_t length = 1 + (below(3) != 0 ? below(20000) : below(600000));
  const std::size_t span =
      below(2) == 0 ? options_.size - length : std::min(options_.size - length, model_.size() + 1);
  const std::size_t offset = below(span);
  const std::size_t direct_offset = offset / kDirectAlign * kDirectAlign;
  const std::size_t direct_length =
      std::min((length / kDirectAlign + 1) * kDirectAlign, options_.size - direct_offset);
  switch (below(13)) {
    case 0:
    case 1:
    case 2:
      return do_write(m, offset, length, false);
    case 3:
      return do_write(m, direct_offset, direct_length, true);
    case 4:
    case 5:
      return do_read(m, offset, length, false);
    case 6:
      return do_read(m, direct_offset, direct_length, true);
    case 7:
      return do_map(m, offset, length, false);
    case 8:
      return do_map(m, offset, length, true);
    case 9:
      return do_space(m, offset, length);
    case 10:
      return do_copy(m, offset, length);
    case 11:
      if (below(3) == 0) return do_truncate(m);
      note("fsync", m, 0, 0);
      return check(fsync(handles_[m].fd) == 0, "fsync");
    default:
      note("close and open", m, 0, 0);
      check(close(handles_[m].fd) == 0 && close(handles_[m].direct) == 0, "close");
      open_on(m, 0);
  }
}

void Fsx::check_sizes() {
  for (std::size_t m = 0; m < handles_.size(); ++m) {
    struct stat now {};
    check((below(2) == 0 ? fstat(handles_[m].fd, &now) : stat(path(m).c_str(), &now)) == 0, "stat");
    if (static_cast<std::size_t>(now.st_size) != model_.size()) {
      fail("size on mount " + std::to_string(m) + " is " + std::to_string(now.st_size) +
           ", must be " + std::to_string(model_.size()));
    }
  }
}

void Fsx::check_all() {
  for (std::size_t m = 0; m < handles_.size(); ++m) do_read(m, 0, options_.size, false);
}

std::uint64_t Fsx::run() {
  const auto start = std::chrono::steady_clock::now();
  double shown = 0;
  for (; done_ < options_.operations; ++done_) {
    const double elapsed =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (elapsed > options_.seconds) break;
    if (elapsed > shown + 10) {
      shown = elapsed;
      std::fprintf(stderr, "fsx: %.0f of %.0f s, %llu operations\n", elapsed, options_.seconds,
                   static_cast<unsigned long long>(done_));
    }
    step();
    check_sizes();
    if (done_ % 500 == 499) check_all();
  }
  check_all();
  return done_;
}

constexpr const char* kUsage =
    "usage: fsx --mounts A,B,... [--seconds N] [--operations N] [--seed S] [--size BYTES]\n"
    "Random operations on one file through several mounts, checked against a copy in memory.\n"
    "Without --mounts: those in DISTFUSE_MOUNTS (space-separated).\n";

Options parse(int argc, char** argv) {
  Options options;
  const char* const inherited = std::getenv("DISTFUSE_MOUNTS");
  std::string mounts = inherited != nullptr ? inherited : "";
  if (const char* seed = std::getenv("DISTFUSE_SEED"))
    options.seed = std::strtoull(seed, nullptr, 0);
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    if (key == "--help") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    }
    const char* value = i + 1 < argc ? argv[++i] : "";
    if (key == "--mounts")
      mounts = value;
    else if (key == "--seconds")
      options.seconds = std::atof(value);
    else if (key == "--operations")
      options.operations = std::strtoull(value, nullptr, 0), options.seconds = 1e9;
    else if (key == "--seed")
      options.seed = std::strtoull(value, nullptr, 0);
    else if (key == "--size")
      options.size = std::max<std::size_t>(std::strtoull(value, nullptr, 0), 2U << 20) /
                     kDirectAlign * kDirectAlign;
    else
      mounts.clear();
  }
  std::replace(mounts.begin(), mounts.end(), ',', ' ');
  for (std::size_t at = 0; at < mounts.size();) {
    const auto end = std::min(mounts.find(' ', at), mounts.size());
    if (end > at) options.mounts.push_back(mounts.substr(at, end - at));
    at = end + 1;
  }
  if (options.mounts.empty()) {
    std::fputs(kUsage, stderr);
    std::exit(2);
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  std::printf("fsx: seed %llu (replay: --seed %llu)\n",
              static_cast<unsigned long long>(options.seed),
              static_cast<unsigned long long>(options.seed));
  std::fflush(stdout);
  Fsx fsx(options);
  std::printf("fsx: %llu operations, every byte as it must be\n",
              static_cast<unsigned long long>(fsx.run()));
  return 0;
}
