// SPDX-License-Identifier: Apache-2.0
// Whatever clients send, in whatever order: the daemon neither crashes nor touches memory that is not its own, answers only
// well-formed messages, and never speaks to a connection that it closed (ArrayShell aborts then).
//
// Input: a sequence of steps. Byte 0: what and which connection; then its data. Most message steps start from a valid head, so
// that the fuzzer gets past the checks.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "lockd/daemon.h"
#include "lockd/testing/array_shell.h"
#include "spdlog/spdlog.h"

namespace {

using namespace distfuse::lockd;

constexpr df_table kTable{2, 4, DF_NODE_LOCKD};

class Steps {
 public:
  explicit Steps(std::span<const std::uint8_t> input) : input_(input) {}
  [[nodiscard]] bool more() const { return !input_.empty(); }
  std::uint8_t byte() {
    if (input_.empty()) return 0;
    const auto value = input_.front();
    input_ = input_.subspan(1);
    return value;
  }
  void fill(void* to, std::size_t length) {
    const auto n = std::min(length, input_.size());
    if (n == 0) return;
    std::memcpy(to, input_.data(), n);
    input_ = input_.subspan(n);
  }

 private:
  std::span<const std::uint8_t> input_;
};

class Run {
 public:
  Run() {
    DaemonOptions options;
    options.table = kTable;
    options.limits.sessions = {.sessions = 4, .lanes = 2, .node_ids = 8};
    options.limits.asks = 4;
    options.limits.waiters = 8;
    options.limits.objects = 4;
    options.limits.file_locks = {.locks_per_session = 8, .locks_total = 16, .waiters_total = 6};
    daemon_ = std::move(Daemon::create(options, shell_)).value();
  }

  void step(Steps& steps) {
    const auto what = steps.byte();
    const ConnectionId connection = what >> 4;
    switch (what & 0x0f) {
      case 0:
        return hello(steps);
      case 1:
        daemon_->connection_ended(connection, "fuzz");
        return;
      case 2:
        if (shell_.to_fence.empty()) return;
        daemon_->fenced(shell_.to_fence.front());
        shell_.to_fence.erase(shell_.to_fence.begin());
        return;
      case 3:
        return raw(connection, steps);
      case 4:
        return shell_.run_chains(*daemon_, 1);
      case 5:
        return shell_.run_chains(*daemon_, 10000);
      default:
        return message(connection, steps);
    }
  }

 private:
  void hello(Steps& steps) {
    df_hello hello{};
    hello.magic = DF_WIRE_MAGIC;
    hello.version = DF_WIRE_VERSION;
    const auto kind = steps.byte();
    hello.role = DF_ROLE_CONTROL;
    if (kind % 2 == 1) {
      auto token = kind % 4 == 1 && !tokens_.empty() ? tokens_[kind / 4U % tokens_.size()]
                                                     : std::pair<SessionId, SessionToken>{};
      if (token.first == 0) token.first = std::uint64_t{1} << 32 | kind >> 2;
      df_hello_join(&hello, DF_ROLE_LANE, token.first, token.second.data());
    }
    if (kind > 250) steps.fill(&hello, sizeof hello);
    const auto greeting = daemon_->hello(next_, std::as_bytes(std::span(&hello, 1)), "fuzz");
    if (kind > 240 &&
        (greeting.verdict == Daemon::Verdict::control || greeting.verdict == Daemon::Verdict::lane))
      daemon_->withdraw(next_);
    if (greeting.verdict == Daemon::Verdict::control)
      tokens_.emplace_back(greeting.welcome.session, std::to_array(greeting.welcome.token));
    ++next_;
  }
  void raw(ConnectionId connection, Steps& steps) {
    std::vector<std::byte> bytes(steps.byte());
    steps.fill(bytes.data(), bytes.size());
    daemon_->message(connection, bytes);
  }
  void message(ConnectionId connection, Steps& steps) {
    df_msg message;
    const auto keys = steps.byte();
    df_msg_init(&message, steps.byte() % DF_MSG_TYPES, keys % 20, df_key_inode(1 + keys % 5),
                steps.byte() % 8);
    if (message.head.length == sizeof(df_msg_ask))
      message.bytes[sizeof message.head] = steps.byte() % 6;
    if (message.head.type == DF_MSG_ASK) message.ask.held = steps.byte() % 5;
    if (message.head.length == sizeof(df_msg_file)) {
      message.file.owner = steps.byte() % 3;
      message.file.start = steps.byte();
      message.file.end = message.file.start + steps.byte();
      message.file.flags = steps.byte() % 4;
      message.file.type = message.head.type == DF_MSG_FILE_UNLOCK ? DF_FILE_NONE : steps.byte() % 2;
    }
    daemon_->message(connection, std::as_bytes(std::span(message.bytes, message.head.length)));
  }

  testing::ArrayShell shell_{kTable};
  std::unique_ptr<Daemon> daemon_;
  std::vector<std::pair<SessionId, SessionToken>> tokens_;
  ConnectionId next_ = 1;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  spdlog::set_level(spdlog::level::off);
  Run run;
  Steps steps({data, size});
  while (steps.more()) run.step(steps);
  return 0;
}
