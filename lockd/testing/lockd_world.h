// SPDX-License-Identifier: Apache-2.0
// A Daemon over an array, honest clients, time, leases, the list of sessions and lockd's restart: what a fuzzer of liars needs around
// them, and what must hold for the honest whatever the liars do.
//
// Parties: the Daemon; kHonest honest clients, each with kKeys locks and a write lock on a range of a file; whoever owns the world and
// plays the liars through the Daemon.
// Limits: small, so that a liar meets them.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "lockd/testing/honest_client.h"

namespace distfuse::lockd::testing {

/// ArrayShell with leases and the list of sessions.
class LeaseShell : public ArrayShell {
 public:
  using ArrayShell::ArrayShell;
  void record(const SessionChange& change) override { records.push_back(change); }
  void greet(ConnectionId connection, const Greeting& greeting) override {
    greetings.emplace_back(connection, greeting);
  }
  std::uint64_t lease_word(NodeId node) override { return lease_words[node]; }

  std::vector<SessionChange> records;
  std::vector<std::pair<ConnectionId, Greeting>> greetings;
  std::map<NodeId, std::uint64_t> lease_words;
};

class LockdWorld {
 public:
  static constexpr df_table kTable{2, 4, DF_NODE_LOCKD};
  static constexpr std::size_t kHonest = 3;
  static constexpr std::size_t kKeys = 3;
  static constexpr std::uint64_t kFileInode = 77;
  static constexpr Milliseconds kLease = 1000;

  struct Options {
    bool leases = true;
    /// Words and sessions cannot be relied upon: a liar did what is worth a one-sided operation.
    bool scribbled = false;
  };
  explicit LockdWorld(const Options& options);

  Daemon& daemon() { return *daemon_; }
  LeaseShell& shell() { return shell_; }
  std::deque<HonestClient>& honest() { return honest_; }
  [[nodiscard]] const std::vector<std::uint64_t>& keys() const { return keys_; }
  [[nodiscard]] const DaemonLimits& limits() const { return options_.limits; }
  ConnectionId next_connection() { return next_connection_++; }

  /// Hellos and messages as a fabric would carry them. Answers with the Greeting, also one that came after the list was written.
  Greeting hello(ConnectionId connection, const df_hello& hello, const char* peer);
  static df_hello hello_of();
  static df_hello hello_of(df_role role, SessionId session, const SessionToken& token);
  void deliver(ConnectionId connection, const df_msg& message);

  /// Moves one honest client on; `what` says how.
  void honest_step(HonestClient& honest, std::size_t lock, std::uint8_t what);
  /// Time goes on by `ms`; the honest renew. Not past the end of grace while one of them is on its way back.
  void pass_time(Milliseconds ms);
  /// A new lockd: every connection is gone, the table is empty, the list is what it was. Not without leases.
  bool restart();
  /// That honest client comes back, if it is away.
  void come_back(HonestClient& honest);
  /// Whether a Hello brings the token of the honest client's session that it names.
  [[nodiscard]] bool knows_token(const df_hello& hello) const;
  void fence_one();
  /// What lockd has said and asked for since the last call; `other` hears what is not for an honest client.
  using Hear = std::function<void(ConnectionId, const df_msg&)>;
  void distribute(const Hear& other);

  /// What must hold at any time.
  void verify() const;
  /// The liars are gone: everything that the honest wish for is granted, and nothing is left in a word.
  void finish();
  /// A liar came back in grace: it may have taken first what an honest client held.
  void liar_in_grace() { liar_in_grace_ = true; }

 private:
  void create(const std::vector<ListedSession>& listed);
  void join_honest();
  void lock_file(std::size_t i, std::uint8_t flags);
  bool hear_from(HonestClient& honest);
  bool turn();
  void rest();
  void settle();
  void sweep();
  void verify_session(std::size_t i) const;
  void verify_key(std::size_t key) const;
  [[nodiscard]] bool coming_back() const;

  const Options choice_;
  DaemonOptions options_;
  LeaseShell shell_{kTable};
  std::unique_ptr<Daemon> daemon_;
  std::vector<std::uint64_t> keys_;
  std::deque<HonestClient> honest_;
  std::map<SessionId, ListedSession> list_;
  ConnectionId next_connection_ = 1;
  Milliseconds now_ = 0;
  bool liar_in_grace_ = false;
};

}  // namespace distfuse::lockd::testing
