// SPDX-License-Identifier: Apache-2.0
// A rule in place of many fences: every session up to `high` is refused for ever, but for those spared. Pure.
//
// Made of a list of the living that lockd has sent (rdma/lock/session.h). Whoever is on no list up to its `high` has ended, or was noted as lost on
// lockd's disk before it was fenced anywhere, and session ids are never used again: so it is on no later list, and to go on refusing
// it is right whatever lockd says later, also when a later lockd has no leases or no list. Invariant 4 stays: nobody who was refused is
// accepted again (a fence that is known when the rule is made spares nobody), and who is spared can be fenced as ever, beside the rule.
//
// Limits: as many spared as lockd has living sessions (rpc::kMaxSessions).
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>

namespace distfuse::storaged {

class FencedBelow {
 public:
  static constexpr std::size_t kLine = 17;  ///< 16 digits and the newline.

  /// 0 is lockd, or a storaged.
  [[nodiscard]] bool contains(std::uint64_t session) const {
    return session != 0 && session <= high_ && !spared_.contains(session);
  }
  [[nodiscard]] std::uint64_t high() const { return high_; }

  /// Raised to `high`. `fenced` says who is refused by a fence of its own. False: an older list, or one that says nothing; nothing changed.
  template <typename Fenced>
  bool raise(std::uint64_t high, std::span<const std::uint64_t> living, const Fenced& fenced) {
    if (high <= high_) return false;
    std::unordered_set<std::uint64_t> spared;
    for (const auto session : living)
      if (session <= high && !contains(session) && !fenced(session)) spared.insert(session);
    spared_ = std::move(spared);
    high_ = high;
    return true;
  }

  /// Lines of 16 hex digits: `high`, then the spared.
  [[nodiscard]] std::string to_text() const {
    std::string text;
    append(text, high_);
    for (const auto session : spared_) append(text, session);
    return text;
  }
  /// Nothing: it is something else.
  static std::optional<FencedBelow> from_text(std::string_view text) {
    FencedBelow rule;
    if (text.empty() || text.size() % kLine != 0) return {};
    for (std::size_t at = 0; at < text.size(); at += kLine) {
      std::uint64_t number = 0;
      const auto line = text.substr(at, kLine);
      const auto [end, error] = std::from_chars(line.data(), line.data() + kLine - 1, number, 16);
      if (error != std::errc{} || end != line.data() + kLine - 1 || line.back() != '\n') return {};
      if (at == 0)
        rule.high_ = number;
      else
        rule.spared_.insert(number);
    }
    return rule;
  }

 private:
  static void append(std::string& text, std::uint64_t number) {
    char line[kLine];
    for (std::size_t i = 0; i + 1 < kLine; ++i)
      line[i] = "0123456789abcdef"[number >> (60 - 4 * i) & 15];
    line[kLine - 1] = '\n';
    text.append(line, kLine);
  }

  std::uint64_t high_ = 0;
  std::unordered_set<std::uint64_t> spared_;  ///< Up to high_.
};

}  // namespace distfuse::storaged
