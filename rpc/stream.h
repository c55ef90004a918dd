// SPDX-License-Identifier: Apache-2.0
// The TCP stream of a connection: addresses, descriptors, and frames (wire::FrameHead and what follows) gathered without blocking.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/descriptor.h"
#include "common/result.h"
#include "rpc/wire.h"

namespace distfuse::rpc {

/// "host:port", "[v6]:port". Error: EINVAL, with what is expected.
[[nodiscard]] Result<std::pair<std::string, std::string>> split_address(std::string_view address);

/// Error: EADDRINUSE and others, with what to do.
[[nodiscard]] Result<Descriptor> listen_on(std::string_view address);
[[nodiscard]] std::string local_address(int socket);
[[nodiscard]] std::string peer_address(int socket);
/// Starts to connect; writable when done.
[[nodiscard]] Result<Descriptor> start_connect(std::string_view address);
/// No delay; found dead after about 10 s without the peer's machine.
void tune(int socket);

/// Bytes of a frame as they come. Believes nothing: length and magic are checked first.
class FrameReader {
 public:
  enum class State { incomplete, complete, broken };
  /// Reads what is there. broken: end of stream, not this protocol, or longer than kMaxFrame.
  State read(int socket);
  [[nodiscard]] wire::FrameHead head() const;
  [[nodiscard]] std::span<const std::byte> body() const;
  [[nodiscard]] bool saw_bytes() const { return !bytes_.empty(); }

 private:
  std::vector<std::byte> bytes_;
};

/// Frame of `kind` with `fixed` and `tail`.
[[nodiscard]] std::vector<std::byte> make_frame(wire::Kind kind, std::span<const std::byte> fixed,
                                                std::span<const std::byte> tail);
/// A frame is small and first on its stream: it fits the socket's buffer. False: the peer has gone.
[[nodiscard]] bool send_frame(int socket, std::span<const std::byte> frame);

/// The peer has closed it, or it broke; what is still to be read is left.
[[nodiscard]] bool has_ended(int socket);

/// A token nobody can guess.
[[nodiscard]] std::uint64_t draw_token();

}  // namespace distfuse::rpc
