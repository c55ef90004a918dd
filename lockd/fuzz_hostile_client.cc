// SPDX-License-Identifier: Apache-2.0
// Clients that lie, beside clients that keep the rules. Whatever the liars say, in whatever order, the daemon does not crash, keeps
// its limits, and the honest ones notice nothing but delay: their sessions stay, their locks stand in the words and exclude one
// another, their file locks hold, and when the liars are gone everything that they asked for is granted. Through lockd's restart
// as well, with liars among those that come back.
//
// Liars speak: hellos of any role and session, of others' too, with any token but those that only the honest have, every message that a client may send with any slot, key
// and mode, answers with the right number and any content, raw bytes. Their one-sided operations are lawful (they take what is
// free and give back what they have): what a scribbler can do no lockd can prevent (docs/trust.md). For the same reason a lie
// about a shared mode held (Ask.held), which is worth exactly one FAA, is told only in inputs whose first byte is odd, and the
// honest ones' luck is not checked there.
//
// Environment: DISTFUSE_FUZZ_LOG: the daemon logs.
// Input: the first byte: bit 0 as told, bit 1 no leases; then steps, each a byte that says what, a byte that says who, and its data.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "lockd/testing/lockd_world.h"
#include "spdlog/spdlog.h"

namespace {

using namespace distfuse::lockd;
using testing::LockdWorld;

constexpr std::size_t kHostile = 3;  ///< Connections at once.

class Input {
 public:
  explicit Input(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  [[nodiscard]] bool more() const { return !bytes_.empty(); }
  std::uint8_t byte() {
    std::uint8_t value = 0;
    fill(&value, 1);
    return value;
  }
  void fill(void* to, std::size_t length) {
    const auto n = std::min(length, bytes_.size());
    if (n == 0) return;
    std::memcpy(to, bytes_.data(), n);
    bytes_ = bytes_.subspan(n);
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

struct Liar {
  ConnectionId connection = 0;
  std::uint32_t node = 0;  ///< 0: a lane.
  std::size_t undrained = 0;
  std::vector<df_msg> questions;  ///< Revoke, Freeze, Glimpse; the latest.
  struct Slot {
    std::uint32_t mode = DF_NL;  ///< What the word has of it.
    bool unknown = false;        ///< It lied about it: nobody knows what the word has.
    unsigned asks = 0;           ///< Unanswered.
  };
  std::map<std::uint32_t, Slot> slots;
};

class Run {
 public:
  explicit Run(std::uint8_t kind)
      : lies_about_shared_((kind & 1) != 0),
        world_({.leases = (kind & 2) == 0, .scribbled = lies_about_shared_}) {}

  void step(Input& input) {
    const auto what = input.byte();
    const auto who = input.byte();
    if (what % 16 < 8)
      world_.honest_step(world_.honest()[who % LockdWorld::kHonest], who / 16U % LockdWorld::kKeys,
                         what);
    else
      hostile_step(what, who, input);
    distribute();
    world_.verify();
  }

  void finish() {
    while (!liars_.empty()) {
      world_.daemon().connection_ended(liars_.back().connection, "the end", true);
      liars_.pop_back();
    }
    distribute();
    world_.finish();
  }

 private:
  void hostile_step(unsigned what, std::uint8_t who, Input& input) {
    switch (what % 16) {
      case 8:
        return hello(input);
      case 9:
        if (what / 16 < 8) return world_.fence_one();
        if (what / 16 < 14) return world_.pass_time(who);
        if (world_.restart()) liars_.clear();
        return;
      default:
        break;
    }
    if (liars_.empty()) return;
    auto& liar = liars_[who % liars_.size()];
    switch (what % 16) {
      case 10:
        world_.daemon().connection_ended(liar.connection, "it left", what / 16 % 2 == 0);
        liars_.erase(liars_.begin() + who % static_cast<std::ptrdiff_t>(liars_.size()));
        return;
      case 11:
        return raw(liar, input);
      case 12:
        if (what / 16 == 0) ++world_.shell().lease_words[static_cast<NodeId>(liar.node)];
        return lawful(liar, input);
      case 13:
        return answer(liar, input);
      default:
        return claim(liar, input);
    }
  }

  void hello(Input& input) {
    if (liars_.size() >= kHostile) return;
    const auto kind = input.byte();
    const auto hello = any_hello(kind, input);
    if (world_.knows_token(hello)) return;  // It cannot: 1 in 2^128.
    const auto connection = world_.next_connection();
    const auto greeting = world_.hello(connection, hello, "hostile");
    if (greeting.verdict != Verdict::control && greeting.verdict != Verdict::lane) return;
    if (kind == 0xf0) return world_.daemon().withdraw(connection);
    auto& liar = liars_.emplace_back();
    liar.connection = connection;
    if (greeting.verdict != Verdict::control) return;
    liar.node = greeting.welcome.node;
    sessions_.emplace_back(greeting.welcome.session, std::to_array(greeting.welcome.token));
    if (greeting.welcome.grace_ms != 0) world_.liar_in_grace();
  }

  /// A new session; an honest one's, with a liar's token or any; one that a liar has or had; any bytes.
  df_hello any_hello(std::uint8_t kind, Input& input) {
    const auto role = (kind & 1) == 0 ? DF_ROLE_CONTROL : DF_ROLE_LANE;
    auto hello = LockdWorld::hello_of();
    SessionToken token{};
    switch (kind & 6) {
      case 2: {
        const auto& honest = world_.honest()[kind / 8U % LockdWorld::kHonest];
        if ((kind & 0x80) != 0 && !sessions_.empty())
          token = sessions_.back().second;
        else
          input.fill(token.data(), token.size());
        df_hello_join(&hello, role, honest.session(), token.data());
        return hello;
      }
      case 4: {
        if (sessions_.empty()) return hello;
        const auto& [session, own] = sessions_[kind / 8U % sessions_.size()];
        df_hello_join(&hello, role, session, own.data());
        return hello;
      }
      case 6:
        input.fill(&hello, sizeof hello);
        return hello;
      default:
        hello.role = role;
        return hello;
    }
  }

  void raw(Liar& liar, Input& input) {
    std::vector<std::byte> bytes(input.byte());
    input.fill(bytes.data(), bytes.size());
    world_.daemon().message(liar.connection, bytes);
  }

  /// Takes a shared mode that is free, or X; or gives back what it has. Not while an Ask of its own for the slot stands.
  void lawful(Liar& liar, Input& input) {
    auto& slots = world_.shell().slots;
    const auto index = input.byte() % static_cast<std::uint32_t>(slots.size());
    const auto mode = input.byte() % 4U + 1U;
    auto& mine = liar.slots[index];
    auto& slot = slots[index];
    if (liar.node == 0 || mine.unknown || mine.asks != 0 || slot.key == 0) return;
    if (mine.mode != DF_NL) {
      slot.word -= df_unit(mine.mode, liar.node);
      mine.mode = DF_NL;
    } else if (mode == DF_X ? slot.word == 0 : df_word_admits(slot.word, mode) != 0) {
      slot.hints[liar.node % DF_HINTS] = 1;
      slot.word += df_unit(mode, liar.node);
      mine.mode = mode;
    }
  }

  /// To what lockd asked: the right number, any content.
  void answer(Liar& liar, Input& input) {
    if (liar.questions.empty()) return;
    const auto question = liar.questions[input.byte() % liar.questions.size()].head;
    const auto content = input.byte();
    const std::uint32_t type = question.type == DF_MSG_REVOKE    ? DF_MSG_RELEASED
                               : question.type == DF_MSG_GLIMPSE ? DF_MSG_GLIMPSED
                                                                 : DF_MSG_STATE;
    df_msg message;
    df_msg_init(&message, (content & 0x80) != 0 ? DF_MSG_RELEASED : type, question.slot,
                question.key, question.seq);
    message.bytes[sizeof message.head] =
        type == DF_MSG_GLIMPSED ? content % 2U : content % DF_MODES;
    say(liar, message);
  }

  /// Any message of a client.
  void claim(Liar& liar, Input& input) {
    static constexpr std::uint32_t kTypes[] = {
        DF_MSG_ASK,       DF_MSG_ASK,         DF_MSG_FIND,      DF_MSG_GLIMPSE,
        DF_MSG_RELEASED,  DF_MSG_CANCEL,      DF_MSG_STATE,     DF_MSG_GLIMPSED,
        DF_MSG_FILE_LOCK, DF_MSG_FILE_UNLOCK, DF_MSG_FILE_TEST, DF_MSG_FILE_CANCEL,
        DF_MSG_RECLAIMED, DF_MSG_BYE};
    const auto type = input.byte();
    const auto slot = input.byte() % 22U;
    const auto key = input.byte();
    df_msg message;
    df_msg_init(&message, kTypes[type % std::size(kTypes)], slot, key_of(slot, key), input.byte());
    const auto first = input.byte();
    if (message.head.type == DF_MSG_ASK) {
      message.ask.want = 1 + first % 4;
      message.ask.held = static_cast<std::uint8_t>(lies_about_shared_ ? first / 4U % DF_MODES
                                                                      : liar.slots[slot].mode);
    } else if (message.head.length == sizeof(df_msg_released)) {
      message.bytes[sizeof message.head] = first % 6;
    } else if (message.head.length == sizeof(df_msg_file)) {
      message.head.key = df_key_inode((key & 1) != 0 ? LockdWorld::kFileInode : 1 + key % 5);
      message.file.owner = first % 3;
      message.file.start = input.byte();
      message.file.end = (key & 2) != 0 ? ~0ULL : message.file.start + input.byte();
      message.file.flags = first % 8;
      message.file.type =
          message.head.type == DF_MSG_FILE_UNLOCK ? DF_FILE_NONE : (first / 8U) % 2U;
    }
    say(liar, message);
  }

  std::uint64_t key_of(std::uint32_t slot, std::uint8_t choice) {
    const auto& slots = world_.shell().slots;
    if (choice < 128 && slot < slots.size()) return slots[slot].key;
    return df_key_inode(1 + choice % 30);
  }

  /// Keeps the books on what the word has of the liar, then delivers.
  void say(Liar& liar, const df_msg& message) {
    auto& mine = liar.slots[message.head.slot];
    if (message.head.type == DF_MSG_ASK) ++mine.asks;
    if ((message.head.type == DF_MSG_STATE && message.state.held != mine.mode) ||
        (message.head.type == DF_MSG_RELEASED && message.released.kept != mine.mode))
      mine.unknown = true;
    world_.deliver(liar.connection, message);
  }

  void distribute() {
    world_.distribute(
        [&](ConnectionId connection, const df_msg& message) { hear(connection, message); });
    std::erase_if(
        liars_, [&](const Liar& liar) { return world_.shell().closed.contains(liar.connection); });
  }

  void hear(ConnectionId connection, const df_msg& message) {
    for (auto& liar : liars_) {
      if (liar.connection != connection) continue;
      note(liar, message);
      // As the service does: who does not drain is lost.
      if (++liar.undrained > world_.limits().outgoing())
        world_.daemon().lose_connection(connection, "it does not drain");
      return;
    }
  }

  static void note(Liar& liar, const df_msg& message) {
    const auto type = message.head.type;
    auto& mine = liar.slots[message.head.slot];
    if (type == DF_MSG_GRANT) {
      if (mine.asks != 0) --mine.asks;
      if (message.grant.status == DF_GRANTED) mine.mode = message.grant.mode;
    } else if (type == DF_MSG_REVOKE || type == DF_MSG_FREEZE || type == DF_MSG_GLIMPSE) {
      if (liar.questions.size() >= 8) liar.questions.erase(liar.questions.begin());
      liar.questions.push_back(message);
    }
  }

  const bool lies_about_shared_;
  LockdWorld world_;
  std::vector<Liar> liars_;
  std::vector<std::pair<SessionId, SessionToken>> sessions_;  ///< That liars had.
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (std::getenv("DISTFUSE_FUZZ_LOG") == nullptr) spdlog::set_level(spdlog::level::off);
  Input input({data, size});
  Run run(input.byte());
  while (input.more()) run.step(input);
  run.finish();
  return 0;
}
