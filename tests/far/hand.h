// SPDX-License-Identifier: Apache-2.0
// The hands of this process: for each other guest that it works on, a program there (far_hand, by `vm-agent rsh`, or what DISTFUSE_TEST_RSH
// says in its place) that makes its calls.
//
// A hand belongs to one process, as descriptors and fcntl locks do: a forked child starts hands of its own with its first call, and a
// hand whose process ends, however, ends as well and closes what was open. One thread of a process may use them.
//
// Limits: kMaxHands of a process and its ancestors, descriptors below kMaxRemote of each. A hand that is lost (its guest died or was cut
// off for longer than the agents' connection lasts: vm/agent/tcp.h) stays lost: EHOSTDOWN.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/far/wire.h"

namespace distfuse::tests::far {

inline constexpr int kFirstDescriptor = 1 << 20;
inline constexpr int kMaxRemote = 1 << 16;
inline constexpr int kMaxHands = 64;

/// The command that runs `script` by sh on that guest, with the caller's input and output.
[[nodiscard]] std::vector<std::string> command_on(const std::string& node,
                                                  const std::string& script);

/// A path "NODE:/PATH" names one on another guest.
struct Place {
  std::string node;
  std::string path;
};
[[nodiscard]] std::optional<Place> far_place(const char* path);

/// Makes the call on that guest; for one that answers a descriptor or a mapping, its number here.
[[nodiscard]] Answer call_on(const std::string& node, Call call);
/// As call_on, for the guest that the descriptor or mapping in the first number is of.
[[nodiscard]] Answer call_of(int number, Call call);
/// Whether it stands for one on another guest.
[[nodiscard]] constexpr bool is_far(int number) {
  return number >= kFirstDescriptor;
}
/// As the hand knows it; both numbers must be of one hand, or it is -1.
[[nodiscard]] int remote_number(int number, int of_same);

}  // namespace distfuse::tests::far
