// SPDX-License-Identifier: Apache-2.0
// random_faults [--minutes N] [--seed S] [--lease MS]
// Faults of the table (fault_table.cc), drawn at random, one after the other, under a write load with an oracle on three mounts. Prints
// a line for each, verifies every record now and then and at the end, and prints a summary. Exit status 1: something was lost that
// must not be, a call waited longer than the table says, an error was told to somebody who was not hit, or a daemon complained.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#include "tests/fault_table.h"

namespace distfuse::tests {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Options {
  double minutes = 5;
  std::uint64_t seed = 0;
  milliseconds lease{2000};
};

Options g_options;

struct Tally {
  unsigned times = 0;
  milliseconds others{0};  ///< Longest call.
  milliseconds hit{0};
  std::uint64_t errors = 0;
};

class Campaign {
 public:
  explicit Campaign(const Options& options)
      : options_(options),
        random_(options.seed),
        cluster_({.mounts = 3, .storageds = 2, .lease = options.lease}) {}

  void run() {
    ASSERT_TRUE(cluster_.ok());
    cluster_.expect_log(
        "session|fence|lost|connection|lockd|storaged|retr|unreachable|mount-|rpc: (meta|data) "
        "target|"
        "inode");
    const auto began = steady_clock::now();
    const auto minutes = [&] {
      return std::chrono::duration<double>(steady_clock::now() - began).count() / 60;
    };
    while (minutes() < options_.minutes && !testing::Test::HasFailure()) {
      // A load a minute: its own folder, and every record verified after it.
      const auto until = std::min(options_.minutes, minutes() + 1);
      Load load(cluster_.mounts(), "load" + std::to_string(loads_++), random_());
      expect_progress(load, 150, "a new load");
      while (minutes() < until && !testing::Test::HasFailure()) one(load, minutes());
      verify(load);
    }
    summary();
  }

 private:
  void expect_progress(const Load& load, std::uint64_t operations, const char* after) {
    EXPECT_TRUE(load.progress({0, 1, 2}, operations, std::chrono::seconds(60)))
        << "the load stands still after " << after;
  }

  void one(Load& load, double minute) {
    static const auto faults = faults_of_mode();
    const auto& fault = faults[random_() % faults.size()];
    std::uint32_t errors[3];
    for (std::size_t i = 0; i < 3; ++i) errors[i] = load.errors(i);
    const auto away = inject(cluster_, load, fault);
    expect_progress(load, 20 + random_() % 200, fault.name);

    auto& tally = tallies_[fault.name];
    ++tally.times;
    milliseconds most{kSlack + milliseconds(static_cast<int>(
                                   fault.leases * static_cast<double>(options_.lease.count())))};
    if (fault.away) most += away;
    milliseconds longest{0};
    for (std::size_t i = 0; i < 3; ++i) {
      const auto more = load.errors(i) - errors[i];
      tally.errors += more;
      if (static_cast<int>(i) == fault.hit) {
        tally.hit = std::max(tally.hit, load.longest(i));
        continue;
      }
      // A machine's restart is told with the file's next fsync or close, which may come later.
      to_be_told_[i] += fault.roles * kLoadFiles;
      EXPECT_LE(more, to_be_told_[i])
          << fault.name << ", writer " << i << ": " << load.describe_errors(i);
      to_be_told_[i] -= std::min<std::uint64_t>(more, to_be_told_[i]);
      longest = std::max(longest, load.longest(i));
    }
    EXPECT_LE(longest, most) << fault.name;
    tally.others = std::max(tally.others, longest);
    for (const auto& violation : load.violations())
      ADD_FAILURE() << fault.name << ": " << violation;
    std::printf("%5.1f min  %-40s others waited %5ld ms\n", minute, fault.name,
                static_cast<long>(longest.count()));
    std::fflush(stdout);
  }

  void verify(Load& load) {
    EXPECT_EQ(load.stop(std::chrono::seconds(30)), "");
    for (const auto& mount : cluster_.mounts()) {
      const auto verdict = load.verify(mount);
      for (const auto& wrong : verdict.wrong) ADD_FAILURE() << mount << ": " << wrong;
      records_ += verdict.records;
      lost_ += verdict.lost;
    }
  }

  void summary() const {
    std::printf("\n%-40s %6s %18s %18s %7s\n", "fault", "times", "others waited ms",
                "hit waited ms", "errors");
    for (const auto& [name, tally] : tallies_)
      std::printf("%-40s %6u %18ld %18ld %7llu\n", name.c_str(), tally.times,
                  static_cast<long>(tally.others.count()), static_cast<long>(tally.hit.count()),
                  static_cast<unsigned long long>(tally.errors));
    std::printf(
        "\n%llu records verified; %llu lost, none of which an fsync or close had answered for\n",
        static_cast<unsigned long long>(records_), static_cast<unsigned long long>(lost_));
  }

  const Options options_;
  std::mt19937_64 random_;
  Cluster cluster_;
  std::map<std::string, Tally> tallies_;
  std::uint64_t to_be_told_[3] = {};  ///< Errors at most, of machines that restarted.
  unsigned loads_ = 0;
  std::uint64_t records_ = 0;
  std::uint64_t lost_ = 0;
};

TEST(RandomFaults, LeaveWhatTheTableSays) {
  Campaign(g_options).run();
}

[[noreturn]] void usage() {
  std::fputs("usage: random_faults [--minutes N] [--seed S] [--lease MS]\n", stderr);
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options options;
  bool seeded = false;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 >= argc) usage();
    if (std::strcmp(argv[i], "--minutes") == 0)
      options.minutes = std::atof(argv[i + 1]);
    else if (std::strcmp(argv[i], "--lease") == 0)
      options.lease = milliseconds(std::atoi(argv[i + 1]));
    else if (std::strcmp(argv[i], "--seed") == 0)
      options.seed = std::strtoull(argv[i + 1], nullptr, 0), seeded = true;
    else
      usage();
  }
  if (options.minutes <= 0 || options.lease.count() <= 0) usage();
  if (!seeded) options.seed = test_seed("random faults");
  return options;
}

}  // namespace
}  // namespace distfuse::tests

int main(int argc, char** argv) {
  int none = 1;
  testing::InitGoogleTest(&none, argv);
  distfuse::tests::g_options = distfuse::tests::parse(argc, argv);
  return RUN_ALL_TESTS();
}
