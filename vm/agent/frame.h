// SPDX-License-Identifier: Apache-2.0
// The frames between the host and a guest's agent (virtio-serial), between two agents (TCP on the guests' network), and between
// an agent and programs of its own guest (unix socket).
//
// A frame: channel (u32), type (u8), length (u32), little-endian, then `length` bytes. A channel is one job, named by whoever starts it;
// channel 0 is the guest itself. Both ends check length against kMaxFrame; who breaks it loses its link.
//
//   start   →  a job: flags (u8: 1 a terminal, 2 keep standard input open), then texts, each ended by a zero byte: the folder, the
//              number of environment entries, those entries, the program and its arguments
//   input   →  standard input of the job; empty: its end
//   signal  →  u8: to the job's process group
//   size    →  u16 rows, u16 columns of the job's terminal
//   output  ←  of the job, standard output;  errors ←  standard error
//   exit    ←  u32: the job's exit status, 128 + N for signal N; the channel is free again
//   kernel  ←  a record of /dev/kmsg as the kernel writes it
//   hello   ←  the agent runs; text: the guest's seconds since boot
//   ask     ←  a request of a program in the guest to the host (text); answer → its answer
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace distfuse::vm {

enum class FrameType : std::uint8_t {
  start = 1,
  input = 2,
  signal = 3,
  output = 4,
  errors = 5,
  exit = 6,
  kernel = 7,
  hello = 8,
  ask = 9,
  answer = 10,
  size = 11,
};

inline constexpr std::size_t kFrameHeader = 9;
inline constexpr std::size_t kMaxFrame = 1 << 20;

struct Frame {
  std::uint32_t channel = 0;
  FrameType type = FrameType::hello;
  std::string payload;
};

/// What a `start` frame says.
struct JobRequest {
  bool terminal = false;
  bool keep_input = false;
  std::string folder;
  std::vector<std::string> environment;
  std::vector<std::string> arguments;
};

/// Appends the frame to `out`.
void encode_frame(std::string& out, std::uint32_t channel, FrameType type,
                  std::string_view payload);
/// Takes the first whole frame off `in`, none if it is not there yet. `broken` is set when the peer does not keep to the format.
[[nodiscard]] std::optional<Frame> decode_frame(std::string& in, bool& broken);

[[nodiscard]] std::string encode_job(const JobRequest& request);
/// None: not what encode_job makes.
[[nodiscard]] std::optional<JobRequest> decode_job(std::string_view payload);

[[nodiscard]] std::string encode_u32(std::uint32_t value);
/// `text` must have 4 bytes.
[[nodiscard]] std::uint32_t decode_u32(std::string_view text);

}  // namespace distfuse::vm
