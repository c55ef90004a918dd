// SPDX-License-Identifier: Apache-2.0
#include "vm/agent/frame.h"

#include <charconv>

namespace distfuse::vm {

std::string encode_u32(std::uint32_t value) {
  std::string out;
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(value >> shift));
  return out;
}

std::uint32_t decode_u32(std::string_view text) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i)
    value |= static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])) << (8 * i);
  return value;
}

void encode_frame(std::string& out, std::uint32_t channel, FrameType type,
                  std::string_view payload) {
  out += encode_u32(channel);
  out.push_back(static_cast<char>(type));
  out += encode_u32(static_cast<std::uint32_t>(payload.size()));
  out += payload;
}

std::optional<Frame> decode_frame(std::string& in, bool& broken) {
  if (in.size() < kFrameHeader) return std::nullopt;
  const std::size_t length = decode_u32(std::string_view(in).substr(5));
  if (length > kMaxFrame) {
    broken = true;
    return std::nullopt;
  }
  if (in.size() < kFrameHeader + length) return std::nullopt;
  Frame frame{decode_u32(in), static_cast<FrameType>(in[4]), in.substr(kFrameHeader, length)};
  in.erase(0, kFrameHeader + length);
  return frame;
}

std::string encode_job(const JobRequest& request) {
  std::string out;
  out.push_back(static_cast<char>((request.terminal ? 1 : 0) | (request.keep_input ? 2 : 0)));
  const auto text = [&](std::string_view value) {
    out += value;
    out.push_back('\0');
  };
  text(request.folder);
  text(std::to_string(request.environment.size()));
  for (const std::string& entry : request.environment) text(entry);
  for (const std::string& argument : request.arguments) text(argument);
  return out;
}

std::optional<JobRequest> decode_job(std::string_view payload) {
  if (payload.empty() || payload.back() != '\0') return std::nullopt;
  const int flags = payload[0];
  std::vector<std::string> texts;
  for (std::size_t at = 1; at < payload.size();) {
    const std::size_t end = payload.find('\0', at);
    if (end == std::string_view::npos) return std::nullopt;
    texts.emplace_back(payload.substr(at, end - at));
    at = end + 1;
  }
  if (texts.size() < 3) return std::nullopt;
  std::size_t entries = 0;
  const std::string& count = texts[1];
  const auto [end, error] = std::from_chars(count.data(), count.data() + count.size(), entries);
  if (error != std::errc() || end != count.data() + count.size()) return std::nullopt;
  if (entries > texts.size() - 3) return std::nullopt;
  const auto first = texts.begin() + 2;
  const auto split = first + static_cast<std::ptrdiff_t>(entries);
  return JobRequest{
      (flags & 1) != 0, (flags & 2) != 0, texts[0], {first, split}, {split, texts.end()}};
}

}  // namespace distfuse::vm
