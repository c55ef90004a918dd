// SPDX-License-Identifier: Apache-2.0
#include "lockd/session_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace distfuse::lockd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Kind = SessionChange::Kind;

const std::string kCluster = "00112233445566778899aabbccddeeff";

class SessionLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = (std::filesystem::temp_directory_path() / "distfuse-log-XXXXXX").string();
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::unique_ptr<SessionLog> open(std::uint32_t lease = 0) {
    auto log = SessionLog::open(directory_, kCluster, lease);
    EXPECT_TRUE(log.ok()) << (log.ok() ? "" : log.error().message);
    return log.ok() ? std::move(log).value() : nullptr;
  }
  int open_error() {
    const auto log = SessionLog::open(directory_, kCluster, 0);
    return log.ok() ? 0 : log.error().code;
  }
  [[nodiscard]] std::string path() const { return directory_ + "/sessions"; }
  std::string text() {
    std::stringstream all;
    all << std::ifstream(path()).rdbuf();
    return all.str();
  }
  void write(const std::string& text) { std::ofstream(path()) << text; }
  static ListedSession session(SessionId id, bool lost = false) {
    SessionToken token;
    token.fill(static_cast<std::uint8_t>(id | 0x80));
    token[3] = 0;
    return {id, static_cast<NodeId>(id), 1000, lost, "mount " + std::to_string(id), token};
  }
  std::string directory_;
};

TEST_F(SessionLogTest, RemembersWhoBeganAndNotWhoEnded) {
  auto log = open();
  EXPECT_THAT(log->listed(), IsEmpty());
  const std::vector<SessionChange> some{
      {Kind::begin, session(1)}, {Kind::begin, session(2)}, {Kind::begin, session(3)}};
  ASSERT_TRUE(log->append(some).ok());
  const std::vector<SessionChange> more{{Kind::end, session(1)}, {Kind::lost, session(3)}};
  ASSERT_TRUE(log->append(more).ok());
  for (int round = 0; round < 2; ++round) {  // As appended, and as rewritten by open.
    log = open();
    EXPECT_THAT(log->listed(), ElementsAre(session(2), session(3, true)));
  }
  log = open(5000);
  EXPECT_EQ(log->listed()[0].lease_ms, 5000U) << "it will be told the longer one";
}

TEST_F(SessionLogTest, EveryTornTailIsCutOff) {
  auto log = open();
  const std::vector<SessionChange> first{{Kind::begin, session(1)}};
  ASSERT_TRUE(log->append(first).ok());
  const auto before = text();
  const std::vector<SessionChange> second{{Kind::begin, session(2)}};
  ASSERT_TRUE(log->append(second).ok());
  const auto whole = text();
  for (auto length = before.size(); length < whole.size(); ++length) {
    write(whole.substr(0, length));
    EXPECT_THAT(open()->listed(), ElementsAre(session(1))) << length;
  }
  auto damaged = whole;
  damaged[whole.size() - 12] ^= 1;
  write(damaged);
  EXPECT_THAT(open()->listed(), ElementsAre(session(1)));
}

TEST_F(SessionLogTest, DamageBeforeGoodLinesIsRefused) {
  auto log = open();
  const std::vector<SessionChange> both{{Kind::begin, session(1)}, {Kind::begin, session(2)}};
  ASSERT_TRUE(log->append(both).ok());
  auto damaged = text();
  damaged[damaged.find("begin") + 10] ^= 1;
  write(damaged);
  EXPECT_EQ(open_error(), EINVAL);
  EXPECT_EQ(text(), damaged) << "left as it is, for whoever looks";
}

TEST_F(SessionLogTest, AnotherClustersOrAnotherFileIsRefused) {
  open();
  auto other = text();
  other.replace(other.find(kCluster), 2, "ff");
  write(other);
  EXPECT_EQ(open_error(), EXDEV);
  write("something else\n");
  EXPECT_EQ(open_error(), EINVAL);
}

TEST_F(SessionLogTest, NobodyOfAListWithoutTokensComesBack) {
  // As an earlier version wrote it: two began, one of them ended, and a torn line.
  write("distfuse-sessions 1 " + kCluster +
        "\nbegin 0000000200000007 3 1000 6d6f756e74 6b6d96cf\n"
        "begin 0000000200000008 4 1000 - 2394fd2a\n"
        "end 0000000200000008 4 1000 - 67b86cb6\n"
        "begin 00000002000");
  const ListedSession known{std::uint64_t{2} << 32 | 7, 3, 1000, true, "mount", {}};
  EXPECT_THAT(open()->listed(), ElementsAre(known));
  EXPECT_THAT(text(), HasSubstr("distfuse-sessions 2 "));
  EXPECT_THAT(open()->listed(), ElementsAre(known)) << "as rewritten";
}

TEST_F(SessionLogTest, TokensAreForTheOwnersEyes) {
  auto log = open();
  ASSERT_TRUE(log->append(std::vector<SessionChange>{{Kind::begin, session(1)}}).ok());
  struct stat info {};
  ASSERT_EQ(::stat(path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  // A token of another length is damage.
  auto damaged = text();
  damaged.erase(damaged.rfind(' ') - 2, 2);
  write(damaged);
  EXPECT_THAT(open()->listed(), IsEmpty());
}

TEST_F(SessionLogTest, StaysShortWhenSessionsComeAndGo) {
  auto log = open();
  ASSERT_TRUE(log->append(std::vector<SessionChange>{{Kind::begin, session(7)}}).ok());
  for (SessionId id = 100; id < 1100; ++id) {
    std::vector<SessionChange> changes;
    for (SessionId i = 0; i < 10; ++i) {
      changes.push_back({Kind::begin, session(id)});
      changes.push_back({Kind::end, session(id)});
    }
    if (id % 100 != 0) continue;  // A sync each.
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(log->append(changes).ok());
  }
  EXPECT_LT(std::filesystem::file_size(path()), 100 * (SessionLog::kSlack + 100));
  EXPECT_THAT(open()->listed(), ElementsAre(session(7)));
}

}  // namespace
}  // namespace distfuse::lockd
