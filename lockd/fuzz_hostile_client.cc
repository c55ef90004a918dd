// SPDX-License-Identifier: Apache-2.0
// Clients that lie, beside clients that keep the rules. Whatever the liars say, in whatever order, the daemon does not crash, keeps
// its limits, and the honest ones notice nothing but delay: their sessions stay, their locks stand in the words and exclude one
// another, their file locks hold, and when the liars are gone everything that they asked for is granted.
//
// Liars speak: hellos of any role and session, lanes of others' sessions, every message that a client may send with any slot, key
// and mode, answers with the right number and any content, raw bytes. Their one-sided operations are lawful (they take what is
// free and give back what they have): what a scribbler can do no lockd can prevent (docs/trust.md). For the same reason a lie
// about a shared mode held (Ask.held), which is worth exactly one FAA, is told only in inputs whose first byte is odd, and the
// words are not checked there.
//
// Input: the first byte as told; then steps, each a byte that says what, a byte that says who, and its data.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>

#include "lockd/testing/honest_client.h"
#include "spdlog/spdlog.h"

namespace {

using namespace distfuse::lockd;
using testing::ArrayShell;
using testing::HonestClient;

constexpr df_table kTable{2, 4, DF_NODE_LOCKD};
constexpr std::size_t kHonest = 3;
constexpr std::size_t kKeys = 3;
constexpr std::size_t kHostile = 3;  ///< Connections at once.
constexpr std::uint64_t kFileInode = 77;

void check(bool good, int line = __builtin_LINE()) {
  if (good) return;
  std::fprintf(stderr, "fuzz_hostile_client.cc:%d: what must hold does not\n", line);
  std::abort();
}

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
  SessionId session = 0;  ///< 0: not accepted, or a lane.
  std::uint32_t node = 0;
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
  explicit Run(bool lies_about_shared) : lies_about_shared_(lies_about_shared) {
    options_.table = kTable;
    options_.limits.sessions = {.sessions = 8, .lanes = 2, .node_ids = 12};
    options_.limits.asks = 4;
    options_.limits.waiters = 12;
    options_.limits.objects = 6;
    options_.limits.file_locks = {.locks_per_session = 8, .locks_total = 24, .waiters_total = 6};
    daemon_ = std::move(Daemon::create(options_, shell_)).value();
    for (std::size_t i = 0; i < kKeys; ++i) keys_.push_back(df_key_inode(1 + i));
    for (std::size_t i = 0; i < kHonest; ++i) join_honest();
    lock_files();
  }

  void step(Input& input) {
    const auto what = input.byte();
    const auto who = input.byte();
    if (what % 16 < 8)
      honest_step(honest_[who % kHonest], who / 16U % kKeys, what);
    else
      hostile_step(what % 16, who, input);
    distribute();
    verify();
  }

  /// The liars go; then every honest wish is granted, and nothing is left in any word.
  void finish() {
    while (!liars_.empty()) {
      daemon_->connection_ended(liars_.back().connection, "the end");
      liars_.pop_back();
    }
    fence_all();
    distribute();
    settle();
    if (!lies_about_shared_) {
      for (auto& honest : honest_)
        for (std::size_t i = 0; i < kKeys; ++i) check(!honest.waits(i));
    }
    sweep();
  }

 private:
  // ---- the honest

  void join_honest() {
    df_hello hello{};
    hello.magic = DF_WIRE_MAGIC;
    hello.version = DF_WIRE_VERSION;
    hello.role = DF_ROLE_CONTROL;
    const auto connection = next_connection_++;
    const auto greeting = daemon_->hello(connection, std::as_bytes(std::span(&hello, 1)), "honest");
    check(greeting.verdict == Daemon::Verdict::control);
    honest_.emplace_back(shell_, connection, greeting.welcome, keys_);
  }

  /// Honest client i holds a write lock on bytes [100 i, 100 i + 99] of one file.
  void lock_files() {
    for (std::size_t i = 0; i < kHonest; ++i) {
      df_msg lock;
      df_msg_init(&lock, DF_MSG_FILE_LOCK, 0, df_key_inode(kFileInode), 1);
      lock.file.owner = 1;
      lock.file.start = 100 * i;
      lock.file.end = 100 * i + 99;
      lock.file.type = DF_FILE_WRITE;
      deliver(honest_[i].control(), lock);
    }
    distribute();
  }

  void honest_step(HonestClient& honest, std::size_t lock, std::uint8_t what) {
    static constexpr std::uint32_t kModes[] = {DF_S, DF_X, DF_X, DF_IX};
    switch (what % 8) {
      case 0:
        return honest.act(lock, kModes[what >> 6], (what & 0x20) != 0);
      case 1:
        return (void)honest.step_chain(lock);
      case 2:
        return (void)hear_from(honest);
      case 3:
        return (void)honest.step_inbox();
      case 4:
        return (void)(honest.step_shed(lock) || honest.step_freeze());
      case 5:
        return shell_.run_chains(*daemon_, what / 16U + 1U);
      case 6:
        for (unsigned i = 0; i < what / 16U + 1U && turn(); ++i) {
        }
        return;
      default:
        if (what >> 6 == 0) return honest.cancel(lock);
        if (what >> 6 == 1) return honest.drop(lock);
        return honest.glimpse(lock);
    }
  }

  bool hear_from(HonestClient& honest) {
    const auto message = honest.say();
    if (message) deliver(honest.control(), *message);
    return message.has_value();
  }

  /// Everything that has begun moves on by one step; nothing new begins.
  bool turn() {
    bool moved = !shell_.chains.empty();
    shell_.run_chains(*daemon_, 1);
    for (auto& honest : honest_) {
      moved = hear_from(honest) || moved;
      distribute();
      moved = honest.step_inbox() || moved;
      moved = honest.step_freeze() || moved;
      for (std::size_t i = 0; i < kKeys; ++i) {
        moved = honest.step_chain(i) || moved;
        moved = honest.step_shed(i) || moved;
      }
    }
    distribute();
    return moved;
  }

  void rest() {
    for (unsigned turns = 0; turn(); ++turns) check(turns < 20000);
  }

  /// Holders let go and those told BUSY ask again, until nobody waits.
  void settle() {
    for (unsigned round = 0; round < 200; ++round) {
      rest();
      bool waiting = false;
      for (auto& honest : honest_) {
        for (std::size_t i = 0; i < kKeys; ++i) {
          if (honest.quiet(i)) continue;
          waiting = waiting || honest.waits(i);
          honest.let_go(i);
        }
      }
      if (!waiting) break;
    }
    rest();
  }

  /// Each lock is had in X once, which puts right what the liars left, and dropped.
  void sweep() {
    if (lies_about_shared_) return;
    for (std::size_t i = 0; i < kKeys; ++i) {
      for (auto& honest : honest_) {
        honest.let_go(i);
        rest();
        honest.act(i, DF_X, false);
        settle();
        check(!honest.waits(i));
        for (auto& other : honest_) {
          other.let_go(i);
          other.drop(i);
        }
        rest();
      }
    }
    const auto counters = daemon_->lock_counters();
    check(counters.waiters == 0 && counters.objects == 0);
    for (const auto& slot : shell_.slots)
      for (const auto key : keys_) check(slot.key != key || slot.word == 0);
  }

  // ---- the liars

  void hostile_step(unsigned what, std::uint8_t who, Input& input) {
    if (what == 8) return hostile_hello(input);
    if (what == 9) {
      if (!shell_.to_fence.empty()) fence_one();
      return;
    }
    if (liars_.empty()) return;
    auto& liar = liars_[who % liars_.size()];
    switch (what) {
      case 10:
        daemon_->connection_ended(liar.connection, "it left");
        liars_.erase(liars_.begin() + who % static_cast<std::ptrdiff_t>(liars_.size()));
        return;
      case 11:
        return raw(liar, input);
      case 12:
        return lawful(liar, input);
      case 13:
        return answer(liar, input);
      default:
        return claim(liar, input);
    }
  }

  void hostile_hello(Input& input) {
    if (liars_.size() >= kHostile) return;
    df_hello hello{};
    hello.magic = DF_WIRE_MAGIC;
    hello.version = DF_WIRE_VERSION;
    const auto kind = input.byte();
    hello.role = (kind & 1) == 0 ? DF_ROLE_CONTROL : DF_ROLE_LANE;
    if ((kind & 6) == 2 && hello.role == DF_ROLE_CONTROL)
      hello.session = honest_[kind / 8U % kHonest].session();
    if ((kind & 6) == 4) hello.session = std::uint64_t{1} << 32 | ((kind >> 3) + 4);
    if ((kind & 6) == 6) input.fill(&hello, sizeof hello);
    const auto connection = next_connection_++;
    const auto greeting =
        daemon_->hello(connection, std::as_bytes(std::span(&hello, 1)), "hostile");
    using Verdict = Daemon::Verdict;
    if (greeting.verdict != Verdict::control && greeting.verdict != Verdict::lane) return;
    if (kind == 0xf0) return daemon_->withdraw(connection);
    auto& liar = liars_.emplace_back();
    liar.connection = connection;
    if (greeting.verdict != Verdict::control) return;
    liar.session = greeting.welcome.session;
    liar.node = greeting.welcome.node;
  }

  void raw(Liar& liar, Input& input) {
    std::vector<std::byte> bytes(input.byte());
    input.fill(bytes.data(), bytes.size());
    daemon_->message(liar.connection, bytes);
  }

  /// Takes a shared mode that is free, or X; or gives back what it has. Not while an Ask of its own for the slot stands.
  void lawful(Liar& liar, Input& input) {
    const auto index = input.byte() % static_cast<std::uint32_t>(shell_.slots.size());
    const auto mode = input.byte() % 4U + 1U;
    auto& mine = liar.slots[index];
    auto& slot = shell_.slots[index];
    if (liar.session == 0 || shell_.closed.contains(liar.connection) || mine.unknown ||
        mine.asks != 0 || slot.key == 0)
      return;
    if (mine.mode != DF_NL) {
      slot.word -= df_unit(mine.mode, liar.node);
      mine.mode = DF_NL;
    } else if ((mode == DF_X ? slot.word : slot.word & ~DF_CONTENDED) == 0 ||
               (mode != DF_X && df_word_admits(slot.word, mode) != 0)) {
      slot.hints[liar.node % DF_HINTS] = 1;
      slot.word += df_unit(mode, liar.node);
      mine.mode = mode;
    }
  }

  /// To what lockd asked: the right number, any content.
  void answer(Liar& liar, Input& input) {
    if (liar.questions.empty()) return;
    const auto& question = liar.questions[input.byte() % liar.questions.size()].head;
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
      message.head.key = df_key_inode((key & 1) != 0 ? kFileInode : 1 + key % 5);
      message.file.owner = first % 3;
      message.file.start = input.byte();
      message.file.end = (key & 2) != 0 ? ~0ULL : message.file.start + input.byte();
      message.file.flags = first % 8;
      message.file.type =
          message.head.type == DF_MSG_FILE_UNLOCK ? DF_FILE_NONE : (first / 8U) % 2U;
    }
    say(liar, message);
  }

  std::uint64_t key_of(std::uint32_t slot, std::uint8_t choice) const {
    if (choice < 128 && slot < shell_.slots.size()) return shell_.slots[slot].key;
    return df_key_inode(1 + choice % 30);
  }

  /// Keeps the books on what the word has of the liar, then delivers.
  void say(Liar& liar, const df_msg& message) {
    const auto slot = message.head.slot;
    auto& mine = liar.slots[slot];
    if (message.head.type == DF_MSG_ASK) ++mine.asks;
    if ((message.head.type == DF_MSG_STATE && message.state.held != mine.mode) ||
        (message.head.type == DF_MSG_RELEASED && message.released.kept != mine.mode))
      mine.unknown = true;
    deliver(liar.connection, message);
  }

  void deliver(ConnectionId connection, const df_msg& message) {
    daemon_->message(connection, std::as_bytes(std::span(message.bytes, message.head.length)));
  }

  // ---- what lockd does

  void fence_one() {
    const auto session = shell_.to_fence.front();
    shell_.to_fence.erase(shell_.to_fence.begin());
    daemon_->fenced(session);
  }

  void fence_all() {
    while (!shell_.to_fence.empty()) fence_one();
  }

  void distribute() {
    while (!shell_.sent.empty()) {
      const auto sent = std::exchange(shell_.sent, {});
      for (const auto& [connection, message] : sent) hand_over(connection, message);
    }
    std::erase_if(liars_,
                  [&](const Liar& liar) { return shell_.closed.contains(liar.connection); });
  }

  void hand_over(ConnectionId connection, const df_msg& message) {
    for (auto& honest : honest_)
      if (honest.control() == connection) honest.hear(message);
    for (auto& liar : liars_) {
      if (liar.connection != connection) continue;
      note(liar, message);
      // As the service does: who does not drain is lost.
      if (++liar.undrained > options_.limits.outgoing())
        daemon_->lose_connection(connection, "it does not drain");
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

  // ---- what must hold

  void verify() const {
    const auto counters = daemon_->lock_counters();
    check(counters.waiters <= options_.limits.waiters);
    check(counters.objects <= options_.limits.objects);
    check(daemon_->file_locks().counts().locks <= 24);
    for (const auto& [id, session] : daemon_->sessions().all())
      check(daemon_->requests(session) <= options_.limits.asks);
    for (std::size_t i = 0; i < kHonest; ++i) verify_session(i);
    if (lies_about_shared_) return;
    for (std::size_t key = 0; key < kKeys; ++key) verify_key(key);
  }

  void verify_session(std::size_t i) const {
    const auto& honest = honest_[i];
    if (lies_about_shared_) return;
    const auto* session = daemon_->sessions().find(honest.session());
    check(session != nullptr && session->state == SessionState::live &&
          session->control == honest.control());
    FileLockRequest request;
    request.space = {kFileInode, false};
    request.owner = {1, 99};  // Nobody.
    request.start = 100 * i;
    request.end = 100 * i + 99;
    const auto conflict = daemon_->file_locks().test(request);
    check(conflict && conflict->owner.session == honest.session() &&
          conflict->start == request.start && conflict->end == request.end);
  }

  void verify_key(std::size_t key) const {
    std::map<std::uint32_t, df_slot> needed;
    for (const auto& a : honest_) {
      const auto held = a.holds(key);
      if (held.mode == DF_NL) continue;
      const auto& slot = shell_.slots[held.slot];
      check(slot.key == keys_[key]);
      if (held.mode == DF_X) check(df_word_owner(slot.word) == a.node());
      needed[held.slot].word += df_unit(held.mode, a.node());
      for (const auto& b : honest_)
        check(&a == &b || df_compatible(held.mode, b.effective(key)) != 0);
    }
    check(needed.size() <= 1);  // One key, one slot.
    for (const auto& [index, sum] : needed) {
      const auto word = shell_.slots[index].word;
      check(df_word_is(word) >= df_word_is(sum.word));
      check(df_word_ix(word) >= df_word_ix(sum.word));
      check(df_word_s(word) >= df_word_s(sum.word));
    }
  }

  const bool lies_about_shared_;
  DaemonOptions options_;
  ArrayShell shell_{kTable};
  std::unique_ptr<Daemon> daemon_;
  std::vector<std::uint64_t> keys_;
  std::deque<HonestClient> honest_;
  std::vector<Liar> liars_;
  ConnectionId next_connection_ = 1;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  spdlog::set_level(spdlog::level::off);
  Input input({data, size});
  Run run((input.byte() & 1) != 0);
  while (input.more()) run.step(input);
  run.finish();
  return 0;
}
