// SPDX-License-Identifier: Apache-2.0
// acquire_latency [ROUNDS]: an uncontended acquire through the client's lock table and the fabric, against the same chain posted bare, in turns
// in one process. What an X takes is CAS and the READ of the slot, what an S takes the hint's WRITE, FAA and the READ: each one
// post and one round trip. Prints p50 and p99, and their ratio to one atomic by perftest's ib_atomic_lat; fails when the median is more than
// 1.15 times the bare one's.
//
// Nothing in the chain can be left out. The READ tells that the slot still has the key, and brings version and value block. The hint of
// a shared taker must be there before its count is: lockd clears hints with a grant of X, so a client cannot know that an earlier one
// still stands; it goes inline and unsignaled, and X, whose owner is in the word, has none.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "tests/verbs/bare.h"
#include "tests/verbs/rig.h"

namespace distfuse::verbs_tests {
namespace {

constexpr double kMostRatio = 1.15;

std::uint64_t timed(const std::function<void()>& once) {
  using Clock = std::chrono::steady_clock;
  // A drop is a revoker thread's work, which goes to sleep after it has told us: with one processor, in the middle of what is timed.
  for (int i = 0; i < 4; ++i) sched_yield();
  const auto begin = Clock::now();
  once();
  return static_cast<std::uint64_t>((Clock::now() - begin).count());
}

struct Series {
  std::vector<std::uint64_t> times;
  std::uint64_t at(int percent) {
    std::ranges::sort(times);
    return times[times.size() * static_cast<std::size_t>(percent) / 100];
  }
};

/// ib_atomic_lat's typical time over the same device, ns; 0: it does not run.
double atomic_latency() {
  const std::string tool = "ib_atomic_lat -F -n 1000 -p 18515 -d " + place().device;
  const std::string line = "(" + tool + " >/dev/null 2>&1 &); sleep 2; " + tool + " " +
                           place().host + " 2>/dev/null | awk '$1 == 8 && $2 == 1000 {print $5}'";
  std::FILE* out = popen(line.c_str(), "r");
  double microseconds = 0;
  if (out == nullptr || std::fscanf(out, "%lf", &microseconds) != 1) microseconds = 0;
  if (out != nullptr) pclose(out);
  return microseconds * 1000;
}

void compare(const char* mode, Series& ours, Series& bare) {
  const double ratio = double(ours.at(50)) / double(bare.at(50));
  char text[200];
  std::snprintf(text, sizeof(text),
                "acquire %s: ours p50 %llu p99 %llu ns, bare p50 %llu p99 %llu ns, ratio of the "
                "medians %.3f, at most %.2f",
                mode, static_cast<unsigned long long>(ours.at(50)),
                static_cast<unsigned long long>(ours.at(99)),
                static_cast<unsigned long long>(bare.at(50)),
                static_cast<unsigned long long>(bare.at(99)), ratio, kMostRatio);
  check(ratio <= kMostRatio, text);
}

int run(int rounds) {
  auto responder = lockd::testing::Process::fork_child([](lockd::testing::Talk& talk) -> int {
    static auto* out = &talk;
    serve_bare({}, [](const std::string& line) { out->say(line); });
  });
  const int port = std::atoi(responder.talk().hear().c_str());
  Lockd lockd(10000);
  NoCache cache;
  {
    const auto table = lockd.table("latency", cache);
    Bare bare(port);
    constexpr client::Ino kInos = 32;
    const auto ino = [](int i) { return 1 + static_cast<client::Ino>(i) % kInos; };
    Series ours[2], theirs[2];
    for (int i = -100; i < rounds; ++i) {
      for (int mode = 0; mode < 2; ++mode) {
        const auto wanted = mode == 0 ? client::Mode::x : client::Mode::s;
        const auto our_time = timed([&] { take(*table, ino(i + 100), wanted); });
        table->drop(ino(i + 100), wanted);
        const auto bare_time = timed([&] {
          if (mode == 0) {
            bare.take_exclusive();
          } else {
            bare.take_shared();
          }
        });
        bare.give_back();
        if (i < 0) continue;  // First takes also find and claim the slot.
        ours[mode].times.push_back(our_time);
        theirs[mode].times.push_back(bare_time);
      }
    }
    compare("X (CAS, READ)", ours[0], theirs[0]);
    compare("S (WRITE, FAA, READ)", ours[1], theirs[1]);
    const double atomic = atomic_latency();
    std::printf(
        "       ib_atomic_lat %.0f ns; ours to it: X %.2f, S %.2f; bare to it: X %.2f, S %.2f\n",
        atomic, double(ours[0].at(50)) / atomic, double(ours[1].at(50)) / atomic,
        double(theirs[0].at(50)) / atomic, double(theirs[1].at(50)) / atomic);
    check(atomic > 0, "ib_atomic_lat runs");
  }
  responder.kill_hard();
  return exit_status();
}

}  // namespace
}  // namespace distfuse::verbs_tests

int main(int argc, char** argv) {
  return distfuse::verbs_tests::run(argc > 1 ? std::atoi(argv[1]) : 3000);
}
