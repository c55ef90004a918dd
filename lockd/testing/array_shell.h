// SPDX-License-Identifier: Apache-2.0
// Runs a Daemon over an array, for tests and the fuzzer: chains take effect when told to, messages and closings are noted.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "lockd/daemon.h"

namespace distfuse::lockd::testing {

class ArrayShell : public DaemonActions {
 public:
  explicit ArrayShell(const df_table& table) : slots(df_table_slots(&table)) {
    for (std::uint32_t i = 0; i < slots.size(); ++i) df_lockd_prepare_slot(&slots[i], i);
  }

  void post(std::uint64_t cookie, const df_chain& chain) override {
    chains.emplace_back(cookie, chain);
  }
  void send(ConnectionId connection, std::span<const std::byte> message) override {
    df_msg copy;
    if (df_msg_read(message.data(), static_cast<df_u32>(message.size()), &copy) != DF_CHECK_OK ||
        df_msg_from_lockd(copy.head.type) == 0 || closed.contains(connection))
      std::abort();
    sent.emplace_back(connection, copy);
  }
  void close(ConnectionId connection) override {
    if (!closed.insert(connection).second) std::abort();
  }
  void fence(SessionId session) override { to_fence.push_back(session); }
  std::vector<bool> owners_in_table() override {
    std::vector<bool> owners(0x8000, false);
    for (const auto& slot : slots) owners[df_word_owner(slot.word)] = true;
    return owners;
  }

  /// Numbered: no two are the same.
  SessionToken new_token() override {
    SessionToken token;
    token.fill(0xa5);
    ++tokens;
    std::memcpy(token.data(), &tokens, sizeof tokens);
    return token;
  }

  /// Performs posted chains, oldest first, until none is left; what their completions post as well. At most `most`.
  void run_chains(Daemon& daemon, std::size_t most = 100000) {
    for (std::size_t i = 0; i < most && !chains.empty(); ++i) {
      const auto [cookie, chain] = chains.front();
      chains.pop_front();
      std::uint64_t old = 0;
      const auto image = perform(chain, old);
      daemon.chain_done(cookie, old, image.empty() ? nullptr : image.data());
    }
  }

  /// A chain takes effect; anyone's. `old`: of its atomic. Answers with what its READ brought, empty without one.
  std::vector<std::byte> perform(const df_chain& chain, std::uint64_t& old) {
    std::vector<std::byte> image;
    for (std::uint32_t op = 0; op < chain.count; ++op) perform(chain, chain.op[op], old, image);
    return image;
  }

  std::vector<df_slot> slots;
  std::deque<std::pair<std::uint64_t, df_chain>> chains;
  std::vector<std::pair<ConnectionId, df_msg>> sent;
  std::set<ConnectionId> closed;
  std::vector<SessionId> to_fence;
  std::uint32_t tokens = 0;

 private:
  void perform(const df_chain& chain, const df_op& op, std::uint64_t& old,
               std::vector<std::byte>& image) {
    auto bytes = std::as_writable_bytes(std::span(slots));
    const auto length = op.kind == DF_OP_READ || op.kind == DF_OP_WRITE ? op.length : 8U;
    if (op.offset > bytes.size() || length > bytes.size() - op.offset) std::abort();
    auto* at = bytes.data() + op.offset;
    if (op.kind == DF_OP_READ) image.assign(at, at + length);
    if (op.kind == DF_OP_WRITE) std::memcpy(at, chain.bytes + op.data, length);
    if (op.kind == DF_OP_READ || op.kind == DF_OP_WRITE) return;
    std::memcpy(&old, at, 8);
    const auto fresh = op.kind == DF_OP_FAA ? old + op.operand
                       : old == op.expected ? op.operand
                                            : old;
    std::memcpy(at, &fresh, 8);
  }
};

}  // namespace distfuse::lockd::testing
