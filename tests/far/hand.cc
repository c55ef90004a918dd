// SPDX-License-Identifier: Apache-2.0
#include "tests/far/hand.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <utility>
#include <vector>

#include "common/descriptor.h"

namespace distfuse::tests::far {
namespace {

struct Hand {
  std::string node;
  pid_t owner = 0;
  Descriptor link;  ///< None: it is lost, or another process's.
};

/// Those of ancestors stay listed, so that their numbers stay taken: used here they are EBADF.
std::vector<Hand>& hands() {
  static std::vector<Hand> all;
  return all;
}

std::string beside(const char* program) {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / program;
}

mode_t current_umask() {
  const mode_t mask = ::umask(0);
  ::umask(mask);
  return mask;
}

/// In the child: its input and output are `link`, and it ends with its parent, even where its own peer is cut off.
[[noreturn]] void become(std::vector<std::string> command, int link, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  dup2(link, STDIN_FILENO);
  dup2(link, STDOUT_FILENO);
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
  _exit(127);
}

/// Our end of a socket whose other end is the standard input and output of the hand.
Descriptor start_hand(const std::string& node) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return {};
  Descriptor ours(ends[0]);
  const Descriptor theirs(ends[1]);
  char mask[16];
  std::snprintf(mask, sizeof(mask), "umask %03o", current_umask());
  const auto command = command_on(node, std::string(mask) + "; exec " + beside("far_hand"));
  const pid_t self = getpid();
  const pid_t child = fork();
  if (child == 0) become(command, theirs.get(), self);
  return child > 0 ? std::move(ours) : Descriptor();
}

Hand* hand_on(const std::string& node) {
  auto& all = hands();
  const pid_t self = getpid();
  for (Hand& hand : all) {
    if (hand.owner != self)
      hand.link.reset();  // A copy would keep an ancestor's hand alive.
    else if (hand.node == node)
      return &hand;
  }
  if (all.size() == kMaxHands) return nullptr;
  return &all.emplace_back(Hand{node, self, start_hand(node)});
}

Answer failed(int error) {
  return {-1, error, {}};
}

/// One message and its answer.
Answer exchange(Hand& hand, const Call& call) {
  if (!hand.link) return failed(EHOSTDOWN);
  if (send_call(hand.link.get(), call)) {
    if (auto answer = receive_answer(hand.link.get())) return std::move(*answer);
  }
  hand.link.reset();
  return failed(EHOSTDOWN);
}

Answer make(Hand& hand, Call call) {
  if (call.data.size() > kMaxData) return failed(EINVAL);
  // All but the last piece goes ahead.
  while (call.data.size() > kMaxCall) {
    Call piece;
    piece.data = call.data.substr(0, kMaxCall);
    call.data.erase(0, kMaxCall);
    if (auto answer = exchange(hand, piece); answer.result < 0) return answer;
  }
  auto answer = exchange(hand, call);
  if ((call.kind == Kind::open || call.kind == Kind::map) && answer.result >= 0) {
    if (answer.result >= kMaxRemote) return failed(EMFILE);
    answer.result += kFirstDescriptor + (&hand - hands().data()) * kMaxRemote;
  }
  return answer;
}

Hand* hand_of(int number) {
  const auto index = static_cast<std::size_t>((number - kFirstDescriptor) / kMaxRemote);
  auto& all = hands();
  return index < all.size() && all[index].owner == getpid() ? &all[index] : nullptr;
}

}  // namespace

std::vector<std::string> command_on(const std::string& node, const std::string& script) {
  const char* other = std::getenv("DISTFUSE_TEST_RSH");
  std::vector<std::string> command;
  std::istringstream words(other != nullptr ? other : beside("vm-agent") + " rsh");
  for (std::string word; words >> word;) command.push_back(word);
  command.insert(command.end(), {node, script});
  return command;
}

std::optional<Place> far_place(const char* path) {
  if (path[0] == '/') return {};
  const std::string text = path;
  const auto end = text.find(":/");
  if (end == std::string::npos || end == 0 || text.find('/') < end) return {};
  return Place{text.substr(0, end), text.substr(end + 1)};
}

Answer call_on(const std::string& node, Call call) {
  Hand* hand = hand_on(node);
  return hand != nullptr ? make(*hand, std::move(call)) : failed(EMFILE);
}

Answer call_of(int number, Call call) {
  Hand* hand = hand_of(number);
  if (hand == nullptr) return failed(EBADF);
  call.numbers[0] = (number - kFirstDescriptor) % kMaxRemote;
  return make(*hand, std::move(call));
}

int remote_number(int number, int of_same) {
  if (!is_far(number) || !is_far(of_same) || hand_of(number) != hand_of(of_same)) return -1;
  return (number - kFirstDescriptor) % kMaxRemote;
}

}  // namespace distfuse::tests::far
