// SPDX-License-Identifier: Apache-2.0
// kill -9 at any moment. A child (this program, run again) applies random requests to the store and tells each answer through
// a pipe; the parent kills it after a random while, applies the answers it read to the reference model, opens the store, and
// must find exactly that, or that and the one request in flight. Then it sends that request again, as a client would.
// Replay with DISTFUSE_SEED (the moment of each kill stays the machine's).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <random>

#include "storaged/meta/records.h"
#include "storaged/meta/reference_model.h"
#include "storaged/meta/store_fixture.h"

namespace distfuse::storaged {
namespace {

constexpr int kRounds = 25;
constexpr std::uint64_t kReapEvery = 16;  ///< Before each request whose id is a multiple.
constexpr std::int64_t kGrace = 40;       ///< By the clock, which is the request id.
constexpr int kAnswers = 3;               ///< The child's descriptor for answers.

RocksdbMetadataOptions options_of(const std::string& directory, const std::int64_t* now) {
  RocksdbMetadataOptions options;
  options.directory = directory;
  options.cluster_id = kTestCluster;
  options.data_targets = 2;
  options.cache_bytes = 1 << 20;
  options.write_buffer_bytes = 256
                               << 10;  // So small that flushes and compactions fall into the run.
  options.ino_block = 16;
  options.clock = [now] { return rpc::Timestamp{*now}; };
  options.orphan_grace = std::chrono::nanoseconds(kGrace);
  return options;
}

/// One round's requests: what child and parent both can say without a word to each other.
struct Round {
  Round(std::uint64_t seed, rpc::Ino last_ino, std::uint64_t first_id)
      : generator(seed, last_ino), id(first_id) {}
  rpc::MetadataRequest next(rpc::RequestContext* context) {
    rpc::MetadataRequest request = generator.next();
    const auto behind = generator.below(5);  // Some requests stay unanswered for a while.
    *context = {.session = 1 + generator.below(2),
                .request_id = ++id,
                .lowest_unanswered = id - std::min(behind, id),
                .uid = 1000,
                .gid = 100};
    return request;
  }
  RequestGenerator generator;
  std::uint64_t id;
};

/// Attributes of the first only: enough to make and to tell inodes.
struct Answer {
  std::int32_t error;
  std::uint32_t reserved;
  rpc::Ino ino;
  rpc::Ino highest;
};

Answer summary(const rpc::MetadataReply& reply) {
  Answer answer{reply.error, 0, 0, 0};
  if (!reply.attributes.empty()) answer.ino = reply.attributes[0].ino;
  for (const auto& attributes : reply.attributes)
    answer.highest = std::max(answer.highest, attributes.ino);
  return answer;
}

rpc::MetadataReply seen_by_parent(const Answer& answer) {
  rpc::MetadataReply reply;
  reply.error = answer.error;
  if (answer.ino != 0) reply.attributes.emplace_back().ino = answer.ino;
  return reply;
}

void note(Round& round, const Answer& answer) {
  rpc::MetadataReply reply;
  reply.attributes.emplace_back().ino = answer.highest;
  round.generator.note(reply);
}

int run_child(char** argv) {
  std::int64_t now = 0;
  auto store = open_rocksdb_metadata_store(options_of(argv[2], &now));
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.error().message.c_str());
    return 1;
  }
  Round round(std::strtoull(argv[3], nullptr, 10), std::strtoull(argv[4], nullptr, 10),
              std::strtoull(argv[5], nullptr, 10));
  while (true) {
    rpc::RequestContext context;
    const auto request = round.next(&context);
    now = static_cast<std::int64_t>(round.id);
    if (round.id % kReapEvery == 0 && !(*store)->reap_orphans(false).ok()) return 1;
    const Answer answer = summary((*store)->execute(context, request));
    note(round, answer);
    if (round.id % 8 == 0) usleep(300);  // Written, not yet answered: the kill shall meet this too.
    if (write(kAnswers, &answer, sizeof answer) != sizeof answer) return 1;
    if (round.id % 97 == 0 && !(*store)->sync().ok()) return 1;
  }
}

class KillTest : public testing::Test {
 protected:
  /// Runs a child until it is killed; its answers.
  std::vector<Answer> round_of_child(std::uint64_t seed, rpc::Ino last_ino, std::uint64_t first_id,
                                     unsigned delay_us) {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    std::string arguments[] = {"kill_test",
                               "child",
                               directory_,
                               std::to_string(seed),
                               std::to_string(last_ino),
                               std::to_string(first_id)};
    char* argv[7] = {};
    for (std::size_t i = 0; i < 6; ++i) argv[i] = arguments[i].data();
    const pid_t child = fork();
    if (child == 0) {
      if (ends[1] != kAnswers) dup2(ends[1], kAnswers);
      fcntl(kAnswers, F_SETFD, 0);
      execv("/proc/self/exe", argv);
      _exit(127);
    }
    close(ends[1]);
    std::vector<Answer> answers;
    Answer answer;
    if (read_whole(ends[0], &answer)) answers.push_back(answer);  // It is up.
    const pid_t killer = fork();
    if (killer == 0) {
      usleep(delay_us);
      kill(child, SIGKILL);
      _exit(0);
    }
    while (read_whole(ends[0], &answer)) answers.push_back(answer);
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    waitpid(killer, nullptr, 0);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        << "the child ended by itself: " << status;
    return answers;
  }

  static bool read_whole(int fd, Answer* answer) {
    std::size_t have = 0;
    while (have < sizeof *answer) {
      const ssize_t got = read(fd, reinterpret_cast<char*>(answer) + have, sizeof *answer - have);
      if (got <= 0) return false;
      have += static_cast<std::size_t>(got);
    }
    return true;
  }

  TemporaryDirectory root_;
  std::string directory_ = root_.path() + "/store";
};

TEST_F(KillTest, WhatWasAnsweredIsThereAndNothingElse) {
  const char* given = std::getenv("DISTFUSE_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::printf("DISTFUSE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  ReferenceModel model(geteuid(), getegid(), {0});
  std::uint64_t id = 0;
  std::size_t answered = 0;
  int in_flight_kept = 0;
  for (int i = 0; i < kRounds; ++i) {
    SCOPED_TRACE("round " + std::to_string(i));
    const std::uint64_t round_seed = random();
    Round round(round_seed, model.last_ino(), id);
    const auto answers =
        round_of_child(round_seed, model.last_ino(), id, static_cast<unsigned>(random() % 100'000));
    ASSERT_FALSE(answers.empty());
    rpc::RequestContext context;
    for (const auto& answer : answers) {
      const auto request = round.next(&context);
      if (round.id % kReapEvery == 0)
        model.reap_orphans({static_cast<std::int64_t>(round.id)}, kGrace);
      const auto wanted = model.execute(context, request, {static_cast<std::int64_t>(round.id)},
                                        seen_by_parent(answer));
      ASSERT_EQ(answer.error, wanted.error) << "request " << round.id;
      ASSERT_EQ(answer.ino, summary(wanted).ino) << "request " << round.id;
      note(round, answer);
    }
    answered += answers.size();
    const auto request = round.next(&context);  // In flight, perhaps.
    auto now = static_cast<std::int64_t>(round.id - round.id % kReapEvery);
    const auto store = open_rocksdb_metadata_store(options_of(directory_, &now));
    ASSERT_TRUE(store.ok()) << store.error().message;
    // The last reap may have been in flight too: it is done now, by the clock that it had, whatever came after it.
    ASSERT_TRUE((*store)->reap_orphans(false).ok());
    model.reap_orphans({now}, kGrace);
    now = static_cast<std::int64_t>(round.id);
    const rpc::Ino last = model.last_ino() + 64;
    const std::string found = dump_store(**store, last);
    const std::string prefix = model.dump();
    const auto reply = (*store)->execute(context, request);
    const auto wanted = model.execute(context, request, {now}, reply);
    ASSERT_EQ(reply.error, wanted.error);
    ASSERT_EQ(dump_store(**store, last), model.dump());
    if (found != prefix) {
      ASSERT_EQ(found, model.dump());
      ++in_flight_kept;
    }
    id = round.id;
  }
  std::printf("%d kills, %zu requests answered, %d requests in flight kept\n", kRounds, answered,
              in_flight_kept);
}

}  // namespace
}  // namespace distfuse::storaged

int main(int argc, char** argv) {
  if (argc == 6 && std::strcmp(argv[1], "child") == 0) return distfuse::storaged::run_child(argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
