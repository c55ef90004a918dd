// SPDX-License-Identifier: Apache-2.0
// mpi_shared_file: one shared file, written and read through several mounts of one filesystem by
// MPI-IO.
//
// Invariant: byte i of a generation g of the file is pattern(g, i), whoever wrote it. In each phase
// every byte of the file is written by exactly one rank and read, and compared, by a rank of
// another mount (if there are two), without a close, a sync or a delay between but the barrier that
// MPI needs to order them.
//
// Phases, a generation each:
//   collective    rank r writes blocks r, r+n, r+2n, ... through a strided file view with write_all, and reads
//                 the blocks of rank r+1 with read_all
//   independent   rank r writes its contiguous n-th of the file, block by block, with write_at, and reads the
//                 n-th of rank r+1 with read_at
//   interleaved   records of 47,008 bytes (no multiple of a page) round robin, independent, read by rank r+1;
//                 on a smaller part of the file: it is the hard pattern
// Rank r opens FILE under mount number r mod M, all in one MPI_File_open of MPI_COMM_WORLD: the standard asks
// for names of the same file, not for the same name.
//
// Exit status 0: every byte was as it must be. Rank 0 prints one JSON object with the rates.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr std::uint64_t kRecord = 47008;  // ior-hard

struct Options {
  std::vector<std::string> mounts;
  std::string file = "mpi_shared_file.dat";
  std::uint64_t size = 1ULL << 30;
  std::uint64_t block = 1ULL << 20;
  std::uint64_t hard_size = 64ULL << 20;
};

struct World {
  int rank = 0;
  int ranks = 1;
  int mount = 0;
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "mpi_shared_file: %s\n", what.c_str());
  MPI_Abort(MPI_COMM_WORLD, 1);
  std::abort();
}

void check(int code, const std::string& what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail(what + ": " + std::string(text, static_cast<std::size_t>(length)));
}

/// Eight bytes of the pattern at 8·word: a mix of generation and place (splitmix64's finaliser).
std::uint64_t pattern_word(std::uint64_t generation, std::uint64_t word) {
  std::uint64_t x = (generation << 56) ^ (word + 0x9e3779b97f4a7c15ULL);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

void fill(std::vector<unsigned char>& buffer, std::uint64_t generation, std::uint64_t offset,
          std::uint64_t length) {
  buffer.resize(length);
  for (std::uint64_t i = 0; i < length;) {
    const std::uint64_t at = offset + i;
    const std::uint64_t word = pattern_word(generation, at / 8);
    const std::uint64_t skip = at % 8;
    const std::uint64_t n = std::min<std::uint64_t>(8 - skip, length - i);
    std::memcpy(buffer.data() + i, reinterpret_cast<const unsigned char*>(&word) + skip, n);
    i += n;
  }
}

void compare(const std::vector<unsigned char>& got, std::uint64_t generation, std::uint64_t offset,
             const char* phase, int rank) {
  static std::vector<unsigned char> expected;
  fill(expected, generation, offset, got.size());
  if (std::memcmp(expected.data(), got.data(), got.size()) == 0) return;
  std::uint64_t i = 0;
  while (expected[i] == got[i]) ++i;
  char text[256];
  std::snprintf(text, sizeof(text),
                "rank %d, phase %s, generation %" PRIu64 ": byte %" PRIu64
                " is 0x%02x, must be 0x%02x",
                rank, phase, generation, offset + i, got[i], expected[i]);
  fail(text);
}

double now() {
  return MPI_Wtime();
}

/// The slowest rank's time.
double slowest(double seconds) {
  double result = 0;
  MPI_Allreduce(&seconds, &result, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return result;
}

struct Rates {
  double write = 0, read = 0;  ///< MiB/s
};

MPI_File open_file(const Options& options, const World& world, int mode) {
  const std::string path =
      options.mounts[static_cast<std::size_t>(world.mount)] + "/" + options.file;
  MPI_File file = MPI_FILE_NULL;
  check(MPI_File_open(MPI_COMM_WORLD, path.c_str(), mode, MPI_INFO_NULL, &file), "open " + path);
  return file;
}

/// Collective: rank's blocks by a strided view; `owner` is the rank whose blocks are moved.
double collective_pass(MPI_File file, const Options& options, const World& world, int owner,
                       bool write, std::uint64_t generation) {
  MPI_Datatype blocks;
  const int bytes = static_cast<int>(options.block);
  check(MPI_Type_vector(1, bytes, bytes, MPI_BYTE, &blocks), "type");
  MPI_Datatype strided;
  check(MPI_Type_create_resized(blocks, 0, static_cast<MPI_Aint>(options.block) * world.ranks,
                                &strided),
        "type");
  check(MPI_Type_commit(&strided), "type");
  check(MPI_File_set_view(file, static_cast<MPI_Offset>(options.block) * owner, MPI_BYTE, strided,
                          "native", MPI_INFO_NULL),
        "view");
  const std::uint64_t rounds =
      options.size / options.block / static_cast<std::uint64_t>(world.ranks);
  std::vector<unsigned char> buffer(options.block);
  double seconds = 0;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    const std::uint64_t offset =
        (round * static_cast<std::uint64_t>(world.ranks) + static_cast<std::uint64_t>(owner)) *
        options.block;
    MPI_Status status;
    int count = 0;
    if (write) fill(buffer, generation, offset, options.block);
    const double start = now();
    check(write ? MPI_File_write_all(file, buffer.data(), bytes, MPI_BYTE, &status)
                : MPI_File_read_all(file, buffer.data(), bytes, MPI_BYTE, &status),
          "collective transfer");
    seconds += now() - start;
    MPI_Get_count(&status, MPI_BYTE, &count);
    if (count != bytes)
      fail("collective transfer moved " + std::to_string(count) + " bytes of " +
           std::to_string(bytes));
    if (!write) compare(buffer, generation, offset, "collective", world.rank);
  }
  check(MPI_File_set_view(file, 0, MPI_BYTE, MPI_BYTE, "native", MPI_INFO_NULL), "view");
  MPI_Type_free(&strided);
  MPI_Type_free(&blocks);
  return seconds;
}

double transfer(MPI_File file, bool write, std::uint64_t offset, std::uint64_t length,
                std::uint64_t generation, const char* phase, const World& world,
                std::vector<unsigned char>& buffer) {
  MPI_Status status;
  int count = 0;
  if (write) fill(buffer, generation, offset, length);
  buffer.resize(length);
  const double start = now();
  check(write ? MPI_File_write_at(file, static_cast<MPI_Offset>(offset), buffer.data(),
                                  static_cast<int>(length), MPI_BYTE, &status)
              : MPI_File_read_at(file, static_cast<MPI_Offset>(offset), buffer.data(),
                                 static_cast<int>(length), MPI_BYTE, &status),
        phase);
  const double seconds = now() - start;
  MPI_Get_count(&status, MPI_BYTE, &count);
  if (count != static_cast<int>(length))
    fail(std::string(phase) + ": moved " + std::to_string(count) + " bytes of " +
         std::to_string(length));
  if (!write) compare(buffer, generation, offset, phase, world.rank);
  return seconds;
}

double independent_pass(MPI_File file, const Options& options, const World& world, int owner,
                        bool write, std::uint64_t generation) {
  const std::uint64_t part = options.size / static_cast<std::uint64_t>(world.ranks);
  std::vector<unsigned char> buffer;
  double seconds = 0;
  for (std::uint64_t at = 0; at < part; at += options.block) {
    seconds +=
        transfer(file, write, static_cast<std::uint64_t>(owner) * part + at,
                 std::min(options.block, part - at), generation, "independent", world, buffer);
  }
  return seconds;
}

double interleaved_pass(MPI_File file, const Options& options, const World& world, int owner,
                        bool write, std::uint64_t generation) {
  std::vector<unsigned char> buffer;
  double seconds = 0;
  for (std::uint64_t record = static_cast<std::uint64_t>(owner);
       (record + 1) * kRecord <= options.hard_size;
       record += static_cast<std::uint64_t>(world.ranks)) {
    seconds +=
        transfer(file, write, record * kRecord, kRecord, generation, "interleaved", world, buffer);
  }
  return seconds;
}

using Pass = double (*)(MPI_File, const Options&, const World&, int, bool, std::uint64_t);

Rates run_phase(const char* name, Pass pass, const Options& options, const World& world,
                std::uint64_t bytes, std::uint64_t generation) {
  if (world.rank == 0)
    std::fprintf(stderr, "mpi_shared_file: %s, %" PRIu64 " MiB\n", name, bytes >> 20);
  MPI_File file = open_file(options, world, MPI_MODE_CREATE | MPI_MODE_RDWR);
  MPI_Barrier(MPI_COMM_WORLD);
  const double write = slowest(pass(file, options, world, world.rank, true, generation));
  MPI_Barrier(MPI_COMM_WORLD);
  const double read =
      slowest(pass(file, options, world, (world.rank + 1) % world.ranks, false, generation));
  MPI_Barrier(MPI_COMM_WORLD);
  check(MPI_File_close(&file), "close");
  const double mib = static_cast<double>(bytes) / 1048576.0;
  return {mib / write, mib / read};
}

/// The whole file once more by every mount, read only: what was closed is what is found.
void verify_whole(const Options& options, const World& world, std::uint64_t generation,
                  std::uint64_t from) {
  MPI_File file = open_file(options, world, MPI_MODE_RDONLY);
  MPI_Offset size = 0;
  check(MPI_File_get_size(file, &size), "size");
  if (static_cast<std::uint64_t>(size) != options.size)
    fail("size is " + std::to_string(size) + ", must be " + std::to_string(options.size));
  std::vector<unsigned char> buffer;
  for (std::uint64_t at = from + static_cast<std::uint64_t>(world.rank) * options.block;
       at < options.size; at += options.block * static_cast<std::uint64_t>(world.ranks)) {
    transfer(file, false, at, std::min(options.block, options.size - at), generation, "reopened",
             world, buffer);
  }
  check(MPI_File_close(&file), "close");
}

std::uint64_t parse_bytes(const char* text) {
  char* end = nullptr;
  std::uint64_t value = std::strtoull(text, &end, 10);
  if (*end == 'K' || *end == 'k')
    value <<= 10;
  else if (*end == 'M' || *end == 'm')
    value <<= 20;
  else if (*end == 'G' || *end == 'g')
    value <<= 30;
  else if (*end != 0)
    value = 0;
  if (value == 0) fail(std::string("'") + text + "' is not a size: use a number with K, M or G");
  return value;
}

constexpr const char* kUsage =
    "usage: mpirun -n N mpi_shared_file --mounts A,B,... [--size 1G] [--block 1M] [--hard-size "
    "64M] [--file NAME]\n"
    "Writes a shared file through the mounts (rank r uses mount r mod M), reads it back crosswise, "
    "compares every byte.\n";

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    if (key == "--help") {
      std::fputs(kUsage, stdout);
      MPI_Finalize();
      std::exit(0);
    }
    if (i + 1 >= argc) fail("'" + key + "' is unknown or lacks its value\n" + kUsage);
    const char* value = argv[++i];
    if (key == "--mounts") {
      std::string list = value;
      for (std::size_t at = 0; at <= list.size();) {
        const auto comma = std::min(list.find(',', at), list.size());
        if (comma > at) options.mounts.push_back(list.substr(at, comma - at));
        at = comma + 1;
      }
    } else if (key == "--size") {
      options.size = parse_bytes(value);
    } else if (key == "--block") {
      options.block = parse_bytes(value);
    } else if (key == "--hard-size") {
      options.hard_size = parse_bytes(value);
    } else if (key == "--file") {
      options.file = value;
    } else {
      fail("'" + key + "' is unknown\n" + kUsage);
    }
  }
  if (options.mounts.empty()) fail(std::string("--mounts is missing\n") + kUsage);
  return options;
}

void report(const Options& options, const World& world, const Rates& collective,
            const Rates& independent, const Rates& interleaved) {
  if (world.rank != 0) return;
  std::printf(
      "{\"program\": \"mpi_shared_file\", \"ranks\": %d, \"mounts\": %zu, \"bytes\": %" PRIu64
      ", \"verified\": true, "
      "\"unit\": \"MiB/s\", \"collective\": {\"write\": %.1f, \"read\": %.1f}, \"independent\": "
      "{\"write\": %.1f, \"read\": "
      "%.1f}, \"interleaved\": {\"write\": %.1f, \"read\": %.1f}}\n",
      world.ranks, options.mounts.size(), options.size, collective.write, collective.read,
      independent.write, independent.read, interleaved.write, interleaved.read);
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  World world;
  MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world.ranks);
  const Options options = parse(argc, argv);
  world.mount = world.rank % static_cast<int>(options.mounts.size());
  const std::uint64_t unit = options.block * static_cast<std::uint64_t>(world.ranks);
  if (options.size % unit != 0)
    fail("--size must be a multiple of --block times the number of ranks");
  if (options.hard_size > options.size) fail("--hard-size is larger than --size");

  const Rates collective =
      run_phase("collective", collective_pass, options, world, options.size, 1);
  verify_whole(options, world, 1, 0);
  const Rates independent =
      run_phase("independent", independent_pass, options, world, options.size, 2);
  verify_whole(options, world, 2, 0);
  const Rates interleaved =
      run_phase("interleaved", interleaved_pass, options, world, options.hard_size, 3);
  verify_whole(options, world, 2,
               (options.hard_size + options.block - 1) / options.block * options.block);
  report(options, world, collective, independent, interleaved);
  MPI_Finalize();
  return 0;
}
