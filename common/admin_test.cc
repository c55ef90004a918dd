// SPDX-License-Identifier: Apache-2.0
#include "common/admin.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

namespace distfuse {
namespace {

std::string socket_path(const char* name) {
  return testing::TempDir() + name + std::to_string(getpid());
}

TEST(Admin, AnswersCommands) {
  const auto path = socket_path("a");
  auto server =
      AdminServer::create(path, [](const std::string& command) { return "[" + command + "]"; });
  ASSERT_TRUE(server) << server.error().message;
  auto answer = admin_query(path, "status");
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ(*answer, "[status]\n");
}

TEST(Admin, RefusesASecondDaemonAndReplacesAStaleSocket) {
  const auto path = socket_path("b");
  {
    auto first = AdminServer::create(path, [](const std::string&) { return ""; });
    ASSERT_TRUE(first);
    auto second = AdminServer::create(path, [](const std::string&) { return ""; });
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, EADDRINUSE);
  }
  const int stale = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(stale, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  close(stale);
  EXPECT_TRUE(AdminServer::create(path, [](const std::string&) { return ""; }));
}

TEST(Admin, AnAbsentDaemonIsSaid) {
  auto answer = admin_query(socket_path("absent"), "status");
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, ENOENT);
}

TEST(Admin, AnEndlessCommandIsDropped) {
  const auto path = socket_path("c");
  auto server = AdminServer::create(path, [](const std::string&) { return "x"; });
  ASSERT_TRUE(server);
  auto answer = admin_query(path, std::string(4096, 'a'));
  EXPECT_TRUE(!answer || answer->empty());
  auto next = admin_query(path, "status");
  ASSERT_TRUE(next);
  EXPECT_EQ(*next, "x\n");
}

}  // namespace
}  // namespace distfuse
