// SPDX-License-Identifier: Apache-2.0
// mpi_coherence --mounts M[,M..] [--operations N] [--seed S]: one filesystem under all ranks, wherever they run.
//
// Every rank draws the same operations from the same seed and keeps the same model. Each operation is done by one rank, through its own
// mount; when it has ended (a broadcast of its errno), all ranks look through their own mounts at once, and see what a local filesystem would
// show: size, data by read() and through a mapping that stays, names. Nothing is closed, synced or waited for in between.
// Rank r uses mount number r mod M: mounts of one guest, or the same path on several.
//
// Exit status 0: all answers were right. Rank 0 prints the seed first, one JSON object at the end.
#include <fcntl.h>
#include <mpi.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kFiles = 6;
constexpr std::size_t kMaxFile = 192 * 1024;
constexpr std::size_t kMaxIo = 40000;
constexpr std::size_t kNames = 5;

int g_rank = 0;
int g_ranks = 1;
unsigned g_step = 0;

[[noreturn]] [[gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  char host[64] = "";
  gethostname(host, sizeof(host) - 1);
  std::fprintf(stderr, "mpi_coherence: rank %d on %s, operation %u: %s\n", g_rank, host, g_step,
               text);
  MPI_Abort(MPI_COMM_WORLD, 1);
  std::abort();
}

/// A data file, open and mapped on every rank all the time.
struct File {
  int fd = -1;
  char* map = nullptr;
  std::vector<char> model;
};

class Run {
 public:
  Run(std::string folder, std::uint64_t seed) : folder_(std::move(folder)), random_(seed) {}

  void open_all() {
    if (g_rank == 0 && mkdir(folder_.c_str(), 0755) != 0) fail("mkdir: %s", strerror(errno));
    MPI_Barrier(MPI_COMM_WORLD);
    for (std::size_t i = 0; i < kFiles; ++i) {
      const std::string path = folder_ + "/f" + std::to_string(i);
      files_[i].fd = open(path.c_str(), O_RDWR | O_CREAT, 0644);
      if (files_[i].fd < 0) fail("open: %s", strerror(errno));
      void* map = mmap(nullptr, kMaxFile, PROT_READ | PROT_WRITE, MAP_SHARED, files_[i].fd, 0);
      if (map == MAP_FAILED) fail("mmap: %s", strerror(errno));
      files_[i].map = static_cast<char*>(map);
      names_.insert("f" + std::to_string(i));
    }
    MPI_Barrier(MPI_COMM_WORLD);
  }

  void close_all() {
    for (auto& file : files_) {
      munmap(file.map, kMaxFile);
      if (close(file.fd) != 0) fail("close: %s", strerror(errno));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (g_rank == 0) fs::remove_all(folder_);
    MPI_Barrier(MPI_COMM_WORLD);
  }

  void step() {
    const bool mine = static_cast<int>(below(static_cast<std::size_t>(g_ranks))) == g_rank;
    if (below(5) == 0) {
      change_names(mine);
    } else {
      change_data(mine);
    }
  }

  void compare_everything() {
    for (std::size_t i = 0; i < kFiles; ++i) compare(i, 0, files_[i].model.size());
    compare_names();
    MPI_Barrier(MPI_COMM_WORLD);
  }

 private:
  std::size_t below(std::size_t n) { return random_() % n; }

  /// All ranks learn what the rank that did the operation got, and that it has ended.
  void settle(const char* what, bool mine, long got, int expected) {
    int error = !mine ? 0 : got < 0 ? errno : 0;
    MPI_Allreduce(MPI_IN_PLACE, &error, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (error != expected) fail("%s: %s, must be %s", what, strerror(error), strerror(expected));
  }

  void change_data(bool mine) {
    const std::size_t i = below(kFiles);
    File& file = files_[i];
    const std::size_t length = 1 + below(kMaxIo);
    std::size_t offset = below(3) != 0 ? below(file.model.size() + 1) : below(kMaxFile);
    offset = std::min(offset, kMaxFile - length);
    std::vector<char> bytes(length);
    const auto first = static_cast<unsigned>(random_());
    for (std::size_t k = 0; k < length; ++k)
      bytes[k] = static_cast<char>(1 + (first + k * 7) % 255);
    switch (below(8)) {
      case 0: {  // shorter, longer
        const std::size_t size = below(kMaxFile);
        settle("ftruncate", mine, mine ? ftruncate(file.fd, static_cast<off_t>(size)) : 0, 0);
        file.model.resize(size);
        offset = size / 2;
        break;
      }
      case 1:
      case 2: {  // stores through the mapping
        if (file.model.empty()) return;
        offset %= file.model.size();
        const std::size_t n = std::min(length, file.model.size() - offset);
        if (mine) {
          // In mode user the kernel's own size decides about SIGBUS; stat brings it up to date.
          struct stat attributes {};
          if (fstat(file.fd, &attributes) != 0) fail("fstat: %s", strerror(errno));
          std::memcpy(file.map + offset, bytes.data(), n);
        }
        settle("store", mine, 0, 0);
        std::copy_n(bytes.begin(), n, file.model.begin() + static_cast<std::ptrdiff_t>(offset));
        break;
      }
      case 3:
        settle("fsync", mine, mine ? fsync(file.fd) : 0, 0);
        break;
      default: {
        long got = 0;
        if (mine) got = pwrite(file.fd, bytes.data(), length, static_cast<off_t>(offset));
        if (mine && got >= 0 && got != static_cast<long>(length)) fail("short write");
        settle("pwrite", mine, got, 0);
        if (file.model.size() < offset + length) file.model.resize(offset + length);
        std::copy(bytes.begin(), bytes.end(),
                  file.model.begin() + static_cast<std::ptrdiff_t>(offset));
      }
    }
    // Not always: what is cached where differs.
    if (below(4) != 0) compare(i, offset > 5000 ? offset - 5000 : 0, length + 10000);
    MPI_Barrier(MPI_COMM_WORLD);
  }

  void compare(std::size_t i, std::size_t offset, std::size_t length) {
    const File& file = files_[i];
    struct stat attributes {};
    if (fstat(file.fd, &attributes) != 0) fail("fstat: %s", strerror(errno));
    if (static_cast<std::size_t>(attributes.st_size) != file.model.size())
      fail("f%zu has size %lld, must be %zu", i, static_cast<long long>(attributes.st_size),
           file.model.size());
    offset = std::min(offset, file.model.size());
    length = std::min(length, file.model.size() - offset);
    std::vector<char> bytes(length);
    const long got = pread(file.fd, bytes.data(), length, static_cast<off_t>(offset));
    if (got != static_cast<long>(length))
      fail("f%zu: read of %zu at %zu: %ld", i, length, offset, got);
    check_bytes("read", i, offset, length, bytes.data());
    check_bytes("mapping", i, offset, length, file.map + offset);
  }

  void check_bytes(const char* how, std::size_t i, std::size_t offset, std::size_t length,
                   const char* bytes) {
    const char* model = files_[i].model.data() + offset;
    for (std::size_t k = 0; k < length; ++k)
      if (bytes[k] != model[k])
        fail("f%zu by %s: byte %zu is %d, must be %d", i, how, offset + k, bytes[k], model[k]);
  }

  void change_names(bool mine) {
    const std::string from = "n" + std::to_string(below(kNames));
    const std::string to = "n" + std::to_string(below(kNames));
    const std::string from_path = folder_ + "/" + from;
    const std::string to_path = folder_ + "/" + to;
    const bool there = names_.contains(from);
    switch (below(3)) {
      case 0:
        settle("mknod", mine, mine ? mknod(from_path.c_str(), S_IFREG | 0644, 0) : 0,
               there ? EEXIST : 0);
        names_.insert(from);
        break;
      case 1:
        settle("unlink", mine, mine ? unlink(from_path.c_str()) : 0, there ? 0 : ENOENT);
        names_.erase(from);
        break;
      default:
        settle("rename", mine, mine ? rename(from_path.c_str(), to_path.c_str()) : 0,
               there ? 0 : ENOENT);
        if (there) {
          names_.erase(from);
          names_.insert(to);
        }
    }
    for (const auto& name : {from, to}) {
      struct stat attributes {};
      const bool seen = stat((folder_ + "/" + name).c_str(), &attributes) == 0;
      if (seen != names_.contains(name))
        fail("%s is %s", name.c_str(), seen ? "there" : "not there");
    }
    MPI_Barrier(MPI_COMM_WORLD);
  }

  void compare_names() {
    std::set<std::string> seen;
    for (const auto& entry : fs::directory_iterator(folder_)) seen.insert(entry.path().filename());
    if (seen != names_) fail("the folder has %zu names, must be %zu", seen.size(), names_.size());
  }

  const std::string folder_;
  std::mt19937_64 random_;
  File files_[kFiles];
  std::set<std::string> names_;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (c == ',') {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  return words;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &g_rank);
  MPI_Comm_size(MPI_COMM_WORLD, &g_ranks);
  std::vector<std::string> mounts;
  unsigned operations = 300;
  const char* wanted = std::getenv("DISTFUSE_SEED");
  std::uint64_t seed =
      wanted != nullptr ? std::strtoull(wanted, nullptr, 0) : std::random_device{}();
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--mounts") mounts = split(argv[i + 1]);
    if (option == "--operations") operations = static_cast<unsigned>(std::atoi(argv[i + 1]));
    if (option == "--seed") seed = std::strtoull(argv[i + 1], nullptr, 0);
  }
  if (mounts.empty() || operations == 0)
    fail("usage: mpi_coherence --mounts M[,M..] [--operations N] [--seed S]");
  MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
  if (g_rank == 0) {
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    std::fflush(stdout);
  }
  const auto began = std::chrono::steady_clock::now();
  Run run(mounts[static_cast<std::size_t>(g_rank) % mounts.size()] + "/coherence", seed);
  run.open_all();
  for (g_step = 1; g_step <= operations; ++g_step) {
    run.step();
    if (g_step % 50 == 0 || g_step == operations) run.compare_everything();
  }
  run.close_all();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  if (g_rank == 0)
    std::printf("{\"ranks\": %d, \"operations\": %u, \"seconds\": %.1f, \"verified\": true}\n",
                g_ranks, operations, seconds);
  MPI_Finalize();
  return 0;
}
