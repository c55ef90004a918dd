// SPDX-License-Identifier: Apache-2.0
// rpc_test_server ADDRESS FILE: the tests' server as a process of its own, to be killed. FILE: two shared words: 1 when listening;
// request id of the last request that it holds.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

#include "rpc/test_server.h"

int main(int argc, char** argv) {
  using namespace distfuse::rpc;
  if (argc != 3) return 2;
  const int fd = open(argv[2], O_RDWR | O_CLOEXEC);
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return 2;
  auto* words = static_cast<std::atomic<std::uint64_t>*>(memory);
  test::EchoHandler handler;
  handler.last_seen = &words[1];
  auto server = Server::create(test::server_options(argv[1]), handler);
  if (!server) {
    std::fprintf(stderr, "%s\n", server.error().message.c_str());
    return 1;
  }
  handler.server = server->get();
  words[0] = 1;
  for (;;) {
    while ((*server)->progress()) {
    }
    (*server)->wait(std::chrono::milliseconds(-1));
  }
}
