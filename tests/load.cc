// SPDX-License-Identifier: Apache-2.0
#include "tests/load.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <thread>

#include "tests/cluster.h"
#include "tests/far/calls.h"

namespace distfuse::tests {

using far::close;
using far::fsync;
using far::ftruncate;
using far::mkdir;
using far::open;
using far::pread;
using far::pwrite;
using far::stat;
using far::unlink;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

std::int64_t now_ms() {
  return std::chrono::duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

// ---- records

struct Record {
  std::uint64_t magic;
  std::uint32_t writer, file, slot, number;
  std::uint64_t check;
  std::uint64_t body[(kRecord - 32) / 8];
};
static_assert(sizeof(Record) == kRecord);
constexpr std::uint64_t kMagic = 0x44524f4345523146;

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ x >> 31;
}

Record make_record(std::size_t writer, LoadFile file, std::size_t slot, std::uint32_t number) {
  Record record{};
  record.magic = kMagic;
  record.writer = static_cast<std::uint32_t>(writer);
  record.file = static_cast<std::uint32_t>(file);
  record.slot = static_cast<std::uint32_t>(slot);
  record.number = number;
  const auto seed = mix(number ^ mix(slot ^ mix(writer * kLoadFiles + record.file)));
  for (std::size_t i = 0; i < std::size(record.body); ++i) record.body[i] = mix(seed + i);
  record.check = mix(seed);
  return record;
}

off_t offset_of(std::size_t writer, LoadFile file, std::size_t slot) {
  return static_cast<off_t>((file == LoadFile::shared ? slot * kWriters + writer : slot) * kRecord);
}

std::string path_of(const std::string& folder, std::size_t writer, LoadFile file) {
  return file == LoadFile::shared ? folder + "/shared" : folder + "/own" + std::to_string(writer);
}

std::string name_of(const std::string& folder, std::size_t writer, std::size_t name) {
  return folder + "/name" + std::to_string(writer) + "-" + std::to_string(name);
}

ReadResult read_record(int fd, std::size_t writer, LoadFile file, std::size_t slot) {
  Record got{};
  ReadResult result;
  const auto n = pread(fd, &got, sizeof(got), offset_of(writer, file, slot));
  if (n < 0) {
    result.error = errno;
    return result;
  }
  static const Record kNothing{};
  if (std::memcmp(&got, &kNothing, sizeof(got)) == 0) return result;  // A hole, or beyond the end.
  const auto right = make_record(writer, file, slot, got.number);
  result.number = got.number;
  result.torn = n != static_cast<ssize_t>(kRecord) || std::memcmp(&got, &right, kRecord) != 0;
  return result;
}

/// What a read begun after `lowest` was taken, and ended before `highest` was, must not give. Empty: it is right.
std::string judge(const ReadResult& read, std::uint32_t lowest, std::uint32_t highest) {
  char text[160];
  if (read.torn) {
    std::snprintf(text, sizeof(text), "is torn (number %u)", read.number);
  } else if (read.number < lowest || read.number > highest) {
    std::snprintf(text, sizeof(text), "has number %u, must have %u to %u", read.number, lowest,
                  highest);
  } else {
    return {};
  }
  return text;
}

std::string place(std::size_t writer, LoadFile file, std::size_t slot) {
  return std::string(file == LoadFile::shared ? "shared" : "own") + " record " +
         std::to_string(slot) + " of writer " + std::to_string(writer);
}

// ---- one process

class Writer {
 public:
  Writer(WriterState* states, std::size_t writers, std::size_t self, std::string folder,
         std::uint64_t seed)
      : states_(states),
        me_(states[self]),
        writers_(writers),
        self_(self),
        folder_(std::move(folder)),
        random_(seed) {}

  void work() {
    while (!me_.stop) {
      const auto dice = random_() % 100;
      const auto file = dice % 2 == 0 ? LoadFile::shared : LoadFile::own;
      if (dice < 56)
        write_record(file);
      else if (dice < 66)
        sync(file);
      else if (dice < 70)
        reopen(file);
      else if (dice < 90)
        read_somebodys();
      else
        change_name();
    }
    for (const auto file : {LoadFile::shared, LoadFile::own}) close_file(file);
  }

 private:
  void violation(const std::string& what) {
    if (unmounted_ || me_.unmounted) return;
    if (me_.violations++ == 0)
      std::snprintf(me_.first_violation, sizeof(me_.first_violation), "writer %zu: %s", self_,
                    what.c_str());
  }

  /// Runs one operation, measures and counts it. False: errno says why.
  template <typename F>
  bool run(LoadOp op, F&& operation) {
    const auto began = now_ms();
    me_.began_ms = began;
    unmounted_ = me_.unmounted;
    const bool good = operation();
    const int error = errno;
    const auto took = now_ms() - began;
    if (took > me_.longest_ms) me_.longest_ms = took;
    me_.began_ms = 0;
    ++me_.operations;
    if (good) {
      ++me_.good;
      return true;
    }
    const auto i = static_cast<std::size_t>(op);
    me_.last_errno[i] = error;
    ++me_.errors[i];
    // A mount without a daemon answers at once, and so does what is below it.
    usleep(20000);
    errno = error;
    return false;
  }

  int descriptor(LoadFile file) {
    int& fd = fds_[static_cast<std::size_t>(file)];
    if (fd < 0)
      run(LoadOp::open, [&] {
        fd = open(path_of(folder_, self_, file).c_str(), O_RDWR | O_CREAT, 0644);
        return fd >= 0;
      });
    return fd;
  }

  WriterState::File& state(LoadFile file) { return me_.files[static_cast<std::size_t>(file)]; }

  /// What was written since the last fsync may be lost from here on.
  void failed(LoadFile file) { ++state(file).errors; }

  void answered_for(LoadFile file) {
    auto& f = state(file);
    for (std::size_t i = 0; i < f.used; ++i)
      if (f.slots[i].epoch == f.errors) f.slots[i].kept = f.slots[i].written.load();
  }

  void write_record(LoadFile file) {
    const int fd = descriptor(file);
    if (fd < 0) return;
    auto& f = state(file);
    if (file == LoadFile::own && f.used == kSlots) return cut(fd);
    const bool grow = f.used < kSlots && (f.used == 0 || random_() % 2 == 0);
    const std::size_t slot = grow ? f.used.load() : random_() % f.used;
    auto& s = f.slots[slot];
    const auto number = s.issued + 1;
    const auto record = make_record(self_, file, slot, number);
    s.issued = number;
    if (grow) ++f.used;
    const bool good = run(LoadOp::write, [&] {
      return pwrite(fd, &record, kRecord, offset_of(self_, file, slot)) ==
             static_cast<ssize_t>(kRecord);
    });
    if (good) {
      s.epoch = f.errors;
      s.written = number;
    } else {
      failed(file);
      close_file(file);
    }
  }

  void cut(int fd) {
    auto& f = state(LoadFile::own);
    ++f.generation;
    const bool good = run(LoadOp::truncate, [&] { return ftruncate(fd, 0) == 0; });
    for (auto& slot : f.slots) {
      if (good) slot.issued = 0;
      slot.written = slot.kept = 0;
    }
    if (good)
      f.used = 0;
    else
      failed(LoadFile::own);
    ++f.generation;
  }

  void sync(LoadFile file) {
    const int fd = fds_[static_cast<std::size_t>(file)];
    if (fd < 0) return;
    if (run(LoadOp::fsync, [&] { return fsync(fd) == 0; }))
      answered_for(file);
    else
      failed(file);
  }

  void close_file(LoadFile file) {
    int& fd = fds_[static_cast<std::size_t>(file)];
    if (fd < 0) return;
    if (run(LoadOp::close, [&] { return close(fd) == 0; })) {
      // The module's close tells what was met and writes nothing back, as that of any file system with a page cache.
      if (!in_kernel()) answered_for(file);
    } else {
      failed(file);
    }
    fd = -1;
  }

  void reopen(LoadFile file) {
    close_file(file);
    (void)descriptor(file);
  }

  void read_somebodys() {
    const std::size_t writer = random_() % writers_;
    const auto file = random_() % 2 == 0 ? LoadFile::shared : LoadFile::own;
    auto& them = states_[writer];
    auto& f = them.files[static_cast<std::size_t>(file)];
    if (f.used == 0) return;
    const std::size_t slot = random_() % f.used;
    auto& s = f.slots[slot];
    int fd = -1;
    if (!run(LoadOp::open, [&] {
          fd = open(path_of(folder_, writer, file).c_str(), O_RDONLY);
          return fd >= 0;
        })) {
      if (errno == ENOENT && s.kept != 0)
        violation(place(writer, file, slot) + ": the file is gone");
      return;
    }
    const auto generation = f.generation.load();
    const auto written = s.written.load();
    const auto lowest = them.may_lose ? s.kept.load() : written;
    ReadResult read;
    run(LoadOp::read, [&] {
      read = read_record(fd, writer, file, slot);
      errno = read.error;
      return read.error == 0;
    });
    close(fd);
    if (read.error != 0 || generation % 2 == 1) return;
    // The flag may have been set since: then only what was kept counts.
    const auto wrong =
        judge(read, them.may_lose ? std::min(lowest, s.kept.load()) : lowest, s.issued);
    if (!wrong.empty() && f.generation == generation)
      violation(place(writer, file, slot) + " " + wrong);
  }

  /// Makes a name or removes it. A retry that ran twice would say EEXIST or ENOENT.
  void change_name() {
    const std::size_t i = random_() % kNames;
    const auto path = name_of(folder_, self_, i);
    auto& name = me_.names[i];
    if (name == WriterState::unknown && !me_.unmounted) {
      struct stat s {};
      if (stat(path.c_str(), &s) == 0)
        name = WriterState::present;
      else if (errno == ENOENT)
        name = WriterState::absent;
    }
    if (name == WriterState::unknown) return;
    const bool there = name == WriterState::present;
    name = WriterState::unknown;
    const bool good = there
                          ? run(LoadOp::unlink, [&] { return unlink(path.c_str()) == 0; })
                          : run(LoadOp::create, [&] {
                              const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
                              if (fd >= 0) close(fd);
                              return fd >= 0;
                            });
    if (good)
      name = there ? WriterState::absent : WriterState::present;
    else if (errno == (there ? ENOENT : EEXIST))
      violation(std::string(there ? "unlink" : "create") + " of name " + std::to_string(i) + ": " +
                std::strerror(errno));
  }

  WriterState* states_;
  WriterState& me_;
  std::size_t writers_;
  std::size_t self_;
  std::string folder_;
  std::mt19937_64 random_;
  int fds_[kLoadFiles] = {-1, -1};
  bool unmounted_ = false;  ///< When the last operation began.
};

}  // namespace

const char* to_string(LoadOp op) {
  static constexpr const char* kNamesOfOps[] = {"open", "write",  "fsync",  "close",
                                                "read", "create", "unlink", "truncate"};
  return kNamesOfOps[static_cast<std::size_t>(op)];
}

Load::Load(std::vector<std::string> mounts, std::string folder, std::uint64_t seed)
    : folder_(std::move(folder)), mounts_(std::move(mounts)) {
  void* memory = mmap(nullptr, kWriters * sizeof(WriterState), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mounts_.size() > kWriters) std::abort();
  states_ = new (memory) WriterState[kWriters]{};
  mkdir((mounts_[0] + "/" + folder_).c_str(), 0755);
  std::fflush(nullptr);
  for (std::size_t i = 0; i < mounts_.size(); ++i) {
    const pid_t child = fork();
    if (child == 0) {
      Writer(states_, mounts_.size(), i, mounts_[i] + "/" + folder_, mix(seed + i)).work();
      _exit(0);
    }
    pids_.push_back(child);
  }
}

Load::~Load() {
  (void)stop(milliseconds(0));
  munmap(states_, kWriters * sizeof(WriterState));
}

bool Load::progress(const std::vector<std::size_t>& writers, std::uint64_t operations,
                    milliseconds timeout) const {
  std::vector<std::uint64_t> wanted;
  for (const auto w : writers) wanted.push_back(states_[w].good + operations);
  for (const auto deadline = steady_clock::now() + timeout;;) {
    bool all = true;
    for (std::size_t i = 0; i < writers.size(); ++i)
      all = all && states_[writers[i]].good >= wanted[i];
    if (all || steady_clock::now() > deadline) return all;
    std::this_thread::sleep_for(milliseconds(5));
  }
}

milliseconds Load::longest(std::size_t writer) const {
  const auto& state = states_[writer];
  const auto began = state.began_ms.load();
  return milliseconds(std::max(state.longest_ms.load(), began == 0 ? 0 : now_ms() - began));
}

void Load::reset_waits() {
  for (std::size_t i = 0; i < writers(); ++i) states_[i].longest_ms = 0;
}

std::uint32_t Load::errors(std::size_t writer) const {
  std::uint32_t sum = 0;
  for (const auto& count : states_[writer].errors) sum += count;
  return sum;
}

std::uint32_t Load::errors(std::size_t writer, LoadOp op) const {
  return states_[writer].errors[static_cast<std::size_t>(op)];
}

std::string Load::describe_errors(std::size_t writer) const {
  std::string text;
  for (std::size_t op = 0; op < kLoadOps; ++op) {
    const auto count = states_[writer].errors[op].load();
    if (count == 0) continue;
    if (!text.empty()) text += ", ";
    text += std::string(to_string(static_cast<LoadOp>(op))) + " " + std::to_string(count) + " (" +
            strerrorname_np(states_[writer].last_errno[op]) + ")";
  }
  return text;
}

void Load::kill(std::size_t writer) {
  ::kill(pids_[writer], SIGKILL);
  waitpid(pids_[writer], nullptr, 0);
  pids_[writer] = -1;
}

std::string Load::stop(milliseconds timeout) {
  std::string wrong;
  for (std::size_t i = 0; i < pids_.size(); ++i) states_[i].stop = true;
  const auto deadline = steady_clock::now() + timeout;
  for (std::size_t i = 0; i < pids_.size(); ++i) {
    int status = 0;
    pid_t ended = 0;
    while (pids_[i] > 0 && (ended = waitpid(pids_[i], &status, WNOHANG)) == 0 &&
           steady_clock::now() < deadline)
      std::this_thread::sleep_for(milliseconds(5));
    if (pids_[i] > 0 && ended == 0) {
      ::kill(pids_[i], SIGKILL);
      if (timeout > milliseconds(0)) wrong += "writer " + std::to_string(i) + " hangs\n";
      waitpid(pids_[i], &status, 0);
    } else if (pids_[i] > 0 && status != 0) {
      wrong += "writer " + std::to_string(i) + " crashed\n";
    }
    pids_[i] = -1;
  }
  return wrong;
}

std::vector<std::string> Load::violations() const {
  std::vector<std::string> found;
  for (std::size_t i = 0; i < writers(); ++i)
    if (states_[i].violations != 0)
      found.push_back(std::to_string(states_[i].violations) +
                      " violations, the first: " + states_[i].first_violation);
  return found;
}

namespace {

struct Judge {
  const std::string folder;
  Load::Verdict verdict;

  void wrong(const std::string& what) {
    if (verdict.wrong.size() < 20) verdict.wrong.push_back(what);
  }

  void file(const WriterState& state, std::size_t writer, LoadFile which) {
    const auto& f = state.files[static_cast<std::size_t>(which)];
    if (f.used == 0) return;
    const int fd = open(path_of(folder, writer, which).c_str(), O_RDONLY);
    if (fd < 0) return wrong(path_of(folder, writer, which) + ": " + std::strerror(errno));
    for (std::size_t slot = 0; slot < f.used; ++slot) {
      const auto& s = f.slots[slot];
      const auto read = read_record(fd, writer, which, slot);
      ++verdict.records;
      if (read.error != 0) {
        wrong(place(writer, which, slot) + ": " + std::strerror(read.error));
        continue;
      }
      verdict.lost += read.number < s.written ? 1 : 0;
      const auto text = judge(read, state.may_lose ? s.kept : s.written, s.issued);
      if (!text.empty()) wrong(place(writer, which, slot) + " " + text);
    }
    close(fd);
  }

  void names(const WriterState& state, std::size_t writer) {
    for (std::size_t i = 0; i < kNames; ++i) {
      if (state.names[i] == WriterState::unknown) continue;
      struct stat s {};
      const bool there = stat(name_of(folder, writer, i).c_str(), &s) == 0;
      if (there != (state.names[i] == WriterState::present))
        wrong("name " + std::to_string(i) + " of writer " + std::to_string(writer) +
              (there ? " is there" : " is not there"));
    }
  }
};

}  // namespace

/// In a child: the mount may hang, and the test must not hold its files.
Load::Verdict Load::verify(const std::string& mount) const {
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) std::abort();
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    close(out[0]);
    alarm(120);
    Judge judge{mount + "/" + folder_, {}};
    for (std::size_t w = 0; w < writers(); ++w) {
      for (const auto file : {LoadFile::shared, LoadFile::own}) judge.file(states_[w], w, file);
      judge.names(states_[w], w);
    }
    std::string text =
        std::to_string(judge.verdict.records) + " " + std::to_string(judge.verdict.lost) + "\n";
    for (const auto& wrong : judge.verdict.wrong) text += wrong + "\n";
    const bool told = write(out[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    _exit(told ? 0 : 1);
  }
  close(out[1]);
  Verdict verdict;
  std::FILE* in = fdopen(out[0], "r");
  char line[1024];
  if (std::fgets(line, sizeof(line), in) == nullptr ||
      std::sscanf(line, "%lu %lu", &verdict.records, &verdict.lost) != 2)
    verdict.wrong.push_back("the verifying process died");
  while (std::fgets(line, sizeof(line), in) != nullptr) {
    line[std::strcspn(line, "\n")] = 0;
    verdict.wrong.emplace_back(line);
  }
  std::fclose(in);
  waitpid(child, nullptr, 0);
  return verdict;
}

}  // namespace distfuse::tests
