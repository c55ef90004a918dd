// SPDX-License-Identifier: Apache-2.0
// bench_files: what a folder does, by system calls alone, so that a mount, another filesystem and a bare directory are measured by
// the same program.
//   bench_files data DIR [--mib N]        4 KiB and 1 MiB, sequential and random, write and read, one thread, queue depth 1
//   bench_files names DIR [--files N]     create, stat (after a stat by nobody), stat again, list with attributes, unlink
//   bench_files handover DIR DIR [--turns N]   one byte written by turns through two mounts; through the first alone; and through both at
//                                         once, by a thread each that goes on and on, for two seconds
// Prints one JSON object: {"case": {"rate": per second, "unit": "...", "p50_us": , "p99_us": }}.
//
// Reads are measured twice: `read` with this mount's pages dropped before (posix_fadvise), `reread` from the page cache.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Measured {
  std::string name;
  std::string unit;
  double rate = 0;
  double p50_us = 0;
  double p99_us = 0;
};

std::vector<Measured> g_results;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "bench_files: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

/// Times `operation(i)` n times; `weight` units of `unit` each.
void measure(const std::string& name, std::size_t n, double weight, const std::string& unit,
             const std::function<void(std::size_t)>& operation) {
  std::vector<double> times(n);
  const auto start = Clock::now();
  for (std::size_t i = 0; i < n; ++i) {
    const auto before = Clock::now();
    operation(i);
    times[i] = std::chrono::duration<double, std::micro>(Clock::now() - before).count();
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  std::sort(times.begin(), times.end());
  g_results.push_back(
      {name, unit, static_cast<double>(n) * weight / seconds, times[n / 2], times[n * 99 / 100]});
}

int must_open(const std::string& path, int flags) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (fd < 0) fail("open " + path);
  return fd;
}

void drop_pages(const std::string& path) {
  const int fd = must_open(path, O_RDONLY);
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
}

void transfer(int fd, bool write, std::vector<char>& buffer, off_t offset) {
  const ssize_t n = write ? pwrite(fd, buffer.data(), buffer.size(), offset)
                          : pread(fd, buffer.data(), buffer.size(), offset);
  if (n != static_cast<ssize_t>(buffer.size())) fail(write ? "write" : "read");
}

void data_case(const std::string& path, std::size_t block, const char* block_name, bool random,
               std::size_t size) {
  const std::size_t blocks = size / block;
  const std::size_t n = std::min<std::size_t>(blocks, 4096);
  std::vector<std::size_t> order(blocks);
  for (std::size_t i = 0; i < blocks; ++i) order[i] = i;
  if (random) std::shuffle(order.begin(), order.end(), std::mt19937_64(42));
  std::vector<char> buffer(block, 'd');
  const std::string name = std::string(block_name) + (random ? " random " : " sequential ");
  const double weight = static_cast<double>(block) / 1048576.0;
  const auto offset = [&](std::size_t i) { return static_cast<off_t>(order[i % blocks] * block); };
  int fd = must_open(path, O_WRONLY | O_CREAT);
  measure(name + "write", n, weight, "MiB/s",
          [&](std::size_t i) { transfer(fd, true, buffer, offset(i)); });
  close(fd);
  drop_pages(path);
  fd = must_open(path, O_RDONLY);
  measure(name + "read", n, weight, "MiB/s",
          [&](std::size_t i) { transfer(fd, false, buffer, offset(i)); });
  measure(name + "reread", n, weight, "MiB/s",
          [&](std::size_t i) { transfer(fd, false, buffer, offset(i)); });
  close(fd);
}

void bench_data(const std::string& folder, std::size_t mib) {
  const std::string path = folder + "/bench.data";
  const std::size_t size = mib << 20;
  std::vector<char> buffer(1U << 20, 'i');
  const int fd = must_open(path, O_WRONLY | O_CREAT | O_TRUNC);
  for (std::size_t at = 0; at < size; at += buffer.size())
    transfer(fd, true, buffer, static_cast<off_t>(at));
  close(fd);
  for (const bool random : {false, true}) {
    data_case(path, 4096, "4 KiB", random, size);
    data_case(path, 1U << 20, "1 MiB", random, size);
  }
  unlink(path.c_str());
}

void bench_names(const std::string& folder, std::size_t files) {
  const std::string base = folder + "/bench.names";
  if (mkdir(base.c_str(), 0755) != 0) fail("mkdir " + base);
  const auto name = [&](std::size_t i) { return base + "/file" + std::to_string(i); };
  struct stat attributes {};
  measure("create", files, 1, "1/s",
          [&](std::size_t i) { close(must_open(name(i), O_WRONLY | O_CREAT | O_EXCL)); });
  measure("stat", files, 1, "1/s", [&](std::size_t i) {
    if (stat(name(i).c_str(), &attributes) != 0) fail("stat");
  });
  measure("list with attributes", 1, static_cast<double>(files), "1/s", [&](std::size_t) {
    DIR* directory = opendir(base.c_str());
    if (directory == nullptr) fail("opendir");
    std::size_t seen = 0;
    while (const dirent* entry = readdir(directory)) {
      if (entry->d_name[0] == '.') continue;
      if (fstatat(dirfd(directory), entry->d_name, &attributes, AT_SYMLINK_NOFOLLOW) != 0)
        fail("fstatat");
      ++seen;
    }
    closedir(directory);
    if (seen != files) fail("the listing is not complete");
  });
  measure("unlink", files, 1, "1/s", [&](std::size_t i) {
    if (unlink(name(i).c_str()) != 0) fail("unlink");
  });
  if (rmdir(base.c_str()) != 0) fail("rmdir");
}

/// One thread a file descriptor, all writing to the same byte until the time is over. The rate is of all together; the times are of one write.
void measure_race(const std::vector<int>& files, std::chrono::seconds how_long) {
  std::vector<std::vector<double>> times(files.size());
  std::vector<std::thread> threads;
  const auto start = Clock::now();
  for (std::size_t i = 0; i < files.size(); ++i) {
    threads.emplace_back([&, i] {
      std::vector<char> byte(1, 'h');
      for (auto before = Clock::now(); before - start < how_long;) {
        transfer(files[i], true, byte, 0);
        const auto after = Clock::now();
        times[i].push_back(std::chrono::duration<double, std::micro>(after - before).count());
        before = after;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  std::vector<double> all;
  std::size_t least = times[0].size();
  for (const auto& one : times) {
    all.insert(all.end(), one.begin(), one.end());
    least = std::min(least, one.size());
  }
  std::sort(all.begin(), all.end());
  const auto count = static_cast<double>(all.size());
  g_results.push_back({"write, two mounts at once", "1/s", count / seconds, all[all.size() / 2],
                       all[all.size() * 99 / 100]});
  // How fair it is: what the slower one of the two has of the whole.
  g_results.push_back({"share of the slower mount", "of 1", static_cast<double>(least) / count,
                       all.back(), all.back()});
}

void bench_handover(const std::string& first, const std::string& second, std::size_t turns) {
  const std::string name = "/bench.handover";
  const int a = must_open(first + name, O_WRONLY | O_CREAT);
  const int b = must_open(second + name, O_WRONLY);
  std::vector<char> byte(1, 'h');
  measure("write, one mount", turns, 1, "1/s", [&](std::size_t) { transfer(a, true, byte, 0); });
  measure("write, two mounts by turns", turns, 1, "1/s",
          [&](std::size_t i) { transfer(i % 2 == 0 ? a : b, true, byte, 0); });
  measure_race({a, b}, std::chrono::seconds(2));
  close(a);
  close(b);
  unlink((first + name).c_str());
}

void print_results() {
  std::printf("{");
  const char* separator = "";
  for (const Measured& m : g_results) {
    std::printf(
        "%s\n  \"%s\": {\"rate\": %.2f, \"unit\": \"%s\", \"p50_us\": %.2f, \"p99_us\": %.2f}",
        separator, m.name.c_str(), m.rate, m.unit.c_str(), m.p50_us, m.p99_us);
    separator = ",";
  }
  std::printf("\n}\n");
}

constexpr const char* kUsage =
    "usage: bench_files data DIR [--mib N] | names DIR [--files N] | handover DIR DIR [--turns N]\n"
    "Measures a folder by system calls and prints JSON.\n";

std::size_t option(const std::vector<std::string>& arguments, const std::string& key,
                   std::size_t standard) {
  for (std::size_t i = 0; i + 1 < arguments.size(); ++i) {
    if (arguments[i] == key) return std::strtoull(arguments[i + 1].c_str(), nullptr, 10);
  }
  return standard;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() >= 2 && arguments[0] == "data") {
    bench_data(arguments[1], option(arguments, "--mib", 64));
  } else if (arguments.size() >= 2 && arguments[0] == "names") {
    bench_names(arguments[1], option(arguments, "--files", 10000));
  } else if (arguments.size() >= 3 && arguments[0] == "handover") {
    bench_handover(arguments[1], arguments[2], option(arguments, "--turns", 2000));
  } else {
    std::fputs(kUsage, arguments.size() == 1 && arguments[0] == "--help" ? stdout : stderr);
    return arguments.size() == 1 && arguments[0] == "--help" ? 0 : 2;
  }
  print_results();
  return 0;
}
