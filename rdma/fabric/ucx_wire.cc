// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_wire.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace distfuse::fabric::ucx {

static_assert(std::endian::native == std::endian::little);

namespace {

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}

  template <typename T>
  T get() {
    T value{};
    const auto bytes = take(sizeof(T));
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  /// A u16 length and that many bytes; more than `limit` is malformed.
  std::vector<std::byte> sized(std::size_t limit) {
    const std::size_t length = get<std::uint16_t>();
    if (length > limit) ok_ = false;
    const auto bytes = take(length);
    return {bytes.begin(), bytes.end()};
  }
  std::span<const std::byte> take(std::size_t length) {
    if (!ok_ || length > in_.size()) {
      ok_ = false;
      return {};
    }
    const auto bytes = in_.first(length);
    in_ = in_.subspan(length);
    return bytes;
  }
  [[nodiscard]] bool finished() const { return ok_ && in_.empty(); }

 private:
  std::span<const std::byte> in_;
  bool ok_ = true;
};

class Writer {
 public:
  Writer(std::vector<std::byte>& out, FrameType type) : out_(out), start_(out.size()) {
    put(std::uint32_t{0});
    put(static_cast<std::uint16_t>(type));
    put(std::uint16_t{0});
  }
  ~Writer() {
    const auto length = static_cast<std::uint32_t>(out_.size() - start_ - kHeaderSize);
    std::memcpy(out_.data() + start_, &length, sizeof(length));
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  template <typename T>
  void put(const T& value) {
    raw({reinterpret_cast<const std::byte*>(&value), sizeof(T)});
  }
  void sized(std::span<const std::byte> bytes) {
    put(static_cast<std::uint16_t>(bytes.size()));
    raw(bytes);
  }
  void raw(std::span<const std::byte> bytes) {
    out_.insert(out_.end(), bytes.begin(), bytes.end());
  }

 private:
  std::vector<std::byte>& out_;
  std::size_t start_;
};

Error malformed(const char* what) {
  return Error{EPROTO, std::string("malformed ") + what};
}

Result<Frame> decode_hello(Reader in) {
  if (in.get<std::uint64_t>() != kMagic) return malformed("hello: not this protocol");
  Hello hello;
  hello.version = in.get<std::uint16_t>();
  hello.host = in.get<HostId>();
  hello.data = in.sized(kMaxConnectData);
  // Another version may have more to say; what it is comes first, so that it can be told.
  if (!in.finished() && hello.version == kVersion) return malformed("hello");
  return Frame{std::move(hello)};
}

Result<Frame> decode_accept(Reader in) {
  if (in.get<std::uint64_t>() != kMagic) return malformed("accept: not this protocol");
  if (in.get<std::uint16_t>() != kVersion) return malformed("accept: another version");
  Accept accept;
  const auto shared = in.get<std::uint8_t>();
  accept.shared = shared != 0;
  accept.region_length = in.get<std::uint64_t>();
  accept.region_address = in.get<std::uint64_t>();
  accept.gate_address = in.get<std::uint64_t>();
  accept.worker = in.sized(kMaxWorkerAddress);
  accept.rkey = in.sized(kMaxRkey);
  accept.data = in.sized(kMaxAcceptData);
  if (!in.finished() || shared > 1) return malformed("accept");
  if (accept.shared && (accept.region_length == 0 || accept.worker.empty() || accept.rkey.empty() ||
                        accept.region_address % 8 != 0 || accept.gate_address % 8 != 0 ||
                        accept.region_address + accept.region_length < accept.region_address)) {
    return malformed("accept: region");
  }
  return Frame{std::move(accept)};
}

Result<Frame> decode_request(Reader in) {
  ChainRequest request;
  request.count = in.get<std::uint8_t>();
  if (request.count == 0 || request.count > kMaxChain) return malformed("chain: length");
  std::size_t written = 0;
  std::size_t read = 0;
  for (std::size_t i = 0; i < request.count; ++i) {
    auto& op = request.operations[i];
    const auto kind = in.get<std::uint8_t>();
    if (kind > static_cast<std::uint8_t>(Op::fetch_add)) return malformed("chain: operation");
    op.op = static_cast<Op>(kind);
    op.offset = in.get<std::uint64_t>();
    op.length = in.get<std::uint32_t>();
    op.operand = in.get<std::uint64_t>();
    op.expected = in.get<std::uint64_t>();
    if (op.op == Op::write) written += op.length;
    if (op.op == Op::read) read += op.length;
  }
  if (written > kMaxTransfer || read > kMaxTransfer) return malformed("chain: moves too much");
  request.data = in.take(written);
  if (!in.finished()) return malformed("chain");
  return Frame{request};
}

}  // namespace

Result<Decoded> decode(std::span<const std::byte> input) {
  if (input.size() < kHeaderSize) return Decoded{};
  Reader header(input.first(kHeaderSize));
  const std::size_t length = header.get<std::uint32_t>();
  const auto type = static_cast<FrameType>(header.get<std::uint16_t>());
  if (header.get<std::uint16_t>() != 0) return malformed("frame header");
  if (type < FrameType::hello || type > FrameType::results) return malformed("frame type");
  if (length > kMaxBody) return malformed("frame: too long");
  // Refused before it has arrived, so that a stranger cannot make us wait for it.
  if (type == FrameType::message && length > kMaxMessage) return malformed("message: too long");
  if (input.size() < kHeaderSize + length) return Decoded{};
  const auto body = input.subspan(kHeaderSize, length);
  Result<Frame> frame = Frame{Message{body}};
  if (type == FrameType::hello) frame = decode_hello(Reader(body));
  if (type == FrameType::accept) frame = decode_accept(Reader(body));
  if (type == FrameType::chain) frame = decode_request(Reader(body));
  if (type == FrameType::results) frame = Frame{ChainResults{body}};
  if (type == FrameType::reject) {
    if (length > kMaxReason) return malformed("reject");
    frame = Frame{Reject{std::string(reinterpret_cast<const char*>(body.data()), length)}};
  }
  if (!frame) return frame.error();
  return Decoded{kHeaderSize + length, std::move(*frame)};
}

void encode(const Hello& hello, std::vector<std::byte>& out) {
  Writer writer(out, FrameType::hello);
  writer.put(kMagic);
  writer.put(hello.version);
  writer.put(hello.host);
  writer.sized(hello.data);
}

void encode(const Accept& accept, std::vector<std::byte>& out) {
  Writer writer(out, FrameType::accept);
  writer.put(kMagic);
  writer.put(kVersion);
  writer.put(static_cast<std::uint8_t>(accept.shared));
  writer.put(accept.region_length);
  writer.put(accept.region_address);
  writer.put(accept.gate_address);
  writer.sized(accept.worker);
  writer.sized(accept.rkey);
  writer.sized(accept.data);
}

void encode(const Reject& reject, std::vector<std::byte>& out) {
  Writer writer(out, FrameType::reject);
  const auto length = std::min(reject.reason.size(), kMaxReason);
  writer.raw({reinterpret_cast<const std::byte*>(reject.reason.data()), length});
}

void encode(const Message& message, std::vector<std::byte>& out) {
  Writer writer(out, FrameType::message);
  writer.raw(message.bytes);
}

void encode_request(std::span<const Operation> chain, std::vector<std::byte>& out) {
  Writer writer(out, FrameType::chain);
  writer.put(static_cast<std::uint8_t>(chain.size()));
  for (const auto& op : chain) {
    writer.put(static_cast<std::uint8_t>(op.op));
    writer.put(op.offset);
    writer.put(op.length);
    writer.put(op.operand);
    writer.put(op.expected);
  }
  for (const auto& op : chain) {
    if (op.op == Op::write) writer.raw({op.local, op.length});
  }
}

std::byte* begin_results(std::size_t size, std::vector<std::byte>& out) {
  {
    Writer writer(out, FrameType::results);
    out.resize(out.size() + size);
  }
  return out.data() + out.size() - size;
}

std::size_t result_size(std::span<const Operation> chain) {
  std::size_t size = 0;
  for (const auto& op : chain) {
    if (op.op == Op::read) size += op.length;
    if (op.op == Op::compare_swap || op.op == Op::fetch_add) size += 8;
  }
  return size;
}

}  // namespace distfuse::fabric::ucx
