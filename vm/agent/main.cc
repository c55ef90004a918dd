// SPDX-License-Identifier: Apache-2.0
// vm-agent serve DEVICE [ADDRESS]                process 1 of a guest
// vm-agent rsh HOST WORD...                       the words, joined, by sh on another guest (for mpirun: plm_rsh_agent)
// vm-agent ask WORD...                            a request to the host, such as `fault cut 2`
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "vm/agent/client.h"
#include "vm/agent/server.h"

namespace {

constexpr const char* kSocket = "/run/vm-agent.sock";
constexpr const char* kPort = "7070";

std::string join(int first, int argc, char** argv) {
  std::string out;
  for (int i = first; i < argc; ++i) {
    if (i > first) out += ' ';
    out += argv[i];
  }
  return out;
}

int serve(int argc, char** argv) {
  distfuse::vm::Agent agent;
  distfuse::vm::AgentOptions options{argv[2], kSocket, 0, {}};
  if (argc > 3) {
    options.tcp_address = argv[3];
    options.tcp_port = static_cast<std::uint16_t>(std::stoul(kPort));
  }
  if (const auto status = agent.open(options); !status.ok()) {
    fprintf(stderr, "vm-agent: %s\n", status.error().message.c_str());
    return 1;
  }
  agent.run();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 2 ? argv[1] : "";
  if (what == "serve") return serve(argc, argv);
  if (what == "rsh" && argc > 3)
    return distfuse::vm::run_on_guest(argv[2], kPort, join(3, argc, argv));
  if (what == "ask") return distfuse::vm::ask_host(kSocket, join(2, argc, argv));
  fprintf(stderr, "usage: vm-agent serve DEVICE [ADDRESS] | rsh HOST WORD... | ask WORD...\n");
  return 2;
}
